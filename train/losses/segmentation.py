"""L_seg, the baseline's loss: per-class sigmoid BCE against one-hot labels (docs/method.md, Whole loss)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..errors import ShapeError
from .interface import ModelView, Outputs
from .numerics import at_least_float32, divide_by_count


def segmentation_loss(logits: Tensor, labels: Tensor, *, ignore_index: int, mask_ignored: bool = False) -> Tensor:
    """Mean over pixels and classes of BCE(sigmoid(logit), label is this class).

    The logits are brought to the labels' size bilinearly (align_corners False). Ignored pixels have all-zero targets:
    they are negatives of every class and stay in the mean, as in the CAT-Seg reference.

    Args:
        logits: (B, T, h, w), any floating type; computed in float32 at least.
        labels: (B, H, W) int64, 0..T-1 or `ignore_index`.
        ignore_index: Label of pixels that belong to no class; outside 0..T-1.
        mask_ignored: Whether ignored pixels are left out of sum and mean instead (a deviation from the baseline).

    Returns:
        A scalar. With `mask_ignored`, a batch without any labelled pixel gives 0 with gradient 0.

    Raises:
        ShapeError: The shapes do not fit, or `ignore_index` is a class. A label beyond T is torch's own index
            error (looking for it here would make the host wait for the device in every step).

    Examples:
        >>> logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
        >>> labels = torch.tensor([[[0, 255]]])
        >>> # labelled pixel: log(1 + exp(-2)), log 2; ignored pixel: log(1 + exp(2)), log 2
        >>> round(segmentation_loss(logits, labels, ignore_index=255).item(), 6)
        0.910038
    """
    return divide_by_count(*_sum_and_count(logits, labels, ignore_index, mask_ignored)) / logits.shape[1]


@dataclass(frozen=True, slots=True)
class SegmentationLoss:
    """L_seg by name, with the settings of `segmentation_loss`."""

    mask_ignored: bool = False

    def __call__(self, batch: Mapping[str, Any], outputs: Outputs, model: ModelView) -> tuple[Tensor, Tensor]:
        """Sums (T,), whose mean over classes is the loss, and the number of pixels ()."""
        logits = outputs.logits
        total, count = _sum_and_count(logits, batch["labels"], model.ignore_index, self.mask_ignored)
        # The sum over all classes stands in the first one's place: the same numbers as total / count / T, to the bit.
        return functional.pad(total[None], (0, logits.shape[1] - 1)), count.float()

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Number of pixels, or of labelled ones, ()."""
        labels: Tensor = batch["labels"]
        return _count(labels, labels != batch["ignore_index"], self.mask_ignored).float()


def _sum_and_count(logits: Tensor, labels: Tensor, ignore_index: int, mask_ignored: bool) -> tuple[Tensor, Tensor]:
    """The sum of BCE over pixels and classes, and the number of pixels; arguments and errors of `segmentation_loss`."""
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        got = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ShapeError(f"expected logits (B, T, h, w) and labels (B, H, W), got {got}")
    if 0 <= ignore_index < logits.shape[1]:
        raise ShapeError(f"ignore_index {ignore_index} is the id of one of the {logits.shape[1]} classes")
    size = (labels.shape[1], labels.shape[2])
    upsampled = functional.interpolate(at_least_float32(logits), size=size, mode="bilinear", align_corners=False)
    labelled = (labels != ignore_index)[:, None]
    index = torch.where(labelled, labels[:, None], 0)
    total = cast(Tensor, _OneHotBCE.apply(upsampled, index, labelled, mask_ignored))
    return total, _count(labels, labelled, mask_ignored)


def _count(labels: Tensor, labelled: Tensor, mask_ignored: bool) -> Tensor:
    """Number of pixels, or of labelled ones, (); made on the device, for a copy from the host would wait for it."""
    return labelled.sum() if mask_ignored else labels.new_full((), labels.numel(), dtype=torch.int64)


class _OneHotBCE(torch.autograd.Function):
    """Sum of BCE against one-hot targets, without ever making them: sum_t softplus(x_t) - x_label.

    The tensors here are the largest of a training step (B x T x H x W). Against the plain way (one-hot targets, then
    binary_cross_entropy_with_logits) this takes 0.36 s instead of 0.55-0.88 s and 0.2 GB instead of 0.4-0.5 GB for
    171 classes at 384 x 384 on one CPU core: nothing is kept but the logits, and the gradient is made in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, labelled: Tensor, mask_ignored: bool) -> Tensor:
        """(B, T, H, W) logits; (B, 1, H, W) label, whether it is one; and whether others do not count -> scalar."""
        ctx.save_for_backward(logits, index, labelled)
        ctx.mask_ignored = mask_ignored
        pixels = functional.softplus(logits).sum(1, keepdim=True) - logits.gather(1, index) * labelled
        return (pixels * labelled if mask_ignored else pixels).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The derivative sigmoid(x) - one-hot, where the pixel counts."""
        logits, index, labelled = ctx.saved_tensors
        slope = logits.sigmoid()
        slope.scatter_add_(1, index, -labelled.to(slope.dtype))
        return slope.mul_(labelled * grad if ctx.mask_ignored else grad), None, None, None
