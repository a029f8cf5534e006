"""Names are the same in all commands, old ones work, and the help says what a person needs."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from physseg.cli import app, main
from physseg.common.command_line.app import in_new_names, table
from physseg.common.command_line.options import show, to_write
from physseg.common.errors import PhyssegError
from physseg.common.progress import ProgressBar
from physseg.manifests.commands import QUARANTINE_EXIT
from physseg.train.errors import NonFiniteLossError
from typer.main import get_command
from typer.testing import CliRunner

PAGE = (Path(__file__).parents[3] / "docs/command_line.md").read_text(encoding="utf-8")


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its path, groups too."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}".strip())


ALL = dict(commands(get_command(app)))


@pytest.mark.parametrize(
    ("command", "before", "now"),
    [
        ("manifest folder", "--images i --labels l --classes c.txt", "--images i --labels l --classes-file c.txt"),
        ("manifest ade20k-150", "--list few.txt", "--list few.txt"),
        ("preprocess", "s.zarr --manifest m", "s.zarr --manifest m"),  # never was
        ("plan", "m --images 8 --json", "m --num-images 8 --json -"),
        ("plan", "--json m s.zarr", "--json - m s.zarr"),
        ("plan", "m --json plan.json", "m --json plan.json"),
        ("plan", "m --json ../plan.v2.txt", "m --json ../plan.v2.txt"),
        ("plan", "m --json s3://b/s.zarr", "m --json - s3://b/s.zarr"),
        ("inspect", "--json ../s.v2.zarr", "--json - ../s.v2.zarr"),
        ("verify", "s --images --repair", "s --check-images --repair"),
        ("inspect", "--json --measure 3 s", "--json - --measure 3 s"),
        ("inspect", "s --max-samples=3 --html h", "s --num-images=3 --html h"),
        ("train", "--list", "--recipes"),
        ("train", "c --set a=b -- --list", "c --set a=b -- --list"),
        ("report", "r --output h", "r --out h"),
        ("evaluate", "r m --max-images 3 --memory 1GiB", "r m --num-images 3 --memory-limit 1GiB"),
        ("predict", "r i --classes a,b --memory=1GiB", "r i --classes a,b --memory-limit=1GiB"),
        ("judge", "p --manifest m --json j", "p --json j m"),
        ("judge", "p --manifest", "p"),
        ("demo", "--images 8 pretrain --steps 3", "--num-images 8 pretrain --steps 3"),
        ("analyse ablation", "t c --eval m --eval n --jobs 2", "t c --jobs 2 m n"),
        ("analyse compare", "a b --manifest=m --max-images 2", "a b --num-images 2 m"),
        ("weights list", "--clip c --json", "--clip c --json -"),
        ("superpoint textures", "f --number 2", "f --num-images 2"),
        ("superpoint evaluate", "w --out f.txt", "w --json f.txt"),
        ("plugins", "--json", "--json -"),
        ("plugins", "new x --out y", "new x --out y"),
    ],
)
def test_old_names_are_read_as_new_ones_and_a_line_says_so(
    command: str, before: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_new_names(ALL[command], before.split()) == now.split()
    notes = capsys.readouterr().err.splitlines()
    assert bool(notes) == (before != now) and len(set(notes)) == len(notes)
    assert in_new_names(ALL[command], now.split()) == now.split()
    assert not capsys.readouterr().err


def main_exit(code: int) -> None:
    with pytest.raises(SystemExit) as end:
        main()
        raise SystemExit(0)
    assert (end.value.code or 0) == code


def test_a_name_is_of_one_kind_and_has_one_short_form_in_all_commands() -> None:
    kinds: dict[str, set[str]] = {}
    shorts: dict[str, set[str]] = {}
    for command in ALL.values():
        for option in (one for one in command.params if one.param_type_name == "option"):
            (long,) = [name for name in option.opts if name.startswith("--")]
            words = str(option.type_descriptor.annotation) if hasattr(option, "type_descriptor") else option.type.name
            number = re.search("int|float", words.lower())
            kinds.setdefault(long, set()).add("flag" if option.is_flag else "number" if number else "text")
            short = {name for name in option.opts if name != long}
            shorts.setdefault(long, set()).add("".join(short))
            assert set(option.opts) >= {long} and len(short) <= 1
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}
    assert {name: short for name, short in shorts.items() if len(short) > 1} == {}
    used = [short for (short,) in shorts.values() if short]
    assert len(used) == len(set(used))
    assert {"-c", "-d", "-n", "-o", "-s", "-w", "-q", "-V"} <= set(used)
    devices = {path: one.default for path, command in ALL.items() for one in command.params if one.name == "device"}
    configured = {"preprocess", "train"}  # a store and a configuration have their own
    assert devices == {path: None if path in configured else "auto" for path in devices} and configured < set(devices)


def help_of(path: str) -> str:
    """What `physseg PATH --help` prints on a terminal of 80 columns."""
    command, name = ALL[path], f"physseg {path}".strip()
    context = command.context_class(command, info_name=name, terminal_width=80, help_option_names=["-h"])
    return str(command.get_help(context))


@pytest.mark.parametrize("path", ALL)
def test_the_help_of_every_command_has_examples_that_its_options_know(path: str) -> None:
    text = help_of(path)
    assert not re.search(r"<\w+>|list\[|\{\w+\}", text), text  # types in words
    shown = text.split("Examples:\n")[1].split("\n\n")[0]
    assert shown.splitlines() == [f"  {line}" for line in table("examples")[path].splitlines()]
    for line in shown.replace("\\\n", " ").splitlines():
        words = shlex.split(line.split("-m physseg")[-1].removeprefix("  physseg").split(">")[0])
        command = ALL[""]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert any(command is known for name, known in ALL.items() if name.startswith(path)), line
        options = {name for one in command.params for name in one.opts}
        assert {word for word in words if re.match("--?[a-zA-Z]", word)} <= options, line
        assert in_new_names(command, words) == words


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if hasattr(command, "commands")])
def test_six_words_of_every_command_stand_in_the_list_at_80_columns(path: str) -> None:
    for name in ALL[path].commands:
        (said,) = re.findall(rf"^  {name} +(.+)$", help_of(path), re.MULTILINE)
        assert said.endswith(".") and (not said.endswith("...") or len(said.split()) >= 6), said


@pytest.mark.parametrize("line", ["-V inspect s.zarr", "inspect s.zarr --version", "weights list -V --json -"])
def test_the_version_may_be_asked_for_anywhere(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["physseg", *line.split()])
    main_exit(0)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_python_runs_the_package_as_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["physseg", "plan", "-h"])
    with pytest.raises(SystemExit):
        runpy.run_module("physseg", run_name="__main__", alter_sys=True)
    assert "plan [OPTIONS] MANIFEST [STORE]" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["-q manifest -h", "manifest folder -h --quiet"])
def test_quiet_anywhere_hides_every_bar(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PHYSSEG_QUIET", "")  # restored
    assert not ProgressBar(total=3, disable=False).disable
    monkeypatch.setattr(sys, "argv", ["physseg", *line.split()])
    main_exit(0)
    assert "Examples:" in capsys.readouterr().out
    assert ProgressBar(total=3, disable=False).disable


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("preprocess m s --structures canny,si", ["canny,sift"]),
        ("preprocess m s -d ", ["cpu", "cuda"]),
        ("evaluate r --benchmark ade", ["ade20k-150", "ade20k-847"]),
        ("evaluate r m -d ", ["auto", "cpu", "cuda"]),
        ("predict r i --checkpoint b", ["best"]),
        ("train vit-", ["vit-b-16", "vit-h-14", "vit-l-14"]),
        ("analyse ablation table3 vit-b", ["vit-b-16"]),
        ("weights fetch metaclip_4", ["metaclip_400m"]),
        ("weights list --clip ViT-L-14-3", ["ViT-L-14-336"]),
        ("inspect --num", ["--num-images"]),
        ("evaluate --mem", ["--memory-limit"]),
    ],
)
def test_a_shell_completes_names_and_values(line: str, expected: list[str]) -> None:
    words = ["physseg", *line.split(" ")]
    shell = {"_PHYSSEG_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = CliRunner().invoke(app, [], env=shell, prog_name="physseg")
    assert sorted(set(done.output.split())) == expected, done.output


def rows_of(first: str) -> list[list[str]]:
    lines = PAGE.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_has_the_exit_codes_and_the_old_names_of_the_code() -> None:
    codes = table("names")["exit_codes"]
    assert rows_of("code") == [[code, text] for code, text in codes.items()]
    assert all(f"\n  {code} " in help_of("") for code in codes) and "Exit codes" not in help_of("train")
    assert (PhyssegError.exit_code, QUARANTINE_EXIT, NonFiniteLossError.exit_code) == (1, 3, 4)
    old = {before.split("`")[1]: re.findall(r"--[\w-]+|[A-Z]+", now) for before, now in rows_of("before")}
    assert old == table("names")["old"]


def test_what_is_found_is_printed_and_written_or_printed_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # "-" is no file there
    for file, printed in ((None, "one: 1\n"), (tmp_path / "a.json", "one: 1\n"), (Path("-"), '{\n "one": 1\n}\n')):
        show("one: 1", {"one": 1}, to_write(file))
        assert capsys.readouterr().out == printed
    assert json.loads((tmp_path / "a.json").read_text()) == {"one": 1} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IsADirectoryError):
        to_write(tmp_path)
