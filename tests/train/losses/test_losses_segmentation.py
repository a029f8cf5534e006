"""L_seg: hand values, an independent float64 reference, gradients, ignored pixels."""

import doctest
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from physseg.train.errors import ShapeError
from physseg.train.losses import segmentation as losses_segmentation
from physseg.train.losses.total import segmentation_loss
from torch.nn import functional

# Relative error of a mean over some thousand cells: float32 rounds at 6e-8, logits in bfloat16 at 4e-3.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


def reference(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], ignore_index: int, mask: bool) -> float:
    """BCE by its definition, one pixel and class at a time, for logits at the labels' size."""
    batch, classes, height, width = logits.shape
    total, counted = 0.0, 0
    for b, y, x in np.ndindex(batch, height, width):
        if mask and labels[b, y, x] == ignore_index:
            continue
        counted += 1
        for c in range(classes):
            s = 1 / (1 + math.exp(-logits[b, c, y, x]))
            total -= math.log(s) if labels[b, y, x] == c else math.log(1 - s)
    return total / (counted * classes)


def toy(seed: int = 0, classes: int = 4, side: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, side, side, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (2, side, side), generator=generator)  # the last class never occurs
    labels[0, :2] = 255
    return logits, labels


def test_docstring_example() -> None:
    assert doctest.testmod(losses_segmentation).failed == 0


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_agrees_with_the_definition(dtype: torch.dtype, mask: bool) -> None:
    logits, labels = toy()
    expected = reference(logits.numpy(), labels.numpy(), 255, mask)
    loss = segmentation_loss(logits.to(dtype), labels, ignore_index=255, mask_ignored=mask)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.item() == pytest.approx(expected, rel=TOLERANCE[dtype])


def test_agrees_with_one_hot_targets_and_torch_on_upsampled_logits() -> None:
    logits, _ = toy(side=6)
    labels = torch.randint(0, 4, (2, 24, 18))
    labels[1, 3:9] = 255
    upsampled = functional.interpolate(logits, (24, 18), mode="bilinear", align_corners=False)
    targets = functional.one_hot(labels.where(labels != 255, 4), 5)[..., :4].permute(0, 3, 1, 2).double()
    expected = functional.binary_cross_entropy_with_logits(upsampled, targets)
    assert segmentation_loss(logits, labels, ignore_index=255).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("mask", [False, True])
def test_gradient(mask: bool) -> None:
    logits, _ = toy(side=3)
    labels = torch.randint(0, 4, (2, 6, 6))
    labels[0, 0] = 255
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(x, labels, ignore_index=255, mask_ignored=mask), logits.requires_grad_()
    )


def test_convention_ignored_pixels_are_negatives_of_every_class() -> None:
    logits = torch.full((1, 2, 1, 1), 3.0)
    ignored = torch.full((1, 1, 1), 255)
    assert segmentation_loss(logits, ignored, ignore_index=255).item() == pytest.approx(math.log(1 + math.exp(3)))
    assert segmentation_loss(logits, ignored, ignore_index=255, mask_ignored=True).item() == 0


def test_all_ignored_and_masked_gives_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    segmentation_loss(logits, torch.full((1, 4, 4), 255), ignore_index=255, mask_ignored=True).backward()
    assert logits.grad is not None and logits.grad.abs().max() == 0


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = segmentation_loss(logits, torch.tensor([[[1]]]), ignore_index=255)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad is not None and logits.grad.flatten().tolist() == [0.5, -0.5]


def test_order_of_the_batch_does_not_matter() -> None:
    logits, labels = toy()
    assert segmentation_loss(logits.flip(0), labels.flip(0), ignore_index=255).item() == pytest.approx(
        segmentation_loss(logits, labels, ignore_index=255).item(), rel=1e-14
    )


def test_what_does_not_fit_is_named() -> None:
    logits, labels = toy()
    with pytest.raises(ShapeError, match=r"labels \(B, H, W\)"):
        segmentation_loss(logits, labels[:1], ignore_index=255)
    with pytest.raises(ShapeError, match="ignore_index 3 is the id of one of the 4 classes"):
        segmentation_loss(logits, labels, ignore_index=3)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        segmentation_loss(logits, torch.full_like(labels, 4), ignore_index=255)
