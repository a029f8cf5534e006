"""L^p, the physical-structure loss: what the structure head is asked to predict, and what a miss costs.

Source: paper section 3.2, Eq. 1. Our decisions (docs/method.md, Structures): logits instead of probabilities, targets
brought to the logits' size by max-pooling (thin edges survive), cells outside the image left out, binary by default.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from kornia.losses import binary_focal_loss_with_logits
from torch import Tensor
from torch.nn import functional

from ...common.errors import ConfigError
from ..errors import ShapeError
from .interface import ModelView, Outputs
from .numerics import at_least_float32, check_choice, divide_by_count, require_head

StructureForm = Literal["focal", "gaussian_focal", "quality"]
TargetMode = Literal["binary", "soft", "gaussian"]


def structure_targets(
    maps: Tensor, valid: Tensor, size: tuple[int, int], mode: TargetMode = "binary", *, sigma_cells: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Bring cached structure maps to the size of the logits, as targets in [0, 1].

    * `binary`: 1 where the cell holds an edge pixel or a keypoint at all, else 0.
    * `soft`: the largest confidence in the cell. The maps are square-root coded, so a stored v means (v / 255)².
    * `gaussian`: 1 in the cells that hold something, and exp(-d² / (2 sigma²)) at a distance of d cells from the
      nearest of them, cut off at 3 sigma (CornerNet, Law and Deng 2018, section 3.2). For the `gaussian_focal` loss.

    Args:
        maps: (B, S, H, W) uint8 as cached, 0..255.
        valid: (B, H, W) bool, True inside the image. Whatever the maps hold elsewhere is dropped.
        size: (h, w) of the logits; H and W must be multiples.
        mode: see above.
        sigma_cells: width of the Gaussian in cells of the target.

    Returns:
        targets (B, S, h, w) float32 in [0, 1], and valid (B, 1, h, w) bool: True where any pixel of the cell is inside
        the image (its maximum over those pixels is then a true statement about them).

    Raises:
        ShapeError: The sizes do not fit.
        ConfigError: The mode is unknown, or sigma is not positive.

    Example:
        >>> maps = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> maps[0, 0, 5, 2] = 51  # one keypoint, confidence (51 / 255)² = 0.04
        >>> inside = torch.ones(1, 8, 8, dtype=torch.bool)
        >>> structure_targets(maps, inside, (2, 2))[0].tolist()
        [[[[0.0, 0.0], [1.0, 0.0]]]]
        >>> round(structure_targets(maps, inside, (2, 2), "soft")[0][0, 0, 1, 0].item(), 6)
        0.04
    """
    check_choice("structure target", mode, get_args(TargetMode))
    if sigma_cells <= 0:
        raise ConfigError(f"sigma_cells must be positive, got {sigma_cells}")
    if maps.ndim != 4 or valid.shape != (maps.shape[0], *maps.shape[2:]):
        got = f"{tuple(maps.shape)} and {tuple(valid.shape)}"
        raise ShapeError(f"expected maps (B, S, H, W) and valid (B, H, W), got {got}")
    height, width = maps.shape[2:]
    if height % size[0] or width % size[1]:
        raise ShapeError(f"maps of {height} x {width} px do not divide into {size[0]} x {size[1]} cells")
    inside = valid[:, None]
    pooled = _max_cells(maps * inside, size)
    targets = (pooled.float() / 255.0) ** 2 if mode == "soft" else (pooled > 0).float()
    if mode == "gaussian":
        targets = _splat(targets, sigma_cells)
    return targets, _max_cells(inside.to(torch.uint8), size) > 0


def structure_loss(
    logits: Tensor,
    targets: Tensor,
    valid: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 4.0,
    form: StructureForm = "focal",
) -> Tensor:
    """L^p of a batch: the loss of each structure, summed over the valid cells and divided by a count; their mean.

    With s = sigmoid(logit) and y the target, per cell:

    * `focal` (Lin et al. 2017, Eq. 5): -alpha y (1 - s)^gamma log s - (1 - alpha) (1 - y) s^gamma log(1 - s), mean over
      cells. Right for binary targets. With soft ones it is not a proper loss: at alpha 0.25 and gamma 2 its minimum for
      y = 0.05 is at s = 0.18, for y = 0.95 at s = 0.67.
    * `gaussian_focal` (CornerNet, Law and Deng 2018, Eq. 1; CenterNet, Zhou et al. 2019, Eq. 1):
      -(1 - s)^gamma log s where y = 1, -(1 - y)^beta s^gamma log(1 - s) elsewhere, sum over cells / number of cells
      with y = 1. For targets in mode "gaussian"; `alpha` has no part in it.
    * `quality` (Li et al. 2020, Generalized Focal Loss, Eq. 2): |y - s|^gamma BCE(y, s), mean over cells. Its minimum
      is at s = y, so soft confidences come out as they went in; `alpha` has no part in it.

    Args:
        logits: (B, S, h, w), any floating type; computed in float32 at least.
        targets: (B, S, h, w) in [0, 1], from `structure_targets`.
        valid: (B, 1, h, w) bool; other cells count neither in the sum nor in the count.
        alpha: weight of the positive term, 1 - alpha that of the negative one.
        gamma: focusing exponent; 0 makes `focal` a weighted BCE.
        beta: how fast the penalty falls near a keypoint, `gaussian_focal` only.
        form: see above.

    Returns:
        A scalar. A batch without any valid cell gives 0 with gradient 0.

    Raises:
        ShapeError: The shapes do not fit.
        ConfigError: The form is unknown.

    Example:
        >>> logits, valid = torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)
        >>> targets = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
        >>> round(structure_loss(logits, targets, valid).item(), 6)  # (0.75 + 0.25) / 2 * 0.5² * log 2
        0.086643
    """
    total = _sums(logits, targets, valid, alpha=alpha, gamma=gamma, beta=beta, form=form)
    return divide_by_count(total, structure_count(targets, valid, form)).mean()


@dataclass(frozen=True, slots=True)
class StructureLoss:
    """L^p by name, with the settings of `structure_targets` and `structure_loss`."""

    form: StructureForm = "focal"
    target: TargetMode = "binary"
    alpha: float = 0.25
    gamma: float = 2.0
    beta: float = 4.0
    sigma_cells: float = 1.0

    def __call__(self, batch: Mapping[str, Any], outputs: Outputs, model: ModelView) -> tuple[Tensor, Tensor]:
        """The sum and the count of each structure, both (S,). Raises ConfigError if the model has no such head."""
        logits = require_head(outputs.structure_logits, "lambda_p", "structure")
        targets, valid = self._targets(batch, (logits.shape[2], logits.shape[3]))
        numbers = {"alpha": self.alpha, "gamma": self.gamma, "beta": self.beta}
        return _sums(logits, targets, valid, form=self.form, **numbers), structure_count(targets, valid, self.form)

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """The count of each structure, (S,): structure logits have 4 cells along the side of a patch."""
        return structure_count(*self._targets(batch, (4 * batch["grid"], 4 * batch["grid"])), self.form)

    def _targets(self, batch: Mapping[str, Any], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return structure_targets(batch["structures"], batch["valid"], size, self.target, sigma_cells=self.sigma_cells)


def _sums(
    logits: Tensor, targets: Tensor, valid: Tensor, *, alpha: float, gamma: float, beta: float, form: StructureForm
) -> Tensor:
    """The loss of each structure summed over valid cells, (S,); arguments and errors of `structure_loss`."""
    check_choice("structure loss", form, tuple(_FORMS))
    if targets.shape != logits.shape or valid.shape != (logits.shape[0], 1, *logits.shape[2:]):
        expected = f"targets {tuple(logits.shape)} and valid with one channel, as the logits"
        raise ShapeError(f"expected {expected}; got {tuple(targets.shape)} and {tuple(valid.shape)}")
    logits = at_least_float32(logits)
    cells = _FORMS[form](logits, targets.to(logits.dtype), alpha, gamma, beta)
    return cells.where(valid, 0.0).sum(dim=(0, 2, 3))


def structure_count(targets: Tensor, valid: Tensor, form: StructureForm) -> Tensor:
    """What `structure_loss` divides by, (S,) float32: valid cells, or valid cells with y = 1 for `gaussian_focal`."""
    counted = valid & (targets == 1) if form == "gaussian_focal" else valid.expand_as(targets)
    return counted.sum(dim=(0, 2, 3)).float()


def _focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float, beta: float) -> Tensor:
    # kornia's is exactly the formula above for soft targets too. `ignore_index=None`: masking is ours, because its own
    # marks cells by a target value and leaves them in the mean.
    cells: Tensor = binary_focal_loss_with_logits(logits, targets, alpha, gamma, reduction="none", ignore_index=None)
    return cells


def _gaussian_focal(logits: Tensor, targets: Tensor, alpha: float, gamma: float, beta: float) -> Tensor:
    log_s, log_not_s = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    hit = -torch.exp(gamma * log_not_s) * log_s
    miss = -((1 - targets) ** beta) * torch.exp(gamma * log_s) * log_not_s
    return torch.where(targets == 1, hit, miss)


def _quality(logits: Tensor, targets: Tensor, alpha: float, gamma: float, beta: float) -> Tensor:
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (targets - logits.sigmoid()).abs() ** gamma * cross_entropy


_FORMS: Mapping[str, Callable[[Tensor, Tensor, float, float, float], Tensor]] = {
    "focal": _focal,
    "gaussian_focal": _gaussian_focal,
    "quality": _quality,
}


def _max_cells(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Largest value of each cell, (B, C, H, W) -> (B, C, h, w); torch's max_pool2d does not take uint8 everywhere."""
    batch, channels, height, width = values.shape
    return values.reshape(batch, channels, size[0], height // size[0], size[1], width // size[1]).amax(dim=(3, 5))


def _splat(peaks: Tensor, sigma: float) -> Tensor:
    """Largest of the Gaussians standing on the peaks (0 or 1), per cell: separable, since the factors are positive."""
    radius = math.ceil(min(3 * sigma, max(peaks.shape[-2:])))  # what lies farther off than the map is wide is in no map
    steps = torch.arange(-radius, radius + 1, device=peaks.device, dtype=peaks.dtype)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    rows = (functional.pad(peaks, (radius, radius, 0, 0)).unfold(-1, 2 * radius + 1, 1) * kernel).amax(-1)
    return (functional.pad(rows, (0, 0, radius, radius)).unfold(-2, 2 * radius + 1, 1) * kernel).amax(-1)
