"""Text on pictures: a font that every machine has, legends, captions, and names written where they fit.

Pillow's own font ships with Pillow but covers little beyond ASCII; other scripts use a font of the machine where there
is one, and otherwise lose their accents or become question marks rather than boxes.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .palette import Colour, UInt8

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER: Colour = (250, 250, 248)
INK: Colour = (28, 32, 38)

_MACHINE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf", "Arial Unicode.ttf")


class LegendEntry(NamedTuple):
    """One row of a legend; `value` stands at the right, e.g. `12.4%`."""

    colour: Colour
    name: str
    value: str


def text_px(height: int, width: int) -> int:
    """Font size in px that reads well on a picture of that size."""
    return int(np.clip(round((height * width) ** 0.5 / 28), 12, 96))


def text_size(text: str, size_px: int) -> tuple[int, int]:
    """Height and width in px of a line of text; the height is that of any line."""
    text, font = _drawable(text, size_px)
    return round(size_px * 1.25), round(font.getlength(text)) if text else 0


def write(canvas: UInt8, text: str, x: int, y: int, size_px: int, colour: Colour = INK, *, halo: bool = False) -> None:
    """Write a line into `canvas` (H, W, 3), its box's top left at x, y. With `halo` letters have a black outline."""
    height, width = text_size(text, size_px)
    margin = max(2, size_px // 6) if halo else 2
    top, left = max(y - margin, 0), max(x - margin, 0)
    bottom, right = min(y + height + margin, canvas.shape[0]), min(x + width + margin, canvas.shape[1])
    if bottom <= top or right <= left:
        return
    text, font = _drawable(text, size_px)
    patch = Image.fromarray(np.ascontiguousarray(canvas[top:bottom, left:right]))
    ImageDraw.Draw(patch).text(
        (x - left, y - top + height / 2),
        text,
        font=font,
        fill=colour,
        anchor="lm",
        stroke_width=max(1, round(size_px / 9)) if halo else 0,
        stroke_fill=(0, 0, 0) if halo else None,
    )
    canvas[top:bottom, left:right] = np.asarray(patch)


def shorten(text: str, size_px: int, width: int) -> str:
    """The text, or as much of it as fits into `width` px with an ellipsis at the end."""
    if text_size(text, size_px)[1] <= width:
        return text
    cuts = [text[:count].rstrip() + "…" for count in range(len(text))]
    return cuts[max(0, bisect_right(cuts, width, key=lambda cut: text_size(cut, size_px)[1]) - 1)]


def legend(
    entries: Sequence[LegendEntry], size_px: int, *, height: int | None = None, width: int | None = None
) -> UInt8:
    """A legend on paper, (H, W, 3) uint8: as many columns as a given height needs, or as a given width allows."""
    row, pad = round(size_px * 1.6), size_px
    names = [shorten(entry.name, size_px, 14 * size_px) for entry in entries]
    name_width = max((text_size(name, size_px)[1] for name in names), default=0)
    value_width = max((text_size(entry.value, size_px)[1] for entry in entries), default=0)
    indent = size_px + size_px // 2
    column = indent + name_width + size_px + value_width
    if width is not None:
        columns = int(np.clip((width - pad) // (column + pad), 1, max(len(entries), 1)))
    else:
        columns = -(-len(entries) // max(4, ((height or 0) - 2 * pad) // row)) or 1
    rows = -(-len(entries) // columns)
    canvas = np.full((2 * pad + max(rows, 1) * row, pad + columns * (column + pad), 3), PAPER, np.uint8)
    for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
        x, y = pad + number // rows * (column + pad), pad + number % rows * row
        text_y = y + (row - text_size(name, size_px)[0]) // 2
        canvas[y + (row - size_px) // 2 : y + (row + size_px) // 2, x : x + size_px] = entry.colour
        write(canvas, name, x + indent, text_y, size_px)
        write(canvas, entry.value, x + column - text_size(entry.value, size_px)[1], text_y, size_px, (98, 106, 116))
    return canvas


def place_text(region: npt.NDArray[np.bool_], text: str, sizes_px: Sequence[int]) -> tuple[int, int, int] | None:
    """Where a line of text stands on a region: of all boxes that it covers, one whose middle lies deep and central.

    The region (H, W) is True where the text may stand, and cut to that, so that its middle is that of the region. Font
    sizes are tried in order. Returns x and y of the box's top left, and the font size; None if it fits nowhere.
    """
    window = np.ascontiguousarray(region).view(np.uint8)
    sums = cv2.integral(window)
    depth = cv2.distanceTransform(np.pad(window, 1), cv2.DIST_L1, 3)[1:-1, 1:-1]
    for size_px in sizes_px:
        height, width = text_size(text, size_px)
        if height > window.shape[0] or width > window.shape[1]:
            continue
        inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        y, x = np.nonzero(inside >= 0.92 * height * width)  # nearly all of the box lies on the region
        if len(y):
            middle_y, middle_x = y + height // 2, x + width // 2
            off_centre = np.hypot(middle_y - window.shape[0] / 2, middle_x - window.shape[1] / 2)
            best = int(np.argmax(depth[middle_y, middle_x] - 0.1 * off_centre))
            return int(x[best]), int(y[best]), size_px
    return None


@lru_cache(maxsize=4096)
def _drawable(text: str, size_px: int) -> tuple[str, Font]:
    """The text on one line with a font that has all its characters, or with what has no glyph replaced."""
    text = "".join(" " if unicodedata.category(character) in {"Cc", "Zl", "Zp"} else character for character in text)
    for font in _fonts(size_px):
        if all(_has_glyph(font, character) for character in text):
            return text, font
    own = _fonts(size_px)[0]
    bare = filter(
        lambda character: not unicodedata.combining(character), unicodedata.normalize("NFKD", text.replace("…", "..."))
    )
    return "".join(character if _has_glyph(own, character) else "?" for character in bare), own


@lru_cache(maxsize=64)
def _fonts(size_px: int) -> tuple[Font, ...]:
    """Pillow's own font, then those that this machine has."""
    fonts = [ImageFont.load_default(size_px)]
    for name in _MACHINE_FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size_px))
    return tuple(fonts)


@lru_cache(maxsize=16384)
def _has_glyph(font: Font, character: str) -> bool:
    """Whether the font draws the character itself and not the box that stands for a missing one."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffe"))
