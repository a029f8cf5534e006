"""What a detector is judged by: average precision where the keypoints are known, repeatability where they are not."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from .detectors import Grey
from .pairs import Pair

Points = npt.NDArray[np.float32]  # (N, 2) x, y
Found = tuple[Points, npt.NDArray[np.bool_]]  # points (N, 2), and which of them the other picture has (N,)

NUM_POINTS = 300
TOLERANCE_PX = 3.0


def matches(detected: Points, truth: Points, tolerance_px: float) -> npt.NDArray[np.bool_]:
    """Which of the detected points find a true keypoint: the nearest free one within tolerance.

    `detected` are points (N, 2) x, y, best first, `truth` is (M, 2); the result is (N,).
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

    `hits` and `scores` say of each picture's detections (N,) which are right, and how sure. `num_truth` is the number
    of true keypoints of all pictures.
    """
    hit, score = np.concatenate(list(hits)), np.concatenate(list(scores))
    if not len(hit) or not num_truth:
        return 0.0
    hit = hit[np.argsort(-score, kind="stable")]
    found = np.cumsum(hit)
    precision = found / np.arange(1, len(hit) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(best[hit].sum() / num_truth)


def found_again(pair: Pair, one: Points, other: Points, *, number: int = NUM_POINTS) -> tuple[Found, Found]:
    """The points of two pictures that count, and which of them the other picture has within `TOLERANCE_PX`.

    Only points that both pictures show count, the best `number` of each. Distances are taken in the second picture.
    `one` and `other` are points (N, 2) x, y of the two pictures, best first.
    """
    there, back = _mapped(one, pair.homography), _mapped(other, np.linalg.inv(pair.homography).astype(np.float64))
    one, there = (points[_inside(there, pair.other)][:number] for points in (one, there))
    other = other[_inside(back, pair.one)][:number]
    near = np.linalg.norm(there[:, None] - other[None], axis=-1) <= TOLERANCE_PX
    return (one, near.any(axis=1)), (other, near.any(axis=0))


def repeatability(found: tuple[Found, Found]) -> float | None:
    """Share of the points that are found again, as in HPatches' use by DeTone et al.; None without points."""
    again = np.concatenate([which for _, which in found])
    return float(again.mean()) if len(again) else None


def _mapped(points: Points, homography: npt.NDArray[np.float64]) -> Points:
    if not len(points):
        return points
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0], np.float32)


def _inside(points: Points, picture: Grey) -> npt.NDArray[np.bool_]:
    last = np.array(picture.shape[::-1]) - 1
    return np.asarray(((points >= 0) & (points <= last)).all(axis=1))
