"""Pascal Context's merged annotation file becomes label pictures: one 16-bit PNG of category ids per image.

The file (`trainval_merged.json`) is like COCO's with other names: `image_id`, `annos_segmentation`, `category_id`, and
a `phase`, train or val, for every image. A pixel holds the category id of the 459 (they pass 255), 0 for none.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....common.text import counted, preview
from ...errors import ManifestError
from .coco_segments import segment_mask
from .painting import check_new_folder, paint_folder, read_annotation_file

NUM_CATEGORIES = 459
SOURCE = "download https://codalabuser.blob.core.windows.net/public/trainval_merged.json again"


def paint_context(
    path: Path,
    split: str,
    out: Path,
    *,
    expected_names: Mapping[int, Collection[str]],
    listed: Sequence[str] | None = None,
    workers: int = 0,
) -> dict[str, str]:
    """Paint the images of a phase, train or val, into the new folder `out`.

    Later segments cover earlier ones in the file's order, as in the benchmark.

    Args:
        expected_names: What categories may be called, in lower case without spaces, by category id.
        listed: Stems of the images to paint; None for all of the split.
        workers: Number of threads; 0 for all CPUs.

    Returns:
        The stems of all images, with a note where nothing is annotated.

    Raises:
        ManifestError: It is another file, an image has no size, or a segment does not fit its image.
    """
    check_new_folder(out)
    data = read_annotation_file(path, ("images", "annos_segmentation", "categories"), hint=SOURCE)
    try:
        images = {Path(entry["file_name"]).stem: entry for entry in data["images"] if entry["phase"] == split}
        segments: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for segment in data["annos_segmentation"]:
            segments[segment["image_id"]].append(segment)
        names = {int(entry["category_id"]): str(entry["name"]) for entry in data["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ManifestError(f"{path}: an entry that is not as in {path.name}: {what}", hint=SOURCE) from error
    _check_names(path, names, expected_names)
    if not images:
        raise ManifestError(f"{path}: expected images of phase {split!r}, got none", hint=SOURCE)
    if absent := set(listed or ()) - images.keys():
        listed_names = f"{counted(len(absent), 'listed name')} ({preview(sorted(absent))})"
        raise ManifestError(f"{path}: {listed_names} are not of phase {split!r}")
    stems = sorted(images if listed is None else listed)

    def paint(stem: str) -> npt.NDArray[np.uint16]:
        return paint_image(images[stem], segments.get(images[stem]["image_id"], []), names)

    paint_folder(stems, paint, out, workers)
    return {stem: "" if images[stem]["image_id"] in segments else "no annotation" for stem in stems}


def paint_image(
    image: Mapping[str, Any], segments: Sequence[Mapping[str, Any]], categories: Container[int]
) -> npt.NDArray[np.uint16]:
    """Category ids (H, W) uint16; 0 where no segment lies, or one beyond the 459, which is none of the 59 either.

    Raises ManifestError, which names the image, for a segment that does not fit it or is of none of the `categories`.
    """
    try:
        canvas = np.zeros((image["height"], image["width"]), np.uint16)
        for segment in segments:
            category = segment["category_id"]
            if category not in categories:
                raise ValueError(f"expected a category that the file lists, got {category!r}")
            mask = segment_mask(segment["segmentation"], *canvas.shape)
            canvas[mask] = category if 1 <= category <= NUM_CATEGORIES else 0
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        what, hint = f"{type(error).__name__}: {error}", f"the annotation file is damaged; {SOURCE}"
        raise ManifestError(f"{image.get('file_name')}: {what}", hint=hint) from error
    return canvas


def _check_names(path: Path, names: Mapping[int, str], expected: Mapping[int, Collection[str]]) -> None:
    """Another numbering would pass with wrong meanings: most of the categories must be called as is expected."""
    others = [
        f"{category} is {names.get(category)!r}, not {next(iter(ours))!r}"
        for category, ours in expected.items()
        if names.get(category, "").replace(" ", "").lower() not in ours
    ]
    if len(others) > len(expected) // 2:
        got = f"{len(others)} of {len(expected)} have other names ({preview(sorted(others), 3)})"
        raise ManifestError(f"{path}: not Pascal Context's categories: {got}", hint=SOURCE)
