"""SIFT keypoints (Lowe 2004), by OpenCV's detector; descriptors are never computed."""

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from .interface import JSON, ArraySpec, Image, Labels, check_image, check_option, settings_identity
from .keypoints import encode_confidence, keep_strongest, score_map, suppress_neighbours

_MEANING = "SIFT keypoints: square-root coded confidence 1..255, else 0"
_HALVING = np.array([-87, 230, 65, -656, 144, 2970, 4668, 2970, 144, -656, 65, 230, -87], np.float32) / 10000
"""Low-pass filter before every second pixel is dropped, for `first_octave` 0.

OpenCV doubles what it gets, linearly, and blurs it by sqrt(sigma^2 - 1). This filter is the least-squares fit, over all
frequencies of a picture with a 1/f spectrum, by which that gives the picture itself, blurred by sqrt(sigma^2 - 1/4).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sift:
    """Array `sift` (H, W) uint8, a keypoint heatmap as in `keypoints.py`. Uses the image only.

    Confidence = min(response / full_response, 1). The reference is a setting, not the image's own maximum, so that a
    keypoint's value says the same in every image and does not change when a brighter corner enters the picture.
    """

    name: ClassVar[str] = "sift"
    revision: ClassVar[int] = 1
    arrays: ClassVar[tuple[ArraySpec, ...]] = (ArraySpec("sift", "uint8", ("y", "x"), 0, _MEANING, "keypoints", "map"),)

    first_octave: int = -1  # -1 doubles the image first, as published; 0 does not: faster, without the smallest points
    octave_layers: int = 3  # scales per octave
    contrast_threshold: float = 0.04  # points with less contrast x octave_layers are dropped; lower finds more
    edge_threshold: float = 10.0  # points with a larger ratio of principal curvatures are dropped; lower finds fewer
    sigma: float = 1.6  # blur of the first scale in pixels
    full_response: float = 0.1  # response of confidence 1; photographs have a median of .027, a 99th pct of .087
    nms_radius: int = 2  # a keypoint suppresses weaker ones up to this far in x and y, pixels; 0 = none
    max_keypoints: int | None = None  # keep this many of the strongest; None = all

    def __post_init__(self) -> None:
        check_option(self, "first_octave", self.first_octave in (-1, 0), "-1 or 0")
        check_option(self, "octave_layers", 1 <= self.octave_layers <= 16, "an integer in 1..16")
        for option in ("contrast_threshold", "edge_threshold", "sigma", "full_response"):
            check_option(self, option, 0 < getattr(self, option) < math.inf, "a number > 0")
        check_option(self, "sigma", self.sigma <= 1e6, "a number > 0, at most 1e6")  # its kernel: 8 sigma on a side
        check_option(self, "nms_radius", 0 <= self.nms_radius <= 64, "an integer in 0..64")
        most = self.max_keypoints
        check_option(self, "max_keypoints", most is None or most >= 1, "an integer >= 1, or none")

    def identity(self) -> dict[str, JSON]:
        # Stores were computed with the default before there was a choice, and are what they were.
        return settings_identity(self, without=("first_octave",) if self.first_octave == -1 else ())

    def detect(self, image: Image) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """All keypoints of a picture, by x, then y.

        OpenCV repeats a point for each of its orientations; here it comes once. The first octave is upsampled
        precisely: OpenCV's default leaves every point 0.25 px too far to the right and below (0.5 px between an image
        and its mirror image, which would break the flip of cached maps).

        Args:
            image: RGB (H, W, 3) uint8.

        Returns:
            Points (N, 2) x, y in pixels, and their responses (N,), float32. The response is the contrast |D(x)| at the
            extremum of the difference of Gaussians, for grey values in [0, 1]: at least contrast_threshold /
            octave_layers, not bounded above.
        """
        detector = cv2.SIFT.create(
            nOctaveLayers=self.octave_layers,
            contrastThreshold=self.contrast_threshold,
            edgeThreshold=self.edge_threshold,
            sigma=self.sigma,
            enable_precise_upscale=True,
        )
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        if self.first_octave == 0:
            grey = np.ascontiguousarray(cv2.sepFilter2D(grey, cv2.CV_8U, _HALVING, _HALVING)[::2, ::2])
        found = detector.detect(grey, None)
        points = np.asarray(cv2.KeyPoint.convert(found), np.float32).reshape(-1, 2)
        if self.first_octave == 0:
            points *= 2
        responses = np.array([point.response for point in found], np.float32)
        first = np.ones(len(found), np.bool_)  # equal points come in a row
        first[1:] = (points[1:] != points[:-1]).any(axis=1) | (responses[1:] != responses[:-1])
        return points[first], responses[first]

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        image = check_image(image, extractor=self.name)
        points, responses = self.detect(image)
        confidence = np.minimum(responses / np.float32(self.full_response), np.float32(1))
        scores = suppress_neighbours(score_map(points, confidence, image.shape[:2]), self.nms_radius)
        return {"sift": encode_confidence(keep_strongest(scores, self.max_keypoints))}
