"""The referee: scores of predictions that any repository made, from whatever it left.

| file | what it has | what follows |
|---|---|---|
| folder of label PNGs, detectron2's JSON | label maps | all that `physseg evaluate` says |
| `.npz` with the key `confusion` | counts: rows true, columns predicted | the same but what needs pictures |
| `.csv` without header | the same counts | the same |
| `.csv` with the header `class,iou_percent` | IoU of each class, `nan` where absent | two means |
"""

import csv
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...common.regular_files import MAX_BYTES, read_regular
from ...common.text import percent, preview
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import published_vocabulary
from ..errors import EvaluationError
from .evaluate import class_groups, score, usable_samples
from .image_counts import COUNTS, ImageCounts
from .metrics import ConfusionMatrix, Counts
from .predictions import IdsOption, Predictions
from .protocol import identity_of_predictions
from .result import Evaluation

HEADER = ["class", "iou_percent"]
TRANSPOSED = "rows are true, columns predicted; detectron2's own matrix has them the other way round"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What can be said of predictions: everything, or what follows from a matrix, by `evaluation`."""

    evaluation: Evaluation
    notes: tuple[str, ...] = ()
    """What a reader has to know, a line each: surplus predictions, samples without one, how ids were read."""
    has_names: bool = True
    """Whether the classes' names are known, so that seen and unseen ones can be told apart."""

    def document(self) -> dict[str, Any]:
        """As Evaluation.document, with `notes`."""
        left_out = () if self.has_names else ("seen", "unseen")
        found = {key: value for key, value in self.evaluation.document().items() if key not in left_out}
        return found | {"notes": list(self.notes)}

    def table(self, *, rows: int = 10) -> str:
        """For the terminal."""
        return "\n".join([self.evaluation.table(rows=rows), *self.notes])


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassIous:
    """IoU of each class and nothing else: enough for one mean, and for a bound of the other."""

    classes: tuple[str, ...]
    iou: npt.NDArray[np.float64]
    """(C,) fractions; NaN for classes that do not occur."""
    source: dict[str, Any]

    def miou(self) -> float:
        """Over the classes that are not NaN; NaN where all are."""
        known = self.iou[~np.isnan(self.iou)]
        return float(known.mean()) if known.size else math.nan

    def lowest_union(self) -> float:
        """The sum over all C classes divided by C: the least that the mean over true or predicted classes can be.

        It is that if every class that does not occur is predicted somewhere.
        """
        return float(np.nansum(self.iou) / len(self.iou))

    def may_be_fractions(self) -> bool:
        """Whether the numbers that were read as percent look like fractions: some are there, and none is above 1."""
        return bool(0 < np.nanmax(self.iou, initial=0.0) <= 0.01)

    def document(self) -> dict[str, Any]:
        """Everything as JSON: fractions 0..1, None for NaN."""
        rows = [
            {"name": name, "iou": None if math.isnan(iou) else iou}
            for name, iou in zip(self.classes, self.iou.tolist(), strict=True)
        ]
        return {
            "physseg": __version__,
            "unit": "fraction",
            **self.source,
            "miou": None if math.isnan(self.miou()) else self.miou(),
            "miou_over": "classes_not_nan",
            "miou_union_lowest": self.lowest_union(),
            "num_classes": len(self.iou),
            "num_classes_averaged": int((~np.isnan(self.iou)).sum()),
            "classes": rows,
        }

    def table(self, *, rows: int = 10) -> str:
        """For the terminal."""
        known, number = int((~np.isnan(self.iou)).sum()), len(self.iou)
        return (
            f"mIoU                 {percent(self.miou())}  over the {known} classes that are not nan\n"
            f"mIoU, union, lowest  {percent(self.lowest_union())}  the sum over all {number} classes, nan as 0: "
            "the lowest that the older convention can give"
            + ("\nnote: no IoU is above 1%; fractions would have to be multiplied by 100" * self.may_be_fractions())
        )


def evaluate_predictions(
    predictions: Path | str,
    manifest: Manifest | Path | str | None = None,
    *,
    trained_on: Sequence[str] | None = None,
    ids: IdsOption = "auto",
    allow_missing: bool = False,
    progress: bool = False,
) -> Judgement | ClassIous:
    """See `physseg.evaluate_predictions`."""
    path = Path(predictions)
    table = Manifest.read(manifest) if isinstance(manifest, Path | str) else manifest
    known = published_vocabulary("coco-stuff-171").classes if trained_on is None else trained_on
    if path.suffix.lower() in (".npz", ".csv") and not path.is_dir():
        counts = _read_npz(path) if path.suffix.lower() == ".npz" else _read_csv(path)
        return counts if isinstance(counts, ClassIous) else _judge_matrix(path, counts, table, known)
    if not path.is_dir() and path.suffix.lower() != ".json":
        expected = "a folder of label PNGs, detectron2's .json, a confusion matrix (.npz, .csv) or a .csv of IoUs"
        raise EvaluationError.mismatch(path, expected, "another file" if path.exists() else "nothing there")
    if table is None:
        raise EvaluationError(
            f"{path}: label maps are scored against labels", hint="name their manifest: --manifest M.parquet"
        )
    return _judge_maps(Predictions.open(path, table, ids), known, allow_missing=allow_missing, progress=progress)


def _judge_maps(found: Predictions, known: Sequence[str], *, allow_missing: bool, progress: bool) -> Judgement:
    manifest, chosen = found.manifest, usable_samples(found.manifest)
    sample_ids = manifest.table.values("sample_id")
    missing = found.missing(sample_ids[index] for index in chosen)
    if missing and (not allow_missing or len(missing) == len(chosen)):
        lacking = f"{len(missing)} of {len(chosen)} samples have no prediction: {preview(missing)}"
        surplus = f"; {len(found.maps.surplus)} are of no sample: {preview(found.maps.surplus)}"
        hint = "--allow-missing scores the others"
        raise EvaluationError(f"{found.path}: {lacking}{surplus if found.maps.surplus else ''}", hint=hint)
    gone = set(missing)
    evaluation = score(
        manifest,
        [index for index in chosen if sample_ids[index] not in gone],
        lambda sample_id, image: found.class_ids(sample_id, (image.shape[0], image.shape[1])),
        trained_on=known,
        progress=progress,
        source={
            "predictions": str(found.path),
            "ids": found.ids,
            "missing": list(missing),
            "surplus": list(found.maps.surplus),
            **identity_of_predictions(manifest, {}),
        },
    )
    found.check()
    notes = [f"ids are read as {'class ids' if found.ids == 'classes' else 'ids of the data set'}"]
    for what, names in (("samples without a prediction", missing), ("predictions of no sample", found.maps.surplus)):
        if names:
            notes.append(f"{len(names)} {what} left out: {preview(names)}")
    return Judgement(evaluation=evaluation, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a file of counts holds: the matrix (C, C), and where it has them names and counts of every image."""

    matrix: Counts
    classes: tuple[str, ...] | None = None
    images: ImageCounts | None = None


def _judge_matrix(path: Path, counts: _Counts, manifest: Manifest | None, known: Sequence[str]) -> Judgement:
    number = len(counts.matrix)
    names, seen = counts.classes, class_groups(counts.classes or (), None, known)
    source: dict[str, Any] = {"predictions": str(path), "ignore_index": 255 if number <= 255 else 65535}
    if manifest is not None:
        vocabulary = manifest.vocabulary
        names, seen = vocabulary.class_names, class_groups(vocabulary.classes, vocabulary.fold_from, known)
        source |= identity_of_predictions(manifest, {})
        if len(names) != number:
            raise EvaluationError.mismatch(path, f"the {len(names)} classes of {manifest.dataset}", number)
    confusion = ConfusionMatrix(number, source["ignore_index"])
    confusion.matrix = counts.matrix
    notes = [] if names else ["names of classes are not known: name a manifest to have seen and unseen ones apart"]
    if counts.images is None:
        notes.append("counts of single images are not known: no interval")
    evaluation = Evaluation(
        confusion=confusion,
        classes=names or tuple(f"class {index}" for index in range(number)),
        seen=seen if names else (True,) * number,
        num_images=len(counts.images.image_ids) if counts.images else 0,
        quarantined=(),
        source=source,
        images=counts.images,
    )
    return Judgement(evaluation=evaluation, notes=(*notes, TRANSPOSED), has_names=names is not None)


def _read_npz(path: Path) -> _Counts:
    try:
        data = read_regular(path)
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise ValueError("its arrays are too large")
        with np.load(BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise EvaluationError.mismatch(path, "an .npz file of arrays", error) from error
    if "confusion" not in found:
        raise EvaluationError.mismatch(path, "the key `confusion`", preview(sorted(found)))
    matrix = _checked(path, found["confusion"])
    classes = found.get("classes")
    if classes is not None and classes.shape != (len(matrix),):
        raise EvaluationError.mismatch(f"{path}: classes", f"{len(matrix)} names", f"shape {classes.shape}")
    return _Counts(matrix, None if classes is None else tuple(map(str, classes.tolist())), _images(path, found, matrix))


def _images(path: Path, found: Mapping[str, npt.NDArray[Any]], matrix: Counts) -> ImageCounts | None:
    """Counts of single images, where there are some. Raises EvaluationError if they do not add up to the matrix."""
    if not found.keys() >= {"image_ids", *(f"image_{part}" for part in COUNTS)}:
        return None
    image_ids = tuple(map(str, found["image_ids"].ravel().tolist()))
    shape, parts = (len(image_ids), len(matrix)), {part: found[f"image_{part}"] for part in COUNTS}
    sums = {"hits": np.diagonal(matrix), "true": matrix.sum(axis=1), "predicted": matrix.sum(axis=0)}
    for part, array in parts.items():
        if array.shape != shape or array.dtype.kind not in "iu" or not (array.sum(axis=0) == sums[part]).all():
            raise EvaluationError.mismatch(f"{path}: image_{part}", "counts that add up to `confusion`", "others")
    return ImageCounts(image_ids=image_ids, **parts)


def _read_csv(path: Path) -> _Counts | ClassIous:
    try:
        rows = list(csv.reader(StringIO(read_regular(path).decode("utf-8-sig"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError.mismatch(path, "a CSV file (UTF-8)", error) from error
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
    if rows and [cell.strip().lower() for cell in rows[0]] == HEADER:
        return _class_ious(path, rows[1:])
    numbers: list[list[float]] = []
    for line, row in enumerate(rows, start=1):
        if len(row) != len(rows):
            expected = (
                f"a square matrix ({len(rows)} numbers in each of {len(rows)} lines), or the header {','.join(HEADER)}"
            )
            raise EvaluationError.mismatch(f"{path}, line {line}", expected, f"{len(row)} cells")
        numbers.append([_number(f"{path}, line {line}", cell) for cell in row])
    return _Counts(_checked(path, np.array(numbers, dtype=object)))


def _class_ious(path: Path, rows: Sequence[Sequence[str]]) -> ClassIous:
    names, values = [], []
    for line, row in enumerate(rows, start=2):
        where = f"{path}, line {line}"
        if len(row) != 2 or not row[0].strip():
            raise EvaluationError.mismatch(where, "a class and its IoU in percent (quote names with commas)", row)
        value = math.nan if row[1].strip().lower() == "nan" else _number(where, row[1])
        if not (math.isnan(value) or 0 <= value <= 100):
            raise EvaluationError.mismatch(where, "an IoU of 0..100 percent, or nan", row[1])
        names.append(row[0].strip())
        values.append(value / 100)
    if not names:
        raise EvaluationError.mismatch(path, "a line for each class", "none")
    return ClassIous(classes=tuple(names), iou=np.array(values), source={"predictions": str(path)})


def _number(where: str, cell: str) -> float:
    """A number; a whole one exactly, however large."""
    try:
        return int(cell)
    except ValueError:
        try:
            return float(cell)
        except ValueError as error:
            raise EvaluationError.mismatch(where, "a number", repr(cell)) from error


def _checked(path: Path, matrix: npt.NDArray[Any]) -> Counts:
    """Counts (C, C) as int64. Raises EvaluationError for anything else."""
    shape = matrix.shape
    if len(shape) != 2 or shape[0] != shape[1] or not matrix.size or matrix.dtype.kind not in "iufO":
        raise EvaluationError.mismatch(path, "a square confusion matrix", f"{matrix.dtype} {shape}", hint=TRANSPOSED)
    as_float = matrix.astype(np.float64)
    hint = "give counts of pixels, not shares"
    for wrong, what in (
        (~np.isfinite(as_float), "finite numbers"),
        (as_float < 0, "counts of 0 or more"),
        (as_float != np.floor(as_float), "whole numbers"),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            where = f"{path}: row {row}, column {column}"
            raise EvaluationError.mismatch(where, what, matrix[row, column], hint=hint)
    if (total := as_float.sum()) >= 2**62:
        raise EvaluationError.mismatch(path, "counts that fit 63 bits", f"a sum of {total:g}")
    return matrix.astype(np.int64)
