"""The crop of a training sample: where it lies on the canvas, and cutting every kind of array by the same window.

Offsets are multiples of the cell side (8 px), so that cached cell counts are cut exactly as pixels are; the crop's side
is a multiple of it too, so that the mirror image of a crop has whole cells. The window stays inside the image wherever
the image is at least as large as the crop; where it is smaller, the rest is padding.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...pipeline.store.frame import CELL_PX

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

    def cut(self, plane: npt.NDArray[Any], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Window (..., size, size) of canvas arrays (..., H, W), mirrored if flipped: `out`, or a new array."""
        return self._turned(plane[..., self.top : self.top + self.size, self.left : self.left + self.size], out)

    def cut_cells(self, cells: npt.NDArray[Any], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Window (..., size / 8, size / 8) of cell arrays (..., H / 8, W / 8), as `cut`."""
        top, left, side = self.top // CELL_PX, self.left // CELL_PX, self.size // CELL_PX
        return self._turned(cells[..., top : top + side, left : left + side], out)

    def cut_image(
        self, image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Window (3, size, size) uint8 of an image (h, w, 3) that lies on the frame; 128 outside the image."""
        # OpenCV splits pixels that lie together five times as fast, and turns planes faster than pixels.
        part = np.ascontiguousarray(image[self.top : self.top + self.size, self.left : self.left + self.size])
        height, width = part.shape[:2]
        window = np.empty((3, self.size, self.size), np.uint8) if out is None else out
        if (height, width) != (self.size, self.size):
            window[:] = IMAGE_FILL
        columns = slice(self.size - width, self.size) if self.flip else slice(0, width)
        planes = [plane[:height, columns] for plane in window]
        cv2.split(part, planes)
        for plane in planes if self.flip else ():
            cv2.flip(plane, 1, plane)
        return window

    def inside(self, frame_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which pixels (size, size) of the window show the image; the others are padding."""
        rows = np.arange(self.top, self.top + self.size) < frame_size[0]
        columns = np.arange(self.left, self.left + self.size) < frame_size[1]
        return rows[:, None] & (columns[::-1] if self.flip else columns)

    def _turned(self, window: npt.NDArray[Any], out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """A copy in `out`, mirrored if flipped."""
        out = np.empty(window.shape, window.dtype) if out is None else out
        if self.flip and window.ndim == 2 and window.dtype == out.dtype and out.dtype in (np.uint8, np.uint16):
            cv2.flip(window, 1, out)  # ten times as fast as numpy
        else:
            out[...] = window[..., ::-1] if self.flip else window
        return out
