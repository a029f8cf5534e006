"""`physseg demo` from end to end, very small; and what it does with folders that are there already."""

import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from physseg.cli import app
from physseg.common.text import percent
from physseg.train.demo import chain
from physseg.train.demo.chain import _OURS, MARKER, DemoError, DemoSettings, begin
from typer.testing import CliRunner, Result

from ...browser import browser, laid_out, needs_browser
from ...forked import Forked, calling

SMALL = ("--steps", "3", "--num-images", "8", "--seed", "2")


class Demos:
    """`physseg demo` in this process; each of its commands is a process of its own, forked from a ready one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, out: Path, *arguments: str, command: str = "") -> Result:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chain.subprocess, "run", self._run)
            patch.chdir(out.parent)
            words = ["demo", *command.split(), "--out", out.name, *arguments]
            return CliRunner().invoke(app, words, catch_exceptions=False)

    def _run(self, words: Sequence[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        assert words[:3] == [sys.executable, "-m", "physseg.cli"] and not check
        process = Forked(calling(*words[3:]), self.folder / f"{uuid.uuid4().hex}.txt")
        code = process.wait(300)
        typer.echo(process.text(), nl=False)
        return subprocess.CompletedProcess(words, code)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demos:
    return Demos(tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def made(demo: Demos, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("demo") / "small"
    done = demo(out, *SMALL)
    assert done.exit_code == 0, done.output
    return out, done


@pytest.mark.slow
def test_chain_runs_the_public_commands_in_order_and_says_how_long_each_took(
    made: tuple[Path, Result],
):
    _, done = made
    commands = re.findall(r"^\$ physseg (\S+)(?: folder)?.*\n(?:.*\n)*?  \(\d+\.\d s\)$", done.stdout, re.MULTILINE)
    assert commands == [
        *("manifest", "manifest", "preprocess", "verify"),
        *("inspect", "inspect", "inspect", "train", "evaluate", "predict", "train", "evaluate", "predict"),
    ]
    assert "--set losses.lambda_p=0 --set losses.lambda_sac=0" in done.stdout


@pytest.mark.slow
def test_results_hold_the_scores_and_chance_levels(made: tuple[Path, Result]):
    out, done = made
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    evaluation = json.loads((out / "run" / "evaluations" / "val-step_00000003.json").read_text(encoding="utf-8"))
    for group in ("seen", "unseen"):
        rows = [results["zero_shot"][group], results["baseline"][group], results[group]]
        told = r"mIoU +seen classes +unseen classes\n" + "".join(
            rf".*{percent(row['miou'], digits=1)}.*\n" for row in rows
        )
        assert re.search(told, done.stdout)
        assert results[group]["miou"] == pytest.approx(evaluation[group]["miou"])
        assert 0 < results[group]["uniform"] < 0.2
    assert results["settings"] | {"physseg": ""} == {
        "physseg": "",
        "steps": 3,
        "seed": 2,
        "num_train": 8,
        "num_val": 2,
    }


@pytest.mark.slow
def test_page_holds_everything_and_needs_nothing(made: tuple[Path, Result]):
    out, done = made
    page = (out / "demo.html").read_text(encoding="utf-8")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert done.stdout.strip().endswith(str((out / "demo.html").resolve()))
    assert f"<b>{percent(results['seen']['miou'], digits=1)}</b>" in page
    assert page.count("<polyline") == 14, "the sum, three losses and three structures, each raw and smoothed"
    pictures = 3 * 2 + 4 * 7 + 2 * 5
    assert page.count("data:image/") == pictures, "scenes with labels, structures, predictions of three models"
    assert "physseg preprocess small/train.parquet small/train.zarr" in page
    assert not re.search(r"https?://|<script|<link|url\(", page)


@pytest.mark.slow
@needs_browser
def test_page_fits_a_telephone_and_a_screen_by_day_and_by_night(made: tuple[Path, Result], tmp_path: Path):
    with browser(tmp_path / "profile") as port:
        for width in (390, 1280):
            seen = [laid_out(port, made[0] / "demo.html", width=width, dark=dark) for dark in (False, True)]
            for found in seen:
                assert found["width"] <= width
                assert (found["images"], found["broken"]) == (3 * 2 + 4 * 7 + 2 * 5, 0)
                paper, ink = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink"))
                assert abs(paper - ink) > 3 * 128
            assert seen[0]["paper"] != seen[1]["paper"]


@pytest.mark.slow
def test_training_split_never_names_or_shows_an_unseen_pair(made: tuple[Path, Result]):
    out, _ = made
    words = (out / "run" / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    evaluation = json.loads((out / "run" / "evaluations" / "val-step_00000003.json").read_text(encoding="utf-8"))
    unseen = {row["name"] for row in evaluation["classes"] if not row["seen"]}
    assert len(unseen) == 4
    assert not unseen & set(words)


@pytest.mark.slow
def test_same_settings_go_on_and_a_lost_run_comes_back_with_the_same_numbers(
    demo: Demos, made: tuple[Path, Result], tmp_path: Path
):
    out, first = made
    copy = tmp_path / "small"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "run")
    again = demo(copy, *SMALL)
    assert again.exit_code == 0, again.output
    assert "resuming the demo" in again.stdout
    assert json.loads((copy / "results.json").read_text(encoding="utf-8"))["resumed"] is True
    for wanted in ("both losses  .*", "On unseen classes .*"):
        assert re.findall(wanted, again.stdout) == re.findall(wanted, first.stdout) != []


def test_other_settings_start_over_and_keep_foreign_files(tmp_path: Path):
    said: list[str] = []
    begin(tmp_path / "d", DemoSettings(seed=1), say=said.append)
    (tmp_path / "d" / "run").mkdir()
    (tmp_path / "d" / "scenes_done").touch()
    (tmp_path / "d" / "notes.txt").write_text("mine", encoding="utf-8")
    begin(tmp_path / "d", DemoSettings(seed=1), say=said.append)
    assert (tmp_path / "d" / "run").is_dir()
    begin(tmp_path / "d", DemoSettings(seed=2), say=said.append)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [MARKER, "notes.txt"]
    assert "resuming" in said[0] and "starting over" in said[1]
    assert json.loads((tmp_path / "d" / MARKER).read_text(encoding="utf-8"))["seed"] == 2


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights").write_text("precious", encoding="utf-8")
    with pytest.raises(DemoError, match="other files") as caught:
        begin(tmp_path, DemoSettings(), say=lambda _: None)
    assert "--out" in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["run", "weights"]
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match="a file"):
        begin(tmp_path / "file", DemoSettings(), say=lambda _: None)


def test_a_step_that_fails_is_named_with_its_command_and_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder where the manifest must go: `physseg manifest` fails, and so does the demo."""
    out = tmp_path / "small"
    begin(out, DemoSettings(steps=3, seed=2, num_train=4, num_val=1), say=lambda _: None)
    (out / "train.parquet").mkdir()
    monkeypatch.chdir(tmp_path)  # as typed, down to the processes
    done = Forked(calling("demo", "-o", "small", "--steps", 3, "--num-images", 4, "--seed", 2), tmp_path / "output.txt")
    assert done.wait(120) == 1
    assert "physseg manifest folder" in done.text()
    assert "ended with exit code 1" in done.text()
    assert "Traceback" not in done.text()


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"num_train": 0}, {"num_val": -1}, {"seed": -1}])
def test_settings_are_checked(wrong: dict[str, int]):
    with pytest.raises(DemoError, match=next(iter(wrong))):
        DemoSettings(**wrong)


@pytest.mark.slow
def test_starting_over_removes_all_that_a_demo_writes(made: tuple[Path, Result]):
    out, _ = made
    assert {path.name for path in out.iterdir()} == {MARKER, *_OURS}
