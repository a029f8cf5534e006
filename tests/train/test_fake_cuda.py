"""Training and inference on a device that is not the CPU: no devices are mixed, and the host waits once a step.

PyTorch's fake tensors stand in for a GPU's (tests/fake_device.py): forward passes and optimizers on "cuda"; steps with
their backward passes on "lazy".
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from physseg.common.progress import ProgressBar
from physseg.common.settings import build
from physseg.train import optim
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import TrainSamples, to_device
from physseg.train.detector.batches import draw_batch
from physseg.train.detector.loop import _network
from physseg.train.detector.pictures.sources import Shapes
from physseg.train.detector.settings import TrainSettings
from physseg.train.detector.targets import detector_loss
from physseg.train.loop import loop
from physseg.train.loop.model_ema import ModelEma
from physseg.train.loop.objective import Objective
from physseg.train.loop.process import StopSignals
from physseg.train.loop.ranks import Ranks
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.inference import (
    InferenceSettings,
    class_texts,
    cut,
    predict_label_map,
    predict_probabilities,
    segment_image,
)
from physseg.train.model.segmenter import Segmenter
from physseg.train.model.text import mean_over_synonyms
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import SilentLog

from ..fake_device import FakeDevice, fake_device
from .conftest import MODEL, TINIER

Make = Callable[..., TrainConfig]
VARIED = {
    "accumulate": 3,
    "recompute": True,
    "ema_decay": 0.9,
    "model": {"synonyms": "mean"},
    "losses": {"mask_ignored": True, "structure_form": "gaussian_focal", "structure_target": "gaussian"},
}
SMALL = InferenceSettings(window_px=96, stride_px=64, canvas_px=160)
WORDS = ["ground", "a box, a crate", "disc", "square", "ball"]


class Training:
    """The loop's own training, made on the CPU, that goes on upon another device with batches read before."""

    def __init__(self, config: TrainConfig, run: Path, steps: int = 1) -> None:
        self.whole = loop._Training(config, RunFolder(run), Ranks(torch.device("cpu")))
        self.batches = list(self.whole._stream(steps))

    def move(self, device: FakeDevice) -> None:
        whole, config = self.whole, self.whole.config
        device.put(whole.objective)
        whole.device = torch.device(device.name)
        whole.optimizer = optim.build_optimizer(whole.model, config.optim, whole.objective.loss_modules)
        whole.ema = ModelEma(whole.objective, config.ema_decay)

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.whole, "_stream", lambda stop_at: iter(self.batches))
        monkeypatch.setattr(self.whole, "_save", lambda: None)
        with ProgressBar(disable=True) as bar, StopSignals() as stop:
            self.whole._loop(len(self.batches), SilentLog(), bar, stop)


@pytest.mark.parametrize(
    ("steps", "changes"),
    [pytest.param(1, {}, id="plain"), pytest.param(3, VARIED, marks=pytest.mark.torture, id="varied")],
)
def test_a_step_waits_for_the_device_once(
    steps: int, changes: dict[str, Any], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(make_config(**changes), tmp_path / "run", steps)
    with fake_device("lazy") as device:
        training.move(device)
        training.run(monkeypatch)
    assert training.whole.step == steps
    assert len(device.waits) == steps, device.waits
    assert all(each.startswith("read") and "optim.py" in each for each in device.waits)


def on_the_host(training: Training) -> None:
    block = training.whole.model.clip.visual.transformer.resblocks[0].attn.out_proj
    block.bias = torch.nn.Parameter(torch.zeros(len(block.bias)))


def in_a_gradient(training: Training) -> None:
    weight = training.whole.model.aggregator.cost_embedding.weight
    weight.register_hook(lambda grad: grad * torch.ones(grad.shape))


@pytest.mark.parametrize("plant", [on_the_host, in_a_gradient])
def test_a_tensor_of_the_cpu_stops_a_step(
    plant: Callable[[Training], None], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(make_config(ema_decay=0.9), tmp_path / "run")
    with fake_device("lazy") as device:
        training.move(device)
        plant(training)
        with pytest.raises(RuntimeError, match="on the same device"):
            training.run(monkeypatch)


@pytest.mark.parametrize("precision", [pytest.param("tf32", marks=pytest.mark.torture), "bf16"])
def test_the_objective_and_the_optimizer_on_cuda(precision: str, make_config: Make) -> None:
    config = make_config(precision=precision, ema_decay=0.9)
    samples = TrainSamples(config.data, config.model.structures, True, 0)
    vocabulary = samples.reader.vocabulary
    objective = Objective(Segmenter(config.model), config, vocabulary.classes, vocabulary.ignore_index).train()
    read = samples.batch([0, 1])
    with fake_device("cuda") as device:
        device.put(objective)
        optimizer = optim.build_optimizer(objective.model, config.optim, objective.loss_modules)
        averages = ModelEma(objective, config.ema_decay)
        batch = to_device(read, torch.device("cuda"))
        parts = objective(batch)
        with pytest.raises(RuntimeError, match="on the same device"):
            objective(batch | {"valid": read["valid"]})
        assert device.waits == []
        for parameter in objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        parts["gradient_norm"] = optim.clip_gradients(optimizer, config.optim.max_gradient_norm)
        assert set(optim.require_finite(parts, step=0, sample_ids=[])) == set(parts)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averages.update(1)
    assert len(device.waits) == 1 and "optim.py" in device.waits[0]


@pytest.fixture
def segmenter() -> Segmenter:
    values = MODEL | {"architecture": asdict(TINIER), "structures": []}
    return Segmenter(build(SegmenterConfig, values, base=Path())).eval()


def test_a_crop_waits_for_nothing_and_an_image_for_its_result(segmenter: Segmenter) -> None:
    image = np.zeros((50, 70, 3), np.uint8)
    kept = replace(SMALL, classes_kept=2)
    with fake_device("cuda") as device:
        device.put(segmenter)
        texts = class_texts(segmenter, WORDS)
        assert all(each.startswith("copy") for each in device.waits)  # tokens, once for a vocabulary
        crops = cut(torch.from_numpy(image).to("cuda", non_blocking=True), SMALL)
        device.waits.clear()
        with torch.no_grad():
            for classes_kept in (None, 2):
                assert segmenter(crops, texts, classes_kept).logits.shape[1] == len(WORDS)
        assert device.waits == []
        assert segment_image(segmenter, image, texts, SMALL).shape == (50, 70)
        assert len(device.waits) == 1, device.waits
        assert predict_probabilities(segmenter, image, texts, SMALL).shape == (5, 50, 70)
        assert len(device.waits) == 2, device.waits
        predict_label_map(segmenter, image, texts, kept)
        assert len(device.waits) == 4, device.waits  # and which classes any crop keeps
        with pytest.raises(RuntimeError, match="on the same device"):
            predict_label_map(segmenter, image, torch.ones(texts.shape), SMALL)


def test_a_mean_over_synonyms_waits_for_nothing() -> None:
    with fake_device("cuda") as device:
        features, present = torch.ones(3, 4, device="cuda"), torch.ones(2, 2, 1, dtype=torch.bool, device="cuda")
        assert mean_over_synonyms(features, present).shape == (2, 1, 4)
        assert device.waits == []


def test_a_step_of_a_detector(tiny_settings: TrainSettings) -> None:
    network = _network(tiny_settings, None, "")
    batch = draw_batch(Shapes(), tiny_settings, 1)
    with fake_device("lazy") as device:
        device.put(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        images, classes, valid = (each.to("lazy", non_blocking=True) for each in batch)
        loss = detector_loss(network(images), classes, valid)
        loss.backward()
        optimizer.step()
        assert device.waits == []
        with pytest.raises(RuntimeError, match="on the same device"):
            detector_loss(network(images), classes, torch.ones(valid.shape, dtype=torch.bool))


@pytest.fixture
def tiny_settings() -> TrainSettings:
    widths = (4, 4, 4, 4, 8, 8, 8, 8)
    return TrainSettings(steps=6, batch_size=4, size=(32, 40), widths=widths, head_width=8, precision="float32")
