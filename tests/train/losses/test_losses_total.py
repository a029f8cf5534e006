"""The sum of the losses: parts, switches, settings, and independence of how a step is spread over micro-batches."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.losses.alignment import patch_alignment_loss, patch_weights
from physseg.train.losses.structure import structure_loss, structure_targets
from physseg.train.losses.total import LossConfig, loss_counts, segmentation_loss, total_loss
from torch import Tensor


@dataclass
class Output:
    """Stands for the segmenter's output: 2 x 2 patches of 16 px, structure and class logits at 8 x 8."""

    logits: Tensor
    structure_logits: Tensor | None
    similarity: Tensor | None


def toy(batch: int = 4, classes: int = 3) -> tuple[Output, dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    normal = {"generator": generator, "dtype": torch.float64}
    output = Output(
        torch.randn(batch, classes, 8, 8, **normal).requires_grad_(),
        torch.randn(batch, 2, 8, 8, **normal).requires_grad_(),
        torch.randn(batch, 4, classes, **normal).requires_grad_(),
    )
    labels = torch.randint(0, classes, (batch, 32, 32), generator=generator)
    labels[0] = 255
    labels[1, :20] = 255
    valid = torch.ones(batch, 32, 32, dtype=torch.bool)
    valid[2, 11:] = False
    slots = torch.randint(0, classes, (batch, 2, 4, 4), generator=generator)
    slots[0] = 255
    slots[1, :, :2] = 255
    return output, {
        "labels": labels,
        "structures": torch.randint(0, 256, (batch, 2, 32, 32), generator=generator, dtype=torch.uint8).where(
            torch.rand(batch, 2, 32, 32, generator=generator) > 0.9, 0
        ),
        "valid": valid,
        "cell_classes": slots,
        "cell_counts": torch.randint(1, 33, (batch, 2, 4, 4), generator=generator, dtype=torch.uint8),
    }


def part(output: Output, batch: dict[str, Any], rows: slice) -> tuple[Output, dict[str, Any]]:
    assert output.structure_logits is not None and output.similarity is not None
    rest = Output(output.logits[rows], output.structure_logits[rows], output.similarity[rows])
    return rest, {name: value[rows] for name, value in batch.items()}


def test_parts_and_sum() -> None:
    output, batch = toy()
    config = LossConfig(lambda_p=0.5, lambda_sac=2.0)
    parts = total_loss(output, batch, config, ignore_index=255, structures=("canny", "sift"))
    assert list(parts) == ["loss", "segmentation", "structure", "structure/canny", "structure/sift", "alignment"]
    segmentation = segmentation_loss(output.logits, batch["labels"], ignore_index=255)
    targets, valid = structure_targets(batch["structures"], batch["valid"], (8, 8))
    structure = structure_loss(output.structure_logits, targets, valid)  # type: ignore[arg-type]
    weights = patch_weights(batch["cell_classes"], batch["cell_counts"], 3, 2, ignore_index=255)
    alignment = patch_alignment_loss(output.similarity, weights)  # type: ignore[arg-type]
    assert parts["segmentation"].item() == segmentation.item()
    assert parts["structure"].item() == structure.item()
    assert parts["alignment"].item() == alignment.item()
    assert parts["loss"].item() == pytest.approx((segmentation + 0.5 * structure + 2 * alignment).item(), rel=1e-14)
    assert parts["structure"].item() == pytest.approx(
        (parts["structure/canny"] + parts["structure/sift"]).item() / 2, rel=1e-14
    )
    assert not parts["structure/canny"].requires_grad


def test_switched_off_parts_need_neither_head_nor_data() -> None:
    output, batch = toy()
    bare = Output(output.logits, None, None)
    parts = total_loss(bare, {"labels": batch["labels"]}, LossConfig(lambda_p=0, lambda_sac=0), ignore_index=255)
    assert list(parts) == ["loss", "segmentation"] and parts["loss"] is parts["segmentation"]
    assert set(total_loss(output, batch, LossConfig(lambda_p=0), ignore_index=255)) == {
        "loss",
        "segmentation",
        "alignment",
    }
    with pytest.raises(ConfigError, match="lambda_p is above 0, but the model made no structure output"):
        total_loss(bare, batch, LossConfig(lambda_sac=0), ignore_index=255)
    with pytest.raises(ConfigError, match="lambda_sac is above 0, but the model made no patch alignment output"):
        total_loss(bare, batch, LossConfig(lambda_p=0), ignore_index=255)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(),
        LossConfig(mask_ignored=True, alignment_form="soft_ce", structure_form="quality", structure_target="soft"),
        LossConfig(alignment_form="printed", structure_form="gaussian_focal", structure_target="gaussian"),
    ],
    ids=["default", "masked, soft_ce, quality", "printed, gaussian_focal"],
)
def test_loss_and_gradient_do_not_depend_on_how_a_step_is_spread(config: LossConfig) -> None:
    """One sample has no label at all, one is cut by the image's edge: the halves' own means would differ."""
    output, batch = toy()
    leaves = [output.logits, output.structure_logits, output.similarity]
    whole = total_loss(output, batch, config, ignore_index=255)["loss"]
    expected = torch.autograd.grad(whole, leaves)  # type: ignore[arg-type]
    halves = [part(output, batch, slice(0, 2)), part(output, batch, slice(2, 4))]
    counts = [loss_counts(b, config, ignore_index=255, grid=2) for _, b in halves]
    shared = {name: (counts[0][name] + counts[1][name]) / 2 for name in counts[0]}
    spread = sum(total_loss(o, b, config, ignore_index=255, counts=shared)["loss"] / 2 for o, b in halves)
    assert isinstance(spread, Tensor) and spread.item() == pytest.approx(whole.item(), rel=1e-12)
    for got, want in zip(torch.autograd.grad(spread, leaves), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_counts_of_a_batch_are_its_own() -> None:
    output, batch = toy()
    for config in (LossConfig(), LossConfig(structure_form="gaussian_focal", mask_ignored=True)):
        counts = loss_counts(batch, config, ignore_index=255, grid=2)
        own = total_loss(output, batch, config, ignore_index=255)
        given = total_loss(output, batch, config, ignore_index=255, counts=counts)
        assert {name: value.item() for name, value in own.items()} == {n: v.item() for n, v in given.items()}
    assert counts["segmentation"].item() == 2 * 32 * 32 + 12 * 32
    assert counts["alignment"].item() == 2 * 4 + 2


def test_an_unlabelled_batch_trains_nothing_through_the_alignment() -> None:
    output, batch = toy()
    batch["cell_classes"][:] = 255
    loss = total_loss(output, batch, LossConfig(), ignore_index=255)["alignment"]
    loss.backward()
    assert loss.item() == 0
    assert output.similarity is not None and output.similarity.grad is not None
    assert output.similarity.grad.abs().max() == 0


def test_cells_and_patches_must_fit() -> None:
    output, batch = toy()
    output.similarity = torch.zeros(4, 5, 3)
    with pytest.raises(ShapeError, match="4 x 4 cells do not make 5 square patches"):
        total_loss(output, batch, LossConfig(lambda_p=0), ignore_index=255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_p": -1}, r"lambda_p: expected a number in \[0, 1e18\], got -1"),
        ({"lambda_sac": float("nan")}, "lambda_sac: .*nan"),
        ({"alpha": 1.5}, "alpha: .* got 1.5"),
        ({"sigma_cells": 0}, r"sigma_cells: .*\(0, "),
        ({"structure_form": "dice"}, "unknown structure_form 'dice'\n  hint: known: focal, gaussian_focal, quality"),
        ({"alignment_form": "hinge"}, "unknown alignment_form 'hinge'"),
        ({"structure_form": "quality", "gamma": 0.5}, "infinite slope"),
        ({"structure_form": "gaussian_focal", "structure_target": "soft"}, "needs cells with target 1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings)
