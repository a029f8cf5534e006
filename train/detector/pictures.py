"""Pictures of what a detector finds: held-out shapes with the truth, and pairs of photographs with what was repeated.

`physseg superpoint evaluate --pictures FOLDER`: figures say how good a detector is, these say where it fails.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ...common.atomic import atomic_write
from .detectors import Detect, Grey, best_points
from .evaluation import NUM_POINTS, RADIUS_PX, TOLERANCE_PX, all_points, shape_pictures
from .metrics import Points, found_again, matches
from .pairs import Pair
from .shapes import KINDS

Colour = tuple[int, int, int]  # blue, green, red, as OpenCV writes them
Image = npt.NDArray[np.uint8]

TRUE: Colour = (80, 200, 0)
FOUND: Colour = (255, 140, 0)
WRONG: Colour = (60, 60, 255)
ZOOM = 3
GAP_PX = 4


def write_pictures(
    folder: Path, detect: Detect, *, threshold: float, pairs: Iterable[tuple[str, Pair]], columns: int = 6
) -> list[Path]:
    """Write a sheet of held-out shapes, clean and noisy, and a picture of each named pair; returns the files.

    Shapes: a ring for each true keypoint, a dot for what is found there, a cross for what is found elsewhere, points
    above ``threshold`` and suppressed as in extraction. Pairs: the best points that both pictures show, a ring where
    the other picture has one within tolerance, a cross where it has none.
    """
    sheets = {
        f"shapes_{'noisy' if noisy else 'clean'}": shape_sheet(detect, threshold, noisy=noisy, columns=columns)
        for noisy in (False, True)
    }
    sheets |= {name: pair_sheet(detect, pair) for name, pair in pairs}
    return [_write(folder / f"{name}.png", sheet) for name, sheet in sheets.items()]


def shape_sheet(detect: Detect, threshold: float, *, noisy: bool, columns: int) -> Image:
    """One row per kind of shape, ``columns`` pictures each, (H, W, 3) uint8."""
    drawn = []
    for grey, truth in shape_pictures(columns, noisy=noisy):
        scores = detect(grey)
        points, _ = best_points(
            np.where(scores > threshold, scores, np.float32(0)), number=None, radius_px=RADIUS_PX, border_px=0
        )
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
    sizes = (pair.one.shape, pair.other.shape)
    halves = found_again(one, other, pair.homography, sizes, number=NUM_POINTS, tolerance_px=TOLERANCE_PX)
    drawn = []
    for grey, (points, again) in zip((pair.one, pair.other), halves, strict=True):
        canvas = _enlarged(grey)
        _rings(canvas, points[again], TRUE)
        _crosses(canvas, points[~again], WRONG)
        drawn.append(canvas)
    return _beside(drawn)


def _enlarged(grey: Grey) -> Image:
    large = cv2.resize(grey, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2BGR), np.uint8)


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


def _write(path: Path, image: Image) -> Path:
    coded, data = cv2.imencode(".png", image)
    assert coded, "OpenCV writes PNG"
    atomic_write(path, data.tobytes())
    return path
