"""Canny edges of the image (Canny 1986), by OpenCV."""

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from .interface import ArraySpec, Image, Labels, check_image, check_option


@dataclass(frozen=True, kw_only=True, slots=True)
class Canny:
    """Array `canny` (H, W) uint8, 0 or 255. Uses the image only."""

    name: ClassVar[str] = "canny"
    revision: ClassVar[int] = 1
    arrays: ClassVar[tuple[ArraySpec, ...]] = (
        ArraySpec("canny", "uint8", ("y", "x"), 0, "Canny edges of the image: 0 or 255", "edges", "map"),
    )

    low: float = 100.0  # gradient above which a pixel joined to a strong edge belongs to it
    high: float = 200.0  # gradient above which a pixel is a strong edge by itself
    aperture: int = 3  # side of the Sobel kernel: 3, 5 or 7; the gradient grows steeply with it, and so must thresholds
    l2_gradient: bool = False  # magnitude sqrt(gx^2 + gy^2) instead of |gx| + |gy|
    blur_sigma: float = 0.0  # Gaussian blur of the grey image before, in pixels of the frame; 0 = none

    def __post_init__(self) -> None:
        check_option(self, "low", math.isfinite(self.low) and self.low >= 0, "a number >= 0")
        above = math.isfinite(self.high) and self.high >= self.low
        check_option(self, "high", above, f"a number >= low ({self.low})")
        check_option(self, "aperture", self.aperture in (3, 5, 7), "3, 5 or 7")
        check_option(self, "blur_sigma", 0 <= self.blur_sigma <= 50, "a number in 0..50")

    def edges(self, image: Image) -> npt.NDArray[np.uint8]:
        """Edges (H, W) uint8, 0 or 255, of an RGB image (H, W, 3), as grey OpenCV's .299 R + .587 G + .114 B."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if self.blur_sigma > 0:
            grey = cv2.GaussianBlur(grey, (0, 0), self.blur_sigma)
        edges = cv2.Canny(grey, self.low, self.high, apertureSize=self.aperture, L2gradient=self.l2_gradient)
        return np.asarray(edges, np.uint8)

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        return {"canny": self.edges(check_image(image, extractor=self.name))}
