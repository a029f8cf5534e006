"""What is drawn and tabulated of an evaluation, by a confusion matrix written down here."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.evaluation.result import Evaluation
from physseg.train.report.figures import figures, write_figures


def evaluation(matrix: Any, **changes: Any) -> Evaluation:
    confusion = ConfusionMatrix(len(matrix), 255)
    confusion.matrix[:] = matrix
    values: dict[str, Any] = {
        "confusion": confusion,
        "classes": tuple(f"c_{index}" for index in range(len(matrix))),
        "seen": (True,) * len(matrix),
        "num_images": 2,
        "quarantined": (),
        "source": {"dataset": "shapes"},
    }
    return Evaluation(**values | changes)


MATRIX = [[6, 2, 0, 0], [0, 8, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
"""IoU 1/2 (6 of 8 + 4), 4/5 (8 of 8 + 2), 0 of 4 pixels, and a class that is not there; mIoU 1.3/3."""


def test_files_beside_the_result(tmp_path: Path) -> None:
    sizes = np.zeros((3, 3, 4), np.int64)
    sizes[0, :, 1] = 1, 2, 3
    found = evaluation(MATRIX, seen=(True, False, True, True), sizes=sizes)
    told = write_figures(found, tmp_path / "val.v2-step_7.json")
    assert told == "val.v2-step_7.tex, .classes.svg and .png, .confusion.svg and .png, .sizes.svg and .png"
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"val.v2-step_7.{name}.{form}" for name in ("classes", "confusion", "sizes") for form in ("svg", "png")),
        "val.v2-step_7.tex",
    }
    for file in tmp_path.glob("*.svg"):
        ElementTree.parse(file)
    averages, classes = (tmp_path / "val.v2-step_7.tex").read_text().split("\n\n")
    assert averages.splitlines()[2] == r" & mIoU & mIoU union & pixel accuracy & mIoU seen & mIoU unseen \\"
    assert averages.splitlines()[4] == r"val.v2-step\_7 & 43.33\% & 43.33\% & 70.00\% & 25.00\% & 80.00\% \\"
    assert classes.splitlines()[4:7] == [
        r"c\_0 & 50.00\% & - & 8 \\",
        r"c\_1 & 80.00\% & - & 8 \\",
        r"c\_2 & 0.00\% & - & 4 \\",
    ]


def test_bars_and_shares_of_the_matrix() -> None:
    drawn = figures(evaluation(MATRIX, seen=(True, False, True, True)))
    assert list(drawn) == ["classes", "confusion"]
    bars = [(box.tip, box.place[2], box.opacity) for box in drawn["classes"].boxes if box.kind == "bar"]
    assert bars == [  # over 360 px, the longest of 0.8
        ("mIoU", pytest.approx(360 * 1.3 / 3 / 0.8), 1),
        ("c_1", pytest.approx(360), 0.5),
        ("c_0", pytest.approx(360 * 0.5 / 0.8), 1),
        ("c_2", 0, 1),
    ]
    assert "pale: not trained on" in drawn["classes"].texts[1].text
    tips = [box.tip for box in drawn["confusion"].boxes if box.kind == "bar"]
    assert tips == [
        *("c_0 called c_0: 75.0%", "c_0 called c_1: 25.0%", "c_1 called c_1: 100.0%", "c_2 called c_0: 100.0%"),
    ]


def test_of_many_classes_some_are_drawn() -> None:
    """Class i has i + 1 pixels, all right for even i: 100 of 200 with IoU 1. The last 40 are the largest."""
    matrix = np.diag(np.arange(1, 201))
    matrix[1::2] = np.roll(matrix[1::2], 1, axis=1)
    drawn = figures(evaluation(matrix))
    names = [box.tip for box in drawn["classes"].boxes if box.kind == "bar"][1:]
    assert len(names) == 180 and "the 90 best and worst of the 200 classes" in drawn["classes"].texts[1].text
    rows = [text.text for text in drawn["confusion"].texts if text.text.startswith("c_")]
    assert rows == [f"c_{index}" for index in range(160, 200)]
    assert drawn["confusion"].texts[1].text.endswith("; the 40 classes of most pixels")


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    empty = evaluation(np.zeros((2, 2)), seen=None)
    assert write_figures(empty, tmp_path / "a.json") == "a.tex"
    assert figures(replace(empty, source={})) == {}
