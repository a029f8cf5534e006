"""Every detector that is compared, as one function: grey picture to a map of scores.

The classical ones are OpenCV's, with the usual settings, but so low a threshold that they find as many points as asked
for. Which of them are best is decided by their own score.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ....structure_extractors.keypoints import Scores
from ....structure_extractors.sift import Sift
from ..pictures.files import Grey

Detect = Callable[[Grey], Scores]  # (H, W) uint8 to (H, W) float32, larger is better, not positive is no point


def harris(grey: Grey) -> Scores:
    return np.asarray(cv2.cornerHarris(grey.astype(np.float32) / 255, blockSize=3, ksize=3, k=0.04), np.float32)


def shi_tomasi(grey: Grey) -> Scores:
    return np.asarray(cv2.cornerMinEigenVal(grey.astype(np.float32) / 255, blockSize=3, ksize=3), np.float32)


def fast(grey: Grey) -> Scores:
    scores = np.zeros(grey.shape, np.float32)
    for point in cv2.FastFeatureDetector.create(threshold=5).detect(grey, None):
        x, y = point.pt
        scores[int(y), int(x)] = point.response
    return scores


def sift(grey: Grey) -> Scores:
    points, responses = Sift(contrast_threshold=0.01).detect(np.dstack([grey] * 3))
    scores = np.zeros(grey.shape, np.float32)
    x, y = np.clip(np.floor(points.T + 0.5).astype(int), 0, np.array([grey.shape[::-1]]).T - 1)
    np.maximum.at(scores, (y, x), responses)
    return scores


CLASSICAL: dict[str, Detect] = {"Harris": harris, "Shi-Tomasi": shi_tomasi, "FAST": fast, "SIFT": sift}
