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
from ....structure_extractors.keypoints import best_points
from ..pictures.files import Grey
from ..pictures.shapes import KINDS
from .detectors import Detect
from .evaluation import all_points, shape_pictures
from .metrics import RADIUS_PX, TOLERANCE_PX, Points, found_again, matches
from .pairs import Pair

Image = npt.NDArray[np.uint8]

TRUE, FOUND, WRONG = (0, 200, 80), (0, 140, 255), (255, 60, 60)  # RGB of rings, dots and crosses
ZOOM = 3
GAP_PX = 4


def write_pictures(
    folder: Path, detect: Detect, *, threshold: float, sequences: Mapping[str, Sequence[Pair]], columns: int = 6
) -> list[Path]:
    """Write a sheet of held-out shapes, clean and noisy, and a picture of each pair of each sequence; returns paths.

    Shapes, `columns` of each kind, have a ring for each true keypoint, a dot for what is found there, and a cross for
    what is found elsewhere: points above the threshold, suppressed as in extraction. Pairs show the best points that
    are in both pictures: a ring where the other picture has one within tolerance, a cross where it has none.
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
        drawn.append(_marked(grey, rings=truth, dots=points[hit], crosses=points[~hit]))
    rows = [_beside(drawn[start : start + columns]) for start in range(0, len(KINDS) * columns, columns)]
    return _beside([np.swapaxes(row, 0, 1) for row in rows]).swapaxes(0, 1)


def pair_sheet(detect: Detect, pair: Pair) -> Image:
    """Both pictures of a pair beside each other, (H, W, 3) uint8."""
    greys = (pair.one, pair.other)
    halves = found_again(pair, *(all_points(detect, grey) for grey in greys))
    return _beside(
        [
            _marked(grey, rings=points[far <= TOLERANCE_PX], dots=points[:0], crosses=points[far > TOLERANCE_PX])
            for grey, (points, far) in zip(greys, halves, strict=True)
        ]
    )


def _marked(grey: Grey, *, rings: Points, dots: Points, crosses: Points) -> Image:
    """A grey picture, enlarged, with marks in colour at points (N, 2)."""
    large = cv2.resize(grey, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    canvas = np.asarray(cv2.cvtColor(large, cv2.COLOR_GRAY2RGB), np.uint8)
    for place in _places(rings):
        cv2.circle(canvas, place, 2 * ZOOM, TRUE, 1, cv2.LINE_AA)
    for place in _places(dots):
        cv2.circle(canvas, place, ZOOM - 1, FOUND, cv2.FILLED, cv2.LINE_AA)
    for place in _places(crosses):
        cv2.drawMarker(canvas, place, WRONG, cv2.MARKER_TILTED_CROSS, 2 * ZOOM, 1, cv2.LINE_AA)
    return canvas


def _places(points: Points) -> list[tuple[int, int]]:
    """Pixels of the enlarged picture: pixel centres lie at integers before, in the middle of ZOOM pixels after."""
    return [(int(x), int(y)) for x, y in np.rint((points + 0.5) * ZOOM - 0.5)]


def _beside(pictures: Sequence[Image]) -> Image:
    gap = np.full((len(pictures[0]), GAP_PX, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)
