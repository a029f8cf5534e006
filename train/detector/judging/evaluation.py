"""The figures of a detector beside those of the classical ones, on the same pictures, by the same rules.

Average precision on held-out synthetic shapes, clean and noisy; repeatability on photographs: sequences with known
homographies (folders of `img1..6` with `H1toNp`), and pictures warped by ourselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....common.text import align
from ....structure_extractors.keypoints import Scores, score_map
from ....structure_extractors.superpoint.inference import infer
from ....structure_extractors.superpoint.network import DetectorNetwork
from ..pictures.files import find_pictures, read_grey
from ..pictures.photometric import add_noise
from ..pictures.shapes import KINDS, draw_shape
from .detectors import CLASSICAL, Detect, Grey, best_points
from .metrics import NUM_POINTS, TOLERANCE_PX, average_precision, found_again, matches, repeatability
from .pairs import PHOTO_SIZE, Pair, self_warped_pairs

RADIUS_PX = 4  # suppression of neighbours, as in extraction
# On shapes, also a suppression that nearly spares the truth: keypoints may be 3 px apart, and extraction's removes
# every twelfth of them, this one every two-hundredth.
SHAPE_RADIUS_PX = 2
TRUTH = "the truth itself"
SHAPE_SIZE = (120, 160)
MAX_PHOTOGRAPHS = 20
HELD_OUT = 2**31  # seed of the held-out pictures; a training's own seed comes first in the seeds of its pictures

Rows = dict[str, dict[str, float]]  # detector -> measure -> figure


def evaluate(
    network: DetectorNetwork,
    *,
    sequences: Mapping[str, Sequence[Pair]] | None = None,
    photographs: Path | None = None,
    per_kind: int = 50,
    say: Callable[[str], None] = lambda _: None,
) -> Rows:
    """All figures, by measure, of a network as it is and adapted, and of the classical detectors.

    Adapted networks are left out on shapes (`per_kind` held-out pictures of each): the question there is what a single
    look finds. Of the folder `photographs`, the first `MAX_PHOTOGRAPHS` are warped, and changed in light and noise.
    """
    ours = {"ours": network_detector(network), "ours, adaptation 16": network_detector(network, 16)}
    everyone = ours | CLASSICAL
    rows: Rows = {name: {} for name in (*everyone, TRUTH)}

    def enter(measure: str, figures: Mapping[str, float]) -> None:
        say(measure + ": " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        for name, value in figures.items():
            rows[name][measure] = value

    single = {"ours": ours["ours"]} | CLASSICAL
    for noisy in (False, True):
        for radius, figures in shape_precision(single, per_kind=per_kind, noisy=noisy).items():
            enter(f"AP {'noisy' if noisy else 'clean'} r{radius}", figures)
    for name, pairs in (sequences or {}).items():
        enter(name, mean_repeatability(everyone, pairs))
    if photographs is not None:
        names = find_pictures(photographs)[:MAX_PHOTOGRAPHS]
        greys = [read_grey(photographs / name, PHOTO_SIZE) for name in names]
        enter("viewpoint", mean_repeatability(everyone, self_warped_pairs(greys, viewpoint=True)))
        enter("light+noise", mean_repeatability(everyone, self_warped_pairs(greys, viewpoint=False)))
    return rows


def network_detector(network: DetectorNetwork, adaptation: int = 0) -> Detect:
    """A network as a detector; with `adaptation` the mean over that many homographies."""
    return lambda grey: infer(network, grey, adaptation)


def shape_pictures(per_kind: int, *, noisy: bool) -> Iterator[tuple[Grey, npt.NDArray[np.float32]]]:
    """Held-out pictures of every kind with their keypoints; noisy: changed as in training, by other random numbers."""
    for number, kind in enumerate(KINDS):
        for index in range(per_kind):
            image, keypoints = draw_shape(np.random.default_rng([HELD_OUT, number, index]), SHAPE_SIZE, kind)
            yield (add_noise(image, seed=number * 10**6 + index) if noisy else image), keypoints


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


def mean_repeatability(
    detectors: Mapping[str, Detect], pairs: Sequence[Pair], *, number: int = NUM_POINTS
) -> dict[str, float]:
    """Mean repeatability of each detector's best `number` points over pairs."""
    greys = {id(grey): grey for pair in pairs for grey in (pair.one, pair.other)}  # a first one is in several pairs
    result = {}
    for name, detect in detectors.items():
        points = {key: all_points(detect, grey) for key, grey in greys.items()}
        found = (found_again(pair, points[id(pair.one)], points[id(pair.other)], number=number) for pair in pairs)
        values = [value for value in map(repeatability, found) if value is not None]
        result[name] = float(np.mean(values)) if values else float("nan")
    return result


def table(rows: Mapping[str, Mapping[str, float]], say: Callable[[str], None]) -> None:
    """Print rows of figures: one line per detector, one column per measure; the best detector of each has a star."""
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    best = {m: max((row[m] for name, row in rows.items() if m in row and name != TRUTH), default=0.0) for m in measures}
    cells = [["", *measures]]
    for name, row in rows.items():
        stars = {m: "*" if name != TRUTH and row.get(m) == best[m] else " " for m in measures}
        cells.append([name, *(f"{row[m]:.3f}{stars[m]}" if m in row else "- " for m in measures)])
    for line in align(cells, right=range(1, len(cells[0]))):
        say(line)
