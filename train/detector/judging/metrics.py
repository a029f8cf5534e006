"""What a detector is judged by: average precision where the keypoints are known, repeatability where they are not."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..pictures.files import Grey
from .pairs import Pair

Points = npt.NDArray[np.float32]  # (N, 2) x, y
Found = tuple[Points, npt.NDArray[np.float32]]  # points (N, 2), and how far the other picture's nearest is (N,), px

RADIUS_PX = 4  # suppression of neighbours, as in extraction, and how far points are from the edge
NUM_POINTS = 300
TOLERANCE_PX = 3.0
REACH_PX = 16.0
FAR_PX = 400.0  # the diagonal of a picture: no point is further


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
    """The points of two pictures that count, and how far the other picture's nearest is, at most `FAR_PX`.

    Only points that both pictures show count, `RADIUS_PX` from their edges, the best `number` of each. Distances are
    taken in the second picture. `one` and `other` are points (N, 2) x, y of the two pictures, best first.
    """
    there, back = _mapped(one, pair.homography), _mapped(other, np.linalg.inv(pair.homography).astype(np.float64))
    one, there = (points[_inside(there, pair.other)][:number] for points in (one, there))
    other = other[_inside(back, pair.one)][:number]
    distance = np.linalg.norm(there[:, None] - other[None], axis=-1)
    return (one, distance.min(axis=1, initial=FAR_PX)), (other, distance.min(axis=0, initial=FAR_PX))


def pair_measures(pair: Pair, found: tuple[Found, Found]) -> dict[str, float]:
    """What a pair says of a detector's points; nan where there is no point to say it of.

    * repeatability: share of the points that are found again (as DeTone et al. use it on HPatches)
    * localisation_px: mean distance of those; whole pixels alone err by 0 in place and by about 0.5 px under a warp
    * nearest_px: mean distance to the nearest point of the other picture, found again or not
    * coverage: of what both show in the second picture, the share within `REACH_PX` of a point: how evenly they lie
    """
    points, _ = found[1]
    nearest = np.concatenate([distance for _, distance in found])
    elsewhere = np.ones(pair.other.shape, np.uint8)
    x, y = np.rint(points).astype(int).T
    elsewhere[y, x] = 0
    near = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= REACH_PX
    size = pair.other.shape[::-1]
    both = cv2.warpPerspective(np.ones_like(pair.one), pair.homography, size, flags=cv2.INTER_NEAREST) > 0
    return {
        "repeatability": _mean(nearest <= TOLERANCE_PX),
        "localisation_px": _mean(nearest[nearest <= TOLERANCE_PX]),
        "nearest_px": _mean(nearest),
        "coverage": _mean(near[both]) if len(points) else 0.0,
    }


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _mapped(points: Points, homography: npt.NDArray[np.float64]) -> Points:
    if not len(points):
        return points
    return np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0], np.float32)


def _inside(points: Points, picture: Grey) -> npt.NDArray[np.bool_]:
    last = np.array(picture.shape[::-1]) - 1 - RADIUS_PX
    return np.asarray(((points >= RADIUS_PX) & (points <= last)).all(axis=1))
