"""L^p, the physical-structure loss: what the structure head is asked to predict, and what a miss costs.

Source: paper section 3.2, Eq. 1. Our decisions (docs/method.md, Structures): logits instead of probabilities, targets
brought to the logits' size by max-pooling (thin edges survive), cells outside the image left out, binary by default.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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

    Examples:
        >>> maps = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> maps[0, 0, 5, 2] = 51  # one keypoint, confidence (51 / 255)² = 0.04
        >>> inside = torch.ones(1, 8, 8, dtype=torch.bool)
        >>> structure_targets(maps, inside, (2, 2))[0].tolist()
        [[[[0.0, 0.0], [1.0, 0.0]]]]
        >>> round(structure_targets(maps, inside, (2, 2), "soft")[0][0, 0, 1, 0].item(), 6)
        0.04
    """
    _check_maps(maps, valid, size)
    inside = valid[:, None]
    pooled = _max_cells(maps * inside, size)
    return _targets(pooled, mode, sigma_cells), _max_cells(inside.to(torch.uint8), size) > 0


def class_targets(
    planes: Tensor,
    labels: Tensor,
    valid: Tensor,
    size: tuple[int, int],
    num_classes: int,
    mode: TargetMode = "binary",
    *,
    ignore_index: int,
    sigma_cells: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Targets of a structure of classes, a channel for each: what `structure_targets` gives for each class's own map.

    As in CASENet (Yu et al. 2017), a cell may hold edges of several classes. Nothing of size (B, T, H, W) is made. That
    a class has an edge in a cell is known where one is marked; that it has none, only where all pixels of the cell are
    labelled. Else the cell does not count for the class: annotators part objects by ignored pixels, in which the border
    lies, and where the head must not learn that there is none.

    Args:
        planes: (B, P, H, W) integers, the classes that a pixel is an edge of; `ignore_index` in unused planes.
        labels: (B, H, W) integers, the label map.
        valid, size, mode, sigma_cells: as for `structure_targets`, as are the errors. `soft` is `binary` here.
        num_classes: T.
        ignore_index: label of pixels without a class.

    Returns:
        targets (B, T, h, w) float32 in [0, 1], and valid (B, T, h, w) bool.

    Examples:
        >>> planes = torch.full((1, 2, 4, 8), 255)
        >>> planes[0, :, 2, 3] = torch.tensor([0, 2])  # classes 0 and 2 meet in the left one of two cells
        >>> labels = torch.zeros(1, 4, 8, dtype=torch.int64)
        >>> labels[0, 0, 0] = 255  # and it has a pixel without a label
        >>> targets, valid = class_targets(planes, labels, labels >= 0, (1, 2), 3, ignore_index=255)
        >>> targets[0, :, 0].tolist()
        [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
        >>> valid[0, :, 0].tolist()
        [[True, True], [False, True], [True, True]]
    """
    ids, known = _cell_ids(planes, labels, valid, size, ignore_index)
    marked = ids.new_zeros(len(ids), num_classes + 1, *size, dtype=torch.uint8).scatter_(1, ids + 1, 255)[:, 1:]
    return _targets(marked, mode, sigma_cells), known[:, None] | (marked > 0)


def class_count(
    planes: Tensor, labels: Tensor, valid: Tensor, size: tuple[int, int], form: StructureForm, *, ignore_index: int
) -> Tensor:
    """What the loss of a structure of classes is divided by, () float32, of the arguments of `class_targets`.

    Cells that count for a class, or for `gaussian_focal` pairs of a cell and a class with an edge there. The loss is so
    a sum over classes of means over cells: an edge pixel weighs as in a map without classes, in two channels instead of
    one, however many classes there are. A mean over T of them would leave it 2 / T of that.
    """
    ids, known = _cell_ids(planes, labels, valid, size, ignore_index)
    if form != "gaussian_focal":
        return (known | (ids.amax(dim=1) >= 0)).sum().float()
    ids = ids.sort(dim=1).values
    first = torch.cat([ids[:, :1] >= 0, ids[:, 1:] != ids[:, :-1]], dim=1)  # of equal ones
    return first.sum().float()


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

    Examples:
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
        size, of_classes = (logits.shape[2], logits.shape[3]), _of_classes(batch)
        num_maps = batch["structures"].shape[1] if of_classes else logits.shape[1]
        sums_of = partial(_sums, alpha=self.alpha, gamma=self.gamma, beta=self.beta, form=self.form)
        maps = self._targets(batch, size)
        sums = [sums_of(logits[:, :num_maps], *maps)]
        for position, (planes, ignore_index) in enumerate(of_classes):
            each = logits[:, num_maps:].chunk(len(of_classes), dim=1)[position]
            sized, sigma = (size, each.shape[1], self.target), self.sigma_cells
            found = class_targets(*planes, *sized, ignore_index=ignore_index, sigma_cells=sigma)
            sums.append(sums_of(*(part.flatten(0, 1)[:, None] for part in (each, *found))))  # B T maps of one structure
        return torch.cat(sums), self._count(batch, *maps)

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """The count of each structure, (S,): structure logits have 4 cells along the side of a patch."""
        return self._count(batch, *self._targets(batch, (4 * batch["grid"], 4 * batch["grid"])))

    def _count(self, batch: Mapping[str, Any], targets: Tensor, valid: Tensor) -> Tensor:
        counts = [structure_count(targets, valid, self.form)]
        for planes, ignore_index in _of_classes(batch):
            size = targets.shape[2], targets.shape[3]
            counts.append(class_count(*planes, size, self.form, ignore_index=ignore_index)[None])
        return torch.cat(counts)

    def _targets(self, batch: Mapping[str, Any], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return structure_targets(batch["structures"], batch["valid"], size, self.target, sigma_cells=self.sigma_cells)


def _of_classes(batch: Mapping[str, Any]) -> list[tuple[tuple[Tensor, Tensor, Tensor], int]]:
    """Planes (B, P, H, W), labels and valid of each structure of classes in a batch, and the ignore index."""
    planes = batch.get("structure_classes")
    each = () if planes is None else planes.unbind(1)
    return [((part, batch["labels"], batch["valid"]), batch["ignore_index"]) for part in each]


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


def _cell_ids(
    planes: Tensor, labels: Tensor, valid: Tensor, size: tuple[int, int], ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Ids at each cell's pixels (B, N, h, w), -1 for none; and whether all its pixels are labelled (B, h, w)."""
    _check_maps(planes, valid, size)
    batch, slots, height, width = planes.shape
    cells = (batch, slots, size[0], height // size[0], size[1], width // size[1])
    ids = torch.where(valid[:, None] & (planes != ignore_index), planes.long(), -1)
    ids = ids.reshape(cells).permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, *size)
    unlabelled = ((labels == ignore_index) | ~valid)[:, None].to(torch.uint8)
    return ids, _max_cells(unlabelled, size)[:, 0] == 0


def _check_maps(maps: Tensor, valid: Tensor, size: tuple[int, int]) -> None:
    if maps.ndim != 4 or valid.shape != (maps.shape[0], *maps.shape[2:]):
        got = f"{tuple(maps.shape)} and {tuple(valid.shape)}"
        raise ShapeError(f"expected maps (B, S, H, W) and valid (B, H, W), got {got}")
    height, width = maps.shape[2:]
    if height % size[0] or width % size[1]:
        raise ShapeError(f"maps of {height} x {width} px do not divide into {size[0]} x {size[1]} cells")


def _targets(pooled: Tensor, mode: TargetMode, sigma_cells: float) -> Tensor:
    """Targets in [0, 1] of the largest code 0..255 of each cell, see `structure_targets`."""
    check_choice("structure target", mode, get_args(TargetMode))
    if sigma_cells <= 0:
        raise ConfigError(f"sigma_cells must be positive, got {sigma_cells}")
    targets = (pooled.float() / 255.0) ** 2 if mode == "soft" else (pooled > 0).float()
    return _splat(targets, sigma_cells) if mode == "gaussian" else targets


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
