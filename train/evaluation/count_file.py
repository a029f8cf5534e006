"""Counts in an .npz file: what `physseg evaluate` writes beside its JSON, or what anybody saves for the referee.

`confusion` is the matrix, rows true, columns predicted; `classes` are its names. `image_ids` with `image_*` and
`image_boundary_*` are counts of every image, `size_counts` those by object size. All but the first may be missing.
"""

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.regular_files import MAX_BYTES, read_regular
from ...common.text import control_character, preview
from ..errors import EvaluationError
from .image_counts import COUNTS, ImageCounts
from .metrics import ConfusionMatrix, Counts
from .object_size import SIZES

TRANSPOSED = "rows are true, columns predicted; detectron2's own matrix has them the other way round"


def read_counts(path: Path) -> tuple[Counts, tuple[str, ...] | None, dict[str, Any]]:
    """Matrix (C, C), its classes' names if known, and `Evaluation` fields that it fills. Raises EvaluationError."""
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
    matrix = checked_matrix(path, found["confusion"])
    classes, sizes = found.get("classes"), found.get("size_counts")
    if classes is not None and classes.shape != (len(matrix),):
        raise EvaluationError.mismatch(f"{path}: classes", f"{len(matrix)} names", f"shape {classes.shape}")
    if sizes is not None:
        _check_counts(path, "size_counts", sizes, (len(SIZES), len(COUNTS), len(matrix)))
    images, boundary = (_of_images(path, found, name, len(matrix)) for name in ("image", "image_boundary"))
    sums = {"hits": np.diagonal(matrix), "true": matrix.sum(axis=1), "predicted": matrix.sum(axis=0)}
    for part, expected in sums.items() if images else ():
        if not (getattr(images, part).sum(axis=0) == expected).all():
            raise EvaluationError.mismatch(f"{path}: image_{part}", "counts that add up to `confusion`", "others")
    names = None if classes is None else tuple(map(str, classes.tolist()))
    if found_in := control_character("".join(names or ())):
        raise EvaluationError.mismatch(f"{path}: classes", "names in printable characters", found_in)
    return matrix, names, {"images": images, "boundary": boundary, "sizes": sizes}


def matrix_of(counts: Counts, ignore_index: int) -> ConfusionMatrix:
    """Counts (C, C) as a `ConfusionMatrix`."""
    confusion = ConfusionMatrix(len(counts), ignore_index)
    confusion.matrix = counts
    return confusion


def checked_matrix(path: Path, matrix: npt.NDArray[Any]) -> Counts:
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
        (as_float >= 2**62, "counts that fit 63 bits"),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            where = f"{path}: row {row}, column {column}"
            raise EvaluationError.mismatch(where, what, matrix[row, column], hint=hint)
    if (total := as_float.sum()) >= 2**62:
        raise EvaluationError.mismatch(path, "counts that fit 63 bits", f"a sum of {total:g}")
    return matrix.astype(np.int64)


def _of_images(path: Path, found: Mapping[str, npt.NDArray[Any]], name: str, classes: int) -> ImageCounts | None:
    """Counts of every image under this name; results of earlier versions have no `image_boundary`."""
    if not found.keys() >= {"image_ids", *(f"{name}_{part}" for part in COUNTS)}:
        return None
    image_ids = tuple(map(str, found["image_ids"].ravel().tolist()))
    parts = {part: found[f"{name}_{part}"] for part in COUNTS}
    for part, array in parts.items():
        _check_counts(path, f"{name}_{part}", array, (len(image_ids), classes))
    return ImageCounts(image_ids=image_ids, **parts)


def _check_counts(path: Path, key: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "iu":
        raise EvaluationError.mismatch(f"{path}: {key}", f"integers {shape}", f"{array.dtype} {array.shape}")
