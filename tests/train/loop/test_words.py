"""What a training says on its way: once, in a few aligned lines, of the main process."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.loop import words
from physseg.train.loop.loop import train
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log

Make = Callable[..., TrainConfig]


def rows(text: str) -> dict[str, str]:
    """The second column by the first; all rows have it at the same place."""
    lines = [line for line in text.splitlines() if line.strip()]
    width = max(len(line.split("  ")[0]) for line in lines) + 2
    assert all(line[width - 2 : width] == "  " and line[width] != " " for line in lines), text
    return {line[:width].strip(): line[width:] for line in lines}


def test_a_run_says_on_what_it_trains_and_how_good_it_is(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    train_manifest.write(tmp_path / "val.parquet")
    config = make_config(steps=3, eval={"manifest": str(tmp_path / "val.parquet"), "every": 1, "max_images": 2})
    run = RunFolder(tmp_path / "run")
    train(config, stop_at=1, progress=True)
    said = capsys.readouterr().out
    start, _, rest = said.partition("step 1: ")
    assert rows(start) == {
        "device": "cpu, fp32",
        "data": f"{tmp_path}/store.zarr: 7 samples, 5 classes",
        "structures": "canny, sift",
        "begins with": "tinier, random weights",
        "steps": "3, each of 3 samples (1 rank, accumulate 1: 3 at once)",
        "evaluation": f"{tmp_path}/val.parquet, every 1 steps",
        "run": str(run.path),
        "watch": f"tensorboard --logdir {run.path}",
    }
    (first,) = [entry for entry in read_log(run.log_file, "step") if "eval/miou" in entry]
    scores = f"mIoU {first['eval/miou']:.2%}, Boundary IoU {first['eval/boundary_iou']:.2%}"
    assert rest == f"{scores}, the best so far\n"
    run.set_best((run.best() or {}) | {"miou": 0.99})
    train(config, stop_at=2, progress=True)
    said = capsys.readouterr().out
    assert f"begins with  step 1, {run.checkpoints}/step_00000001\n" in said
    assert said.endswith(", best 99.00% at step 1\n")
    train(config, stop_at=2, progress=True)  # there is nothing to do, and nothing to say
    train(config, progress=False)
    assert capsys.readouterr().out == ""


def test_the_end_says_where_the_weights_are_and_what_to_type(make_config: Make, tmp_path: Path) -> None:
    config, run = make_config(run=str(tmp_path / "my run")), RunFolder(tmp_path / "my run")
    for step in (300, 400):
        (run.checkpoints / f"step_{step:08d}").mkdir(parents=True)
    said = rows(words.end(config, 400, 600.0))
    assert said["time"] == "10 min" and said["checkpoint"] == f"{run.checkpoints}/step_00000400"
    assert said["next"] == f"physseg evaluate '{run.path}' VAL.parquet"
    assert said[""] == f"physseg report '{run.path}'"
    run.set_best({"step": 300, "miou": 0.5, "of": {}})
    said = rows(words.end(config, 400, 600.0))
    assert said["best"] == "step 300, mIoU 50.00%" and said["next"].endswith("VAL.parquet --checkpoint best")


def test_batches_are_told_as_they_are_spread(make_config: Make) -> None:
    config = make_config(batch_size=12, accumulate=3, model={"structures": []}, losses={"lambda_p": 0})
    known = {"samples": 1, "classes": 1, "step": 0}
    said = rows(words.beginning(config, device=torch.device("cpu"), ranks=2, **known))
    assert said["steps"] == "6, each of 12 samples (2 ranks, accumulate 3: 2 at once)"
    assert (said["structures"], said["evaluation"]) == ("none", "none: no eval.manifest")
