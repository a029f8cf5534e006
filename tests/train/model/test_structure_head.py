"""The structure head: shapes, gradient to every level, detail inside a patch, the prior, errors."""

import doctest

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.model import structure_head
from physseg.train.model.backbones.interface import Level
from physseg.train.model.structure_head import CLASS_PRIOR, PRIOR, StructureHead
from torch import Tensor

LEVELS = [Level(12, stride=16)] * 4


def levels(batch: int = 2, grid: tuple[int, int] = (3, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(batch, 12, *grid, generator=generator) for _ in range(4)]


@pytest.fixture
def head() -> StructureHead:
    torch.manual_seed(0)
    return StructureHead(LEVELS, structures=2, hidden=8)


def test_docstring_example() -> None:
    assert doctest.testmod(structure_head).failed == 0


@pytest.mark.parametrize("grid", [(3, 4), (24, 24)])
def test_logits_lie_on_four_times_the_patch_grid(head: StructureHead, grid: tuple[int, int]) -> None:
    assert head(levels(grid=grid)).shape == (2, 2, 4 * grid[0], 4 * grid[1])


def test_every_level_and_parameter_gets_a_gradient(head: StructureHead) -> None:
    inputs = [level.requires_grad_() for level in levels()]
    head(inputs).square().sum().backward()
    for tensor in [*inputs, *head.parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().max() > 0


def test_samples_do_not_mix(head: StructureHead) -> None:
    inputs = levels()
    torch.testing.assert_close(head([level[1:] for level in inputs]), head(inputs)[1:])


def test_detail_inside_a_patch_can_be_predicted() -> None:
    """From features that are the same in every patch, bilinear upsampling could only ever draw a flat map."""
    torch.manual_seed(0)
    head = StructureHead(LEVELS, structures=1, hidden=16)
    same = [torch.randn(1, 12, 1, 1).expand(1, 12, 4, 4) + 0.01 * torch.randn(1, 12, 4, 4) for _ in range(4)]
    pattern = torch.zeros(1, 1, 16, 16)
    pattern[..., 1::4, :] = 1  # one thin line through every patch
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(same), pattern)
        loss.backward()
        optimizer.step()
    assert ((head(same) > 0) == pattern.bool()).float().mean().item() > 0.99


def test_predictions_start_near_the_prior(head: StructureHead) -> None:
    assert head(levels()).sigmoid().mean().item() == pytest.approx(PRIOR, abs=0.05)


def test_classes_have_a_channel_and_a_prior_each() -> None:
    torch.manual_seed(0)
    head = StructureHead(LEVELS, structures=3, hidden=8, classes=(0, 5, 1))
    assert head(levels()).shape == (2, 7, 12, 16)
    start = head.predict.bias.sigmoid().tolist()  # type: ignore[union-attr, operator]
    assert start == pytest.approx([PRIOR] + 6 * [CLASS_PRIOR])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="multiple of 8, got 20"):
        StructureHead(LEVELS, 1, 20)


def test_levels_are_checked(head: StructureHead) -> None:
    with pytest.raises(ShapeError, match="expected 4 levels on one grid"):
        head(levels()[:3])
    with pytest.raises(ShapeError, match=r"expected 4 levels on one grid, got shapes .*\(2, 12, 2, 4\)"):
        head([*levels()[:3], levels()[3][:, :, :2]])
