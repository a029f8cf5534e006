"""Label pictures painted from annotation files: a new folder of PNGs that is complete or does not exist."""

import shutil
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ...common.processes import available_cpus
from ..errors import ManifestError

MAX_PROBLEMS_SHOWN = 10


def check_new_folder(out: Path) -> None:
    """Raise ManifestError unless `out` is a folder to be made, or an empty one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ManifestError(
            f"{out}: expected a new or empty folder for the label pictures, got one with files",
            hint="choose another folder or remove this one; for pictures already painted use --labels instead of JSON",
            path=str(out),
        )


def paint_folder(stems: Collection[str], paint: Callable[[str], npt.NDArray[Any]], out: Path, workers: int) -> None:
    """Write `STEM.png` of each uint8 or uint16 picture that `paint` makes, into a folder beside `out`; then rename it.

    Raises ManifestError that lists the pictures for which `paint` raised one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    partial.chmod(0o755)  # mkdtemp makes private folders

    def paint_one(stem: str) -> str:
        try:
            Image.fromarray(paint(stem)).save(partial / f"{stem}.png", compress_level=6)
        except ManifestError as error:
            return str(error.args[0])
        return ""

    try:
        with (
            ThreadPoolExecutor(workers or available_cpus()) as pool,
            tqdm(total=len(stems), desc="painting", unit="image", disable=None) as progress,
        ):
            problems = []
            for problem in pool.map(paint_one, stems):
                problems += [problem] if problem else []
                progress.update()
        if problems:
            more = f"\n  and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
            raise ManifestError(
                f"{len(problems)} of {len(stems)} images have a segment that does not fit, nothing was written:\n  "
                + "\n  ".join(problems[:MAX_PROBLEMS_SHOWN])
                + more,
                hint="download the annotation file again, or leave these images out with --list FILE",
            )
        if out.exists():
            out.rmdir()  # empty, or this fails
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
