"""`log.gradients`: each loss's gradient in the image encoder is what a backward pass of its own gives; no bit moves."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import TrainSamples, to_device
from physseg.train.loop.loop import train
from physseg.train.loop.loss_gradients import LossGradients
from physseg.train.loop.objective import Objective
from physseg.train.loop.ranks import Ranks
from physseg.train.prediction.load_run import load_run
from physseg.train.report.page import charts
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .test_ranks import same_bits, weights

Make = Callable[..., TrainConfig]
WEIGHTS = {"segmentation": 1.0, "structure": 0.25, "alignment": 2.0}
LOSSES = {"lambda_p": 0.25, "lambda_sac": 2.0}


def pulls(run: Path) -> dict[int, dict[str, float]]:
    """What was logged of gradients by step."""
    entries = [one for one in read_log(RunFolder(run).log_file, "step") if "gradient_norm/segmentation" in one]
    return {one["step"]: {key: value for key, value in one.items() if key.startswith("gradient_")} for one in entries}


def test_by_hand() -> None:
    """Gradients (3, 4), 2 (0, 5) and none; those of texts and of what does not train are left out."""
    visual, text = (torch.nn.Linear(2, 1, bias=False) for _ in range(2))
    frozen = torch.nn.Linear(2, 1).requires_grad_(requires_grad=False)
    clip = torch.nn.ModuleDict({"visual": visual, "text": text, "frozen": frozen})
    model: Any = SimpleNamespace(clip=clip, config=SimpleNamespace(finetune="none"))
    losses: Any = {"a": (None, 1.0), "b": (None, 2.0), "c": (None, 1.0)}
    watch = LossGradients(model, losses, every=2)
    assert [step for step in range(6) if watch.is_due(step)] == [1, 3, 5]
    slopes = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 5.0])}
    parts = {name: (visual.weight @ slope + text.weight.sum()).sum() for name, slope in slopes.items()}
    for share in (0.25, 0.75):
        watch.add(parts | {"c": torch.tensor(7.0)}, share)
    alone = Ranks(torch.device("cpu"))
    found = watch.take(alone)
    assert watch.take(alone) == {}
    assert found["gradient_norm/a"] == pytest.approx(5) and found["gradient_norm/b"] == pytest.approx(10)
    assert found["gradient_cosine/a-b"] == pytest.approx(0.8)
    assert found["gradient_norm/c"] == 0 and math.isnan(found["gradient_cosine/a-c"])
    assert visual.weight.grad is None and text.weight.grad is None
    clip["visual"].requires_grad_(requires_grad=False)
    LossGradients(model, losses, every=0)
    with pytest.raises(ConfigError, match=r"log\.gradients: expected an image encoder that trains.*'none'"):
        LossGradients(model, losses, every=2)


def test_an_encoder_that_does_not_train_has_none(make_config: Make) -> None:
    """Said before a run begins, so that a row of a study that asks for it is named before the first one."""
    with pytest.raises(ConfigError, match=r"log\.gradients: expected an image encoder that trains.*'none'"):
        make_config(model={"finetune": "none"}, log={"gradients": 2})


def test_separate_passes_give_the_same_and_no_bit_moves(make_config: Make, tmp_path: Path) -> None:
    """Step 2, on the weights after step 1: one forward and one backward pass for each loss by itself."""
    config = make_config(steps=3, losses=LOSSES, log={"gradients": 2})
    off = replace(config, run=tmp_path / "off", log=replace(config.log, gradients=0))
    train(off, progress=False)
    train(replace(off, run=config.run), stop_at=1, progress=False)  # the key may change when a run is resumed
    model = load_run(config.run).model.train()  # type: ignore[arg-type]
    train(config, progress=False)
    assert same_bits(weights(tmp_path / "off"), weights(tmp_path / "run"))
    found = pulls(tmp_path / "run")
    assert list(found) == [2] and pulls(tmp_path / "off") == {}

    samples = TrainSamples(config.data, ("canny", "sift"), True, config.seed)
    vocabulary = samples.reader.vocabulary
    batch = to_device(samples.batch(range(3, 6)), torch.device("cpu"))
    objective = Objective(model, config, vocabulary.classes, vocabulary.ignore_index).train()
    slopes = {}
    for name, weight in WEIGHTS.items():
        model.zero_grad()
        (weight * objective(batch)[name]).backward()
        encoder: Any = model.clip.visual
        slopes[name] = np.concatenate(
            [
                np.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.numpy().ravel()
                for parameter in encoder.parameters()
            ]
        ).astype(np.float64)
    expected = {f"gradient_norm/{name}": np.linalg.norm(slope) for name, slope in slopes.items()}
    for one, other in (("segmentation", "structure"), ("segmentation", "alignment"), ("structure", "alignment")):
        norms = np.linalg.norm(slopes[one]) * np.linalg.norm(slopes[other])
        expected[f"gradient_cosine/{one}-{other}"] = slopes[one] @ slopes[other] / norms
    assert found[2] == pytest.approx(expected, rel=1e-4, abs=1e-5)

    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert set(found[2]) <= set(board.Tags()["scalars"])
    shown = {one["title"] for one in charts(read_log(RunFolder(tmp_path / "run").log_file), "gradient")}
    assert shown == {"gradient/norm", *found[2]}


def test_recomputed_activations_give_the_same(make_config: Make, tmp_path: Path) -> None:
    for name, recompute in (("kept", False), ("recomputed", True)):
        config = make_config(run=str(tmp_path / name), steps=1, log={"gradients": 1}, recompute=recompute)
        train(config, progress=False)
    assert pulls(tmp_path / "kept")[1] == pytest.approx(pulls(tmp_path / "recomputed")[1], rel=1e-4, abs=1e-5)
    assert same_bits(weights(tmp_path / "kept"), weights(tmp_path / "recomputed"))


def test_a_compiled_step_is_refused(make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"log\.gradients needs a graph for each loss"):
        make_config(log={"gradients": 1}, compile=True)
