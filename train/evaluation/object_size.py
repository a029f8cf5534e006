"""mIoU by object size: on small, medium and large regions of the ground truth by COCO's limits of area.

An object is an 8-connected region of a class in the ground truth, at the labels' own resolution: label maps know no
instances, so what touches is one. Each size has its hits and true pixels, those of its regions. Its false positives are
found by 8-connected regions of the prediction: each counts for the size of the true region of its class that it
overlaps most, or for its own size where it overlaps none. So a small object that is drawn too large costs the small
ones, and invented objects cost what they look like. Ignored pixels count nowhere and belong to no region.
"""

import cv2
import numpy as np
import numpy.typing as npt

from .metrics import Counts, Integers, ratio

AREAS_PX = (32**2, 96**2)
"""Areas from which on a region is medium, and large."""

SIZES = ("small", "medium", "large")

AREA_TEXTS = {"small": "less than 32x32 px", "medium": "32x32 px up to 96x96", "large": "96x96 px and more"}


def size_counts(prediction: Integers, labels: Integers, num_classes: int, ignore_index: int) -> Counts:
    """Hits, true and predicted pixels by size and class: (3 sizes, 3 counts, C).

    Args:
        prediction: (H, W) ids 0..C-1.
        labels: (H, W) ids 0..C-1, or `ignore_index`.
    """
    counts = np.zeros((len(SIZES), 3, num_classes), dtype=np.int64)
    ignored = labels == ignore_index
    for index in np.union1d(labels[~ignored], prediction[~ignored]):
        true, found = labels == index, (prediction == index) & ~ignored
        regions, parts = _regions(true), _regions(found)
        sizes, of_parts = _sizes(regions), _sizes(parts)
        _take_size_of_overlap(of_parts, parts[found & true], sizes, regions[found & true])
        hits, false = sizes[regions[found & true]], of_parts[parts[found & ~true]]
        for kind, pixels in enumerate((hits, sizes[regions[true]], np.concatenate([hits, false]))):
            counts[:, kind, index] = np.bincount(pixels, minlength=len(SIZES))
    return counts


def miou_of_sizes(counts: Counts) -> dict[str, dict[str, float | int | None]]:
    """For JSON: of each size the mean IoU over the classes that have true regions of it, and their number."""
    found = {}
    for size, (hits, true, predicted) in zip(SIZES, counts, strict=True):
        iou = ratio(hits, true + predicted - hits)[true > 0]
        found[size] = {"miou": float(iou.mean()) if iou.size else None, "classes": iou.size}
    return found


def _regions(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1], dtype=np.int32)


def _sizes(regions: npt.NDArray[np.int32]) -> Counts:
    """Size of each region by its number; 0, the background, has any."""
    return np.searchsorted(AREAS_PX, np.bincount(regions.ravel()), side="right")


def _take_size_of_overlap(
    of_parts: Counts, parts: npt.NDArray[np.int32], sizes: Counts, regions: npt.NDArray[np.int32]
) -> None:
    """Give each part the size of the region that most of its pixels lie in, the first on a tie."""
    pairs, shared = np.unique(parts.astype(np.int64) * len(sizes) + regions, return_counts=True)
    ascending = pairs[np.lexsort((-pairs, shared))]  # what is assigned last stays
    of_parts[ascending // len(sizes)] = sizes[ascending % len(sizes)]
