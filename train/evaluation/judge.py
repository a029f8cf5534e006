"""The referee: scores of predictions that any repository made, from whatever it left.

| file | what it has | what follows |
|---|---|---|
| folder of label PNGs, detectron2's JSON | label maps | all that `physseg evaluate` says |
| `.npz` with the key `confusion` (`count_file.py`) | counts: rows true, columns predicted | what its keys hold |
| `.csv` without header | the same counts | the same |
| `.csv` with the header `class,iou_percent` | IoU of each class, `nan` where absent | two means |
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...common.documents import read_text
from ...common.text import control_character, counted, percent, preview
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import published_vocabulary
from ..errors import EvaluationError
from .count_file import TRANSPOSED, checked_matrix, matrix_of, read_counts
from .evaluate import class_groups, score, usable_samples
from .metrics import Counts
from .predictions import IdsOption, Predictions, judge_counts
from .protocol import environment, identity_of_predictions
from .result import Evaluation

HEADER = ["class", "iou_percent"]
NOT_KNOWN = "not known"
"""Device of the environment: where others predicted."""


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
        may_be_fractions = bool(0 < np.nanmax(self.iou, initial=0.0) <= 0.01)
        return (
            f"mIoU                 {percent(self.miou())}  over the {counted(known, 'class')} other than nan\n"
            f"mIoU, union, lowest  {percent(self.lowest_union())}  summed over {counted(number, 'class')}, nan as 0: "
            "the lowest that the older convention can give"
            + ("\nnote: no IoU is above 1%; fractions would have to be multiplied by 100" * may_be_fractions)
        )


def evaluate_predictions(
    predictions: Path | str,
    manifest: Manifest | Path | str | None = None,
    *,
    trained_on: Sequence[str] | None = None,
    ids: IdsOption = "auto",
    allow_missing: bool = False,
    progress: bool = False,
) -> Evaluation | ClassIous:
    """See `physseg.evaluate_predictions`."""
    path = Path(predictions)
    table = Manifest.read(manifest) if isinstance(manifest, Path | str) else manifest
    known = published_vocabulary("coco-stuff-171").classes if trained_on is None else trained_on
    if path.suffix.lower() in (".npz", ".csv") and not path.is_dir():
        found = read_counts(path) if path.suffix.lower() == ".npz" else _read_csv(path)
        return found if isinstance(found, ClassIous) else _judge_matrix(path, *found, table, known)
    if not path.is_dir() and path.suffix.lower() != ".json":
        expected = "a folder of label PNGs, detectron2's .json, a confusion matrix (.npz, .csv) or a .csv of IoUs"
        raise EvaluationError.mismatch(path, expected, "another file" if path.exists() else "nothing there")
    if table is None:
        hint = "name their manifest, too: PREDICTIONS M.parquet"
        if path.suffix.lower() == ".json":
            hint += f"; {judge_counts(path)}"
        raise EvaluationError(f"{path}: label maps are scored against labels", hint=hint)
    return _judge_maps(Predictions.open(path, table, ids), known, allow_missing=allow_missing, progress=progress)


def _judge_maps(found: Predictions, known: Sequence[str], *, allow_missing: bool, progress: bool) -> Evaluation:
    manifest, chosen = found.manifest, usable_samples(found.manifest)
    sample_ids, surplus = manifest.table.values("sample_id"), found.surplus
    missing = [sample_ids[index] for index in chosen if sample_ids[index] not in found.readers]
    if missing and (not allow_missing or len(missing) == len(chosen)):
        lacking = f"{len(missing)} of {len(chosen)} samples have no prediction: {preview(missing)}"
        lacking += f"; {len(surplus)} are of no sample: {preview(surplus)}" if surplus else ""
        raise EvaluationError(f"{found.path}: {lacking}", hint="--allow-missing scores the others")
    notes = [f"ids are read as {'class ids' if found.ids == 'classes' else 'ids of the data set'}"]
    for what, names in (("samples without a prediction", missing), ("predictions of no sample", surplus)):
        if names:
            notes.append(f"{len(names)} {what} left out: {preview(names)}")
    evaluation = score(
        manifest,
        [index for index in chosen if sample_ids[index] in found.readers],
        lambda sample_id, image: found.class_ids(sample_id, (image.shape[0], image.shape[1])),
        trained_on=known,
        progress=progress,
        source={
            "predictions": str(found.path),
            "ids": found.ids,
            "missing": missing,
            "surplus": list(surplus),
            **identity_of_predictions(manifest, {}),
            **environment(NOT_KNOWN),
            "notes": notes,
        },
    )
    found.check()
    return evaluation


def _judge_matrix(
    path: Path,
    matrix: Counts,
    names: tuple[str, ...] | None,
    fields: Mapping[str, Any],
    manifest: Manifest | None,
    known: Sequence[str],
) -> Evaluation:
    seen = class_groups(names, None, known) if names else None
    source: dict[str, Any] = {"predictions": str(path), "ignore_index": 255 if len(matrix) <= 255 else 65535}
    if manifest is not None:
        vocabulary = manifest.vocabulary
        names, seen = vocabulary.class_names, class_groups(vocabulary.classes, vocabulary.fold_from, known)
        source |= identity_of_predictions(manifest, {})
        if len(names) != len(matrix):
            raise EvaluationError.mismatch(
                path, f"the {counted(len(names), 'class')} of {manifest.dataset}", len(matrix)
            )
    images, notes = fields.get("images"), []
    if not names:
        notes.append("names of classes are not known: name a manifest to have seen and unseen ones apart")
    if images is None:
        notes.append("counts of single images are not known: no interval")
    return Evaluation(
        confusion=matrix_of(matrix, source["ignore_index"]),
        classes=names or tuple(f"class {index}" for index in range(len(matrix))),
        seen=seen,
        num_images=len(images.image_ids) if images else 0,
        quarantined=(),
        source=source | environment(NOT_KNOWN) | {"notes": [*notes, TRANSPOSED]},
        **fields,
    )


def _read_csv(path: Path) -> tuple[Counts, None, dict[str, Any]] | ClassIous:
    try:
        text = read_text(path, EvaluationError, "a CSV file")
        rows = list(csv.reader(StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise EvaluationError.mismatch(path, "a CSV file", error) from error
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
            raise EvaluationError.mismatch(f"{path}, line {line}", expected, f"{counted(len(row), 'cell')}")
        numbers.append([_number(f"{path}, line {line}", cell) for cell in row])
    return checked_matrix(path, np.array(numbers, dtype=object)), None, {}


def _class_ious(path: Path, rows: Sequence[Sequence[str]]) -> ClassIous:
    names, values = [], []
    for line, row in enumerate(rows, start=2):
        where = f"{path}, line {line}"
        if len(row) != 2 or not row[0].strip():
            raise EvaluationError.mismatch(where, "a class and its IoU in percent (quote names with commas)", row)
        if found := control_character(row[0].strip()):
            raise EvaluationError.mismatch(where, "a name in printable characters", found)
        value = math.nan if row[1].strip().lower() == "nan" else _number(where, row[1])
        if not (math.isnan(value) or 0 <= value <= 100):
            raise EvaluationError.mismatch(where, "an IoU of 0..100 percent, or nan", row[1])
        names.append(row[0].strip())
        values.append(value / 100)
    if not names:
        raise EvaluationError.mismatch(path, "a line for each class", "none")
    return ClassIous(classes=tuple(names), iou=np.array(values), source={"predictions": str(path)})


def _number(where: str, cell: str) -> float:
    """A number; a whole one of up to 63 bits exactly."""
    try:
        whole = int(cell)
        return whole if abs(whole) < 2**63 else float(cell)
    except ValueError:
        try:
            return float(cell)
        except ValueError as error:
            raise EvaluationError.mismatch(where, "a number", repr(cell)) from error
