"""The tutorial can be typed through: each of its commands up to the GPU, in order, on fewer pictures and steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DOCS

PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8").split("## With a GPU")[0]
COMMANDS = re.findall(r"^ {4}(physseg .+|python docs/.+)$", PAGE, re.MULTILINE)
CONFIG = re.search(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def typed(command: str, *arguments: str) -> list[str]:
    """The words of a command line, as this Python runs them."""
    program, *words = shlex.split(command)
    if program == "python":
        return [sys.executable, str(DOCS.parent / words[0]), *words[1:], *arguments]
    return [sys.executable, "-m", "physseg", *words, *arguments]


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_data_set_is_what_the_tutorial_says(tmp_path: Path) -> None:
    run(typed(COMMANDS[0], "10"), tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    names = [f"scene_{index:03d}" for index in range(10)]
    images, labels = (
        [f"shapes/{kind}/{name}{end}" for name in names] for kind, end in (("images", ".jpg"), ("labels", ".png"))
    )
    assert files == ["shapes/classes.txt", *images, *labels, "shapes/train.txt", "shapes/val.txt"]
    assert (tmp_path / "shapes" / "val.txt").read_text().split() == names[8:]
    assert "scene_099.jpg" in PAGE and COMMANDS[0].endswith("shapes")  # the last of a hundred, one for validation


@pytest.mark.torture
def test_the_tutorial_can_be_typed_through(tmp_path: Path) -> None:
    assert CONFIG
    (tmp_path / "config.toml").write_text(CONFIG[1], encoding="utf-8")
    for command in COMMANDS:
        short = ("--set", "steps=1") if command.startswith("physseg train config.toml --out") else ()
        run(typed(command, *short), tmp_path)
    assert (tmp_path / "predictions" / "scene_099_overlay.png").is_file()
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert (tmp_path / "compared" / "index.html").is_file()
