"""SIFT keypoints (Lowe 2004), by OpenCV's detector; descriptors are never computed."""

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from .interface import JSON, Image, Labels, check_image, check_option, settings_identity
from .keypoints import encode_confidence, keep_strongest, score_map, suppress_neighbours


def detect_sift(
    image: Image,
    *,
    octave_layers: int = 3,
    contrast_threshold: float = 0.04,
    edge_threshold: float = 10.0,
    sigma: float = 1.6,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return keypoints (N, 2) x, y in pixels and their responses (N,), float32, of an RGB image (H, W, 3) uint8.

    The response is the contrast |D(x)| at the extremum of the difference of Gaussians, for grey values in [0, 1]: at
    least contrast_threshold / octave_layers, not bounded above. OpenCV repeats a point for each of its orientations;
    here it comes once. Order is by x, then y.

    The first octave is upsampled precisely: OpenCV's default leaves every point 0.25 px too far to the right and below
    (0.5 px between an image and its mirror image, which would break the flip of cached maps).
    """
    points = _detect(
        image,
        octave_layers=octave_layers,
        contrast_threshold=contrast_threshold,
        edge_threshold=edge_threshold,
        sigma=sigma,
    )
    points = points[np.lexsort(points.T[::-1])]
    first = np.ones(len(points), np.bool_)
    first[1:] = (points[1:] != points[:-1]).any(axis=1)
    return points[first, :2], points[first, 2]


def _detect(
    image: Image, *, octave_layers: int, contrast_threshold: float, edge_threshold: float, sigma: float
) -> npt.NDArray[np.float32]:
    """What OpenCV finds, repetitions and all: x, y, response (N, 3) float32."""
    detector = cv2.SIFT.create(
        nOctaveLayers=octave_layers,
        contrastThreshold=contrast_threshold,
        edgeThreshold=edge_threshold,
        sigma=sigma,
        enable_precise_upscale=True,
    )
    found = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    points = np.empty((len(found), 3), np.float32)
    if found:
        points[:, :2] = cv2.KeyPoint.convert(found)
        points[:, 2] = [point.response for point in found]
    return points


@dataclass(frozen=True, kw_only=True, slots=True)
class Sift:
    """Array ``sift`` (H, W) uint8, a keypoint heatmap as in ``keypoints.py``. Uses the image only.

    Confidence = min(response / full_response, 1). The reference is a setting, not the image's own maximum, so that a
    keypoint's value says the same in every image and does not change when a brighter corner enters the picture.
    """

    name: ClassVar[str] = "sift"
    arrays: ClassVar[tuple[str, ...]] = ("sift",)

    octave_layers: int = 3  # scales per octave
    contrast_threshold: float = 0.04  # points with less contrast x octave_layers are dropped; lower finds more
    edge_threshold: float = 10.0  # points with a larger ratio of principal curvatures are dropped; lower finds fewer
    sigma: float = 1.6  # blur of the first scale in pixels
    full_response: float = (
        0.1  # response that means confidence 1; on photographs the median is .027, the 99th percentile .087
    )
    nms_radius: int = 2  # a keypoint suppresses weaker ones up to this far in x and y, pixels; 0 = none
    max_keypoints: int | None = None  # keep this many of the strongest; None = all

    def __post_init__(self) -> None:
        def check(ok: bool, option: str, expected: str) -> None:
            check_option(ok, extractor=self.name, option=option, expected=expected, got=getattr(self, option))

        check(1 <= self.octave_layers <= 16, "octave_layers", "an integer in 1..16")
        for option in ("contrast_threshold", "edge_threshold", "sigma", "full_response"):
            value = getattr(self, option)
            check(math.isfinite(value) and value > 0, option, "a number > 0")
        check(0 <= self.nms_radius <= 64, "nms_radius", "an integer in 0..64")
        check(self.max_keypoints is None or self.max_keypoints >= 1, "max_keypoints", "an integer >= 1, or none")

    def identity(self) -> dict[str, JSON]:
        return settings_identity(self, revision=1)

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        image = check_image(image, extractor=self.name)
        points = _detect(
            image,
            octave_layers=self.octave_layers,
            contrast_threshold=self.contrast_threshold,
            edge_threshold=self.edge_threshold,
            sigma=self.sigma,
        )
        confidence = np.minimum(points[:, 2] / np.float32(self.full_response), np.float32(1))
        scores = suppress_neighbours(score_map(points[:, :2], confidence, image.shape[:2]), self.nms_radius)
        return {"sift": encode_confidence(keep_strongest(scores, self.max_keypoints))}
