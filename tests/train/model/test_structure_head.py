"""The structure head: shapes, gradient to every level, detail inside a patch, the prior, errors."""

import doctest

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.model import structure_head
from physseg.train.model.backbones.interface import Level
from physseg.train.model.structure_head import CLASS_PRIOR, PRIOR, StructureHead, refine_scales
from torch import Tensor

LEVELS = [Level(12, stride=16)] * 4


def levels(batch: int = 2, grid: tuple[int, int] = (3, 4)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(batch, 12, *grid, generator=generator) for _ in range(4)]


@pytest.fixture
def head() -> StructureHead:
    torch.manual_seed(0)
    return StructureHead(LEVELS, 16, structures=2, hidden=8)


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
    head = StructureHead(LEVELS, 16, structures=1, hidden=16)
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
    head = StructureHead(LEVELS, 16, structures=3, hidden=8, classes=(0, 5, 1))
    assert head(levels()).shape == (2, 7, 12, 16)
    start = head.predict.bias.sigmoid().tolist()  # type: ignore[union-attr, operator]
    assert start == pytest.approx([PRIOR] + 6 * [CLASS_PRIOR])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="multiple of 8, got 20"):
        StructureHead(LEVELS, 16, 1, 20)


def test_levels_are_checked(head: StructureHead) -> None:
    with pytest.raises(ShapeError, match=r"levels: expected 4 of one crop, at strides \[16, 16, 16, 16\]"):
        head(levels()[:3])
    with pytest.raises(ShapeError, match=r"expected 4 of one crop, .*, got .*\(2, 12, 2, 4\)"):
        head([*levels()[:3], levels()[3][:, :, :2]])


# A pyramid of one patch's size and a half, a quarter and an eighth of it, as a ConvNeXt has it.
PYRAMID = [Level(20, stride=32), Level(16, stride=16), Level(12, stride=8), Level(8, stride=4)]


def pyramid(grid: tuple[int, int] = (2, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = [(grid[0] * 32 // level.stride, grid[1] * 32 // level.stride) for level in PYRAMID]
    return [
        torch.randn(2, level.channels, *size, generator=generator) for level, size in zip(PYRAMID, sizes, strict=True)
    ]


def test_a_pyramid_comes_out_at_four_times_the_patch_grid_with_gradient_to_every_level() -> None:
    torch.manual_seed(0)
    head = StructureHead(PYRAMID, 32, structures=2, hidden=8)
    inputs = [level.requires_grad_() for level in pyramid()]
    logits = head(inputs)
    assert logits.shape == (2, 2, 8, 12)
    logits.square().sum().backward()
    for tensor in [*inputs, *head.parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().max() > 0
    with pytest.raises(ShapeError, match=r"at strides \[32, 16, 8, 4\]"):
        head([*inputs[:3], inputs[3][:, :, :4]])


def test_a_pyramids_levels_meet_by_hand() -> None:
    """Convolutions that add and no normalisation: coarser ones are interpolated, the finest one is averaged."""
    head = StructureHead([Level(8, level.stride) for level in PYRAMID], 32, structures=1, hidden=8)
    identity = torch.eye(8)[..., None, None]
    for conv in head.levels:
        conv.weight.data, conv.bias.data = identity, torch.zeros(8)  # type: ignore[union-attr]
    for refine in head.refine:
        refine.norm = torch.nn.Identity()
        refine.conv.weight.data, refine.conv.bias.data = torch.cat([identity, identity], dim=1), torch.zeros(8)  # type: ignore[union-attr]
    head.predict.weight.data, head.predict.bias.data = torch.full((1, 8, 1, 1), 1 / 8), torch.zeros(1)  # type: ignore[union-attr]
    second, third = torch.tensor([[2.0, 3.0], [4.0, 5.0]]), torch.zeros(4, 4)
    third[1, 2] = 10.0
    fourth = torch.zeros(8, 8)
    fourth[6, 1] = 4.0  # one of the four cells of (3, 0)
    given = [torch.ones(1, 1), second, third, fourth]
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0])  # of two cells, at the centres of four
    expected = 1 + 2 + steps[None, :] + 2 * steps[:, None]
    expected[1, 2] += 10.0
    expected[3, 0] += 1.0
    torch.testing.assert_close(head([level.expand(1, 8, -1, -1) for level in given])[0, 0], expected)


def test_detail_of_a_fine_level_can_be_predicted() -> None:
    """Whatever the deep levels say, a random pattern that only the finest one has comes out."""
    torch.manual_seed(0)
    head = StructureHead(PYRAMID, 32, structures=1, hidden=16)
    pattern = (torch.rand(1, 1, 16, 16) > 0.5).float()
    *deep, finest = (torch.randn(1, level.channels, 128 // level.stride, 128 // level.stride) for level in PYRAMID)
    finest[:, :1] += 8 * torch.nn.functional.interpolate(pattern, size=(32, 32))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        logits = head([*deep, finest])
        torch.nn.functional.binary_cross_entropy_with_logits(logits, pattern).backward()
        optimizer.step()
    assert ((logits > 0) == pattern.bool()).float().mean().item() > 0.99


@pytest.mark.parametrize(
    ("strides", "patch_px", "scales"),
    [
        ((14, 14, 14, 14), 14, (1, 2, 2)),
        ((16, 16, 16, 8), 16, (1, 1, 2)),
        ((32, 32, 32, 32), 16, (2, 2, 2)),
        ((16, 8, 4, 2), 32, (1, 1, 1)),
    ],
)
def test_modules_grow_by_what_the_finest_level_lacks(
    strides: tuple[int, ...], patch_px: int, scales: tuple[int, int, int]
) -> None:
    assert refine_scales(strides, patch_px) == scales
    levels = [Level(8, stride) for stride in strides]
    maps = [torch.randn(1, 8, 224 // stride, 224 // stride) for stride in strides]
    side = 4 * (224 // patch_px)
    assert StructureHead(levels, patch_px, structures=1, hidden=8)(maps).shape == (1, 1, side, side)


@pytest.mark.parametrize("strides", [(16, 16, 16, 12), (64, 64, 64, 64)])
def test_strides_that_do_not_go_with_patches_are_named(strides: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"strides of the backbone's levels: .* patch size 16"):
        StructureHead([Level(8, stride) for stride in strides], 16, structures=1, hidden=8)
