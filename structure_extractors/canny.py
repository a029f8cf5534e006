"""Canny edges of the image (Canny 1986), by OpenCV."""

import math
from dataclasses import asdict, dataclass
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from .interface import JSON, Image, Labels, check_image, check_option, settings_identity


def canny_edges(
    image: Image,
    *,
    low: float = 100.0,
    high: float = 200.0,
    aperture: int = 3,
    l2_gradient: bool = False,
    blur_sigma: float = 0.0,
) -> npt.NDArray[np.uint8]:
    """Edges of the grey image, which is OpenCV's .299 R + .587 G + .114 B.

    Args:
        image: RGB (H, W, 3) uint8.
        low: Gradient above which a pixel joined to a strong edge belongs to it.
        high: Gradient above which a pixel is a strong edge by itself, of grey values 0..255.
        aperture: Side of the Sobel kernel, 3, 5 or 7.
        l2_gradient: Whether magnitude is sqrt(gx^2 + gy^2) instead of |gx| + |gy|.
        blur_sigma: Gaussian blur of the grey image before, pixels; 0 = none.

    Returns:
        (H, W) uint8, 255 on an edge and 0 elsewhere.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if blur_sigma > 0:
        grey = cv2.GaussianBlur(grey, (0, 0), blur_sigma)
    edges = cv2.Canny(grey, low, high, apertureSize=aperture, L2gradient=l2_gradient)
    return np.asarray(edges, np.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Canny:
    """Array `canny` (H, W) uint8, 0 or 255. Uses the image only."""

    name: ClassVar[str] = "canny"
    arrays: ClassVar[tuple[str, ...]] = ("canny",)

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

    def identity(self) -> dict[str, JSON]:
        return settings_identity(self, revision=1)

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        return {"canny": canny_edges(check_image(image, extractor=self.name), **asdict(self))}
