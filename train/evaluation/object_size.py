"""mIoU by object size: on small, medium and large regions of the ground truth by COCO's limits of area.

An object is an 8-connected region of a class in the ground truth, at the labels' own resolution: label maps know no
instances, so what touches is one. Each size has its hits and true pixels, those of its regions. Its false positives are
found by 8-connected regions of the prediction: each counts for the size of the true region of its class that it
overlaps most, or for its own size where it overlaps none. So a small object that is drawn too large costs the small
ones, and invented objects cost what they look like. Ignored pixels count nowhere and belong to no region.
"""

import numpy as np
import numpy.typing as npt

from .metrics import Counts, Integers, ratio
from .regions import split_regions

AREAS_PX = (32**2, 96**2)
"""Areas from which on a region is medium, and large."""

SIZES = ("small", "medium", "large")

AREA_TEXTS = {"small": "less than 32x32 px", "medium": "32x32 px up to 96x96", "large": "96x96 px and more"}


def size_counts(prediction: Integers, labels: Integers, num_classes: int, ignore_index: int) -> Counts:
    """Hits, true and predicted pixels by size and class: (3 sizes, 3 counts, C).

    Both are (H, W) ids 0..C-1; labels may be `ignore_index`.
    """
    counted = labels != ignore_index
    right, wrong = counted & (labels == prediction), counted & (labels != prediction)
    regions, _ = split_regions(labels, "connected", ignore_index=ignore_index)
    parts, _ = split_regions(np.where(counted, prediction, labels), "connected", ignore_index=ignore_index)
    sizes, of_parts = (np.searchsorted(AREAS_PX, np.bincount(ids[counted]), side="right") for ids in (regions, parts))
    _take_size_of_overlap(of_parts, parts[right], sizes, regions[right])
    true = _by_size(sizes[regions[counted]], labels[counted], num_classes)
    hits = _by_size(sizes[regions[right]], labels[right], num_classes)
    false = _by_size(of_parts[parts[wrong]], prediction[wrong], num_classes)
    return np.stack([hits, true, hits + false], axis=1)


def miou_of_sizes(counts: Counts) -> dict[str, dict[str, float | int | None]]:
    """For JSON: of each size the mean IoU over the classes that have true regions of it, and their number."""
    found = {}
    for size, (hits, true, predicted) in zip(SIZES, counts, strict=True):
        iou = ratio(hits, true + predicted - hits)[true > 0]
        found[size] = {"miou": float(iou.mean()) if iou.size else None, "classes": iou.size}
    return found


def _by_size(sizes: Counts, ids: Integers, num_classes: int) -> Counts:
    """Number of pixels of each size and class, (3, C)."""
    return np.bincount(sizes * num_classes + ids, minlength=len(SIZES) * num_classes).reshape(len(SIZES), num_classes)


def _take_size_of_overlap(
    of_parts: Counts, parts: npt.NDArray[np.int32], sizes: Counts, regions: npt.NDArray[np.int32]
) -> None:
    """Give each part the size of the region that most of its pixels lie in, the first on a tie."""
    pairs, shared = np.unique(parts.astype(np.int64) * len(sizes) + regions, return_counts=True)
    ascending = pairs[np.lexsort((-pairs, shared))]  # what is assigned last stays
    of_parts[ascending // len(sizes)] = sizes[ascending % len(sizes)]
