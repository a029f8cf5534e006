"""The whole loss, L = L_seg + lambda_sac L^sac + lambda_p L^p (docs/method.md, Whole loss).

Each part has its own file: `segmentation` (L_seg), `alignment` (L^sac), `structure` (L^p). All are pure
functions of tensors and compute in float32 at least, whatever precision the network runs in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from ...common.errors import ConfigError
from ...common.settings import check_ranges
from ..errors import ShapeError
from .alignment import AlignmentForm, labelled_patches, patch_alignment_loss, patch_weights
from .numerics import check_choice
from .segmentation import segmentation_loss
from .structure import StructureForm, TargetMode, structure_count, structure_losses, structure_targets

__all__ = ["LossConfig", "loss_counts", "segmentation_loss", "total_loss"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Which losses are used, and in which form. The paper's Table 3 is the four settings of the two lambdas, 0 or 1.

    Raises:
        ConfigError: A form is unknown, a number is out of its range, or form and targets do not go together.
    """

    lambda_p: float = 1.0
    """Weight of the structure loss L^p; 0 switches it off, targets and all."""
    lambda_sac: float = 1.0
    """Weight of the patch alignment loss L^sac; 0 switches it off."""
    mask_ignored: bool = False
    """Whether L_seg leaves ignored pixels out. In the baseline they are negatives of every class."""
    structure_form: StructureForm = "focal"
    """Form of L^p: focal, gaussian_focal or quality (`structure.structure_losses`)."""
    structure_target: TargetMode = "binary"
    """Targets of L^p: binary, soft or gaussian (`structure.structure_targets`)."""
    alpha: float = 0.25
    """Weight of the positive term of the focal loss."""
    gamma: float = 2.0
    """Focusing exponent of every form of L^p."""
    beta: float = 4.0
    """Exponent of the smaller penalty near keypoints, in the form gaussian_focal."""
    sigma_cells: float = 1.0
    """Width of the Gaussian targets, in cells of the structure logits (4 px of the crop)."""
    alignment_form: AlignmentForm = "infonce"
    """Form of L^sac: infonce, soft_ce or printed (`alignment.patch_alignment_loss`)."""

    def __post_init__(self) -> None:
        forms = {"structure_form": StructureForm, "structure_target": TargetMode, "alignment_form": AlignmentForm}
        for name, form in forms.items():
            check_choice(name, getattr(self, name), get_args(form))
        numbers = ("lambda_p", "lambda_sac", "gamma", "beta")
        check_ranges(self, **dict.fromkeys(numbers, "[0, 1e18]"), sigma_cells="(0, 1e18]", alpha="[0, 1]")
        if self.structure_form == "quality" and 0 < self.gamma < 1:
            slope = f"gamma = {self.gamma}: the quality form has an infinite slope at s = y"
            raise ConfigError(slope, hint="use 0, or 1 and more")
        if self.structure_form == "gaussian_focal" and self.structure_target == "soft":
            raise ConfigError(
                "structure_form = 'gaussian_focal' needs cells with target 1, structure_target = 'soft' has hardly any",
                hint="set structure_target = 'gaussian' (or 'binary')",
            )


class SegmenterLike(Protocol):
    """What `total_loss` reads of the segmenter's output."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def structure_logits(self) -> Tensor | None: ...
    @property
    def similarity(self) -> Tensor | None: ...


def total_loss(
    output: SegmenterLike,
    batch: Mapping[str, Any],
    config: LossConfig,
    *,
    ignore_index: int,
    structures: Sequence[str] = (),
    counts: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """L = L_seg + lambda_sac L^sac + lambda_p L^p (Eq. 4 and docs/method.md, Whole loss), with every part for the log.

    Args:
        output: `logits` (B, T, h, w); `structure_logits` (B, S, h, w) and `similarity` (B, N, T) where used.
        batch: `labels` (B, H, W) int64; `structures` (B, S, H, W) uint8 and `valid` (B, H, W) bool for L^p;
            `cell_classes`, `cell_counts` (B, K, h', w') for L^sac.
        config: forms and weights; a part with weight 0 is not computed and not in the result.
        ignore_index: label of pixels that belong to no class.
        structures: names of the S structures, for the log.
        counts: from `loss_counts`, averaged over ranks and micro-batches; None for one process and one batch a step.

    Returns:
        Scalars: `loss`, the sum to differentiate; then, without their weights, `segmentation`, `structure` (the mean of
        `structure/NAME`, which carry no gradient) and `alignment`.

    Raises:
        ConfigError: A loss is switched on whose head the model lacks.
        ShapeError: The arrays do not fit.
    """
    counts = counts or {}
    segmentation = segmentation_loss(
        output.logits,
        batch["labels"],
        ignore_index=ignore_index,
        mask_ignored=config.mask_ignored,
        count=counts.get("segmentation"),
    )
    parts = {"loss": segmentation, "segmentation": segmentation}
    if config.lambda_p > 0:
        logits = _head(output.structure_logits, "lambda_p", "structure")
        targets, valid = _structure_targets(batch, config, (logits.shape[2], logits.shape[3]))
        each = structure_losses(
            logits,
            targets,
            valid,
            alpha=config.alpha,
            gamma=config.gamma,
            beta=config.beta,
            form=config.structure_form,
            count=counts.get("structure"),
        )
        parts["structure"] = each.mean()
        parts["loss"] = parts["loss"] + config.lambda_p * parts["structure"]
        if len(structures) == len(each):
            parts |= {f"structure/{name}": value for name, value in zip(structures, each.detach(), strict=True)}
    if config.lambda_sac > 0:
        similarity = _head(output.similarity, "lambda_sac", "patch alignment")
        cell_classes = batch["cell_classes"]
        weights = patch_weights(
            cell_classes,
            batch["cell_counts"],
            similarity.shape[2],
            _cells_per_patch(cell_classes, similarity.shape[1]),
            cell_px=batch["labels"].shape[-1] // cell_classes.shape[-1],
            ignore_index=ignore_index,
        )
        form, count = config.alignment_form, counts.get("alignment")
        parts["alignment"] = patch_alignment_loss(similarity, weights, form=form, count=count)
        parts["loss"] = parts["loss"] + config.lambda_sac * parts["alignment"]
    return parts


def loss_counts(batch: Mapping[str, Any], config: LossConfig, *, ignore_index: int, grid: int) -> dict[str, Tensor]:
    """What each mean of `total_loss` divides by, from the batch alone: labelled pixels, valid cells, labelled patches.

    These differ between batches. Where a step is spread over several ranks or micro-batches, and the mean of their
    losses is what gets differentiated, average these counts over all of them first and pass the result to `total_loss`:
    then the step does not depend on how its samples were spread.

    Args:
        batch, config, ignore_index: as for `total_loss`.
        grid: Side of the patch grid; structure logits have 4 cells along the side of a patch.

    Returns:
        float32: `segmentation` (), and, where switched on, `structure` (S,) and `alignment` ().
    """
    labels = batch["labels"]
    labelled = (labels != ignore_index).sum() if config.mask_ignored else labels.new_tensor(labels.numel())
    counts = {"segmentation": labelled.float()}
    if config.lambda_p > 0:
        targets, valid = _structure_targets(batch, config, (4 * grid, 4 * grid))
        counts["structure"] = structure_count(targets, valid, config.structure_form)
    if config.lambda_sac > 0:
        cells = batch["cell_classes"].shape[-1] // grid
        patches = labelled_patches(batch["cell_classes"], batch["cell_counts"], cells, ignore_index)
        images = patches.new_tensor(patches.shape[0], dtype=torch.float32)
        counts["alignment"] = images if config.alignment_form == "printed" else patches.sum().float()
    return counts


def _structure_targets(batch: Mapping[str, Any], config: LossConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    maps, mode = batch["structures"], config.structure_target
    return structure_targets(maps, batch["valid"], size, mode, sigma_cells=config.sigma_cells)


def _head(predicted: Tensor | None, switch: str, head: str) -> Tensor:
    if predicted is None:
        hint = f"build the model with its {head} head, keep it in training mode, or set {switch} = 0"
        raise ConfigError(f"{switch} is above 0, but the model made no {head} output", hint=hint)
    return predicted


def _cells_per_patch(cells: Tensor, num_patches: int) -> int:
    """Cells along one side of a patch, from the cells of the crop and the patches of the model."""
    height, width = cells.shape[-2:]
    side = isqrt(height * width // num_patches)
    if side < 1 or side * side * num_patches != height * width:
        raise ShapeError(f"{height} x {width} cells do not make {num_patches} square patches")
    return side
