"""The result of an evaluation: one confusion matrix, and what follows from it; written, read back, and added up.

A set may be evaluated in parts, on several machines. Their matrices add up to that of the set, if they are parts of the
same thing: `merge` refuses parts whose weights, samples or protocol differ.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from io import BytesIO
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...common.atomic import atomic_json, atomic_write
from ...common.documents import MALFORMED, parsing
from ...common.regular_files import read_regular
from ...common.text import Part, counted, percent, preview
from ..errors import EvaluationError
from .count_file import matrix_of, read_counts
from .image_counts import COUNTS, ImageCounts
from .metrics import ConfusionMatrix, Counts, Over
from .object_size import AREA_TEXTS, miou_of_sizes
from .protocol import environment_note, merged_environment, protocol_differences

COLUMNS: Mapping[str, str] = {
    "ade20k-847": "A-847",
    "pascal-context-459": "PC-459",
    "ade20k-150": "A-150",
    "pascal-context-59": "PC-59",
    "pascal-voc-20": "PAS-20",
    "pascal-voc-20b": "PAS-20b",
}
"""Name of a data set -> its column in the paper's tables, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A confusion matrix with everything needed to read it."""

    confusion: ConfusionMatrix
    """Pixel counts of all images."""
    classes: tuple[str, ...]
    """Class names as prompted, in the matrix's order."""
    seen: tuple[bool, ...] | None
    """Whether the training vocabulary names each class; None where the classes' names are not known."""
    num_images: int
    quarantined: tuple[str, ...]
    """Ids of samples that the manifest quarantines; they were left out."""
    source: Mapping[str, Any]
    """What was evaluated on what: run, step, data set, protocol."""
    images: ImageCounts | None = None
    """Counts of every image by itself; None where only sums are known."""
    boundary: ImageCounts | None = None
    """Pixels in the bands of Boundary IoU, of every image by itself; None where they are not known."""
    sizes: Counts | None = None
    """Pixels by the size of objects (`object_size.size_counts`); None where they were not counted."""
    unlabelled: tuple[str, ...] = ()
    """Ids of samples without a labelled pixel; they were left out."""
    part: Part | None = None
    """Which part of the set this is; None: it is all of it."""

    def group_miou(self, seen: bool) -> float | None:
        """Mean IoU over the classes of the ground truth that are seen, or unseen; None where there are none.

        Over the ground truth's classes only: a seen class that is wrongly predicted costs the class it was taken for.
        """
        iou, true = self.confusion.iou(), self.confusion.matrix.sum(axis=1)
        if self.seen is None:
            return None
        members = (np.array(self.seen) == seen) & (true > 0)
        return float(iou[members].mean()) if members.any() else None

    def miou_interval(self) -> tuple[float, float] | None:
        """About 95 % of the mIoU over images (ImageCounts.interval); None where images are few or not known."""
        return self.images.interval() if self.images else None

    def boundary_iou(self) -> float | None:
        """Boundary IoU averaged over the classes of the ground truth; None where it is not known or there are none."""
        value = self.boundary.miou() if self.boundary else math.nan
        return None if math.isnan(value) else value

    def document(self) -> dict[str, Any]:
        """Everything as JSON: fractions 0..1 (`unit` says so), None where there is nothing to average."""
        summary = self.confusion.summary(self.classes)
        bands = self.boundary.iou() if self.boundary else np.full(len(self.classes), np.nan)
        for row, value in zip(summary["classes"], bands, strict=True):
            row["boundary_iou"] = None if np.isnan(value) else float(value)
        groups = {}
        if self.seen is not None:
            for row, seen in zip(summary["classes"], self.seen, strict=True):
                row["seen"] = seen
            groups = {name: {"miou": self.group_miou(flag), "classes": self.seen.count(flag)} for name, flag in _GROUPS}
        return {
            "physseg": __version__,
            "unit": "fraction",
            **self.source,
            "part": [self.part.number, self.part.parts] if self.part else None,
            "num_images": self.num_images,
            "quarantined": list(self.quarantined),
            "unlabelled": list(self.unlabelled),
            **groups,
            "miou_interval": self.miou_interval(),
            "boundary_iou": self.boundary_iou(),
            "boundary_iou_interval": self.boundary.interval() if self.boundary else None,
            "miou_by_size": miou_of_sizes(self.sizes) if self.sizes is not None else None,
            **summary,
        }

    def table(self, *, rows: int = 10) -> str:
        """For the terminal: averages, seen against unseen, the best and worst classes; unseen ones are marked."""
        known = self.seen or (True,) * len(self.classes)
        names = [name if seen else f"{name} (unseen)" for name, seen in zip(self.classes, known, strict=True)]
        lines = [self.confusion.table(names, rows, self._more_averages())]
        for name, counts in (("Boundary IoU", self.boundary), ("mIoU", self.images)):
            if counts and (interval := counts.interval()):
                low, high = interval
                lines.insert(0, f"{name}, about 95 % over images (bootstrap): {percent(low)} to {percent(high)}")
        if not all(known):
            lines.append("")
            for name, flag in _GROUPS:
                value = self.group_miou(flag)
                shown = "no pixels" if value is None else f"mIoU {percent(value)}"
                lines.append(f"{name:7} classes {shown}  over those of {known.count(flag)} that occur")
        for what, ids in (("quarantined", self.quarantined), ("unlabelled", self.unlabelled)):
            if ids:
                lines.append(f"{counted(len(ids), f'{what} sample')} left out: {preview(ids)}")
        if note := environment_note(self.source):
            lines.append(note)
        if shared := self.source.get("shared_prompts"):
            named = f"{sum(map(len, shared.values()))} classes share their prompt with another"
            lines.append(f"{named} and cannot be told apart: {', '.join(shared)}")
        return "\n".join([*lines, *self.source.get("notes", ())])

    def _more_averages(self) -> list[tuple[str, str, str]]:
        value = self.boundary_iou()
        rows = [("Boundary IoU", "not known" if value is None else percent(value), "")]
        for size, found in miou_of_sizes(self.sizes).items() if self.sizes is not None else ():
            shown = "no pixels" if found["miou"] is None else percent(found["miou"])
            over = f"over {counted(int(found['classes'] or 0), 'class')}, objects of {AREA_TEXTS[size]}"
            rows.append((f"mIoU, {size}", shown, over))
        return rows

    def scalars(self) -> dict[str, float]:
        """The averages under the training log's names; those that do not exist are left out."""
        values = {
            "eval/miou": self.confusion.miou(),
            "eval/miou_union": self.confusion.miou("union"),
            "eval/boundary_iou": self.boundary_iou(),
            "eval/pixel_accuracy": self.confusion.pixel_accuracy(),
            "eval/miou_seen": self.group_miou(True),
            "eval/miou_unseen": self.group_miou(False),
        }
        return {name: value for name, value in values.items() if value is not None and not np.isnan(value)}

    def write(self, folder: Path, name: str) -> Path:
        """Write `name.json`, and as `name.npz` the matrix, its class names and every image's counts.

        A part's name says which it is. A result of that name on other samples or by another protocol stays: then this
        one's name gets a hash. Returns the JSON's path.
        """
        if self.part:
            name += f".part-{self.part.number}-of-{self.part.parts}"
        if _is_of_another(folder / f"{name}.json", self.source):
            name = f"{name}-{self.source['fingerprint']}-{self.source['manifest'][:6]}"
        arrays: dict[str, Any] = {"confusion": self.confusion.matrix, "classes": np.array(self.classes)}
        if self.images:
            arrays["image_ids"] = np.array(self.images.image_ids)
            arrays |= {f"image_{part}": getattr(self.images, part) for part in COUNTS}
        if self.images and self.boundary:
            arrays |= {f"image_boundary_{part}": getattr(self.boundary, part) for part in COUNTS}
        if self.sizes is not None:
            arrays["size_counts"] = self.sizes
        buffer = BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        atomic_write(folder / f"{name}.npz", buffer.getvalue())
        path = folder / f"{name}.json"
        atomic_json(path, self.document())
        return path


def read_evaluation(path: Path) -> Evaluation:
    """What `Evaluation.write` wrote as this JSON file and the .npz beside it. Raises EvaluationError for others."""
    hint = "Name the .json file; its .npz lies beside it."
    with parsing(EvaluationError, f"{path}: not a result of `physseg evaluate`", hint):
        document = json.loads(read_regular(path))
        matrix, names, counted = read_counts(path.with_suffix(".npz"))
        if names is None:
            raise ValueError(f"{path.with_suffix('.npz')} has no `classes`")
        return Evaluation(
            confusion=matrix_of(matrix, int(document["ignore_index"])),
            classes=names,
            seen=tuple(bool(row["seen"]) for row in document["classes"]),
            num_images=document["num_images"],
            quarantined=tuple(document["quarantined"]),
            unlabelled=tuple(document["unlabelled"]),
            source={key: document[key] for key in _SOURCE if key in document},
            **counted,
            part=Part(*document["part"]) if document["part"] else None,
        )


def merge(files: Sequence[Path]) -> Evaluation:
    """One evaluation of all parts. Raises EvaluationError if some are missing, double, or of different evaluations."""
    found = _by_number(files)
    whole = range(1, _part(next(iter(found.values()))).parts + 1)
    if missing := [number for number in whole if number not in found]:
        listed, hint = ", ".join(map(str, missing)), "Evaluate them with --part, then merge again."
        raise EvaluationError(f"{len(missing)} of {len(whole)} parts are missing: {listed}", hint=hint)
    ordered = [found[number] for number in whole]
    sizes = [part.sizes for part in ordered if part.sizes is not None]
    notes = [
        f"{what} left out: known by {counted(known, 'part')} of {len(ordered)} only"
        for what, field in (("interval", "images"), ("Boundary IoU", "boundary"), ("mIoU by object size", "sizes"))
        if 0 < (known := sum(getattr(part, field) is not None for part in ordered)) < len(ordered)
    ]
    return replace(
        ordered[0],
        confusion=reduce(add, (part.confusion for part in ordered)),
        num_images=sum(part.num_images for part in ordered),
        unlabelled=tuple(name for part in ordered for name in part.unlabelled),
        source={**ordered[0].source, **merged_environment(part.source for part in ordered)}
        | ({"notes": notes} if notes else {}),
        images=ImageCounts.joined([part.images for part in ordered]),
        boundary=ImageCounts.joined([part.boundary for part in ordered]),
        sizes=reduce(add, sizes) if len(sizes) == len(ordered) else None,
        part=None,
    )


def paper_table(name: str, results: Mapping[str, Evaluation]) -> list[list[str]]:
    """Rows of a table, the heading first: mIoU of each data set, by the set's name, in the paper's columns.

    The row is over the classes of the ground truth. Where that of the union differs it is a second row by name.
    """
    confusions = [results[data].confusion if data in results else None for data in COLUMNS]
    overs: tuple[Over, Over] = ("ground_truth", "union")
    first, second = ([percent(one.miou(over), digits=1) if one else "-" for one in confusions] for over in overs)
    rows = [["mIoU", *COLUMNS.values()], [name, *first]]
    return rows + ([[f"{name}, union", *second]] if second != first else [])


def whole_name(file: Path) -> str:
    """Name of the whole result, of which this is a part's file.

    >>> whole_name(Path("coco-step_00000100.part-2-of-8.json"))
    'coco-step_00000100'
    """
    return re.sub(r"\.part-\d+-of-\d+$", "", file.stem)


def _by_number(files: Sequence[Path]) -> dict[int, Evaluation]:
    """Parts of one evaluation by their numbers."""
    found: dict[int, tuple[Path, Evaluation]] = {}
    for file in files:
        part = read_evaluation(file)
        first, number = next(iter(found.values()), (file, part))[1], _part(part).number
        different = [key for key in _MERGED if first.source.get(key) != part.source.get(key)]
        different += protocol_differences(first.source, part.source)
        if different := different or ["the number of parts"] * (_part(first).parts != _part(part).parts):
            differ, hint = ", ".join(different), "Merge parts of the same checkpoint, manifest and options."
            parts = f"{file} and {files[0]} are not parts of one evaluation"
            raise EvaluationError(f"{parts}: they differ in {differ}", hint=hint)
        if number in found:
            raise EvaluationError(f"{file} and {found[number][0]} are both part {number} of {_part(first).parts}")
        found[number] = file, part
    return {number: part for number, (_, part) in found.items()}


def _part(evaluation: Evaluation) -> Part:
    return evaluation.part or Part(1, 1)


def _is_of_another(path: Path, source: Mapping[str, Any]) -> bool:
    try:
        there = json.loads(read_regular(path))
        return any(there.get(key) != source.get(key) for key in ("fingerprint", "manifest"))
    except (OSError, *MALFORMED):
        return False


_GROUPS = (("seen", True), ("unseen", False))

_MERGED = ("step", "weights", "dataset", "vocabulary", "manifest", "ignore_index", "shared_prompts")
"""Keys of a result that parts of one evaluation share, besides the protocol."""

_SOURCE = ("run", *_MERGED, "protocol", "fingerprint", "environment", "environment_fingerprint")
"""Keys of a result that say what it is of."""
