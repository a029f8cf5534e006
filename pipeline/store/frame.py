"""The canonical frame: the one resize that extractors and trainer share, so that cached maps line up with the pixels.

Every image is brought to a size whose shortest edge is `short_edge` px unless its long edge would then exceed
`max_long_edge`. The frame lies at the top left of a square canvas, so that all samples share one array shape.

Conventions (pinned by `tests/pipeline/store/test_frame.py`): sizes are (height, width); pixel centres lie at
half-integers, so a resize maps the outer borders of the image onto the outer borders of the frame; labels are taken at
the nearest source pixel centre.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ...structure_extractors.interface import CELL_PX, Labels
from .errors import FrameError

__all__ = ["CELL_PX", "Frame"]

MAX_CANVAS = 8192
"""px; a store from elsewhere that claims more is refused before memory is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Size rule of the canonical frame, in px."""

    short_edge: int = 384
    """Length of the shortest edge after the resize."""
    max_long_edge: int = 768
    """Upper limit of the longest edge; an image more elongated than this allows gets a shorter short edge."""
    canvas: int = 768
    """Side of the square canvas whose top left corner holds the frame; a multiple of 8."""

    def __post_init__(self) -> None:
        if not 0 < self.short_edge <= self.max_long_edge <= self.canvas:
            raise FrameError(
                f"frame sizes must satisfy 0 < short edge <= long edge limit <= canvas, "
                f"got {self.short_edge}, {self.max_long_edge}, {self.canvas} px"
            )
        if self.canvas > MAX_CANVAS:
            raise FrameError(f"the canvas must be at most {MAX_CANVAS} px, got {self.canvas}")
        if self.canvas % CELL_PX:
            raise FrameError(f"the canvas must be a multiple of {CELL_PX} px, got {self.canvas}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size (height, width) in px of the frame of an image of that size.

        >>> Frame().size(480, 640)
        (384, 512)
        >>> Frame().size(200, 1000)
        (154, 768)
        """
        if height < 1 or width < 1:
            raise FrameError(f"an image needs at least one pixel, got {height}x{width} (height x width)")
        scale = min(self.short_edge / min(height, width), self.max_long_edge / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def resize_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Image (H, W, 3) uint8 at the frame's size: area interpolation down, bilinear up."""
        height, width = self.size(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        shrinks = height < image.shape[0] or width < image.shape[1]  # of a thin image, the height may round to itself
        return cv2.resize(  # type: ignore[return-value]
            image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )

    def resize_labels(self, labels: Labels) -> Labels:
        """Label map (H, W) at the frame's size, each pixel taken from the nearest source pixel centre."""
        size = self.size(*labels.shape)
        if size == labels.shape:
            return labels
        rows, columns = (_nearest(source, target) for source, target in zip(labels.shape, size, strict=True))
        # A third of the time of picking columns; [:, columns] gives columns in a row, which all who read it pay for.
        return cv2.transpose(cv2.transpose(labels[rows])[columns])  # type: ignore[return-value]


def _nearest(source: int, target: int) -> npt.NDArray[np.intp]:
    """Index of the source pixel whose centre is nearest to each target pixel's centre, in exact integer arithmetic.

    OpenCV's INTER_NEAREST drops the half-pixel offset, which shifts label maps against area-resized images.
    """
    return (2 * np.arange(target, dtype=np.intp) + 1) * source // (2 * target)
