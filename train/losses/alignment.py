"""L^sac, the weighted patch-level alignment loss: image patches against all classes' texts (paper Fig. 4, Eq. 2-3).

docs/method.md, Alignment, says where Eq. 3 cannot be meant as printed, and which forms are offered instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ShapeError
from .interface import ModelView, Outputs
from .numerics import at_least_float32, check_choice, divide_by_count, require_head

AlignmentForm = Literal["infonce", "soft_ce", "printed"]


def patch_weights(
    cell_classes: Tensor,
    cell_counts: Tensor,
    num_classes: int,
    cells_per_patch: int,
    *,
    ignore_index: int,
    cell_px: int = 8,
) -> Tensor:
    """Share of each class in each patch, w_ij of Eq. 2: pixels of class j in patch i / all pixels of patch i.

    The store holds class counts per small cell; a patch is `cells_per_patch`² of them, so adding up is exact, equal to
    counting the cropped label map. Pixels that are ignored or outside the image belong to no class: the sum of a row is
    the labelled share of the patch, at most 1.

    Args:
        cell_classes: (B, K, h, w) integer, class of each slot of a cell; `ignore_index` in unused slots.
        cell_counts: (B, K, h, w) uint8, pixels of that class in the cell.
        num_classes: T.
        cells_per_patch: cells along one side of a patch; h and w must be multiples.
        ignore_index: the id that is no class.
        cell_px: pixels along one side of a cell.

    Returns:
        (B, N, T) float32, patches in row-major order (N = h w / cells_per_patch²).

    Raises:
        ShapeError: shapes that do not fit. An id beyond num_classes is torch's own index error (looking for it here
            would make the host wait for the device in every step; the store's verification has already done so).

    Examples:
        >>> classes = torch.tensor([[3, 1], [1, 255]]).view(1, 1, 2, 2)
        >>> counts = torch.tensor([[64, 64], [32, 64]], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> patch_weights(classes, counts, num_classes=4, cells_per_patch=2, ignore_index=255).tolist()
        [[[0.0, 0.375, 0.0, 0.25]]]
    """
    if cell_classes.ndim != 4 or cell_classes.shape != cell_counts.shape:
        got = f"{tuple(cell_classes.shape)} and {tuple(cell_counts.shape)}"
        raise ShapeError(f"expected cell_classes and cell_counts of one shape (B, K, h, w), got {got}")
    counts = torch.where(cell_classes == ignore_index, 0, cell_counts)
    index = torch.where(cell_classes == ignore_index, 0, cell_classes).long()
    index, counts = _by_patch(index, cells_per_patch), _by_patch(counts, cells_per_patch).float()
    weights = counts.new_zeros(*index.shape[:2], num_classes)
    # Whole numbers below 2^24: the float sum is exact, hence the same in whatever order a GPU adds.
    return weights.scatter_add_(2, index, counts) / (cells_per_patch * cell_px) ** 2


def labelled_patches(cell_classes: Tensor, cell_counts: Tensor, cells_per_patch: int, ignore_index: int) -> Tensor:
    """Which patches have any labelled pixel, (B, N) bool; arguments and errors as for `patch_weights`."""
    return _by_patch((cell_classes != ignore_index) & (cell_counts > 0), cells_per_patch).any(-1)


def patch_alignment_loss(similarity: Tensor, weights: Tensor, *, form: AlignmentForm = "infonce") -> Tensor:
    """L^sac of a batch, from patch-class similarities and class shares.

    With a_ij = sim_ij / tau and w_ij from `patch_weights`:

    * `infonce` (default): mean over patches of -log( sum_j w_ij exp a_ij / sum_j exp a_ij ). Equal to cross-entropy for
      one-hot weights. For a mixed patch its minimum puts all mass on the largest class: -log max_j w_ij.
    * `soft_ce`: mean over patches of -sum_j w_ij log softmax_j(a_i), the usual soft-label form; its minimum is at
      softmax = w (times the labelled share).
    * `printed`: Eq. 3 as printed, the sum over an image's patches of the ratio itself, without -log; mean over the
      images of the batch. Minimising it pushes patches *away* from their classes. For study only.

    "Mean over patches" is over those of the whole batch that have any labelled pixel; the paper sums (docs/method.md).

    Args:
        similarity: (B, N, T), already divided by the temperature; any floating type, computed in float32 at least.
        weights: (B, N, T) in [0, 1], rows sum to at most 1.
        form: see above.

    Returns:
        A scalar. A batch without any labelled pixel gives 0 with gradient 0.

    Raises:
        ShapeError: The shapes do not fit.
        ConfigError: The form is unknown.

    Examples:
        >>> similarity = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
        >>> weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
        >>> round(patch_alignment_loss(similarity, weights).item(), 6)  # (log(1 + exp(-2)) + log 2) / 2
        0.410038
    """
    return divide_by_count(*_sum_and_count(similarity, weights, form))


@dataclass(frozen=True, slots=True)
class AlignmentLoss:
    """L^sac by name, with the settings of `patch_alignment_loss`."""

    form: AlignmentForm = "infonce"

    def __call__(self, batch: Mapping[str, Any], outputs: Outputs, model: ModelView) -> tuple[Tensor, Tensor]:
        """The sum over labelled patches and their number, both (). Raises ConfigError if the model has no such head."""
        similarity = require_head(outputs.similarity, "lambda_sac", "patch alignment")
        cell_classes = batch["cell_classes"]
        weights = patch_weights(
            cell_classes,
            batch["cell_counts"],
            similarity.shape[2],
            _cells_per_patch(cell_classes, similarity.shape[1]),
            cell_px=batch["labels"].shape[-1] // cell_classes.shape[-1],
            ignore_index=model.ignore_index,
        )
        total, count = _sum_and_count(similarity, weights, self.form)
        return total, count.float()

    def count(self, batch: Mapping[str, Any]) -> Tensor:
        """Number of labelled patches, or of images in the printed form, ()."""
        cells = batch["cell_classes"].shape[-1] // batch["grid"]
        patches = labelled_patches(batch["cell_classes"], batch["cell_counts"], cells, batch["ignore_index"])
        return (torch.full_like(patches.sum(), len(patches)) if self.form == "printed" else patches.sum()).float()


def _sum_and_count(similarity: Tensor, weights: Tensor, form: AlignmentForm) -> tuple[Tensor, Tensor]:
    """The sum over labelled patches and what it is divided by; arguments and errors of `patch_alignment_loss`."""
    check_choice("alignment loss", form, get_args(AlignmentForm))
    if similarity.ndim != 3 or similarity.shape != weights.shape:
        got = f"{tuple(similarity.shape)} and {tuple(weights.shape)}"
        raise ShapeError(f"expected similarity and weights of one shape (B, N, T), got {got}")
    similarity = at_least_float32(similarity)
    weights = weights.to(similarity.dtype)
    share = weights.sum(-1)
    labelled = share > 0
    normaliser = similarity.logsumexp(-1)
    if form == "soft_ce":
        patches = share * normaliser - (weights * similarity).sum(-1)
    else:
        # Rows without a label would be log 0 - log 0; they get equal weights here and are left out below.
        log_weights = torch.where(labelled[..., None], weights, 1.0).log()
        patches = normaliser - (similarity + log_weights).logsumexp(-1)
    if form == "printed":
        patches = torch.exp(-patches)
    count = torch.full_like(labelled.sum(), similarity.shape[0]) if form == "printed" else labelled.sum()
    return patches.where(labelled, 0.0).sum(), count


def _cells_per_patch(cells: Tensor, num_patches: int) -> int:
    """Cells along one side of a patch, from the cells of the crop and the patches of the model."""
    height, width = cells.shape[-2:]
    side = isqrt(height * width // num_patches)
    if side < 1 or side * side * num_patches != height * width:
        raise ShapeError(f"{height} x {width} cells do not make {num_patches} square patches")
    return side


def _by_patch(cells: Tensor, cells_per_patch: int) -> Tensor:
    """(B, K, h, w) of cells -> (B, N, K cells_per_patch²), patches in row-major order."""
    batch, slots, height, width = cells.shape
    side = cells_per_patch
    if height % side or width % side:
        raise ShapeError(f"{height} x {width} cells do not divide into patches of {side} x {side}")
    grid = cells.reshape(batch, slots, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // side) * (width // side), slots * side * side)
