"""The whole loss, L = L_seg + lambda_sac L^sac + lambda_p L^p (docs/method.md, Whole loss), and what others add.

Each part has its own file: `segmentation` (L_seg), `alignment` (L^sac), `structure` (L^p). They compute in float32 at
least, whatever precision the network runs in. They and the losses of other packages (named.py) are summed alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any, get_args

import torch
from torch import Tensor

from ...common.errors import ConfigError
from ...common.plugins import find
from ...common.settings import check_ranges
from ..errors import ShapeError
from .alignment import AlignmentForm, AlignmentLoss
from .interface import Counted, Loss, ModelView, Outputs
from .named import BUILT_IN, LossSettings, make_loss, with_named
from .numerics import check_choice, divide_by_count
from .segmentation import SegmentationLoss, segmentation_loss
from .structure import StructureForm, StructureLoss, TargetMode

__all__ = ["LossConfig", "build_losses", "loss_counts", "loss_sums", "segmentation_loss", "total_loss"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Which losses are used, and in which form. The paper's Table 3 is the four settings of the two lambdas, 0 or 1.

    A table `[losses.NAME]` among the settings is the loss of that name of another package. Raises ConfigError for what
    is unknown or out of its range, and for form and targets that do not go together.
    """

    lambda_p: float = 1.0
    """Weight of the structure loss L^p; 0 switches it off, targets and all."""
    lambda_sac: float = 1.0
    """Weight of the patch alignment loss L^sac; 0 switches it off."""
    mask_ignored: bool = False
    """Whether L_seg leaves ignored pixels out. In the baseline they are negatives of every class."""
    structure_form: StructureForm = "focal"
    """Form of L^p: focal, gaussian_focal or quality (`structure.structure_loss`)."""
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

    @classmethod
    def for_values(cls, values: Mapping[str, Any]) -> tuple[type["LossConfig"], Mapping[str, Any]]:
        """See `common.settings.build`: a field more for each loss of another package."""
        return with_named(cls, values)

    @property
    def named(self) -> dict[str, LossSettings]:
        """Settings of the losses of other packages by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, LossSettings)}


Losses = Mapping[str, tuple[Loss, float]]
"""Losses and their weights by name, in the order of the sum."""


def build_losses(config: LossConfig) -> Losses:
    """The losses that are switched on; those with parameters begin anew."""
    losses: dict[str, tuple[Loss, float]] = {"segmentation": (SegmentationLoss(config.mask_ignored), 1.0)}
    if config.lambda_p > 0:
        numbers = {"alpha": config.alpha, "gamma": config.gamma, "beta": config.beta, "sigma_cells": config.sigma_cells}
        structure = StructureLoss(config.structure_form, config.structure_target, **numbers)
        losses["structure"] = (structure, config.lambda_p)
    if config.lambda_sac > 0:
        losses["alignment"] = (AlignmentLoss(config.alignment_form), config.lambda_sac)
    return losses | {name: (make_loss(one), one.weight) for name, one in config.named.items()}


def loss_sums(
    losses: Losses, output: Outputs, batch: Mapping[str, Any], model: ModelView
) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and count of each loss by name, as `Loss` has them; no gradient flows through the counts.

    Raises ShapeError for a loss that gives something else.
    """
    sums = {}
    seen = {**batch, "ignore_index": model.ignore_index, "grid": model.grid}
    for name, (loss, _) in losses.items():
        trusted = name in BUILT_IN or torch.compiler.is_compiling()  # which has one graph, without looking at versions
        got: Any = loss(seen, output, model) if trusted else _called(name, loss, {**seen}, output, model)
        tensors = isinstance(got, tuple) and [isinstance(part, Tensor) and part.ndim < 2 for part in got] == [True] * 2
        if not tensors or not got[0].is_floating_point() or got[1].shape not in ((), got[0].shape):
            parts = got if isinstance(got, tuple) else [got]
            shapes = [f"a tensor {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in parts]
            raise ShapeError.mismatch(f"losses.{name}", "a tuple (sum, count) of two tensors ()", ", ".join(shapes))
        sums[name] = (got[0], got[1].detach().float())
    return sums


def _called(name: str, loss: Loss, batch: Mapping[str, Any], output: Outputs, model: ModelView) -> Any:
    """What a loss of another package gives; PluginError where it fails, or changes what other losses are given."""
    given = {**batch, **{key: getattr(output, key) for key in ("logits", "structure_logits", "similarity")}}
    versions = {key: value._version for key, value in given.items() if isinstance(value, Tensor)}
    try:
        got = loss(batch, output, model)
        if changed := [key for key, version in versions.items() if given[key]._version != version]:
            raise ValueError(f"it changes {changed[0]} in place, which other losses are given as well")
        return got
    except (Exception, SystemExit):
        with find("losses", name).blamed():
            raise


def total_loss(
    output: Outputs,
    batch: Mapping[str, Any],
    config: LossConfig | Losses,
    *,
    ignore_index: int,
    structures: Sequence[str] = (),
    counts: Mapping[str, Tensor] | None = None,
    model: ModelView | None = None,
) -> dict[str, Tensor]:
    """L = L_seg + lambda_sac L^sac + lambda_p L^p (Eq. 4 and docs/method.md, Whole loss), with every part for the log.

    Args:
        output: `logits` (B, T, h, w); `structure_logits` (B, S, h, w) and `similarity` (B, N, T) where used.
        batch: `labels` (B, H, W) int64; `structures` (B, S, H, W) uint8 and `valid` (B, H, W) bool for L^p;
            `cell_classes`, `cell_counts` (B, K, h', w') for L^sac.
        config: forms and weights, a part with weight 0 is not computed and not in the result; or what `build_losses`
            made of them.
        ignore_index: label of pixels that belong to no class.
        structures: names of the S structures, for the log.
        counts: from `loss_counts`, averaged over ranks and micro-batches; None for one process and one batch a step.
        model: what losses may see of the model; None gives them what is known here.

    Returns:
        Scalars: `loss`, the sum to differentiate; then, without their weights, `segmentation`, `structure` (the mean of
        `structure/NAME`, which carry no gradient), `alignment`, and the losses of other packages by their names.

    Raises:
        ConfigError: A loss is switched on whose head the model lacks.
        ShapeError: The arrays do not fit.
    """
    losses, counts = build_losses(config) if isinstance(config, LossConfig) else config, counts or {}
    if model is None:
        grid = output.logits.shape[-1] // 4
        model = ModelView(ignore_index=ignore_index, grid=grid, structures=tuple(structures))
    terms, parts = [], {}
    for name, (total, count) in loss_sums(losses, output, batch, model).items():
        each, weight = divide_by_count(total, counts.get(name, count)), losses[name][1]
        parts[name] = each.mean() if each.ndim else each
        terms.append(parts[name] if weight == 1 else weight * parts[name])
        if name == "structure" and len(structures) == len(each):
            parts |= {f"structure/{key}": value for key, value in zip(structures, each.detach(), strict=True)}
    return {"loss": reduce(add, terms), **parts}


def loss_counts(
    batch: Mapping[str, Any], config: LossConfig | Losses, *, ignore_index: int, grid: int
) -> dict[str, Tensor]:
    """What each mean of `total_loss` divides by, from the batch alone: labelled pixels, valid cells, labelled patches.

    These differ between batches. Where a step is spread over several ranks or micro-batches, and the mean of their
    losses is what gets differentiated, average these counts over all of them first and pass the result to `total_loss`:
    then the step does not depend on how its samples were spread.

    Args:
        batch, config, ignore_index: as for `total_loss`.
        grid: Side of the patch grid; structure logits have 4 cells along the side of a patch.

    Returns:
        float32: `segmentation` (), and, where switched on, `structure` (S,) and `alignment` (); those of other
        packages, but for the ones whose count does not follow from the batch alone.
    """
    seen = {**batch, "ignore_index": ignore_index, "grid": grid}
    losses = build_losses(config) if isinstance(config, LossConfig) else config
    return {name: loss.count(seen).float() for name, (loss, _) in losses.items() if isinstance(loss, Counted)}
