"""Pictures arranged on paper: in a grid under captions, below and beside each other."""

from collections.abc import Sequence

import numpy as np

from .errors import DrawError
from .lettering import PAPER, shorten, text_px, text_size, write
from .palette import UInt8


def tile(panels: Sequence[tuple[UInt8, str]], *, columns: int, title: str = "") -> UInt8:
    """Pictures (H, W, 3) uint8 RGB of any sizes in a grid, with captions and a heading. Raises DrawError for none."""
    if not panels:
        raise DrawError("expected at least one picture, got none")
    size_px = max(text_px(*image.shape[:2]) for image, _ in panels)
    cells = [_captioned(image, caption, size_px) for image, caption in panels]
    width = max(cell.shape[1] for cell in cells)
    cells = [_extend(cell, cell.shape[0], width) for cell in cells]
    rows = [stack(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    page = stack(rows, axis=0)
    page = _extend(page, page.shape[0] + size_px, page.shape[1] + size_px)
    if not title:
        return page
    big = round(size_px * 1.3)
    heading = np.full((round(size_px * 2.6), page.shape[1], 3), PAPER, np.uint8)
    write(heading, shorten(title, big, page.shape[1] - 2 * size_px), size_px, size_px, big)
    return stack([heading, page], axis=0)


def stack(images: Sequence[UInt8], *, axis: int) -> UInt8:
    """Pictures below (axis 0) or beside (axis 1) each other, paper where the smaller ones leave room."""
    room = max(image.shape[1 - axis] for image in images)
    sizes = [(image.shape[0], room) if axis == 0 else (room, image.shape[1]) for image in images]
    return np.concatenate([_extend(image, *size) for image, size in zip(images, sizes, strict=True)], axis=axis)


def _captioned(image: UInt8, caption: str, size_px: int) -> UInt8:
    """The picture with its caption above, and a margin at the left and above."""
    margin = size_px
    top = text_size(caption, size_px)[0] + margin + margin // 3
    canvas = np.full((top + image.shape[0], margin + image.shape[1], 3), PAPER, np.uint8)
    write(canvas, shorten(caption, size_px, image.shape[1]), margin, margin, size_px)
    canvas[top:, margin:] = image
    return canvas


def _extend(image: UInt8, height: int, width: int) -> UInt8:
    """The picture at the top left of a larger piece of paper."""
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas
