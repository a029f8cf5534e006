"""Pictures of what a detector finds: every mark means what it says."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from physseg.train.detector.judging import sheets
from physseg.train.detector.judging.evaluation import SHAPE_SIZE, shape_pictures
from physseg.train.detector.judging.pairs import Pair
from physseg.train.detector.judging.sheets import FOUND, TRUE, WRONG, ZOOM, write_pictures
from physseg.train.detector.pictures.shapes import KINDS


@pytest.fixture(autouse=True)
def sharp_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without smooth edges, so that marks can be counted by their colour."""
    monkeypatch.setattr(sheets.cv2, "LINE_AA", cv2.LINE_8)


def read(path: Path) -> np.ndarray:
    """RGB."""
    return cv2.imread(str(path))[..., ::-1]


def shows(path: Path, colour: tuple[int, int, int]) -> int:
    return int((read(path) == colour).all(axis=2).sum())


def knows_all(grey: np.ndarray) -> np.ndarray:
    """Answers with the truth of the held-out picture that it is shown."""
    scores = np.zeros(grey.shape, np.float32)
    for noisy in (False, True):
        for picture, truth in shape_pictures(1, noisy=noisy):
            if np.array_equal(picture, grey):
                x, y = np.floor(truth.T + 0.5).astype(int)
                scores[y, x] = 0.5
    return scores


def test_truth_finds_and_errors_are_told_apart(tmp_path):
    def write(name: str, detect: sheets.Detect) -> tuple[Path, Path]:
        clean, noisy = write_pictures(tmp_path / name, detect, threshold=0.1, sequences={}, columns=1)
        return clean, noisy

    for path in write("knowing", knows_all):
        assert shows(path, TRUE) and shows(path, FOUND) and not shows(path, WRONG)
    for path in write("blind", lambda grey: np.full(grey.shape, 0.09, np.float32)):
        assert shows(path, TRUE) and not shows(path, FOUND) and not shows(path, WRONG)
    for path in write("guessing", lambda grey: np.float32(np.eye(*grey.shape))):
        assert shows(path, WRONG)
    height = len(KINDS) * (SHAPE_SIZE[0] * ZOOM + sheets.GAP_PX) - sheets.GAP_PX
    assert read(path).shape == (height, SHAPE_SIZE[1] * ZOOM, 3)


def test_a_pair_shows_what_was_repeated_in_place(tmp_path):
    """Two points, moved by 10 px in x: one comes back, the other does not."""
    grey = np.full((60, 80), 90, np.uint8)
    one, other = grey.copy(), grey.copy()
    one[20, 30] = one[40, 20] = other[20, 40] = 255
    pair = Pair(one, other, np.array([[1.0, 0, 10], [0, 1, 0], [0, 0, 1]]))
    detect = lambda grey: (grey == 255).astype(np.float32)  # noqa: E731
    *_, path = write_pictures(tmp_path, detect, threshold=0.1, sequences={"moved": [pair]}, columns=1)
    assert path.name == "moved_2.png"
    sheet = read(path)
    assert sheet.shape == (60 * ZOOM, 2 * 80 * ZOOM + sheets.GAP_PX, 3)

    def middle(colour: tuple[int, int, int], half: slice) -> list[float]:
        y, x = np.nonzero((sheet[:, half] == colour).all(axis=2))
        return [(float(values.min()) + float(values.max())) / 2 for values in (x, y)]

    left, right = slice(0, 80 * ZOOM), slice(80 * ZOOM + sheets.GAP_PX, None)
    assert middle(TRUE, left) == [30 * ZOOM + 1, 20 * ZOOM + 1]  # the middle of a pixel that became 3x3
    assert middle(WRONG, left) == [20 * ZOOM + 1, 40 * ZOOM + 1]
    assert middle(TRUE, right) == [40 * ZOOM + 1, 20 * ZOOM + 1]
    assert not (sheet[:, right] == WRONG).all(axis=2).any()
