"""Training with a structure of classes: one step however spread, resumed and loaded by itself, exported without."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.train.config import TrainConfig
from physseg.train.loop.loop import train
from physseg.train.prediction.load_run import load_run
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from physseg.train.weights.export import read_export, write_export

Make = Callable[..., TrainConfig]
MODEL = {"structures": ["semantic_edges", "canny"]}


@pytest.fixture
def with_classes(store: Path, train_manifest: Manifest) -> None:
    preprocess(train_manifest, store, structures=["canny", "semantic_edges"], scheduler="sync", progress=False)


@pytest.mark.usefixtures("with_classes")
def test_a_run_knows_its_channels_by_itself(make_config: Make, tmp_path: Path) -> None:
    config = make_config(model=MODEL, steps=2, losses={"lambda_sac": 0})
    train(config, stop_at=1, progress=False)
    assert train(config, progress=False).first_step == 1
    saved = RunFolder(tmp_path / "run").read()["model"]
    assert (saved["structures"], saved["structure_classes"]) == (["canny", "semantic_edges"], [0, 5])
    for entry in read_log(RunFolder(tmp_path / "run").log_file, "step"):
        mean = (entry["loss/structure/canny"] + entry["loss/structure/semantic_edges"]) / 2
        assert entry["loss/structure"] == pytest.approx(mean, rel=1e-6)
        assert entry["loss/structure/semantic_edges"] > 0
    loaded = load_run(tmp_path / "run", device=torch.device("cpu"))
    assert loaded.model.predict_structures(torch.zeros(1, 3, 96, 96)).shape == (1, 2, 24, 24)
    write_export(tmp_path / "out", loaded.model, classes=loaded.classes, step=2, origin=None)
    assert read_export(tmp_path / "out")[0].config.structure_classes is None


@pytest.mark.usefixtures("with_classes")
def test_micro_batches_take_the_same_step(make_config: Make, tmp_path: Path) -> None:
    """Void pixels and padding differ between the samples, so means over parts would not do."""
    logs = []
    for number in (1, 2, 4):
        config = make_config(run=str(tmp_path / f"{number}"), model=MODEL, steps=1, batch_size=4, accumulate=number)
        train(config, progress=False)
        logs.append(read_log(RunFolder(tmp_path / f"{number}").log_file, "step")[0])
    for log in logs[1:]:
        for key in ("loss/structure/semantic_edges", "loss/structure/canny", "loss/total", "gradient/norm"):
            assert log[key] == pytest.approx(logs[0][key], rel=1e-5), key


@pytest.mark.usefixtures("with_classes")
def test_without_lambda_p_there_are_no_channels(make_config: Make, tmp_path: Path) -> None:
    train(make_config(model=MODEL, steps=1, losses={"lambda_p": 0}), progress=False)
    saved = RunFolder(tmp_path / "run").read()["model"]
    assert (saved["structures"], saved["structure_classes"]) == ([], None)
