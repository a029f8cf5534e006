"""Keypoints as maps: rasterising, suppression of neighbours, the square-root code of the store, and blobs for the eye.

Conventions (pinned by tests): points are (x, y); pixel centres lie at integers, so a point belongs to pixel
(floor(y + 1/2), floor(x + 1/2)). A heatmap is (H, W) uint8, 0 = no keypoint, else round(255 sqrt(confidence)) but at
least 1. The square root spends the codes where detectors need them: SuperPoint's threshold of 0.005 is code 18.
"""

import math
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


def decode_confidence(heatmap: npt.NDArray[np.uint8]) -> Scores:
    """Undo :func:`encode_confidence`: (code / 255)^2, float32, off by at most sqrt(c) / 255 + 1.6e-5."""
    return _DECODED[heatmap]


_DECODED: Scores = ((np.arange(256, dtype=np.float64) / 255.0) ** 2).astype(np.float32)


def score_map(
    keypoints: npt.NDArray[np.floating[Any]], scores: npt.NDArray[np.floating[Any]], size: tuple[int, int]
) -> Scores:
    """Put keypoints (N, 2) x, y with confidences (N,) in (0, 1] on a map of ``size`` (H, W), float32.

    Of several keypoints on a pixel the strongest wins. A point outside the map, or a confidence outside (0, 1], is an
    :class:`ExtractorError`.
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


def rasterise(
    keypoints: npt.NDArray[np.floating[Any]], scores: npt.NDArray[np.floating[Any]], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return the heatmap (H, W) uint8 of keypoints (N, 2) with confidences (N,); see :func:`score_map`."""
    return encode_confidence(score_map(keypoints, scores, size))


def keypoints_of(heatmap: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], Scores]:
    """Read a heatmap back: keypoints (N, 2) x, y in row-major order and their confidences (N,), float32."""
    y, x = np.nonzero(heatmap)
    return np.stack([x, y], axis=1).astype(np.float32), decode_confidence(heatmap[y, x])


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
    kept = np.zeros_like(scores)
    while len(points):
        best_near = cv2.dilate(rank.reshape(scores.shape), square).ravel()
        peaks = points[best_near[points] == rank[points]]
        kept.ravel()[peaks] = scores.ravel()[peaks]
        if len(peaks) == len(points):
            break
        at_peaks = np.zeros(scores.shape, np.uint8)
        at_peaks.ravel()[peaks] = 1
        dropped = cv2.dilate(at_peaks, square).ravel()[points] > 0  # the peaks themselves included
        rank[points[dropped]] = 0
        points = points[~dropped]
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
    flat = np.flatnonzero(scores > 0)
    if len(flat) <= max_keypoints:
        return scores
    best = flat[np.argsort(-scores.ravel()[flat], kind="stable")[:max_keypoints]]
    out = np.zeros_like(scores)
    out.ravel()[best] = scores.ravel()[best]
    return out


def render_blobs(heatmap: npt.NDArray[np.uint8], *, sigma_px: float = 2.0) -> Scores:
    """Draw each keypoint as a Gaussian of its confidence, (H, W) float32 in [0, 1]; overlaps take the larger value.

    max_k c_k exp(-|p - p_k|^2 / 2 sigma^2), cut off at 3 sigma. A Gaussian is a product of one in x and one in y, and
    so is the maximum over points: two passes of shifted maxima.
    """
    if not (math.isfinite(sigma_px) and sigma_px > 0):
        raise ExtractorError(f"render_blobs: expected sigma_px > 0, got {sigma_px}", option="sigma_px")
    return _shifted_maximum(_shifted_maximum(decode_confidence(heatmap), sigma_px).T, sigma_px).T


def _shifted_maximum(values: Scores, sigma_px: float) -> Scores:
    """Maximum over shifts d along the first axis of values * exp(-d^2 / 2 sigma^2)."""
    out = values.copy()
    for shift in range(1, min(math.ceil(3 * sigma_px) + 1, len(values))):
        weight = np.float32(math.exp(-0.5 * (shift / sigma_px) ** 2))
        np.maximum(out[shift:], values[:-shift] * weight, out=out[shift:])
        np.maximum(out[:-shift], values[shift:] * weight, out=out[:-shift])
    return out
