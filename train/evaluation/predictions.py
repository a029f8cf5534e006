"""Label maps that any repository left: a folder of label pictures, or detectron2's `sem_seg_predictions.json`.

Both are matched with the samples of a manifest. What is missing, surplus or double is found before anything is scored.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...common.errors import PhyssegError
from ...common.regular_files import read_regular
from ...common.text import counted, preview
from ...manifests.datasets.annotations.coco_segments import segment_mask
from ...manifests.decoding import check_png, decode_label
from ...manifests.manifest import Manifest
from ..errors import EvaluationError
from ..losses.numerics import check_choice

IdsOption = Literal["auto", "classes", "dataset"]
"""What numbers in predictions are: class ids 0..C-1, raw ids of the manifest's table, or whichever fits."""


UNCOVERED = 65535
"""Id of pixels that no mask covers; no vocabulary has it."""


Reader = Callable[[int, int], npt.NDArray[Any]]
"""What gives a sample's ids as they were written, for a height and a width. It raises PhyssegError for others."""


@dataclass(slots=True)
class Predictions:
    """Predicted class ids by sample id, and what is wrong with them."""

    path: Path
    manifest: Manifest
    ids: Literal["classes", "dataset"]
    readers: Mapping[str, Reader]
    """By sample id; samples without a prediction have none."""
    surplus: tuple[str, ...]
    """Predictions of no sample of the manifest."""
    faults: dict[str, str] = field(default_factory=dict)
    """Sample id -> why its prediction cannot be counted."""

    @classmethod
    def open(cls, path: Path, manifest: Manifest, ids: IdsOption = "auto") -> "Predictions":
        """A folder of pictures or detectron2's JSON. Raises EvaluationError; its pictures are read later."""
        check_choice("kind of ids", ids, get_args(IdsOption))
        if path.is_dir():
            files, surplus = _find_pictures(path, manifest)
            pictures: dict[str, Reader] = {sample_id: partial(_read_picture, file) for sample_id, file in files.items()}
            return cls(path, manifest, "dataset" if ids == "dataset" else "classes", pictures, surplus)
        masks, surplus = _read_masks(path, manifest)
        kind = _kind_of_ids(set().union(*masks.values()), manifest) if ids == "auto" else ids
        return cls(path, manifest, kind, {sample_id: partial(_paint, of) for sample_id, of in masks.items()}, surplus)

    def class_ids(self, sample_id: str, size: tuple[int, int]) -> npt.NDArray[Any] | None:
        """Class ids (H, W) as prompted, or None and a fault. Raises EvaluationError once there are `MAX_FAULTS`."""
        try:
            raw = self.readers[sample_id](*size)
            if raw.shape != size:
                raise EvaluationError(f"{_size(raw.shape)} where the labels have {_size(size)}")
            return self._as_classes(raw)
        except PhyssegError as error:
            self.faults[sample_id] = str(error.args[0])
        if len(self.faults) >= MAX_FAULTS:
            self.check()
        return None

    def check(self) -> None:
        """Raise EvaluationError, with one line for each, if predictions had faults."""
        if self.faults:
            lines = [f"sample {sample_id}: {fault}" for sample_id, fault in self.faults.items()]
            more = "; looked no further" if len(lines) >= MAX_FAULTS else ""
            number = f"{counted(len(lines), 'prediction')} cannot be scored{more}"
            hint = "every pixel needs a class, at the size of the labels; --ids says what the numbers are"
            raise EvaluationError("\n  ".join([f"{self.path}: {number}:", *lines]), hint=hint)

    def _as_classes(self, raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
        vocabulary = self.manifest.vocabulary
        if self.ids == "dataset":
            classes, unknown = self.manifest.map_ids(raw.astype(np.uint16))
            expected, outside = "those of the manifest's table", classes == vocabulary.ignore_index
        else:
            classes, unknown = raw, ""
            expected, outside = f"0..{vocabulary.num_classes - 1}", raw >= vocabulary.num_classes
        if outside.any():
            found, pixels = (values.tolist() for values in np.unique(raw[outside], return_counts=True))
            unknown = preview([f"id {index} ({count} px)" for index, count in zip(found, pixels, strict=True)])
        if unknown:
            raise EvaluationError.mismatch("ids", expected, unknown)
        return classes


def judge_counts(path: Path) -> str:
    """What to do about a JSON file that is no list of predictions but, most likely, a result."""
    return f"of a result of `physseg evaluate`, judge the counts: {path.with_suffix('.npz')}"


MAX_FAULTS = 20


def _find_pictures(folder: Path, manifest: Manifest) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Pictures by sample id, in a folder and the folders below it, and those of no sample.

    Raises EvaluationError for a folder without PNGs, and for two pictures of one sample.
    """
    there = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.png"))}
    if not there:
        raise EvaluationError.mismatch(folder, "label pictures (SAMPLE_ID.png)", "no .png file")
    files: dict[str, Path] = {}
    for sample_id in manifest.table.values("sample_id"):
        # The second is what `physseg predict` writes by default.
        found = [name for ending in (".png", "_labels.png") if (name := sample_id + ending) in there]
        if len(found) > 1:
            raise EvaluationError.mismatch(folder, f"one prediction of sample {sample_id}", " and ".join(found))
        if found:
            files[sample_id] = there.pop(found[0])
            if found[0].endswith("_labels.png"):
                there.pop(f"{sample_id}_overlay.png", None)  # written beside it, to look at
    return files, tuple(there)


def _read_picture(file: Path, height: int, width: int) -> npt.NDArray[Any]:
    try:
        data = read_regular(file)
    except OSError as error:
        raise EvaluationError(f"cannot be read: {error.strerror}") from error
    check_png(data)
    return decode_label(data)


def _read_masks(path: Path, manifest: Manifest) -> tuple[dict[str, dict[int, Any]], tuple[str, ...]]:
    """Sample id -> category id -> segmentation, of a file as detectron2's SemSegEvaluator writes it; and other names.

    It is read whole. JSON of 5,000 images takes some hundreds of MB, and about three times that in memory.

    Raises EvaluationError for another form, and for two masks of one class or files of one sample.
    """
    try:
        entries = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError.mismatch(path, "detectron2's list of predictions (JSON)", error) from error
    if not isinstance(entries, list) or not entries:
        expected = "a list of {file_name, category_id, segmentation}"
        got = "an empty list" if entries == [] else type(entries).__name__
        raise EvaluationError.mismatch(path, expected, got, judge_counts(path))
    known, masks, surplus = _names(manifest), dict[str, dict[int, Any]](), dict[str, None]()
    matched: dict[str, str] = {}
    for number, entry in enumerate(entries):
        name, category, segmentation = _entry(f"{path}: entry {number}", entry)
        sample_id = _match(name, known)
        if sample_id is None:
            surplus[name] = None
            continue
        if matched.setdefault(sample_id, name) != name:
            names = f"{matched[sample_id]} and {name}"
            raise EvaluationError.mismatch(path, f"predictions of one file for sample {sample_id}", names)
        if category in masks.setdefault(sample_id, {}):
            raise EvaluationError(f"{path}: entry {number}: a second mask of category {category} of {name}")
        masks[sample_id][category] = segmentation
    return masks, tuple(surplus)


def _paint(masks: Mapping[int, Any], height: int, width: int) -> npt.NDArray[Any]:
    canvas = np.full((height, width), UNCOVERED, np.uint16)
    for category, segmentation in masks.items():
        try:
            mask = segment_mask(segmentation, height, width)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise EvaluationError(f"category {category}: {error}") from error
        if (twice := int((canvas[mask] != UNCOVERED).sum())) > 0:
            raise EvaluationError(f"category {category}: {twice} of its pixels lie in an earlier mask, too")
        canvas[mask] = category
    if uncovered := int((canvas == UNCOVERED).sum()):
        raise EvaluationError(f"{uncovered} pixels lie in no mask")
    return canvas


def _kind_of_ids(found: set[int], manifest: Manifest) -> Literal["classes", "dataset"]:
    """Class ids if all of them are some, else ids of the data set; class ids, too, if both are wrong."""
    if all(category < manifest.vocabulary.num_classes for category in found):
        return "classes"
    return "dataset" if found <= manifest.raw_to_class.keys() else "classes"


def _entry(where: str, entry: Any) -> tuple[str, int, Any]:
    if not isinstance(entry, dict) or (lacking := {"file_name", "category_id", "segmentation"} - entry.keys()):
        got = f"no {', '.join(sorted(lacking))}" if isinstance(entry, dict) else type(entry).__name__
        raise EvaluationError.mismatch(where, "file_name, category_id and segmentation", got)
    name, category = entry["file_name"], entry["category_id"]
    if not isinstance(name, str):
        raise EvaluationError.mismatch(where, "a file_name", repr(name))
    if type(category) is not int or not 0 <= category < UNCOVERED:
        raise EvaluationError.mismatch(where, f"a category_id of 0..{UNCOVERED - 1}", repr(category))
    return name, category, entry["segmentation"]


def _names(manifest: Manifest) -> dict[str, str]:
    """What a sample may be called -> its id: the id, or its image's path without ending."""
    known: dict[str, str] = {}
    for column in ("image_path", "sample_id"):  # ids win
        names = zip(manifest.table.values(column), manifest.table.values("sample_id"), strict=True)
        known |= {_without_ending(name) if column == "image_path" else name: sample_id for name, sample_id in names}
    return known


def _match(name: str, known: Mapping[str, str]) -> str | None:
    """The sample of a file, by the longest end of its path that is known."""
    parts = PurePosixPath(_without_ending(name.replace("\\", "/"))).parts
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((known[end] for end in ends if end in known), None)


def _without_ending(name: str) -> str:
    return re.sub(r"\.(jpe?g|png|tiff?|bmp|webp)$", "", name, flags=re.IGNORECASE)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) + " (h x w)"
