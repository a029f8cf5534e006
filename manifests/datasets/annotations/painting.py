"""Label pictures painted from annotation files, into a new folder that appears atomically."""

import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image

from ....common.atomic import atomic_folder
from ....common.processes import available_cpus
from ....common.progress import ProgressBar
from ....common.regular_files import read_regular
from ...errors import ManifestError

MAX_PROBLEMS_SHOWN = 10


def read_annotation_file(path: Path, lists: Iterable[str], *, hint: str) -> dict[str, Any]:
    """The JSON of a file with a list of objects under each name of `lists`. Raises ManifestError for any other."""
    try:
        data = json.loads(read_regular(path))
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}", hint=f"check the path, or {hint}") from error
    except ValueError as error:
        raise ManifestError.mismatch(path, "JSON", error, hint=hint) from error
    for key in lists:
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ManifestError(f"{path}: expected annotations with a list of {key}, there is none", hint=hint)
    return dict(data)


def check_new_folder(out: Path) -> None:
    """Raise ManifestError unless `out` is a folder to be made, or an empty one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "choose another folder or remove this one; for pictures already painted use --labels instead of JSON"
        raise ManifestError.mismatch(out, "a new or empty folder for the label pictures", "one with files", hint=hint)


def paint_folder(stems: Collection[str], paint: Callable[[str], npt.NDArray[Any]], out: Path, workers: int) -> None:
    """Write a label picture `STEM.png` per image into a new folder, which appears with the last one.

    `paint` makes the picture of a stem, (H, W) uint8 or uint16; `workers` is a number of threads, 0 for all CPUs.
    Where `paint` raises ManifestErrors, one lists the first few, and nothing is written.
    """
    problems = []
    with (
        atomic_folder(out) as partial,
        ThreadPoolExecutor(workers or available_cpus()) as pool,
        ProgressBar(total=len(stems), desc="painting", unit="image") as progress,
    ):

        def paint_one(stem: str) -> str:
            try:
                Image.fromarray(paint(stem)).save(partial / f"{stem}.png", compress_level=6)
            except ManifestError as error:
                return str(error.args[0])
            return ""

        for problem in pool.map(paint_one, stems):
            problems += [problem] if problem else []
            progress.update()
        if problems:
            rest = len(problems) - MAX_PROBLEMS_SHOWN
            shown = "\n  ".join(problems[:MAX_PROBLEMS_SHOWN] + [f"and {rest} more"] * (rest > 0))
            unfit = f"{len(problems)} of {len(stems)} images have a segment that does not fit, nothing was written"
            hint = "download the annotation file again, or leave these images out with --list FILE"
            raise ManifestError(f"{unfit}:\n  {shown}", hint=hint)
