"""Colours: of classes, of structures, of weights; and how they are laid over a photograph. Pure functions."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import DrawError

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

IGNORED: Final[Colour] = (128, 128, 128)
"""Colour of pixels without a class."""
STRUCTURE_COLOURS: Final[tuple[Colour, ...]] = (
    (255, 221, 51),
    (64, 224, 255),
    (255, 122, 66),
    (120, 255, 120),
    (255, 110, 220),
)
"""Strong on dimmed photographs, and told apart when several structures lie on one."""

_FIRST = np.array((70, 120, 190))
"""Colour that `palette` begins with."""
_NAMED: Final = {
    "red": (204, 44, 40),
    "orange": (232, 122, 36),
    "yellow": (236, 202, 44),
    "green": (44, 132, 62),
    "blue": (40, 64, 196),
    "purple": (116, 48, 160),
    "pink": (240, 150, 176),
    "brown": (122, 74, 40),
    "white": (236, 236, 232),
    "background": (70, 120, 190),  # it covers much: a calm colour
}
"""Colours of names that begin so."""
_WORD_COLOURS = 48
"""Number of colours, far apart, among which a name's own is chosen."""
_APART = 0.045
"""Distance in Oklab that classes of one vocabulary keep while there is room."""
_LIGHTNESS_WEIGHT = 0.35
"""Under half-transparent colours the photograph changes the lightness, so hue has to tell classes apart."""
_RGB_TO_LMS = np.array(
    [
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    ]
)
_LMS_TO_LAB = np.array(
    [
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    ]
)
_HEAT = np.array([(40, 20, 90), (130, 35, 130), (215, 60, 90), (250, 130, 50), (255, 220, 110)], np.float64)
"""Colours of weights from 0 to 1, evenly spaced, dark to bright so that they read in grey as well."""


def palette(num_classes: int) -> UInt8:
    """Colours for classes, far apart from each other and from the grey of ignored pixels.

    A position has the same colour whatever their number. The choice is greedy: each colour is the one furthest, in
    Oklab with lightness counting less, from all before it. Colours repeat after 1,700, where candidates run out.

    Returns:
        (num_classes, 3) uint8 RGB.
    """
    return _palette(num_classes).copy()


def class_colours(names: Sequence[str]) -> UInt8:
    """Colours (N, 3) of classes by their names, so that a word has its colour in whatever vocabulary it stands.

    A name that begins with the name of a colour has that one. Where a name's colour is too near to that of an earlier
    one in the list, it takes the nearest one that is not. The first of synonyms counts, in any case.
    """
    return _class_colours(tuple(name.split(",")[0].strip().casefold() for name in names)).copy()


def colour_labels(labels: npt.NDArray[np.integer[Any]], class_colours: UInt8, *, ignore_index: int) -> UInt8:
    """Class ids of any shape as colours (..., 3) uint8 RGB, ignored ones grey. Raises DrawError for other ids.

    `class_colours` are those of the classes, (N, 3).
    """
    num_classes = len(class_colours)
    if 0 <= ignore_index < num_classes:
        raise DrawError(f"ignore index {ignore_index} is also the id of one of {num_classes} classes")
    table = np.full((max(num_classes, ignore_index + 1), 3), IGNORED, np.uint8)
    table[:num_classes] = class_colours
    known = (labels >= 0) & ((labels < num_classes) | (labels == ignore_index))
    if not known.all():
        raise DrawError(
            f"label id {labels[~known][0]}: expected one of {num_classes} classes or {ignore_index} (ignored)"
        )
    return np.asarray(table[labels])


def blend(image: UInt8, colours: UInt8, alpha: float | Floats) -> UInt8:
    """`image` (1 - alpha) + `colours` alpha, rounded; alpha is a number or a map (H, W) in [0, 1]."""
    weight = np.asarray(alpha, np.float32)[..., None]
    return np.asarray(np.rint(image * (1 - weight) + colours * weight), np.uint8)


def dim(image: UInt8) -> UInt8:
    """The image without colour and darker, as a ground to draw on."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 2
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def heat_colours(values: Floats) -> UInt8:
    """Colours (..., 3) of values in [0, 1], dark to bright."""
    position = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(position.astype(np.intp), len(_HEAT) - 2)
    part = (position - low)[..., None]
    return np.asarray(np.rint(_HEAT[low] * (1 - part) + _HEAT[low + 1] * part), np.uint8)


def css_colour(colour: Colour | UInt8) -> str:
    """The colour as HTML writes it.

    >>> css_colour((255, 0, 16))
    '#ff0010'
    """
    return "#" + bytes(colour).hex()


@lru_cache(maxsize=16)
def _class_colours(names: tuple[str, ...]) -> UInt8:
    colours = palette(1700)
    lab = _oklab(colours)
    chosen: list[int] = []
    free = np.full(len(lab), np.inf)  # squared distance to the nearest colour that is taken
    for name in names:
        named = _NAMED.get(name.split(" ")[0])
        number = int.from_bytes(sha256(name.encode()).digest()[:8])
        own = lab[number % _WORD_COLOURS] if named is None else _oklab(np.array(named))
        distance = ((lab - own) ** 2).sum(axis=1)
        distance[free < min(_APART**2, free.max() / 4)] = np.inf
        chosen.append(int(distance.argmin()))
        free = np.minimum(free, ((lab - lab[chosen[-1]]) ** 2).sum(axis=1))
    return np.asarray(colours[chosen])


@lru_cache(maxsize=16)
def _palette(num_classes: int) -> UInt8:
    """The colours, chosen among a grid of all without near-greys, near-blacks, near-whites and neon."""
    axis = np.linspace(0, 255, 16).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(candidates)
    lightness, chroma = lab[:, 0] / _LIGHTNESS_WEIGHT, np.hypot(lab[:, 1], lab[:, 2])
    usable = (lightness > 0.45) & (lightness < 0.92) & (chroma > 0.07) & (chroma < 0.18)
    candidates, lab = candidates[usable], lab[usable]
    count = min(num_classes, len(candidates))
    order = np.zeros(count, np.intp)
    distance = ((lab - _oklab(np.array(IGNORED))) ** 2).sum(axis=1)
    for position in range(count):
        order[position] = distance.argmax() if position else ((lab - _oklab(_FIRST)) ** 2).sum(axis=1).argmin()
        distance = np.minimum(distance, ((lab - lab[order[position]]) ** 2).sum(axis=1))
        distance[order[position]] = -1
    return np.asarray(candidates[order[np.arange(num_classes) % max(count, 1)]])


def _oklab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours (..., 3) in Oklab (Ottosson 2020), where distance is about what the eye sees; lightness weighted."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T * (_LIGHTNESS_WEIGHT, 1, 1))
