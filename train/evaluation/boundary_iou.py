"""Boundary IoU: how well the outlines of classes are drawn, whatever the size of what they enclose.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021. The band of a class is
its binary mask minus the mask's erosion by a 3x3 square, repeated `band_width` times; outside of the picture is outside
of the mask. Boundary IoU is the IoU of the bands of ground truth and prediction, their intersections and unions summed
over the whole set, averaged over the classes of the ground truth. detectron2's `BoundaryIoU` is another quantity.

Ignored pixels count nowhere: the prediction is ignored where the labels are before its bands are drawn, so that a
perfect prediction scores 1 whatever it says there. Where a class ends at ignored pixels, it has a band as at any end.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt

from .metrics import Counts, Integers


def band_width(height: int, width: int) -> int:
    """Width of a band in pixels, at least 1: 2 % of the diagonal, as the paper's reference code rounds it."""
    return max(1, round(0.02 * math.hypot(height, width)))  # the share of the paper's reference code


def bands(ids: Integers, width_px: int) -> npt.NDArray[np.bool_]:
    """Which pixels of an id map (H, W) lie in the band of their own id: those of all ids at once.

    Erosions by a 3x3 square take from a mask what has another id, or the outside, within that chessboard distance.
    That is what has a pixel beside another id within one less, of whichever id: one distance transform serves all.

    >>> bands(np.array([[0, 0, 0, 0, 0, 0, 1]] * 7), 1).astype(int).tolist()[3]
    [1, 0, 0, 0, 0, 1, 1]
    """
    exact, square = ids.astype(np.float32), np.ones((3, 3), np.uint8)  # OpenCV erodes no 32-bit integers
    inside = (cv2.erode(exact, square) == cv2.dilate(exact, square)).astype(np.uint8)
    inside[[0, -1]], inside[:, [0, -1]] = 0, 0
    distance = cv2.distanceTransform(inside, cv2.DIST_C, 3)
    return np.asarray(distance < width_px)


def boundary_counts(
    prediction: Integers, labels: Integers, num_classes: int, ignore_index: int
) -> tuple[Counts, Counts, Counts]:
    """Sizes of the bands of one picture: intersections, bands of the ground truth, bands of the prediction, each (C,).

    Both maps are (H, W) ids 0..C-1; labels may be `ignore_index`.

    Examples:
        A square of 4x4 pixels, predicted one column too far to the right; bands are 1 px wide.

        >>> labels, prediction = np.zeros((2, 8, 8), int)
        >>> labels[2:6, 2:6], prediction[2:6, 3:7] = 1, 1
        >>> [counts.tolist() for counts in boundary_counts(prediction, labels, 2, 255)]
        [[38, 6], [48, 12], [42, 12]]
    """
    ignored, width_px = labels == ignore_index, band_width(*labels.shape)
    true, predicted = (np.where(ignored, np.int64(num_classes), ids) for ids in (labels, prediction))
    true_band, predicted_band = bands(true, width_px), bands(predicted, width_px)
    both = true_band & predicted_band & (true == predicted)
    counted = (true[both], true[true_band], predicted[predicted_band])
    hits, of_truth, of_prediction = (np.bincount(ids, minlength=num_classes + 1)[:num_classes] for ids in counted)
    return hits, of_truth, of_prediction
