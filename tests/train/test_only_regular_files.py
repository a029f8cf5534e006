"""A FIFO in the place of a file to read is one line, and so is a place that cannot be written: before any work."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from physseg.cli import main
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame

from ..conftest import write_shapes
from .conftest import MODEL, to_toml

FOLDER = "manifest folder --images images --labels labels --classes-file classes.txt --out o.parquet"
STUFF = (
    "manifest coco-stuff --images images --stuff-json a.json --instances-json b.json --write-labels l --out o.parquet"
)
PREPROCESS = "preprocess m.parquet new.zarr --scheduler sync"
SUPERPOINT = f"{PREPROCESS} --structures superpoint --set superpoint.weights=w.pth"
TRAIN = "train config.toml --out"
JUDGE = "judge none m.parquet"

READ = (
    (FOLDER, "classes.txt"),
    (f"{FOLDER} --list list.txt", "list.txt"),
    (FOLDER, "images/000.jpg"),
    (STUFF, "a.json"),
    (PREPROCESS, "m.parquet"),
    (PREPROCESS, "new.zarr.log.jsonl"),
    (SUPERPOINT, "w.pth"),
    (f"{TRAIN} new", "config.toml"),
    (f"{TRAIN} new", "images/000.jpg"),
    (f"{TRAIN} new --set model.prompts=prompts.txt", "prompts.txt"),
    (f"{TRAIN} new --set clip_weights=./w.pt", "w.pt"),
    (f"{TRAIN} new --set clip_weights=openai --set model.clip=ViT-B-16", "cache/clip/ViT-B-16/openai/weights.json"),
    (f"{TRAIN} run", "run/config.json"),
    (f"{TRAIN} run", "run/log.jsonl"),
    (f"{TRAIN} run", "run/checkpoints/step_00000001/state.json"),
    (f"{TRAIN} run", "run/checkpoints/step_00000001/trainer.pt"),
    ("evaluate run m.parquet --checkpoint best", "run/best.json"),
    ("evaluate run m.parquet --prompts prompts.txt", "prompts.txt"),
    ("evaluate --merge part.json", "part.json"),
    ("predict run images/000.jpg --classes-file classes.txt", "classes.txt"),
    ("predict run images/000.jpg --classes a,b", "images/000.jpg"),
    ("judge a.json m.parquet", "a.json"),
    ("judge a.npz", "a.npz"),
    ("judge a.csv", "a.csv"),
    ("judge a.csv --trained-on classes.txt", "classes.txt"),
    ("import-catseg w.pth imported", "w.pth"),
    ("import-catseg w.pth imported --classes-file classes.txt", "classes.txt"),
    ("analyse ablation rows.toml config.toml", "rows.toml"),
    ("analyse similarity run classes.txt", "classes.txt"),
    ("superpoint label images labels.npz", "labels.npz"),
    ("superpoint train new images labels.npz", "labels.npz"),
    ("superpoint label images labels.npz --weights w.pth", "w.pth"),
    ("superpoint evaluate --sequence sequence", "sequence/H1to2p"),
)

WRITTEN = (
    "manifest folder --images none --labels none --classes-file none --out",
    "inspect none --html",
    "judge none.json none --json",
    "analyse similarity none --json",
    "analyse similarity none --csv",
    "analyse oracle none none --json",
    "analyse compare none nothing none --json",
    "analyse structure none --store none --json",
    "superpoint label none",
    "superpoint evaluate none --json",
)
"""Commands without the file that they write at their end. Nothing else that they name is there."""
WRITTEN_INTO = ("evaluate none none --out", "analyse compare none nothing none --out")
"""The same, without the folder of what they write."""
UNWRITABLE = [(words, place) for words in WRITTEN for place in ("images", "pipe", "m.parquet/x", "/proc/x")]
UNWRITABLE += [(words, place) for words in WRITTEN_INTO for place in ("m.parquet", "/proc/x")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, its store and a run of one step."""
    folder = tmp_path_factory.mktemp("world")
    manifest = write_shapes(folder, 3, ((96, 128),))
    manifest.write(folder / "m.parquet")
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(manifest, folder / "s.zarr", structures=["canny", "sift"], frame=frame, scheduler="sync", progress=False)
    values = {"device": "cpu", "steps": 1, "batch_size": 1, "data": {"store": "s.zarr", "crop": 96, "num_workers": 0}}
    model = MODEL
    (folder / "config.toml").write_text("\n".join(to_toml(values | {"model": model})))
    (folder / "classes.txt").write_text("a\nb\n")
    (folder / "sequence").mkdir()
    for name in ("img1.jpg", "img2.jpg"):
        shutil.copy(folder / "images/000.jpg", folder / "sequence" / name)
    os.mkfifo(folder / "pipe")
    with pytest.MonkeyPatch.context() as patch:
        assert called(f"{TRAIN} run", folder, patch) == 0
    return folder


def called(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `physseg WORDS` in a folder; fails if it hangs."""

    def late(*_: object) -> None:
        pytest.fail(f"{words} hangs")

    monkeypatch.chdir(folder)
    monkeypatch.setenv("PHYSSEG_CACHE", str(folder / "cache"))
    monkeypatch.setattr(sys, "argv", ["physseg", *words.split()])
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return 0


@pytest.mark.parametrize(("words", "path"), READ)
def test_a_fifo_in_a_files_place_is_one_line(
    words: str, path: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, aside = world / path, world / "aside"
    if file.exists():
        file.rename(aside)
    file.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(file)
    try:
        assert called(words, world, monkeypatch) == 1
    finally:
        file.unlink()
        if aside.exists():
            aside.rename(file)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert file.name in lines[0]


@pytest.mark.parametrize(("words", "place"), UNWRITABLE)
def test_a_place_that_cannot_be_written_is_named_before_any_work(
    words: str, place: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(f"{words} {place}", world, monkeypatch) == 1
    assert capsys.readouterr().err.startswith(f"error: {place}")


def test_a_run_that_cannot_take_results_is_named_before_an_evaluation(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "imported").mkdir()
    (world / "imported/evaluations").touch()
    assert called("evaluate imported none", world, monkeypatch) == 1
    assert capsys.readouterr().err.startswith("error: imported/evaluations/*: Not a directory")
