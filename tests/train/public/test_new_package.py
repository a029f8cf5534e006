"""`physseg plugins new`: what it writes passes its own test at once, and it writes over nothing."""

import inspect
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from physseg.cli import app
from physseg.common.errors import PhyssegError
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name.startswith("physseg_"):
            del sys.modules[name]


def new(*words: str) -> str:
    """Run the command; raises what it raises, as `main` catches it."""
    done = CliRunner().invoke(app, ["plugins", "new", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("extractor", {"physseg.extractors": {"deep_edges": "physseg_deep_edges:DeepEdges"}}),
        ("loss", {"physseg.losses": {"deep_edges": "physseg_deep_edges:DeepEdges"}}),
        ("dataset", {"physseg.datasets": {"deep_edges": "physseg_deep_edges:DeepEdges"}}),
    ],
)
def test_a_new_package_passes_its_test(
    kind: str, entry: object, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    printed = new("deep_edges", "--kind", kind)
    package = folder / "physseg-deep-edges"
    assert "cd physseg-deep-edges && pip install" in printed
    written = {path.name for path in package.iterdir()}
    assert written == {"pyproject.toml", "README.md", "physseg_deep_edges.py", "test_physseg_deep_edges.py"}
    assert not any("$" in path.read_text() for path in package.iterdir())
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["name"] == "physseg-deep-edges"
    assert project["project"]["entry-points"] == entry
    assert project["tool"]["setuptools"]["py-modules"] == ["physseg_deep_edges"]
    monkeypatch.syspath_prepend(package)
    tests = runpy.run_path(str(package / "test_physseg_deep_edges.py"))
    ran = [test for name, test in tests.items() if name.startswith("test_")]
    for test in ran:
        test(*[tmp_path_factory.mktemp("pictures")] * ("tmp_path" in inspect.signature(test).parameters))
    assert ran


def test_another_folder(folder: Path) -> None:
    new("far", "--out", "there/of_it")
    assert sorted(path.name for path in (folder / "there").iterdir()) == ["of_it"]
    assert (folder / "there/of_it/physseg_far.py").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Upper"], "expected small letters"),
        (["has-hyphen"], "expected small letters"),
        (["9th"], "expected small letters"),
        (["../up"], "expected small letters"),
        (["lambda"], "expected small letters"),
        (["a" * 41], "expected small letters"),
        (["canny"], "the name canny is taken among extractors"),
        (["labels"], "the name labels is taken"),
        (["cell_counts"], "the name cell_counts is taken"),
        (["structure", "--kind", "loss"], "the name structure is taken among losses"),
        (["gamma", "--kind", "loss"], "the name gamma is taken"),
        (["update", "--kind", "loss"], "the name update is taken"),
        (["folder", "--kind", "dataset"], "the name folder is taken among datasets"),
    ],
)
def test_a_name_that_cannot_be_is_refused(words: list[str], message: str, folder: Path) -> None:
    with pytest.raises(PhyssegError, match=message):
        new(*words)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_nothing_is_written_over(what: str, folder: Path) -> None:
    target = folder / "physseg-near"
    {"folder": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to("nowhere")}[what]()
    with pytest.raises(PhyssegError, match="physseg-near: exists already"):
        new("near")
    assert [path.name for path in folder.iterdir()] == ["physseg-near"]


def test_a_name_of_another_kind_is_free(folder: Path) -> None:
    new("folder")
    assert (folder / "physseg-folder").is_dir()


def test_a_failure_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the last file."""

    def full(path: Path, *_: object, **__: object) -> None:
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device", str(path))
        Path.touch(path)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        new("near")
    assert list(folder.iterdir()) == []
