"""Keypoints as maps: points to a map, suppression of neighbours, and the square-root code of the store.

Conventions (pinned by tests): points are (x, y); pixel centres lie at integers, so a point belongs to pixel
(floor(y + 1/2), floor(x + 1/2)). A heatmap is (H, W) uint8, 0 = no keypoint, else round(255 sqrt(confidence)) but at
least 1. The square root spends the codes where detectors need them: SuperPoint's threshold of 0.005 is code 18.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import ExtractorError

Scores = npt.NDArray[np.float32]


def encode_confidence(confidence: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Code confidences in [0, 1] of any shape as uint8: 0 stays 0, all else is 1..255."""
    code = np.zeros(confidence.shape, np.uint8)
    points = np.flatnonzero(confidence > 0)  # few pixels of a heatmap
    roots = np.sqrt(confidence.ravel()[points], dtype=np.float32)
    code.ravel()[points] = np.maximum(np.rint(np.float32(255) * roots), np.float32(1)).astype(np.uint8)
    return code


def score_map(
    keypoints: npt.NDArray[np.floating[Any]], scores: npt.NDArray[np.floating[Any]], size: tuple[int, int]
) -> Scores:
    """Put keypoints (N, 2) x, y px with confidences (N,) in (0, 1] on a map; of several on a pixel the strongest wins.

    The map is (H, W) float32 of `size` (h, w), 0 where there is no keypoint. Raises ExtractorError for a point outside
    the map, or a confidence outside (0, 1].
    """
    height, width = size
    if keypoints.shape != (len(scores), 2) or scores.ndim != 1:
        raise ExtractorError(f"keypoints: expected (N, 2) with scores (N,), got {keypoints.shape} with {scores.shape}")
    pixels = np.floor(keypoints.astype(np.float64) + 0.5)
    inside = ((pixels >= 0) & (pixels < (width, height))).all(axis=1)  # False for NaN as well
    if not inside.all():
        x, y = keypoints[~inside][0]
        raise ExtractorError(f"keypoints: ({x}, {y}) lies outside the image, width {width} and height {height}")
    valid = (scores > 0) & (scores <= 1)
    if not valid.all():
        raise ExtractorError(f"keypoints: expected confidences in (0, 1], got {scores[~valid][0]}")
    weakest_first = np.argsort(scores, kind="stable")
    x, y = pixels[weakest_first].T.astype(np.intp)
    out: Scores = np.zeros((height, width), np.float32)
    out[y, x] = scores[weakest_first]  # of repeated indices the last value stays
    return out


def suppress_neighbours(scores: Scores, radius_px: int) -> Scores:
    """Greedy non-maximum suppression of a map (H, W): keep the best point, drop all within radius_px of it, repeat.

    Distance is max(|dx|, |dy|), as in SuperPoint's published post-processing. Only positive scores are points; among
    equal ones the first in row-major order is better. Points are ranked, then all local maxima of rank are kept at once
    until nothing is left: the same result as one by one, in a handful of passes, and free of ties.
    """
    if radius_px == 0:
        return scores
    points = np.flatnonzero(scores > 0)
    best_first = points[np.argsort(-scores.ravel()[points], kind="stable")]
    dtype = np.uint16 if len(points) < 2**16 else np.float32  # twice as fast; float32 is exact below 2^24
    rank: npt.NDArray[Any] = np.zeros(scores.size, dtype)
    rank[best_first] = np.arange(len(points), 0, -1, dtype=dtype)
    square = np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)
    is_peak = np.zeros(len(points) + 1, np.bool_)  # by rank
    while len(points):
        own = rank[points]
        best_near = cv2.dilate(rank.reshape(scores.shape), square).ravel()[points].astype(np.intp)
        is_peak[best_near[best_near == own]] = True
        decided = is_peak[best_near]  # itself a peak, or next to one
        rank[points[decided & (best_near != own)]] = 0
        points = points[~decided]
    kept = np.zeros_like(scores)
    peaks = best_first[is_peak[:0:-1]]
    kept.ravel()[peaks] = scores.ravel()[peaks]
    return kept


def clear_border(scores: Scores, border_px: int) -> Scores:
    """Return the map without the points closer than border_px to an edge of the image."""
    height, width = scores.shape
    out = np.zeros_like(scores)
    inner = (slice(border_px, max(height - border_px, 0)), slice(border_px, max(width - border_px, 0)))
    out[inner] = scores[inner]
    return out


def keep_strongest(scores: Scores, max_keypoints: int | None) -> Scores:
    """Return the map with its max_keypoints best points (equal ones: first in row-major order); None keeps all."""
    if max_keypoints is None:
        return scores
    points = np.flatnonzero(scores > 0)
    best = points[np.argsort(-scores.ravel()[points], kind="stable")[:max_keypoints]]
    out = np.zeros_like(scores)
    out.ravel()[best] = scores.ravel()[best]
    return out


def select_keypoints(
    probability: Scores, *, threshold: float, nms_radius: int, border: int, max_keypoints: int | None
) -> Scores:
    """Keep the keypoints of a probability map (H, W) float32; all other pixels become 0.

    As published: threshold, greedy non-maximum suppression, removal of points near the image's edge (after suppression,
    so that a point there still suppresses its neighbours), the strongest few.

    Keypoints score more than `threshold`, in scores of any kind. Each suppresses weaker ones up to `nms_radius` px away
    in x and y (0: none). Those closer than `border` px to the edge go, and `max_keypoints` of the others stay (None:
    all).
    """
    above = np.where(probability > threshold, probability, np.float32(0))
    return keep_strongest(clear_border(suppress_neighbours(above, nms_radius), border), max_keypoints)


def best_points(
    scores: Scores, *, number: int | None, radius_px: int, border_px: int, threshold: float = 0
) -> tuple[npt.NDArray[np.float32], Scores]:
    """The strongest points (N, 2) x, y of a map after suppression of neighbours, and their scores (N,), best first."""
    kept = select_keypoints(scores, threshold=threshold, nms_radius=radius_px, border=border_px, max_keypoints=number)
    y, x = np.nonzero(kept)
    order = np.argsort(-kept[y, x], kind="stable")
    return np.stack([x, y], axis=1).astype(np.float32)[order], kept[y, x][order]
