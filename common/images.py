"""Pixels to the bytes of PNG and JPEG files, and those to the address of a picture inside an HTML page."""

import base64
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def encode_png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    """A lossless picture of (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB. Raises ValueError for other pixels."""
    return _encode(".png", pixels, [], (np.uint8, np.uint16))


def encode_jpeg(pixels: npt.NDArray[np.uint8], quality: int = 88, chroma: str = "420") -> bytes:
    """A lossy picture of (H, W) or (H, W, 3) uint8, grey or RGB; `quality` 1 to 100. Raises ValueError for others.

    `chroma` "420" keeps colours at half the resolution, "444" at the full one.
    """
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{chroma}")
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return _encode(".jpg", pixels, options, (np.uint8,))


def data_url(data: bytes, kind: str) -> str:
    """The bytes of a file as an address that holds them; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def shrink(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The picture (H, W, 3), made smaller by the mean of areas where it is higher or wider than that, in px."""
    scale = min(1.0, height / pixels.shape[0], width / pixels.shape[1])
    rows, columns = (max(1, round(edge * scale)) for edge in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def _encode(suffix: str, pixels: npt.NDArray[Any], options: list[int], allowed: tuple[Any, ...]) -> bytes:
    if pixels.dtype not in allowed or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):  # OpenCV cuts numbers to fit
        raise ValueError(f"pixels of a {suffix} file: expected (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}")
    _, data = cv2.imencode(suffix, np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels), options)
    return data.tobytes()
