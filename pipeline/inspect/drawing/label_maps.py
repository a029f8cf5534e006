"""Label maps over their photographs, with names on the regions and a legend."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ....common.text import percent
from .errors import DrawError
from .layout import stack
from .lettering import PAPER, LegendEntry, legend, place_text, text_px, write
from .palette import IGNORED, UInt8, blend, class_colours, colour_labels

Labels = npt.NDArray[np.integer[Any]]


def overlay(
    image: UInt8, labels: Labels, names: Sequence[str], *, ignore_index: int, alpha: float = 0.6, max_legend: int = 20
) -> UInt8:
    """The image in its classes' colours with outlines, names on the largest regions, and a legend.

    The picture keeps its place at the top left. The legend (class, colour, share of the pixels) stands at the right, or
    below a wide image.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W), indices into `names` or `ignore_index`.
        alpha: Opacity of the colours, from 0 to 1.
        max_legend: Number of classes in the legend; 0 leaves it out.

    Raises:
        DrawError: The arrays do not fit each other, or a label is no class.
    """
    picture = blend_labels(image, labels, class_colours(names), ignore_index=ignore_index, alpha=alpha)
    shares = dict(class_shares(labels))
    _write_names(picture, labels, names, [index for index in shares if index != ignore_index])
    if not max_legend:
        return picture
    entries, size_px = legend_entries(list(shares), shares, names, ignore_index, max_legend), text_px(*labels.shape)
    height, width = labels.shape
    if width > 1.8 * height:
        return stack([picture, legend(entries, size_px, width=width)], axis=0)
    return stack([picture, legend(entries, size_px, height=height)], axis=1)


def blend_labels(image: UInt8, labels: Labels, colours: UInt8, *, ignore_index: int, alpha: float = 0.6) -> UInt8:
    """The image (H, W, 3) in its classes' `colours` (N, 3), with a dark outline one pixel wide between regions."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or labels.shape != image.shape[:2]:
        raise DrawError.mismatch(
            "labels",
            "an image (H, W, 3) uint8 and a map (H, W) of its size",
            f"{image.shape} {image.dtype} and {labels.shape}",
        )
    picture = blend(image, colour_labels(labels, colours, ignore_index=ignore_index), alpha)
    picture[outlines(labels)] //= 4
    return picture


def outlines(labels: Labels) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) whose label differs from that of the pixel to the right or below."""
    edge = np.zeros(labels.shape, np.bool_)
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    edge[:-1] |= labels[1:] != labels[:-1]
    return edge


def class_shares(labels: Labels) -> list[tuple[int, float]]:
    """Ids in a label map, ignored ones too, with their share of its pixels; the largest first."""
    ids, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(ids[i]), float(counts[i] / labels.size)) for i in order]


def legend_entries(
    order: Sequence[int], shares: Mapping[int, float], names: Sequence[str], ignore_index: int, limit: int
) -> list[LegendEntry]:
    """At most `limit` classes in the given order with their shares, the rest in one entry, then ignored pixels."""
    colours = class_colours(names).tolist()
    values = {index: percent(share, digits=1) for index, share in shares.items()}
    classes = [index for index in order if index != ignore_index]
    entries = [LegendEntry(tuple(colours[index]), names[index], values.get(index, "-")) for index in classes[:limit]]
    if rest := classes[limit:]:
        share = sum(shares.get(index, 0.0) for index in rest)
        entries.append(LegendEntry(PAPER, f"and {len(rest)} more", percent(share, digits=1)))
    if ignore_index in shares:
        entries.append(LegendEntry(IGNORED, "(ignored)", values[ignore_index]))
    return entries


def _write_names(picture: UInt8, labels: Labels, names: Sequence[str], present: Sequence[int]) -> None:
    """Write each class's name on its largest region if it fits there."""
    size_px = text_px(*labels.shape)
    for index in present:
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == index).astype(np.uint8), connectivity=4)
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        left, top, width, height = map(int, stats[largest, : cv2.CC_STAT_AREA])
        region = parts[top : top + height, left : left + width] == largest
        if place := place_text(region, names[index], (size_px, max(10, round(size_px * 0.75)))):
            write(picture, names[index], left + place[0], top + place[1], place[2], (255, 255, 255), halo=True)
