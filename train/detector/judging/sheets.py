"""Pictures of what a detector finds: held-out shapes with the truth, and pairs of photographs with what was repeated.

`physseg superpoint evaluate --pictures FOLDER`: figures say how good a detector is, these say where it fails.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ....common.atomic import atomic_write
from ....common.images import encode_png
from ..pictures.shapes import KINDS
from .detectors import Detect, Grey, best_points
from .evaluation import RADIUS_PX, TOLERANCE_PX, all_points, repeated_points, shape_pictures
from .metrics import Points, matches
from .pairs import Pair

Colour = tuple[int, int, int]  # RGB
Image = npt.NDArray[np.uint8]

TRUE: Colour = (0, 200, 80)
FOUND: Colour = (0, 140, 255)
WRONG: Colour = (255, 60, 60)
ZOOM = 3
GAP_PX = 4


def write_pictures(
    folder: Path, detect: Detect, *, threshold: float, sequences: Mapping[str, Sequence[Pair]], columns: int = 6
) -> list[Path]:
    """Write a sheet of held-out shapes, clean and noisy, and a picture of each pair of each sequence.

    Shapes have a ring for each true keypoint, a dot for what is found there, and a cross for what is found elsewhere.
    Pairs show the best points that are in both pictures: a ring where the other picture has one within tolerance, a
    cross where it has none.

    Args:
        folder: Folder for the files.
        detect: The detector.
        threshold: Points on shapes score more than this; they are suppressed as in extraction.
        sequences: Pairs of pictures by the name of their sequence.
        columns: Number of pictures of each kind of shape.

    Returns:
        The files.
    """
    sheets = {
        f"shapes_{'noisy' if noisy else 'clean'}": shape_sheet(detect, threshold, noisy=noisy, columns=columns)
        for noisy in (False, True)
    }
    for name, pairs in sequences.items():
        sheets |= {f"{name}_{number}": pair_sheet(detect, pair) for number, pair in enumerate(pairs, start=2)}
    for name, sheet in sheets.items():
        atomic_write(folder / f"{name}.png", encode_png(sheet))
    return [folder / f"{name}.png" for name in sheets]


def shape_sheet(detect: Detect, threshold: float, *, noisy: bool, columns: int) -> Image:
    """One row per kind of shape, `columns` pictures each, (H, W, 3) uint8."""
    drawn = []
    for grey, truth in shape_pictures(columns, noisy=noisy):
        points, _ = best_points(detect(grey), number=None, radius_px=RADIUS_PX, border_px=0, threshold=threshold)
        hit = matches(points, truth, TOLERANCE_PX)
        canvas = _enlarged(grey)
        _rings(canvas, truth, TRUE)
        _dots(canvas, points[hit], FOUND)
        _crosses(canvas, points[~hit], WRONG)
        drawn.append(canvas)
    rows = [_beside(drawn[start : start + columns]) for start in range(0, len(KINDS) * columns, columns)]
    return _beside([np.swapaxes(row, 0, 1) for row in rows]).swapaxes(0, 1)


def pair_sheet(detect: Detect, pair: Pair) -> Image:
    """Both pictures of a pair beside each other, (H, W, 3) uint8."""
    one, other = (all_points(detect, grey) for grey in (pair.one, pair.other))
    halves = repeated_points(pair, one, other)
    drawn = []
    for grey, (points, again) in zip((pair.one, pair.other), halves, strict=True):
        canvas = _enlarged(grey)
        _rings(canvas, points[again], TRUE)
        _crosses(canvas, points[~again], WRONG)
        drawn.append(canvas)
    return _beside(drawn)


def _enlarged(grey: Grey) -> Image:
    large = cv2.resize(grey, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2RGB), np.uint8)


def _rings(canvas: Image, points: Points, colour: Colour) -> None:
    for place in _places(points):
        cv2.circle(canvas, place, 2 * ZOOM, colour, 1, cv2.LINE_AA)


def _dots(canvas: Image, points: Points, colour: Colour) -> None:
    for place in _places(points):
        cv2.circle(canvas, place, ZOOM - 1, colour, cv2.FILLED, cv2.LINE_AA)


def _crosses(canvas: Image, points: Points, colour: Colour) -> None:
    for place in _places(points):
        cv2.drawMarker(canvas, place, colour, cv2.MARKER_TILTED_CROSS, 2 * ZOOM, 1, cv2.LINE_AA)


def _places(points: Points) -> list[tuple[int, int]]:
    """Pixels of the enlarged picture: pixel centres lie at integers before, in the middle of ZOOM pixels after."""
    return [(int(x), int(y)) for x, y in np.rint((points + 0.5) * ZOOM - 0.5)]


def _beside(pictures: Sequence[Image]) -> Image:
    gap = np.full((len(pictures[0]), GAP_PX, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)
