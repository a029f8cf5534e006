"""`compile = true` makes one graph of a step, once: batches differ in values alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import Batch, TrainSamples, to_device
from physseg.train.loop.objective import Objective
from physseg.train.losses.segmentation import segmentation_loss
from physseg.train.model.bounded import bounded_parts
from physseg.train.model.segmenter import Segmenter
from torch import Tensor

Make = Callable[..., TrainConfig]
STEPS = 20


@pytest.fixture(autouse=True)
def one_graph() -> Iterator[None]:
    """What is compiled inside is compiled once, or fails."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def one(function: Callable[..., Any]) -> Any:
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.parametrize("mask_ignored", [pytest.param(False, marks=pytest.mark.torture), True])
def test_the_segmentation_loss_whatever_is_labelled(mask_ignored: bool) -> None:
    compiled = one(segmentation_loss)
    for ignored in (0, 5, 32):
        logits = torch.linspace(-1, 2, 48).view(2, 3, 2, 4).requires_grad_()
        labels = torch.arange(32).view(2, 4, 4) % 3
        labels.view(-1)[:ignored] = 255
        got = compiled(logits, labels, ignore_index=255, mask_ignored=mask_ignored)
        (slope,) = torch.autograd.grad(got, logits)
        expected = segmentation_loss(logits, labels, ignore_index=255, mask_ignored=mask_ignored)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(slope, *torch.autograd.grad(expected, logits))


def batches(config: TrainConfig, classes: int) -> Iterator[Batch]:
    """Every other one of the store; others without a label, outside their image, of one class, without structures."""
    samples = TrainSamples(config.data, ("canny", "sift"), True, config.seed)
    for step in range(STEPS):
        batch: Any = to_device(samples.batch([2 * step, 2 * step + 1]), torch.device("cpu"))
        fills: tuple[dict[str, Any], ...] = (
            {"labels": 255, "cell_classes": 255, "cell_counts": 0},
            {"valid": False, "labels": 255, "cell_classes": 255, "cell_counts": 0, "structures": 0},
            {"labels": step % classes, "cell_classes": step % classes},
            {"structures": 0},
        )
        if step % 2:
            for name, value in fills[step // 2 % len(fills)].items():
                batch[name] = torch.full_like(batch[name], value)
        if config.model.structure_classes:  # the second structure is one of classes
            planes = batch["labels"][:, None, None].expand(-1, 1, 2, -1, -1)
            batch |= {"structures": batch["structures"][:, :1], "structure_classes": planes.clone()}
        yield batch


@pytest.mark.torture
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16", "losses": {"structure_target": "soft", "structure_form": "quality"}},
        {"recompute": True, "losses": {"alignment_form": "soft_ce"}},
        {
            "model": {"synonyms": "mean", "structure_classes": [0, 5]},
            "losses": {"mask_ignored": True, "structure_form": "gaussian_focal", "structure_target": "gaussian"},
        },
    ],
    ids=["plain", "bf16", "recompute", "others"],
)
def test_twenty_steps(changes: dict[str, Any], make_config: Make) -> None:
    config = make_config(**changes)
    classes = ("ground, floor", "box", "disc, disk, plate", "square", "ball")
    model = Segmenter(config.model)
    for part in bounded_parts(model):
        part.recompute = config.recompute
    objective = Objective(model, config, classes, 255).train()
    compiled = one(objective)
    for batch in batches(config, len(classes)):
        losses: dict[str, Tensor] = compiled(batch)
        losses["loss"].backward()
        with torch.no_grad():
            expected = objective(batch)
        tolerance = 1e-2 if config.precision == "bf16" else 1e-5
        torch.testing.assert_close(losses["loss"].detach(), expected["loss"], rtol=tolerance, atol=0.0)
