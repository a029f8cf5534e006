"""What a GPU must do as a CPU does: steps in every precision, compiled, resumed, evaluated, and fed by its own loader.

PHYSSEG_GPU_TESTS=cpu runs the same on a CPU, to test the tests.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import TrainSamples, batches, to_device
from physseg.train.data.order import PositionBatches
from physseg.train.loop.loop import train
from physseg.train.loop.objective import Objective
from physseg.train.model.device import matmul_precision
from physseg.train.model.inference import class_texts, predict_probabilities
from physseg.train.model.segmenter import Segmenter
from physseg.train.optim import build_optimizer, clip_gradients
from physseg.train.runs.run_log import read_log
from safetensors.torch import load_file
from torch import Tensor

DEVICE = os.environ.get("PHYSSEG_GPU_TESTS", "cuda")
Make = Callable[..., TrainConfig]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOSS_TOLERANCE = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 3e-2}
"""Relative. fp32: 24 bits, sums in another order. tf32: factors of 11 bits. bf16: 8 bits after every layer."""


class Steps:
    """Some training steps of a configuration on a device; equal weights to begin with."""

    def __init__(self, config: TrainConfig, device: str, *, compiled: bool = False) -> None:
        self.samples = TrainSamples(config.data, config.model.structures, True, config.seed)
        vocabulary = self.samples.reader.vocabulary
        torch.manual_seed(config.seed)
        self.model, self.device, self.config = Segmenter(config.model), torch.device(device), config
        objective = Objective(self.model, config, vocabulary.classes, vocabulary.ignore_index)
        self.objective = objective.to(self.device).train()
        self.optimizer = build_optimizer(self.model, config.optim)
        if compiled:
            # Code for a CPU would take minutes to compile and say nothing of a GPU.
            self.objective.compile(backend="inductor" if DEVICE == "cuda" else "aot_eager")

    def gradients(self, positions: range = range(3)) -> tuple[float, dict[str, Tensor]]:
        """The loss of a batch, and the gradients, on the CPU."""
        with matmul_precision(self.config.precision):
            loss = self.objective(to_device(self.samples.batch(positions), self.device))["loss"]
            loss.backward()
        named = self.model.named_parameters()
        return loss.item(), {name: value.grad.cpu() for name, value in named if value.grad is not None}

    def losses(self, number: int) -> list[float]:
        found = []
        for step in range(number):
            found.append(self.gradients(range(3 * step, 3 * step + 3))[0])
            clip_gradients(self.optimizer, self.config.optim.max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return found


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_step_is_the_cpus(make_config: Make, precision: str) -> None:
    config = make_config()
    expected, gradients = Steps(config, "cpu").gradients()
    loss, found = Steps(replace(config, precision=precision), DEVICE).gradients()  # type: ignore[arg-type]
    tolerance = LOSS_TOLERANCE[precision]
    assert loss == pytest.approx(expected, rel=tolerance)
    assert found.keys() == gradients.keys()
    norm = sum(value.square().sum() for value in gradients.values()) ** 0.5
    difference = sum((found[name] - value).square().sum() for name, value in gradients.items()) ** 0.5
    assert difference / norm < 20 * tolerance
    assert all(value.dtype == torch.float32 for value in found.values())


def test_a_compiled_step_is_the_eager_one(make_config: Make) -> None:
    losses = [Steps(make_config(), DEVICE, compiled=compiled).losses(3) for compiled in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_a_run_that_stops_and_resumes_ends_with_the_weights_of_one_that_does_not(
    make_config: Make, tmp_path: Path
) -> None:
    """Bit for bit, as far as the kernels are deterministic, which they are asked to be."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole, parts = (make_config(run=str(tmp_path / name), device=DEVICE, steps=4) for name in ("whole", "parts"))
        train(whole, progress=False)
        train(parts, stop_at=2, progress=False)
        assert train(parts, progress=False).first_step == 2
    finally:
        torch.use_deterministic_algorithms(False)
    weights = [load_file(config.run / "checkpoints/step_00000004/model.safetensors") for config in (whole, parts)]  # type: ignore[operator]
    assert weights[0].keys() == weights[1].keys()
    different = [name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])]
    # An operation without a deterministic kernel adds in any order: 1e-7 of a value at a time.
    for name in different if DEVICE == "cuda" else ():
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5)
    assert DEVICE == "cuda" or not different


def test_batches_are_pinned_and_arrive_as_they_were_read(make_config: Make) -> None:
    config = make_config(data={"num_workers": 2})
    samples = TrainSamples(config.data, config.model.structures, True, config.seed)
    sampler = PositionBatches(start=0, stop=3, batch_size=3)
    seen = 0
    for number, batch in enumerate(batches(samples, sampler, pin_memory=DEVICE == "cuda")):
        read = to_device(samples.batch(range(3 * number, 3 * number + 3)), torch.device("cpu"))
        moved = to_device(batch, torch.device(DEVICE))
        for name, value in read.items():
            if not isinstance(value, Tensor):
                assert moved[name] == value  # type: ignore[literal-required]
                continue
            assert batch[name].is_pinned() == (DEVICE == "cuda")  # type: ignore[literal-required]
            assert moved[name].device.type == DEVICE  # type: ignore[literal-required]
            torch.testing.assert_close(moved[name].cpu(), value, rtol=0, atol=0)  # type: ignore[literal-required]
        seen += 1
    assert seen == 3


def test_predictions_are_the_cpus(make_config: Make, tmp_path: Path) -> None:
    """Predictions multiply as tf32 does."""
    import numpy as np

    torch.manual_seed(0)
    model = Segmenter(make_config().model).eval()
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), np.uint8)
    maps = []
    for device in ("cpu", DEVICE):
        model.to(device)
        texts = class_texts(model, ("cat", "dog", "sofa"))
        maps.append(np.asarray(torch.as_tensor(predict_probabilities(model, image, texts)).cpu()))
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-2, rtol=0)
    assert maps[0].shape == (3, 100, 140)


@pytest.fixture
def run_ranks(write_config: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[[int], list[float]]]:
    """Losses of three steps of `physseg train` on so many ranks, which torchrun starts."""

    def run(ranks: int) -> list[float]:
        folder = tmp_path / f"ranks{ranks}"
        config: dict[str, Any] = {"run": str(folder), "steps": 3, "batch_size": 4, "device": DEVICE}
        words = [
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "-m",
            "physseg.cli",
            "train",
            str(write_config(**config)),
        ]
        subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, cwd=tmp_path, timeout=300)
        return [line["loss/total"] for line in read_log(folder / "log.jsonl", "step")]

    yield run


@pytest.mark.skipif(DEVICE == "cuda" and torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.cluster
def test_two_ranks_take_the_steps_of_one(run_ranks: Callable[[int], list[float]]) -> None:
    one, two = run_ranks(1), run_ranks(2)
    assert len(one) == 3 and one == pytest.approx(two, rel=1e-4)
