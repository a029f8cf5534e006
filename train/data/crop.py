"""The crop of a training sample: where it lies on the canvas, and cutting every kind of array by the same window.

Offsets are multiples of the cell side (8 px), so that cached cell counts are cut exactly as pixels are; the crop's side
is a multiple of it too, so that the mirror image of a crop has whole cells. The window stays inside the image wherever
the image is at least as large as the crop; where it is smaller, the rest is padding.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from ...pipeline.store.frame import CELL_PX

Scalar = TypeVar("Scalar", bound=np.generic)

IMAGE_FILL = 128
"""Value of image pixels outside the image, as in the baseline."""


@dataclass(frozen=True, slots=True)
class CropWindow:
    """A square window on the canvas; offsets in px from the top left, the flip applied after the cut."""

    top: int
    left: int
    size: int
    flip: bool

    @classmethod
    def draw(
        cls, uniforms: npt.NDArray[np.float64], frame_size: tuple[int, int], *, size: int, flip_probability: float
    ) -> "CropWindow":
        """The window on a frame (height, width) that three numbers in [0, 1) give: row, column, flip."""
        top, left = (
            CELL_PX * int(uniform * (max(0, edge - size) // CELL_PX + 1))
            for uniform, edge in zip(uniforms[:2], frame_size, strict=True)
        )
        return cls(top, left, size, flip=bool(uniforms[2] < flip_probability))

    def cut(self, plane: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Window (..., size, size) of canvas arrays (..., H, W), mirrored if flipped; a copy."""
        return self._turned(plane[..., self.top : self.top + self.size, self.left : self.left + self.size])

    def cut_cells(self, cells: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Window (..., size / 8, size / 8) of cell arrays (..., H / 8, W / 8), mirrored if flipped; a copy."""
        top, left, side = self.top // CELL_PX, self.left // CELL_PX, self.size // CELL_PX
        return self._turned(cells[..., top : top + side, left : left + side])

    def cut_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Window (3, size, size) uint8 of an image (h, w, 3) that lies on the frame; 128 outside the image."""
        part = image[self.top : self.top + self.size, self.left : self.left + self.size]
        height, width = part.shape[:2]
        part = np.asarray(cv2.flip(part, 1), np.uint8) if self.flip else np.ascontiguousarray(part)
        window = np.full((3, self.size, self.size), IMAGE_FILL, dtype=np.uint8)
        columns = slice(self.size - width, self.size) if self.flip else slice(0, width)
        for channel, plane in enumerate(cv2.split(part)):  # three times as fast as transpose(2, 0, 1)
            window[channel, :height, columns] = plane
        return window

    def inside(self, frame_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which pixels (size, size) of the window show the image; the others are padding."""
        rows = np.arange(self.top, self.top + self.size) < frame_size[0]
        columns = np.arange(self.left, self.left + self.size) < frame_size[1]
        window = rows[:, None] & columns[None, :]
        return window[:, ::-1] if self.flip else window

    def _turned(self, window: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """A copy, mirrored if flipped, that lets the canvas go."""
        if self.flip and window.ndim == 2 and window.dtype in (np.uint8, np.uint16):
            pixels: Any = window
            return np.asarray(cv2.flip(pixels, 1), window.dtype)  # ten times as fast as numpy
        return np.ascontiguousarray(window[..., ::-1]) if self.flip else window.copy()
