"""The figures of a detector beside those of the classical ones, on the same pictures, by the same rules.

Average precision on held-out synthetic shapes, clean and noisy; on photographs repeatability, localisation and
coverage: sequences with known homographies (folders of `img1..6` with `H1toNp`), and pictures that we warp and change.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....common.text import align
from ....structure_extractors.errors import ExtractorError
from ....structure_extractors.keypoints import Scores, best_points, score_map
from ....structure_extractors.superpoint.inference import infer
from ....structure_extractors.superpoint.network import DetectorNetwork
from ..pictures.files import Grey, find_pictures, read_grey
from ..pictures.photometric import PhotometricSettings, augmented
from ..pictures.shapes import KINDS, draw_shape
from .detectors import CLASSICAL, Detect
from .metrics import NUM_POINTS, RADIUS_PX, TOLERANCE_PX, Points, average_precision, found_again, matches, pair_measures
from .pairs import PHOTO_SIZE, Pair, photograph_sets

# On shapes, also a suppression that nearly spares the truth: keypoints may be 3 px apart, and extraction's removes
# every twelfth of them, this one every two-hundredth.
SHAPE_RADIUS_PX = 2
TRUTH = "the truth itself"
FIGURES = "figures"
TITLES = {
    FIGURES: "Average precision (AP) on shapes, repeatability on photographs:",
    "localisation_px": "Mean distance of what is found again, px:",
    "nearest_px": "Mean distance to the nearest point of the other picture, px:",
    "coverage": "Share of the picture near a point:",
}
"""Heading of each table, by its key in the JSON."""
SHAPE_SIZE = (120, 160)
MAX_PHOTOGRAPHS = 20
HELD_OUT = 2**31  # seed of the held-out pictures; a training's own seed comes first in the seeds of its pictures

Rows = dict[str, dict[str, float]]  # detector -> what it was judged on -> figure


def evaluate(
    network: DetectorNetwork,
    *,
    sequences: Mapping[str, Sequence[Pair]] | None = None,
    photographs: Path | None = None,
    per_kind: int = 50,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Rows]:
    """All figures of a network as it is and adapted, and of the classical detectors.

    Adapted networks are left out on shapes (`per_kind` held-out pictures of each): the question there is what a single
    look finds. Of the folder `photographs`, the first `MAX_PHOTOGRAPHS` are warped and changed (`photograph_sets`).
    The truth is known of shapes alone: on photographs its repeatability is 1 by definition.

    Returns:
        Average precision and repeatability as "figures", and the other measures of `pair_measures` by their names.
    """
    ours = {"ours": network_detector(network), "ours, adaptation 16": network_detector(network, 16)}
    everyone = ours | CLASSICAL
    tables: dict[str, Rows] = {FIGURES: {name: {} for name in (*everyone, TRUTH)}}
    sets = dict(sequences or {})
    if photographs is not None:
        names = find_pictures(photographs)[:MAX_PHOTOGRAPHS]
        ours_too = photograph_sets([read_grey(photographs / name, PHOTO_SIZE) for name in names])
        if taken := sets.keys() & ours_too.keys():
            raise ExtractorError(f"the sequence {min(taken)!r} has the name of a set of photographs: rename its folder")
        sets |= ours_too

    def enter(where: str, figures: Mapping[str, float], measure: str = FIGURES) -> None:
        if measure == FIGURES:
            say(f"{where}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        for name, value in figures.items():
            tables.setdefault(measure, {name: {} for name in everyone})[name][where] = value

    single = {"ours": ours["ours"]} | CLASSICAL
    for noisy in (False, True):
        for radius, figures in shape_precision(single, per_kind=per_kind, noisy=noisy).items():
            enter(f"AP {'noisy' if noisy else 'clean'} r{radius}", figures)
    points: dict[tuple[str, int], Points] = {}  # a photograph is in several sets
    for name, pairs in sets.items():
        for measure, figures in measures(everyone, pairs, points=points).items():
            enter(name, figures, FIGURES if measure == "repeatability" else measure)
    return tables


def network_detector(network: DetectorNetwork, adaptation: int = 0) -> Detect:
    """A network as a detector; with `adaptation` the mean over that many homographies."""
    return lambda grey: infer(network, grey, adaptation)


def shape_pictures(per_kind: int, *, noisy: bool) -> Iterator[tuple[Grey, npt.NDArray[np.float32]]]:
    """Held-out pictures of every kind with their keypoints; noisy: in other light and with noise as in training."""
    for number, kind in enumerate(KINDS):
        for index in range(per_kind):
            image, keypoints = draw_shape(np.random.default_rng([HELD_OUT, number, index]), SHAPE_SIZE, kind)
            yield (augmented(image, number * 10**6 + index, PhotometricSettings()) if noisy else image), keypoints


def shape_precision(detectors: Mapping[str, Detect], *, per_kind: int, noisy: bool) -> dict[int, dict[str, float]]:
    """Average precision of each detector on held-out shapes, by the radius of the suppression of neighbours.

    The row `TRUTH` is what a detector gets by the same rule that answers with the keypoints' own pixels. It is no
    upper bound: points moved apart within the tolerance escape the suppression.
    """
    pictures = list(shape_pictures(per_kind, noisy=noisy))
    maps = {name: [detect(image) for image, _ in pictures] for name, detect in detectors.items()}
    maps[TRUTH] = [score_map(truth, np.ones(len(truth), np.float32), SHAPE_SIZE) for _, truth in pictures]
    return {
        radius: {name: _precision(of_one, pictures, radius) for name, of_one in maps.items()}
        for radius in (SHAPE_RADIUS_PX, RADIUS_PX)
    }


def _precision(
    maps: Sequence[Scores], pictures: Sequence[tuple[Grey, npt.NDArray[np.float32]]], radius_px: int
) -> float:
    hits, scores = [], []
    for found, (_, truth) in zip(maps, pictures, strict=True):
        points, score = best_points(found, number=NUM_POINTS, radius_px=radius_px, border_px=0)
        hits.append(matches(points, truth, TOLERANCE_PX))
        scores.append(score)
    return average_precision(hits, scores, sum(len(truth) for _, truth in pictures))


def all_points(detect: Detect, grey: Grey) -> npt.NDArray[np.float32]:
    """All points (N, 2) x, y of a photograph that suppression and the border leave, best first."""
    return best_points(detect(grey), number=None, radius_px=RADIUS_PX, border_px=RADIUS_PX)[0]


def measures(
    detectors: Mapping[str, Detect],
    pairs: Sequence[Pair],
    *,
    number: int = NUM_POINTS,
    points: dict[tuple[str, int], Points] | None = None,
) -> dict[str, dict[str, float]]:
    """Means over pairs of each measure of `pair_measures`, of each detector's best `number` points.

    A pair where a detector finds no point does not count for it. `points` keeps what each found on each picture, by
    name and identity, for further calls with the same pictures.
    """
    points = {} if points is None else points
    result: dict[str, dict[str, float]] = {}
    for name, detect in detectors.items():
        found = []
        for pair in pairs:
            for grey in (pair.one, pair.other):
                if (name, id(grey)) not in points:
                    points[name, id(grey)] = all_points(detect, grey)
            both = points[name, id(pair.one)], points[name, id(pair.other)]
            found.append(pair_measures(pair, found_again(pair, *both, number=number)))
        for measure in dict.fromkeys(key for each in found for key in each):
            if known := [value for each in found if not math.isnan(value := each[measure])]:
                result.setdefault(measure, {})[name] = float(np.mean(known))
    return result


def table(rows: Mapping[str, Mapping[str, float]], *, smaller: bool = False) -> list[str]:
    """Rows of figures as text: one line per detector, one column per set; the best detector of each has a star."""
    sets, best_of = list(dict.fromkeys(each for row in rows.values() for each in row)), min if smaller else max
    known = {each: [row[each] for name, row in rows.items() if each in row and name != TRUTH] for each in sets}
    best = {each: best_of(values, default=None) for each, values in known.items()}
    cells = [["", *sets]]
    for name, row in rows.items():
        marks = {each: "*" if name != TRUTH and row.get(each) == best[each] else " " for each in sets}
        cells.append([name, *(f"{row[each]:.3f}{marks[each]}" if each in row else "- " for each in sets)])
    return align(cells, right=range(1, len(cells[0])))
