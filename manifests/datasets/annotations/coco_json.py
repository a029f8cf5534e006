"""COCO annotation files become label pictures: stuff first, then instances over it, one PNG per image.

A pixel holds category id - 1, and 255 where no annotation lies: the form of the published `stuffthingmaps`, so that all
that follows is the same for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ....common.progress import ProgressBar
from ...errors import ManifestError
from ...pairing import IMAGE_SUFFIXES, Pair, Side, files_by_stem, matching_stems
from ..coco_stuff import CATEGORY_TO_CLASS, NUM_CATEGORIES, UNLABELLED, coco_stuff_vocabulary
from .coco_segments import segment_mask
from .painting import check_new_folder, paint_folder, read_annotation_file

OTHER_CATEGORY = 183
"""In stuff files "other" = every pixel that is a thing. Instances say which; the rest stays unlabelled."""
MAX_EDGE = 65535  # pixels; as many as a JPEG can have


class Segment(NamedTuple):
    """One annotation, still in JSON form."""

    file: str
    annotation_id: object
    category_id: int
    segmentation: Any


@dataclass(kw_only=True, slots=True)
class AnnotatedImage:
    """One image as the JSON files describe it."""

    file_name: str
    height: int
    width: int
    files: list[str] = field(default_factory=list)
    """Names of the JSON files that list the image."""
    segments: list[Segment] = field(default_factory=list)
    """Segments of the image, in painting order."""


def paint_labels(
    annotations: Sequence[Path], images: Path, out: Path, *, listed: Path | None = None, workers: int = 0
) -> list[Pair]:
    """Write one label PNG per annotated image into the new folder `out`, and pair them with the photographs.

    An image that the files list but never annotate gets a picture of 255 and a note.

    Annotations of the second file are painted over those of the first. `out` appears atomically. `listed` is a file
    of stems to select, `workers` the number of threads; 0 for all CPUs.

    Raises:
        ManifestError: A file has no COCO-Stuff annotations, a segment does not fit its image, an image has no entry,
            or an entry no image.
    """
    check_new_folder(out)
    photographs = files_by_stem(images.expanduser().resolve(), IMAGE_SUFFIXES, "images")
    annotated = _by_stem(read_annotations(annotations))
    names = " and ".join(path.name for path in annotations)
    stems = matching_stems(Side("image", images, photographs), Side("listed image", names, annotated), listed)
    paint_folder(stems, lambda stem: paint(annotated[stem]), out, workers)
    folder, notes = out.resolve(), {stem: _note(annotated[stem], annotations) for stem in stems}
    return [
        Pair(sample_id=stem, image=photographs[stem], label=folder / f"{stem}.png", note=notes[stem]) for stem in stems
    ]


def read_annotations(paths: Sequence[Path]) -> dict[int, AnnotatedImage]:
    """All images of the files by image id, with the segments of the first file before those of the second.

    Raises ManifestError for a file that is not COCO JSON, other category names than COCO's, unknown categories or
    images, and for two files that describe an image differently or have no image in common.
    """
    images: dict[int, AnnotatedImage] = {}
    for path in ProgressBar(paths, desc="reading", unit="file"):
        data = read_annotation_file(path, ("images", "annotations", "categories"), hint="download the file again")
        try:
            _add_file(images, data, path)
        except (KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ManifestError(f"{path}: an entry that is not as in COCO's files: {what}") from error
    return images


def paint(image: AnnotatedImage) -> npt.NDArray[np.uint8]:
    """The label picture (H, W) uint8: category id - 1, 255 where nothing lies; later segments cover earlier ones."""
    canvas = np.full((image.height, image.width), UNLABELLED, np.uint8)
    for file, annotation_id, category, segmentation in image.segments:
        try:
            mask = segment_mask(segmentation, image.height, image.width)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            where = f"{file}, annotation {annotation_id} of {image.file_name}"
            hint = "the annotation file is damaged or belongs to other images; download it again"
            raise ManifestError(f"{where}: {error}", hint=hint) from error
        canvas[mask] = category - 1
    return canvas


def _add_file(images: dict[int, AnnotatedImage], data: Mapping[str, Any], path: Path) -> None:
    for annotation in data["annotations"]:
        if type(annotation["category_id"]) is not int:
            where, got = f"{path}: annotation {annotation.get('id')}", repr(annotation["category_id"])
            hint = "turn texts into numbers, e.g. `jq '.annotations[].category_id |= tonumber' IN > OUT`"
            raise ManifestError.mismatch(where, "a category_id that is a whole number", got, hint=hint)
    _check_categories(path, data)
    if images:
        _check_second_file(images, data, path)
    listed = {image["id"] for image in data["images"]}
    named = {category["id"] for category in data["categories"]}
    for entry in data["images"]:
        _add_image(images, entry, path)
    for annotation in data["annotations"]:
        _add_segment(images, annotation, path, listed, named)


def _check_second_file(images: Mapping[int, AnnotatedImage], data: Mapping[str, Any], path: Path) -> None:
    """The second file covers the first, so it has to be that of the instances, and of the same photographs."""
    first = next(iter(images.values())).files[0]
    if not {image["id"] for image in data["images"]} & images.keys():
        raise ManifestError(f"{first} and {path.name} have no image in common", hint="give two files of the same split")
    for annotation in data["annotations"]:
        if 91 < annotation["category_id"] <= NUM_CATEGORIES:
            stuff = f"annotation {annotation.get('id')} is stuff (category {annotation['category_id']})"
            covered = f"painted after {first}, it would cover the things there"
            raise ManifestError(f"{path}: {stuff}; {covered}", hint="exchange --stuff-json and --instances-json")


def _check_categories(path: Path, data: Mapping[str, Any]) -> None:
    """Another data set in COCO's form numbers its categories differently: its ids would pass, with wrong meanings."""
    classes = coco_stuff_vocabulary().classes
    for category in data["categories"]:
        index = CATEGORY_TO_CLASS.get(category["id"])
        if index is not None and category["name"] != classes[index]:
            both = f"is {category['name']!r}, in COCO-Stuff it is {classes[index]!r}"
            hint = "this is not a COCO-Stuff file; paint its labels yourself and use `physseg manifest folder`"
            raise ManifestError(f"{path}: category {category['id']} {both}", hint=hint)


def _add_image(images: dict[int, AnnotatedImage], entry: Mapping[str, Any], path: Path) -> None:
    name, *sizes = described = (entry["file_name"], entry["height"], entry["width"])
    fits = all(type(size) is int and 1 <= size <= MAX_EDGE for size in sizes)
    if not (fits and isinstance(name, str) and Path(name).stem):
        expected = f"a file name, and a height and width of 1..{MAX_EDGE}"
        raise ManifestError.mismatch(f"{path}: image {entry['id']}", expected, f"{name!r} and {sizes}")
    new = AnnotatedImage(file_name=name, height=entry["height"], width=entry["width"])
    known = images.setdefault(entry["id"], new)
    if path.name in known.files:
        raise ManifestError(f"{path}: image id {entry['id']} stands there twice")
    ours = (known.file_name, known.height, known.width)
    if ours != described:
        both = f"{known.files[0]} says {ours}, {path.name} says {described} (name, height, width)"
        raise ManifestError(f"image {entry['id']}: {both}", hint="give two files of the same release and split")
    known.files.append(path.name)


def _add_segment(
    images: Mapping[int, AnnotatedImage], annotation: Mapping[str, Any], path: Path, listed: set[int], named: set[int]
) -> None:
    category, name = annotation["category_id"], f"{path}: annotation {annotation.get('id')}"
    if category == OTHER_CATEGORY:
        return
    if category not in CATEGORY_TO_CLASS:
        hint = "this is not a COCO-Stuff file"
        if category > OTHER_CATEGORY:
            hint = "a COCO panoptic file? Its merged categories (184..200) cannot be split into COCO-Stuff's again"
        expected = "a category of COCO-Stuff (1..182 without the 11 unused)"
        raise ManifestError.mismatch(name, expected, category, hint=hint)
    if category not in named:
        raise ManifestError(f"{name}: its category {category} is not among the file's categories")
    if annotation["image_id"] not in listed:
        raise ManifestError(f"{name}: its image {annotation['image_id']} is not among the file's images")
    if "segmentation" not in annotation:
        raise ManifestError(f"{name}: has no segmentation", hint="boxes alone are not enough")
    segment = Segment(path.name, annotation.get("id"), category, annotation["segmentation"])
    images[annotation["image_id"]].segments.append(segment)


def _by_stem(images: Mapping[int, AnnotatedImage]) -> dict[str, AnnotatedImage]:
    by_stem: dict[str, AnnotatedImage] = {}
    for image in images.values():
        other = by_stem.setdefault(Path(image.file_name).stem, image)
        if other is not image:
            both = f"images {other.file_name} and {image.file_name}"
            raise ManifestError(f"{both} would both be one sample", hint="use one split at a time")
    return by_stem


def _note(image: AnnotatedImage, paths: Sequence[Path]) -> str:
    notes = [f"not listed in {path.name}" for path in paths if path.name not in image.files]
    if not image.segments:
        notes.append("no annotation, nothing labelled")
    return "; ".join(notes)
