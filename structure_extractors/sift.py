"""SIFT keypoints (Lowe 2004), by OpenCV's detector; descriptors are never computed."""

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from .interface import ArraySpec, Image, Labels, check_image, check_option
from .keypoints import encode_confidence, keep_strongest, score_map, suppress_neighbours

_MEANING = "SIFT keypoints: square-root coded confidence 1..255, else 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sift:
    """Array `sift` (H, W) uint8, a keypoint heatmap as in `keypoints.py`. Uses the image only.

    Confidence = min(response / full_response, 1). The reference is a setting, not the image's own maximum, so that a
    keypoint's value says the same in every image and does not change when a brighter corner enters the picture.
    """

    name: ClassVar[str] = "sift"
    revision: ClassVar[int] = 1
    arrays: ClassVar[tuple[ArraySpec, ...]] = (ArraySpec("sift", "uint8", ("y", "x"), 0, _MEANING, "keypoints", "map"),)

    octave_layers: int = 3  # scales per octave
    contrast_threshold: float = 0.04  # points with less contrast x octave_layers are dropped; lower finds more
    edge_threshold: float = 10.0  # points with a larger ratio of principal curvatures are dropped; lower finds fewer
    sigma: float = 1.6  # blur of the first scale in pixels
    full_response: float = 0.1  # response of confidence 1; photographs have a median of .027, a 99th pct of .087
    nms_radius: int = 2  # a keypoint suppresses weaker ones up to this far in x and y, pixels; 0 = none
    max_keypoints: int | None = None  # keep this many of the strongest; None = all

    def __post_init__(self) -> None:
        check_option(self, "octave_layers", 1 <= self.octave_layers <= 16, "an integer in 1..16")
        for option in ("contrast_threshold", "edge_threshold", "sigma", "full_response"):
            check_option(self, option, 0 < getattr(self, option) < math.inf, "a number > 0")
        check_option(self, "sigma", self.sigma <= 1e6, "a number > 0, at most 1e6")  # its kernel: 8 sigma on a side
        check_option(self, "nms_radius", 0 <= self.nms_radius <= 64, "an integer in 0..64")
        most = self.max_keypoints
        check_option(self, "max_keypoints", most is None or most >= 1, "an integer >= 1, or none")

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
        found = detector.detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        points = np.array([(*point.pt, point.response) for point in found], np.float32)
        points = np.unique(points.reshape(-1, 3), axis=0)
        return points[:, :2], points[:, 2]

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        image = check_image(image, extractor=self.name)
        points, responses = self.detect(image)
        confidence = np.minimum(responses / np.float32(self.full_response), np.float32(1))
        scores = suppress_neighbours(score_map(points, confidence, image.shape[:2]), self.nms_radius)
        return {"sift": encode_confidence(keep_strongest(scores, self.max_keypoints))}
