"""Metrics: hand values, a pixel-by-pixel reference, adding up, absent classes, errors."""

import doctest
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.evaluation import metrics
from physseg.train.evaluation.metrics import ConfusionMatrix


def counted(prediction: Any, labels: Any, num_classes: int = 4) -> ConfusionMatrix:
    confusion = ConfusionMatrix(num_classes, ignore_index=255)
    confusion.update(np.asarray(prediction), np.asarray(labels))
    return confusion


@pytest.fixture
def example() -> ConfusionMatrix:
    """Class 0: 3 true, 2 found. Class 1: 2 true, 1 found. Class 2: predicted once, never true. Class 3: nowhere."""
    return counted(prediction=[0, 0, 1, 1, 2, 3], labels=[0, 0, 0, 1, 1, 255])


def test_docstring_example() -> None:
    assert doctest.testmod(metrics).failed == 0


def test_convention_rows_are_true_and_columns_predicted(example: ConfusionMatrix) -> None:
    assert example.matrix.dtype == np.int64
    assert example.matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_values_by_hand(example: ConfusionMatrix) -> None:
    np.testing.assert_allclose(example.iou(), [2 / 3, 1 / 3, 0, math.nan])
    np.testing.assert_allclose(example.accuracy(), [2 / 3, 1 / 2, math.nan, math.nan])
    assert example.pixel_accuracy() == pytest.approx(3 / 5)
    assert example.mean_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert example.frequency_weighted_iou() == pytest.approx(3 / 5 * 2 / 3 + 2 / 5 * 1 / 3)


def test_convention_miou_averages_the_classes_of_the_ground_truth(example: ConfusionMatrix) -> None:
    """detectron2 0.6: the sum over classes with ground truth, divided by the number with either: 1 / 3."""
    assert example.miou() == example.miou("ground_truth") == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert example.miou("union") == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    with pytest.raises(ConfigError, match="known: union, ground_truth"):
        example.miou("all")  # type: ignore[arg-type]


def reference_iou(prediction: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], num_classes: int) -> list[float]:
    """By sets of pixels."""
    result = []
    for c in range(num_classes):
        true, found = (labels == c), (prediction == c) & (labels != 255)
        union = (true | found).sum()
        result.append((true & found).sum() / union if union else math.nan)
    return result


ids = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 255])), max_size=40)


@settings(max_examples=40, deadline=None)
@given(a=ids, b=ids)
def test_adding_two_equals_counting_both(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    arrays = [np.array(rows, dtype=np.int64).reshape(-1, 2) for rows in (a, b, a + b)]
    first, second, both = (counted(rows[:, 0], rows[:, 1]) for rows in arrays)
    total = first + second
    np.testing.assert_array_equal(total.matrix, both.matrix)
    assert total.matrix.dtype == np.int64
    np.testing.assert_allclose(total.iou(), reference_iou(arrays[2][:, 0], arrays[2][:, 1], 4))
    updated = counted(arrays[0][:, 0], arrays[0][:, 1])
    updated.update(arrays[1][:, 0], arrays[1][:, 1])
    np.testing.assert_array_equal(updated.matrix, both.matrix)


def test_numpy_and_torch_of_every_integer_type_agree() -> None:
    rng = np.random.default_rng(0)
    prediction, labels = rng.integers(0, 4, (2, 5, 6)), rng.choice([0, 1, 2, 3, 255], (2, 5, 6))
    expected = counted(prediction, labels).matrix
    for dtype in (np.uint8, np.uint16, np.int32):
        np.testing.assert_array_equal(counted(prediction.astype(dtype), labels.astype(dtype)).matrix, expected)
    confusion = ConfusionMatrix(4, 255)
    confusion.update(torch.from_numpy(prediction).to(torch.uint8), torch.from_numpy(labels))
    np.testing.assert_array_equal(confusion.matrix, expected)


def test_counts_beyond_float32_stay_exact() -> None:
    big, one = ConfusionMatrix(2, 255), counted([0], [0], num_classes=2)
    big.matrix[0, 0] = 2**60
    assert int((big + one).matrix[0, 0]) == 2**60 + 1


def test_nothing_counted_is_undefined_not_zero() -> None:
    empty = counted([0, 1], [255, 255])
    assert all(
        math.isnan(value)
        for value in (empty.miou(), empty.pixel_accuracy(), empty.mean_accuracy(), empty.frequency_weighted_iou())
    )
    summary = empty.summary(["a", "b", "c", "d"])
    assert summary["miou"] is None and summary["num_pixels"] == 0
    assert "mIoU" in empty.table(["a", "b", "c", "d"])


def test_summary_is_plain_json(example: ConfusionMatrix) -> None:
    summary = json.loads(json.dumps(example.summary(["cat", "dog", "sofa", "tree"]), allow_nan=False))
    assert summary["miou_union"] == pytest.approx(1 / 3) and summary["miou_over"] == "ground_truth"
    assert summary["miou"] == summary["miou_ground_truth"] == summary["miou_ground_truth_classes"] == 1 / 2
    assert [summary[f"num_classes_{group}"] for group in ("averaged", "in_ground_truth", "in_union")] == [2, 2, 3]
    assert summary["classes"][2] == {
        "name": "sofa",
        "iou": 0.0,
        "accuracy": None,
        "true_pixels": 0,
        "predicted_pixels": 1,
    }


def test_table_shows_best_and_worst(example: ConfusionMatrix) -> None:
    table = example.table(["cat", "dog", "sofa", "tree"])
    assert "mIoU            50.00%  over the 2 classes of the ground truth\n" in table
    assert "mIoU, union     33.33%  over the 3 classes that are true or predicted" in table
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["cat", "dog"] and "sofa" not in table
    many = counted(prediction=[0] * 30, labels=list(range(30)), num_classes=30)
    many.update(np.array([7]), np.array([7]))
    lines = many.table([f"c{i}" for i in range(30)], rows=2).splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["c7", "c0", "...", "c28", "c29"]


def test_a_set_that_lacks_a_quarter_of_its_classes() -> None:
    """Like PC-459, of whose 459 classes 114 are in no label: each of them is predicted once, all else is right."""
    num_classes, absent = 459, range(345, 459)
    labels = np.repeat(np.arange(345), 1000)
    prediction = labels.copy()
    prediction[: 1000 * 114 : 1000] = absent  # one pixel of each of 114 true classes
    confusion = ConfusionMatrix(num_classes, ignore_index=65535)
    confusion.update(prediction, labels)
    summed = 114 * 0.999 + 231
    assert confusion.miou() == pytest.approx(summed / 345)
    assert confusion.miou("union") == pytest.approx(summed / 459)
    table = confusion.table([f"c{index}" for index in range(num_classes)])
    assert "mIoU            99.97%  over the 345 classes" in table and "mIoU, union     75.14%  over the 459" in table
    assert "union" not in counted([0, 1, 0], [0, 1, 1], num_classes=2).table(["a", "b"])


def test_convention_percent_has_its_sign_and_a_small_one_is_not_none() -> None:
    confusion = counted([0] + [1] * 2499, [0] * 2500, num_classes=2)
    assert "mIoU            0.04%  over the 1 class of" in confusion.table(["a", "b"])


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        ([0, 4], [0, 1], r"prediction: expected ids 0..3, got 4"),
        ([0, -1], [0, 1], r"prediction: expected ids 0..3, got -1"),
        ([0, 4], [0, 255], r"prediction: expected ids 0..3, got 4"),
        ([0, 1], [0, 17], r"labels: expected ids 0..3 or 255 \(ignore\), got 17"),
        ([0, 1], [0, -1], r"labels: .* got -1"),
        ([0, 1, 2], [0, 1], r"labels \(2,\) and prediction \(3,\) differ"),
        ([0.0, 1.0], [0, 1], r"prediction: expected integer ids, got float64"),
    ],
)
def test_ids_outside_the_vocabulary_raise(prediction: list[float], labels: list[int], message: str) -> None:
    confusion = ConfusionMatrix(4, 255)
    with pytest.raises(ShapeError, match=message):
        confusion.update(np.array(prediction), np.array(labels))
    assert confusion.matrix.sum() == 0


def test_what_does_not_fit_is_named(example: ConfusionMatrix) -> None:
    with pytest.raises(ConfigError, match="num_classes = 300 and ignore_index = 255"):
        ConfusionMatrix(300, 255)
    with pytest.raises(ShapeError, match="cannot add a confusion matrix of 3 classes"):
        example + ConfusionMatrix(3, 255)
    with pytest.raises(ShapeError, match="expected 4 class names, got 1"):
        example.summary(["cat"])
