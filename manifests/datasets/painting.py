"""Label pictures painted from annotation files: a new folder of PNGs that is complete or does not exist."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ...common.atomic import atomic_folder
from ...common.processes import available_cpus
from ..errors import ManifestError

MAX_PROBLEMS_SHOWN = 10


def check_new_folder(out: Path) -> None:
    """Raise ManifestError unless `out` is a folder to be made, or an empty one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "choose another folder or remove this one; for pictures already painted use --labels instead of JSON"
        raise ManifestError.mismatch(out, "a new or empty folder for the label pictures", "one with files", hint=hint)


def paint_folder(stems: Collection[str], paint: Callable[[str], npt.NDArray[Any]], out: Path, workers: int) -> None:
    """Write one label picture per image into a new folder, which appears with the last one.

    Args:
        stems: Names of the images without their suffix.
        paint: Makes the picture of a stem, (H, W) uint8 or uint16, or raises ManifestError.
        out: The folder of `STEM.png`.
        workers: Number of threads; 0 for all CPUs.

    Raises:
        ManifestError: `paint` raised one; the message lists the first few and nothing is written.
    """
    problems = []
    with (
        atomic_folder(out) as partial,
        ThreadPoolExecutor(workers or available_cpus()) as pool,
        tqdm(total=len(stems), desc="painting", unit="image", disable=None) as progress,
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
            shown = problems[:MAX_PROBLEMS_SHOWN] + [f"and {rest} more"] * (rest > 0)
            raise ManifestError(
                f"{len(problems)} of {len(stems)} images have a segment that does not fit, nothing was written:\n  "
                + "\n  ".join(shown),
                hint="download the annotation file again, or leave these images out with --list FILE",
            )
