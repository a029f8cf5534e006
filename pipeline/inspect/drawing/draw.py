"""Pictures of label maps, structures and patch weights: pure functions from arrays to uint8 RGB (H, W, 3).

Used by `physseg inspect` and `physseg predict`. Everything is deterministic: equal arrays give equal pixels.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .errors import DrawError
from .lettering import FAINT_INK, PAPER, Colour, LegendEntry, legend, place_text, shorten, text_px, text_size, write

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

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

EDGES, KEYPOINTS, DENSITY = "edges", "keypoints", "density"
"""Kinds of structure map: 0 or 255; coded confidences at keypoints; a coded confidence everywhere."""

_FIRST = np.array((70, 120, 190))
"""Class 0 is a background in many vocabularies: a calm colour."""
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
_DIM = 0.5
_HEAT = np.array([(40, 20, 90), (130, 35, 130), (215, 60, 90), (250, 130, 50), (255, 220, 110)], np.float64)
"""Colours of weights from 0 to 1, evenly spaced, dark to bright so that they read in grey as well."""


# --- colours --------------------------------------------------------------------------------------------------------


def palette(num_classes: int) -> UInt8:
    """Colours (num_classes, 3) uint8, far apart from each other and from the grey of ignored pixels.

    A class id has the same colour whatever the number of classes. Greedy choice: each colour is the one furthest, in
    Oklab with lightness counting less, from all before it. Colours repeat where candidates run out (after 1,700).
    """
    return _palette(num_classes).copy()


@lru_cache(maxsize=16)
def _palette(num_classes: int) -> UInt8:
    candidates, lab = _candidates()
    count = min(num_classes, len(candidates))
    order = np.zeros(count, np.intp)
    distance = ((lab - _oklab(np.array(IGNORED))) ** 2).sum(axis=1)
    for position in range(count):
        order[position] = distance.argmax() if position else ((lab - _oklab(_FIRST)) ** 2).sum(axis=1).argmin()
        distance = np.minimum(distance, ((lab - lab[order[position]]) ** 2).sum(axis=1))
        distance[order[position]] = -1
    return np.asarray(candidates[order[np.arange(num_classes) % max(count, 1)]])


@lru_cache(maxsize=1)
def _candidates() -> tuple[UInt8, npt.NDArray[np.float64]]:
    """Colours to choose from (N, 3), and the same in Oklab: no near-greys, near-blacks, near-whites, no neon."""
    axis = np.linspace(0, 255, 16).round().astype(np.uint8)
    rgb = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    lightness, chroma = lab[:, 0] / _LIGHTNESS_WEIGHT, np.hypot(lab[:, 1], lab[:, 2])
    usable = (lightness > 0.45) & (lightness < 0.92) & (chroma > 0.07) & (chroma < 0.18)
    return rgb[usable], lab[usable]


def _oklab(rgb: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours (..., 3) in Oklab (Ottosson 2020), where distance is about what the eye sees; lightness weighted."""
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T * (_LIGHTNESS_WEIGHT, 1, 1))


def colour_labels(labels: npt.NDArray[np.integer[Any]], num_classes: int, *, ignore_index: int) -> UInt8:
    """The label map (H, W) in its classes' colours, ignored pixels grey; raises DrawError for an id without a class."""
    if 0 <= ignore_index < num_classes:
        raise DrawError(f"ignore index {ignore_index} is also the id of one of {num_classes} classes")
    table = np.empty((max(num_classes, ignore_index + 1), 3), np.uint8)
    table[:] = IGNORED
    table[:num_classes] = palette(num_classes)
    known = (labels >= 0) & ((labels < num_classes) | (labels == ignore_index))
    if not known.all():
        raise DrawError(
            f"label id {labels[~known][0]}: expected one of {num_classes} classes or {ignore_index} (ignored)"
        )
    return np.asarray(table[labels])


def blend(image: UInt8, colours: UInt8, alpha: float | Floats) -> UInt8:
    """``image`` (1 - alpha) + ``colours`` alpha, rounded; alpha a number or a map (H, W) in [0, 1]."""
    weight = np.asarray(alpha, np.float32)[..., None]
    return np.asarray(np.rint(image * (1 - weight) + colours * weight), np.uint8)


# --- label maps -----------------------------------------------------------------------------------------------------


def overlay(
    image: UInt8,
    labels: npt.NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    ignore_index: int,
    alpha: float = 0.6,
    max_legend: int = 20,
    write_names: bool = True,
) -> UInt8:
    """The image (H, W, 3) in its classes' colours with outlines, names on the largest regions, and a legend.

    ``labels`` (H, W) holds indices into ``names`` or ``ignore_index``. The picture keeps its place at the top left; the
    legend (class, colour, share of the pixels) stands at the right, or below a wide image. With ``max_legend`` 0 there
    is none. Raises DrawError if the arrays do not fit each other.
    """
    picture = blend_labels(image, labels, len(names), ignore_index=ignore_index, alpha=alpha)
    shares = class_shares(labels)
    if write_names:
        _write_names(picture, labels, names, [index for index, _ in shares if index != ignore_index])
    if not max_legend:
        return picture
    height, width = labels.shape
    wide = width > 1.8 * height
    side = label_legend(
        labels,
        names,
        ignore_index=ignore_index,
        max_legend=max_legend,
        size_px=text_px(height, width),
        height=None if wide else height,
        width=width if wide else None,
    )
    return stack([picture, side], axis=0 if wide else 1)


def blend_labels(
    image: UInt8, labels: npt.NDArray[np.integer[Any]], num_classes: int, *, ignore_index: int, alpha: float = 0.6
) -> UInt8:
    """The image in its classes' colours, with a dark outline one pixel wide between regions; (H, W, 3)."""
    _check_image(image, labels, "labels")
    picture = blend(image, colour_labels(labels, num_classes, ignore_index=ignore_index), alpha)
    picture[outlines(labels)] //= 4
    return picture


def outlines(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) whose label differs from that of the pixel to the right or below."""
    edge = np.zeros(labels.shape, np.bool_)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge


def class_shares(labels: npt.NDArray[np.integer[Any]]) -> list[tuple[int, float]]:
    """Ids in a label map, ignored ones too, with their share of its pixels; the largest first."""
    ids, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(ids[i]), float(counts[i] / labels.size)) for i in order]


def label_legend(
    labels: npt.NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    ignore_index: int,
    max_legend: int,
    size_px: int,
    height: int | None = None,
    width: int | None = None,
) -> UInt8:
    """Classes of a label map (H, W) by share, at most ``max_legend`` of them, then ignored pixels; a picture."""
    colours = palette(len(names))
    shares = class_shares(labels)
    classes = [(index, share) for index, share in shares if index != ignore_index]
    entries = [LegendEntry(_rgb(colours[index]), names[index], percent(share)) for index, share in classes[:max_legend]]
    rest = classes[max_legend:]
    if rest:
        entries.append(LegendEntry(PAPER, f"and {len(rest)} more", percent(sum(share for _, share in rest))))
    ignored = dict(shares).get(ignore_index)
    if ignored is not None:
        entries.append(LegendEntry(IGNORED, "(ignored)", percent(ignored)))
    return legend(entries, size_px, height=height, width=width)


def row_of_maps(
    image: UInt8,
    maps: Sequence[tuple[npt.NDArray[np.integer[Any]], str]],
    names: Sequence[str],
    *,
    ignore_index: int,
    title: str = "",
    max_legend: int = 24,
) -> UInt8:
    """The image and several label maps (H, W) of it side by side, each under its caption, and one legend of them all.

    The legend orders classes by their share of all maps; what stands beside a class is its share of the first map.
    """
    panels = [(image, "image")]
    panels += [(blend_labels(image, plane, len(names), ignore_index=ignore_index), text) for plane, text in maps]
    page = tile(panels, columns=len(panels), title=title)
    first = dict(class_shares(maps[0][0]))
    colours = palette(len(names))
    order = [index for index, _ in class_shares(np.stack([plane for plane, _ in maps])) if index != ignore_index]
    entries = [
        LegendEntry(_rgb(colours[index]), names[index], percent(first[index]) if index in first else "-")
        for index in order[:max_legend]
    ]
    if len(order) > max_legend:
        rest = sum(first.get(index, 0) for index in order[max_legend:])
        entries.append(LegendEntry(PAPER, f"and {len(order) - max_legend} more", percent(rest)))
    if ignore_index in first:
        entries.append(LegendEntry(IGNORED, "(ignored)", percent(first[ignore_index])))
    return stack([page, legend(entries, text_px(*image.shape[:2]), width=page.shape[1])], axis=0)


def _write_names(
    picture: UInt8, labels: npt.NDArray[np.integer[Any]], names: Sequence[str], present: Sequence[int]
) -> None:
    """Write each class's name on its largest region if it fits there."""
    size_px = text_px(*labels.shape)
    for index in present:
        mask = labels == index
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask[window].astype(np.uint8), connectivity=4)
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        place = place_text(parts == largest, names[index], (size_px, max(10, round(size_px * 0.75))))
        if place is not None:
            x, y, size = place
            write(picture, names[index], x + int(columns[0]), y + int(rows[0]), size, (255, 255, 255), halo=True)


def percent(share: float) -> str:
    """A share in [0, 1] for people, e.g. ``12.4%``; small ones are never shown as none."""
    return "<0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"


# --- structures -----------------------------------------------------------------------------------------------------


def structure_overlay(image: UInt8, plane: UInt8, kind: str, *, colour: Colour = STRUCTURE_COLOURS[0]) -> UInt8:
    """A structure map (H, W) uint8 in a strong colour over the dimmed image (H, W, 3).

    ``kind``: ``edges`` (every pixel that is not 0 gets the colour), ``keypoints`` (a dot each, larger and more opaque
    the more confident), ``density`` (more opaque the more confident).
    """
    _check_image(image, plane, kind)
    return blend(dim(image), np.array(colour, np.uint8), structure_alpha(plane, kind))


def structure_alpha(plane: UInt8, kind: str) -> npt.NDArray[np.float32]:
    """Opacity (H, W) in [0, 1] with which a structure map is drawn; see `structure_overlay`."""
    if kind == EDGES:
        return np.asarray(plane > 0, np.float32)
    if kind == DENSITY:
        return np.asarray(plane / np.float32(255), np.float32)
    if kind != KEYPOINTS:
        raise DrawError(f"unknown kind of structure {kind!r}, expected {EDGES}, {KEYPOINTS} or {DENSITY}")
    dots = np.zeros(plane.shape, np.uint8)
    y, x = np.nonzero(plane)
    codes = plane[y, x].astype(np.float64) / 255  # square roots of the confidences
    radius = _dot_radius(plane.shape) * (0.1 + 0.9 * codes)
    for i in np.argsort(codes, kind="stable"):  # the strong ones last, on top
        # OpenCV takes centre and radius as fixed-point numbers with ``shift`` fractional bits.
        centre = (int(x[i]) * 16, int(y[i]) * 16)
        level = round(255 * (0.3 + 0.7 * codes[i]))
        cv2.circle(dots, centre, round(16 * radius[i]), level, -1, cv2.LINE_AA, shift=4)
    return np.asarray(dots / np.float32(255), np.float32)


def dim(image: UInt8) -> UInt8:
    """The image without colour and darker, as a ground to draw on."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) * _DIM
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def _dot_radius(shape: tuple[int, ...]) -> float:
    """Radius in px of a fully confident keypoint's dot."""
    return max(3.0, min(shape) / 85)


# --- patch weights --------------------------------------------------------------------------------------------------


def heat_colours(values: Floats) -> UInt8:
    """Colours (..., 3) of values in [0, 1], dark to bright."""
    position = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(position.astype(np.intp), len(_HEAT) - 2)
    part = (position - low)[..., None]
    return np.asarray(np.rint(_HEAT[low] * (1 - part) + _HEAT[low + 1] * part), np.uint8)


def heat_map(image: UInt8, weights: Floats, *, patch_px: int = 16, alpha: float = 0.8) -> UInt8:
    """Patch weights (rows, columns) in [0, 1] as translucent squares over the dimmed image; see also `scale_bar`.

    ``weights[i, j]`` belongs to the ``patch_px`` square at row i, column j from the top left; the last ones may reach
    over the image's border. Patches of weight 0 stay clear.
    """
    height, width = image.shape[:2]
    big = np.repeat(np.repeat(weights, patch_px, axis=0), patch_px, axis=1)[:height, :width]
    if big.shape != (height, width):
        raise DrawError(f"weights {weights.shape} of {patch_px}-px patches do not cover an image of {height} x {width}")
    return blend(dim(image), heat_colours(big), np.where(big > 0, alpha, 0.0))


def scale_bar(width: int, size_px: int, title: str) -> UInt8:
    """The colours of weights from 0 to 1 under a title, on paper."""
    line = text_size("0", size_px)[0]
    pad = size_px
    canvas = np.full((3 * line + 2 * pad, width, 3), PAPER, np.uint8)
    write(canvas, shorten(title, size_px, width - 2 * pad), pad, pad, size_px)
    length = max(1, min(width - 2 * pad, 24 * size_px))
    top = pad + line + size_px // 4
    canvas[top : top + line, pad : pad + length] = heat_colours(np.linspace(0, 1, length))[None]
    for value in (0.0, 0.5, 1.0):
        text = f"{value:g}"
        x = pad + round(value * length) - round(value * text_size(text, size_px)[1])
        write(canvas, text, x, top + line, size_px, FAINT_INK)
    return canvas


# --- arranging ------------------------------------------------------------------------------------------------------


def tile(panels: Sequence[tuple[UInt8, str]], *, columns: int | None = None, title: str = "") -> UInt8:
    """Pictures in a grid, each under its caption, on paper; about square unless ``columns`` is given."""
    if not panels:
        raise DrawError("expected at least one picture, got none")
    columns = columns or max(1, round(len(panels) ** 0.5))
    size_px = max(text_px(*image.shape[:2]) for image, _ in panels)
    cells = [_captioned(image, caption, size_px) for image, caption in panels]
    width = max(cell.shape[1] for cell in cells)
    cells = [_extend(cell, cell.shape[0], width) for cell in cells]
    rows = [stack(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    page = stack(rows, axis=0)
    page = _extend(page, page.shape[0] + size_px, page.shape[1] + size_px)
    return stack([heading(title, page.shape[1], size_px), page], axis=0) if title else page


def heading(title: str, width: int, size_px: int) -> UInt8:
    """A page's head: its title, larger than the captions of size ``size_px``."""
    canvas = np.full((round(size_px * 2.6), width, 3), PAPER, np.uint8)
    big = round(size_px * 1.3)
    write(canvas, shorten(title, big, width - 2 * size_px), size_px, size_px, big)
    return canvas


def stack(images: Sequence[UInt8], *, axis: int) -> UInt8:
    """Pictures below (axis 0) or beside (axis 1) each other, paper where the smaller ones leave room."""
    room = max(image.shape[1 - axis] for image in images)
    sizes = [(image.shape[0], room) if axis == 0 else (room, image.shape[1]) for image in images]
    return np.concatenate([_extend(image, *size) for image, size in zip(images, sizes, strict=True)], axis=axis)


def _extend(image: UInt8, height: int, width: int) -> UInt8:
    """The picture at the top left of a larger piece of paper."""
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def _captioned(image: UInt8, caption: str, size_px: int) -> UInt8:
    """The picture with its caption above, and a margin at the left and above."""
    margin = size_px
    top = text_size(caption, size_px)[0] + margin + margin // 3
    canvas = np.full((top + image.shape[0], margin + image.shape[1], 3), PAPER, np.uint8)
    write(canvas, shorten(caption, size_px, image.shape[1]), margin, margin, size_px)
    canvas[top:, margin:] = image
    return canvas


def _rgb(colour: UInt8) -> Colour:
    red, green, blue = (int(channel) for channel in colour)
    return red, green, blue


def _check_image(image: UInt8, plane: npt.NDArray[Any], what: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or plane.shape != image.shape[:2]:
        raise DrawError(
            f"{what}: expected an image (H, W, 3) uint8 and a map (H, W) of its size, "
            f"got {image.shape} {image.dtype} and {plane.shape}"
        )
