"""Semantic segmentation metrics, all from one int64 confusion matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.errors import ConfigError
from ...common.text import align, counted, percent
from ..errors import ShapeError
from ..losses.numerics import check_choice

Integers = npt.NDArray[np.integer[Any]]
Counts = npt.NDArray[np.int64]
Over = Literal["union", "ground_truth"]


@dataclass(slots=True)
class ConfusionMatrix:
    """Pixel counts by true and predicted class; adding two of them is the same as counting all their images at once.

    All values are fractions 0..1 (`table` prints percent), computed in float64 from the counts; NaN where there is
    nothing to average. Pixels whose label is ignored count nowhere, whatever was predicted there.

    Raises:
        ConfigError: There is no class, or `ignore_index` is a class.

    Examples:
        >>> confusion = ConfusionMatrix(num_classes=3, ignore_index=255)
        >>> _ = confusion.update(prediction=np.array([[0, 0, 1, 2]]), labels=np.array([[0, 1, 1, 255]]))
        >>> confusion.matrix.tolist()
        [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
        >>> confusion.miou(), round(confusion.pixel_accuracy(), 4)
        (0.5, 0.6667)
    """

    num_classes: int
    """Number of classes C; labels and predictions are 0..C-1."""
    ignore_index: int
    """Label of pixels that belong to no class."""
    matrix: Counts = field(init=False)
    """(C, C) int64 number of pixels; row = true class, column = predicted class."""

    def __post_init__(self) -> None:
        if self.num_classes < 1 or 0 <= self.ignore_index < self.num_classes:
            got = f"num_classes = {self.num_classes} and ignore_index = {self.ignore_index}"
            raise ConfigError(f"{got}: expected one class or more, and an ignore_index that is none of them")
        self.matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)

    def update(self, prediction: Tensor | Integers, labels: Tensor | Integers) -> tuple[Counts, Counts, Counts]:
        """Count the pixels of one or more images, integers of one shape, torch (any device) or numpy.

        Returns what was counted just now, each (C,): hits, true pixels, predicted pixels.

        Raises:
            ShapeError: The shapes differ, the arrays hold no integers, or an id outside 0..C-1 (for labels: other than
                `ignore_index`).
        """
        true, predicted = _as_int64("labels", labels), _as_int64("prediction", prediction)
        if true.shape != predicted.shape:
            raise ShapeError(f"labels {true.shape} and prediction {predicted.shape} differ in shape")
        self._check_ids("prediction", predicted)
        counted = true != self.ignore_index
        true, predicted = true[counted], predicted[counted]
        self._check_ids("labels", true)
        pixels = np.bincount(self.num_classes * true + predicted, minlength=self.num_classes**2)
        counted_now = pixels.reshape(self.num_classes, self.num_classes)
        self.matrix += counted_now
        return _margins(counted_now)

    def __add__(self, other: Self) -> Self:
        """metric(A) + metric(B) = metric(A and B). ShapeError if they count different classes."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            theirs = f"{other.num_classes} classes (ignoring {other.ignore_index})"
            ours = f"{self.num_classes} (ignoring {self.ignore_index})"
            raise ShapeError(f"cannot add a confusion matrix of {theirs} to one of {ours}")
        total = type(self)(self.num_classes, self.ignore_index)
        total.matrix = self.matrix + other.matrix
        return total

    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class, (C,); NaN where a class has neither true nor predicted pixels."""
        hits, true, predicted = _margins(self.matrix)
        return ratio(hits, true + predicted - hits)

    def accuracy(self) -> npt.NDArray[np.float64]:
        """Share of each class's true pixels that were found, (C,); NaN where a class has none."""
        hits, true, _ = _margins(self.matrix)
        return ratio(hits, true)

    def miou(self, over: Over = "ground_truth") -> float:
        """IoU averaged over classes.

        * `ground_truth` (default): the classes that occur in the ground truth, as in detectron2 since July 2022.
        * `union`: the classes that occur in the ground truth **or** in a prediction. A class that is predicted
          somewhere but never true counts as 0. This is detectron2's SemSegEvaluator up to release 0.6.

        They differ only where a test set lacks some classes of its vocabulary, `union` being the lower.
        """
        check_choice("set of classes", over, get_args(Over))
        return _mean(self.iou()[self.matrix.any(axis=1) if over == "ground_truth" else self._occurring()])

    def pixel_accuracy(self) -> float:
        """Share of all labelled pixels that were predicted right."""
        return float(ratio(np.trace(self.matrix), self.matrix.sum()))

    def mean_accuracy(self) -> float:
        """Accuracy averaged over the classes that occur in the ground truth."""
        return _mean(self.accuracy()[self.matrix.any(axis=1)])

    def frequency_weighted_iou(self) -> float:
        """IoU weighted by each class's share of the labelled pixels."""
        true = self.matrix.sum(axis=1)
        present = true > 0
        return float((self.iou()[present] * true[present]).sum() / true.sum()) if present.any() else math.nan

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Everything above for JSON: fractions 0..1, None where undefined; `classes` are the C names.

        `miou` is the headline, `miou_over` says over which classes; both averages stand beside it by name.
        """
        self._check_names(classes)
        _, true, predicted = _margins(self.matrix)
        rows = zip(classes, self.iou(), self.accuracy(), true, predicted, strict=True)
        return {
            "miou": _json(self.miou()),
            "miou_over": "ground_truth",
            **{f"miou_{over}": _json(self.miou(over)) for over in get_args(Over)},
            "miou_ground_truth_classes": _json(self.miou()),  # what earlier versions called miou_ground_truth
            "pixel_accuracy": _json(self.pixel_accuracy()),
            "mean_accuracy": _json(self.mean_accuracy()),
            "frequency_weighted_iou": _json(self.frequency_weighted_iou()),
            "num_classes": self.num_classes,
            "num_classes_in_ground_truth": int((true > 0).sum()),
            "num_classes_averaged": int((true > 0).sum()),
            "num_classes_in_union": int(self._occurring().sum()),
            "num_pixels": int(self.matrix.sum()),
            "classes": [
                {
                    "name": name,
                    "iou": _json(iou),
                    "accuracy": _json(accuracy),
                    "true_pixels": int(true_px),
                    "predicted_pixels": int(predicted_px),
                }
                for name, iou, accuracy, true_px, predicted_px in rows
            ],
        }

    def table(self, classes: Sequence[str], rows: int = 10, more: Sequence[tuple[str, str, str]] = ()) -> str:
        """A text for the terminal, in percent: the averages, then the `rows` best and worst classes that occur.

        `more` are further averages: a name, a value and a remark each.
        """
        self._check_names(classes)
        iou, accuracy, true = self.iou(), self.accuracy(), self.matrix.sum(axis=1)
        order: list[int] = sorted(np.flatnonzero(true).tolist(), key=lambda index: (-iou[index], index))
        shown = order if len(order) <= 2 * rows else [*order[:rows], None, *order[-rows:]]
        cells = [("class", "IoU", "acc", "true px")]
        cells += [
            ("...", "", "", "")
            if index is None
            else (classes[index], percent(iou[index]), percent(accuracy[index]), str(true[index]))
            for index in shown
        ]
        return "\n".join([*self._averages(more), "", *align(cells, right={1, 2, 3})])

    def _averages(self, more: Sequence[tuple[str, str, str]]) -> list[str]:
        true, union = int(self.matrix.any(axis=1).sum()), int(self._occurring().sum())
        rows = [("mIoU", percent(self.miou()), f"over the {counted(true, 'class')} of the ground truth")]
        if union != true:
            over = f"over the {union} classes that are true or predicted anywhere"
            rows.append(("mIoU, union", percent(self.miou("union")), over))
        rows.append(("pixel accuracy", percent(self.pixel_accuracy()), ""))
        rows.append(("mean accuracy", percent(self.mean_accuracy()), ""))
        rows.append(("fw IoU", percent(self.frequency_weighted_iou()), ""))
        return align([*rows, *more], right={1})

    def _occurring(self) -> npt.NDArray[np.bool_]:
        """Which classes are true or predicted anywhere, (C,)."""
        return np.asarray(self.matrix.any(axis=1) | self.matrix.any(axis=0))

    def _check_ids(self, what: str, ids: Counts) -> None:
        low, high = ids.min(initial=0), ids.max(initial=0)
        if low < 0 or high >= self.num_classes:
            ignored = f" or {self.ignore_index} (ignore)" if what == "labels" else ""
            expected, got = f"ids 0..{self.num_classes - 1}{ignored}", low if low < 0 else high
            hint = "do labels, predictions and this metric use one vocabulary?"
            raise ShapeError.mismatch(what, expected, got, hint)

    def _check_names(self, classes: Sequence[str]) -> None:
        if len(classes) != self.num_classes:
            raise ShapeError(f"expected {counted(self.num_classes, 'class name')}, got {len(classes)}")


def ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """part / whole in float64, NaN where whole is 0."""
    divisor = np.asarray(whole, dtype=np.float64)
    ratio = np.full(divisor.shape, np.nan)
    np.divide(np.asarray(part, dtype=np.float64), divisor, out=ratio, where=divisor > 0)
    return ratio


def _margins(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    """Hits, true pixels and predicted pixels of each class, each (C,)."""
    return np.diagonal(matrix).copy(), matrix.sum(axis=1), matrix.sum(axis=0)


def _as_int64(what: str, ids: Tensor | Integers) -> Counts:
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else ids
    if not np.issubdtype(array.dtype, np.integer):
        raise ShapeError.mismatch(what, "integer ids", ids.dtype)
    return array.astype(np.int64)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _json(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
