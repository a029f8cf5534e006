"""What a detector is judged by: average precision where the keypoints are known, repeatability where they are not."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float32]  # (N, 2) x, y
Floats = npt.NDArray[np.float64]


def matches(detected: Points, truth: Points, tolerance_px: float) -> npt.NDArray[np.bool_]:
    """Which of the detected points find a true keypoint: the nearest free one within tolerance.

    Args:
        detected: Points (N, 2) x, y, best first.
        truth: True keypoints (M, 2).
        tolerance_px: Largest distance between the two.

    Returns:
        (N,) bool.
    """
    hit = np.zeros(len(detected), bool)
    if not len(truth):
        return hit
    distance = np.linalg.norm(detected[:, None] - truth[None], axis=-1)
    for index in range(len(detected)):
        nearest = int(distance[index].argmin())
        if distance[index, nearest] <= tolerance_px:
            hit[index] = True
            distance[:, nearest] = np.inf
    return hit


def average_precision(hits: Sequence[npt.NDArray[np.bool_]], scores: Sequence[Points], num_truth: int) -> float:
    """Area under precision over recall of the detections of all pictures together, ranked by score.

    Precision at a recall is the best that is reached there or beyond.

    Args:
        hits: For each picture, which of its detections are right, (N,) bool.
        scores: For each picture, the scores of its detections, (N,).
        num_truth: Number of true keypoints of all pictures.
    """
    hit, score = np.concatenate(list(hits)), np.concatenate(list(scores))
    if not len(hit) or not num_truth:
        return 0.0
    hit = hit[np.argsort(-score, kind="stable")]
    found = np.cumsum(hit)
    precision = found / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hit].sum() / num_truth)


Found = tuple[Points, npt.NDArray[np.bool_]]  # points (N, 2), and which of them the other picture has (N,)


def found_again(
    one: Points,
    other: Points,
    homography: Floats,
    sizes: tuple[tuple[int, int], tuple[int, int]],
    *,
    number: int,
    tolerance_px: float,
) -> tuple[Found, Found]:
    """The points of two pictures that count, and which of them the other picture has as well.

    Only points that both pictures show count. Distances are taken in the second picture.

    Args:
        one: Points (N, 2) x, y of the first picture, best first.
        other: Points of the second picture.
        homography: (3, 3), from pixels of the first picture to the second's.
        sizes: Height and width of both.
        number: Number of points that count of each picture, the best ones.
        tolerance_px: Largest distance between a point and the one that it is found as.
    """
    there, back = _mapped(one, homography), _mapped(other, np.linalg.inv(homography).astype(np.float64))
    one, there = (points[_inside(there, sizes[1])][:number] for points in (one, there))
    other = other[_inside(back, sizes[0])][:number]
    near = np.linalg.norm(there[:, None] - other[None], axis=-1) <= tolerance_px
    return (one, near.any(axis=1)), (other, near.any(axis=0))


def repeatability(found: tuple[Found, Found]) -> float | None:
    """Share of the points that are found again, as in HPatches' use by DeTone et al.; None without points."""
    again = np.concatenate([which for _, which in found])
    return float(again.mean()) if len(again) else None


def _mapped(points: Points, homography: Floats) -> Points:
    if not len(points):
        return points
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0], np.float32)


def _inside(points: Points, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    x, y = points.T
    return np.asarray((x >= 0) & (x <= size[1] - 1) & (y >= 0) & (y <= size[0] - 1))
