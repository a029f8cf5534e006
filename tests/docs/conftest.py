"""What the examples of docs/ run on: the folder that `physseg demo` leaves, very small."""

from pathlib import Path

import pytest
from physseg.cli import app
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.train.config import load_config
from physseg.train.demo import chain
from physseg.train.demo.scenes import write_scenes
from physseg.train.loop.loop import train
from typer.testing import CliRunner

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with `physseg_demo` in it."""
    folder = tmp_path_factory.mktemp("docs")
    out = folder / "physseg_demo"
    scenes = write_scenes(out / "scenes", num_train=8, num_val=2)
    for split in ("train", "val"):
        words = [
            "--images",
            scenes.images(split),
            "--labels",
            scenes.labels(split),
            "--classes-file",
            scenes.classes(split),
        ]
        words += ["--classes-file", scenes.classes(split), "--split", split, "--name", "scenes"]
        words += ["--out", out / f"{split}.parquet"]
        done = CliRunner().invoke(app, ["manifest", "folder", *map(str, words)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    frame = Frame(short_edge=192, max_long_edge=384, canvas=384)
    preprocess(out / "train.parquet", out / "train.zarr", frame=frame, scheduler="sync", progress=False)
    recipe = Path(chain.__file__).with_name("demo.toml").read_text().replace("batch_size = 8", "batch_size = 2")
    (out / "demo.toml").write_text(f"steps = 1\n{recipe}")
    train(load_config(out / "demo.toml", run=out / "run"), progress=False)
    return folder


@pytest.fixture
def demo(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current folder."""
    monkeypatch.chdir(demo_folder)
    return demo_folder
