"""Large pictures made smaller on reading, where a benchmark's protocol says so: ADE20K-847 caps the short side at 512.

The published figures were computed on pictures resized by OpenCV, so this is OpenCV's arithmetic, its nearest
neighbour included: it takes pixel floor(i * scale), unlike the resizing of labels anywhere else in physseg.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def capped_size(height: int, width: int, limit_px: int | None) -> tuple[int, int]:
    """(height, width) with the short side brought down to `limit_px`; the long side is rounded, halves to even.

    >>> capped_size(768, 1024, 512), capped_size(400, 900, 512)
    ((512, 683), (400, 900))
    """
    short = min(height, width)
    if limit_px is None or short <= limit_px:
        return height, width
    if height <= width:
        return limit_px, round(width / height * limit_px)
    return round(height / width * limit_px), limit_px


def cap_image(image: npt.NDArray[np.uint8], limit_px: int | None) -> npt.NDArray[np.uint8]:
    """A photograph (H, W, 3) with its short side capped, bilinearly and without smoothing, as the benchmark did."""
    size = capped_size(image.shape[0], image.shape[1], limit_px)
    if size == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def cap_labels(raw: npt.NDArray[Any], limit_px: int | None) -> npt.NDArray[Any]:
    """Raw ids (H, W), uint8 or uint16, with the short side capped: every pixel keeps one of the ids that were there."""
    size = capped_size(raw.shape[0], raw.shape[1], limit_px)
    if size == raw.shape[:2]:
        return raw
    return np.asarray(cv2.resize(raw, size[::-1], interpolation=cv2.INTER_NEAREST), raw.dtype)
