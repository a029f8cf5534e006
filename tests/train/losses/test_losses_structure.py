"""L^p: targets by hand, the three forms against an independent float64 reference, minimisers, masks, gradients."""

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.losses import structure as losses_structure
from physseg.train.losses.structure import (
    StructureForm,
    structure_count,
    structure_loss,
    structure_targets,
)

FORMS: tuple[StructureForm, ...] = ("focal", "gaussian_focal", "quality")
# Relative error of a mean over some hundred cells; see test_losses_segmentation.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def cell_loss(form: str, x: float, y: float, alpha: float = 0.25, gamma: float = 2.0, beta: float = 4.0) -> float:
    """One cell, by the printed formulas."""
    s = 1 / (1 + math.exp(-x))
    if form == "focal":
        return -alpha * y * (1 - s) ** gamma * math.log(s) - (1 - alpha) * (1 - y) * s**gamma * math.log(1 - s)
    if form == "gaussian_focal":
        return -((1 - s) ** gamma) * math.log(s) if y == 1 else -((1 - y) ** beta) * s**gamma * math.log(1 - s)
    return abs(y - s) ** gamma * -(y * math.log(s) + (1 - y) * math.log(1 - s))


def reference(
    form: str, logits: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_]
) -> list[float]:
    """Per structure: sum over valid cells / count."""
    result = []
    for s in range(logits.shape[1]):
        cells = [
            (cell_loss(form, logits[b, s, i, j], targets[b, s, i, j]), targets[b, s, i, j])
            for b, i, j in np.ndindex(logits.shape[0], *logits.shape[2:])
            if valid[b, 0, i, j]
        ]
        count = sum(y == 1 for _, y in cells) if form == "gaussian_focal" else len(cells)
        result.append(sum(loss for loss, _ in cells) / max(count, 1))
    return result


def toy(side: int = 5, structures: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, structures, side, side, generator=generator, dtype=torch.float64)
    targets = torch.rand(2, structures, side, side, generator=generator, dtype=torch.float64)
    targets = torch.where(targets > 0.7, 1.0, targets)
    targets[:, -1] *= 0.99  # the last structure has no cell with y = 1
    valid = torch.rand(2, 1, side, side, generator=generator) > 0.3
    return logits, targets, valid


def test_docstring_examples() -> None:
    assert doctest.testmod(losses_structure).failed == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_agrees_with_the_formulas(form: StructureForm, dtype: torch.dtype) -> None:
    logits, targets, valid = toy()
    expected = reference(form, logits.numpy(), targets.numpy(), valid.numpy())
    logits = logits.to(dtype)
    for s, alone in enumerate(expected):
        got = structure_loss(logits[:, [s]], targets[:, [s]], valid, form=form)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.item() == pytest.approx(alone, rel=TOLERANCE[dtype])
    mean = structure_loss(logits, targets, valid, form=form)
    assert mean.item() == pytest.approx(sum(expected) / 3, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_gradient(form: StructureForm) -> None:
    logits, targets, valid = toy(side=2)
    assert torch.autograd.gradcheck(lambda x: structure_loss(x, targets, valid, form=form), logits.requires_grad_())


def test_gamma_zero_is_weighted_bce() -> None:
    logits, targets, valid = toy()
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    weight = torch.where(targets == 1, 0.25, 0.75)
    hard = (targets == 1).double()
    cells = bce(logits, hard, weight=weight, reduction="none")[valid.expand_as(logits)]
    got = structure_loss(logits, hard, valid, gamma=0.0)
    assert got.item() == pytest.approx(cells.mean().item(), rel=1e-12)
    plain = bce(logits, targets, reduction="none")[valid.expand_as(logits)]
    got = structure_loss(logits, targets, valid, gamma=0.0, form="quality")
    assert got.item() == pytest.approx(plain.mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("form", "target", "minimiser"),
    [("focal", 0.05, 0.18), ("focal", 0.95, 0.67), ("quality", 0.05, 0.05), ("quality", 0.6, 0.6)],
)
def test_where_the_minimum_is_for_a_soft_target(form: StructureForm, target: float, minimiser: float) -> None:
    s = torch.arange(0.001, 1, 0.001, dtype=torch.float64)
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    losses = [structure_loss(x.view(1, 1, 1, 1), torch.full((1, 1, 1, 1), target), ones, form=form) for x in s.logit()]
    assert s[torch.stack(losses).argmin()].item() == pytest.approx(minimiser, abs=0.006)


@pytest.mark.parametrize("form", FORMS)
def test_cells_outside_the_image_do_not_count(form: StructureForm) -> None:
    logits, targets, valid = toy()
    logits.requires_grad_()
    loss = structure_loss(logits, targets, valid, form=form)
    loss.backward()
    outside = ~valid.expand_as(logits)
    assert logits.grad is not None and logits.grad[outside].abs().max() == 0 and logits.grad[~outside].abs().min() > 0
    changed = torch.where(outside, 50.0, logits.detach())
    assert structure_loss(changed, torch.where(outside, 1.0, targets), valid, form=form).item() == loss.item()


@pytest.mark.parametrize("form", FORMS)
def test_no_valid_cell_gives_zero_and_no_gradient(form: StructureForm) -> None:
    logits, targets, valid = toy()
    loss = structure_loss(logits.requires_grad_(), targets, torch.zeros_like(valid), form=form)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_stay_finite(form: StructureForm) -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4]).view(1, 1, 2, 2).requires_grad_()
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    loss = structure_loss(logits, targets, torch.ones(1, 1, 2, 2, dtype=torch.bool), form=form)
    loss.backward()
    assert math.isfinite(loss.item()) and logits.grad is not None and logits.grad.isfinite().all()


def test_targets_binary_and_soft() -> None:
    maps = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    maps[0, 0, 3, 4] = 1  # the faintest keypoint, last row of a cell, first column of the next
    maps[0, 1, 4, 0], maps[0, 1, 7, 3] = 255, 51
    inside = torch.ones(1, 8, 8, dtype=torch.bool)
    binary, valid = structure_targets(maps, inside, (2, 2))
    assert binary.tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 0]]]] and valid.all() and valid.shape == (1, 1, 2, 2)
    soft, _ = structure_targets(maps, inside, (2, 2), "soft")
    assert soft.flatten().tolist() == pytest.approx([0, 1 / 255**2, 0, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("sigma", [2.9, 40.0, 1e17])
def test_wide_gaussians_take_no_more_than_the_map(sigma: float) -> None:
    maps = torch.zeros(1, 1, 18, 18, dtype=torch.uint8)
    maps[0, 0, 1, 17] = 255  # the cell (0, 8) of 9 x 9
    targets, _ = structure_targets(maps, torch.ones(1, 18, 18, dtype=torch.bool), (9, 9), "gaussian", sigma_cells=sigma)
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9) - 8, indexing="ij")
    far = (torch.maximum(rows, -columns) > math.ceil(3 * sigma)).double()
    expected = torch.exp(-(rows**2 + columns**2).double() / (2 * sigma**2)) * (1 - far)
    torch.testing.assert_close(targets[0, 0].double(), expected, rtol=1e-6, atol=1e-7)


def test_targets_gaussian() -> None:
    maps = torch.zeros(1, 1, 18, 18, dtype=torch.uint8)
    maps[0, 0, 4, 7] = maps[0, 0, 4, 15] = 9  # cells (2, 3) and (2, 7) of 9 x 9
    targets, _ = structure_targets(maps, torch.ones(1, 18, 18, dtype=torch.bool), (9, 9), "gaussian", sigma_cells=1.5)
    for row, column in np.ndindex(9, 9):
        squared = min((row - 2) ** 2 + (column - peak) ** 2 for peak in (3, 7))
        # Cut off at 3 sigma = 5 cells (rounded up) along each axis.
        near = abs(row - 2) <= 5 and min(abs(column - peak) for peak in (3, 7)) <= 5
        expected = math.exp(-squared / (2 * 1.5**2)) if near else 0
        assert targets[0, 0, row, column].item() == pytest.approx(expected, rel=1e-6)


def test_targets_outside_the_image_are_dropped() -> None:
    maps = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    inside = torch.zeros(1, 8, 8, dtype=torch.bool)
    inside[0, :4, :5] = True  # one pixel column reaches into the second cell
    targets, valid = structure_targets(maps, inside, (2, 2))
    assert valid.tolist() == [[[[True, True], [False, False]]]]
    assert targets.tolist() == [[[[1, 1], [0, 0]]]]


def test_count() -> None:
    targets = torch.tensor([[[[1.0, 0.5]], [[1.0, 1.0]]]])
    valid = torch.tensor([[[[True, True]]]])
    assert structure_count(targets, valid, "focal").tolist() == [2, 2]
    assert structure_count(targets, valid, "gaussian_focal").tolist() == [1, 2]


def test_what_does_not_fit_is_named() -> None:
    maps, inside = torch.zeros(1, 1, 9, 8, dtype=torch.uint8), torch.ones(1, 9, 8, dtype=torch.bool)
    with pytest.raises(ShapeError, match="9 x 8 px do not divide into 2 x 2 cells"):
        structure_targets(maps, inside, (2, 2))
    with pytest.raises(ShapeError, match=r"valid \(B, H, W\)"):
        structure_targets(maps, inside[:, :8], (3, 2))
    with pytest.raises(ConfigError, match="unknown structure target 'hard'\n  hint: known: binary, soft, gaussian"):
        structure_targets(maps, inside, (3, 2), "hard")  # type: ignore[arg-type]
    logits, targets, valid = toy()
    with pytest.raises(ConfigError, match="unknown structure loss 'dice'"):
        structure_loss(logits, targets, valid, form="dice")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one channel"):
        structure_loss(logits, targets, valid.expand_as(logits))
