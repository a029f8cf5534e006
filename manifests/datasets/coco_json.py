"""COCO annotation files become label pictures: stuff first, then instances over it, one PNG per image.

A pixel holds category id - 1, and 255 where no annotation lies: the form of the published `stuffthingmaps`, so that all
that follows is the same for both.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...common.text import preview
from ..errors import ManifestError
from ..pairing import IMAGE_SUFFIXES, LIST_HINT, Pair, files_by_stem, read_list
from .coco_segments import segment_mask
from .coco_stuff import CATEGORY_TO_CLASS, NUM_CATEGORIES, UNLABELLED, coco_stuff_vocabulary
from .painting import check_new_folder, paint_folder, read_annotation_file

OTHER_CATEGORY = 183
"""In stuff files "other" = every pixel that is a thing. Instances say which; the rest stays unlabelled."""
LAST_THING = 91
MAX_EDGE = 65535  # pixels; as many as a JPEG can have


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One annotation, still in JSON form."""

    file: str
    """Name of the JSON file, for messages."""
    annotation_id: object
    """Id of the annotation, for messages."""
    category_id: int
    """COCO's category, 1..182."""
    segmentation: Any
    """A list of polygons, or {"size": [h, w], "counts": list or str}."""


@dataclass(kw_only=True, slots=True)
class AnnotatedImage:
    """One image as the JSON files describe it; segments in painting order."""

    file_name: str
    """Name of the photograph."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""
    files: list[str]
    """Names of the JSON files that list the image."""
    segments: list[Segment] = field(default_factory=list)
    """Its annotations, in painting order."""


def paint_labels(
    annotations: Sequence[Path], images: Path, out: Path, *, listed: Path | None = None, workers: int = 0
) -> list[Pair]:
    """Write one label PNG per annotated image into the new folder `out`, and pair them with the photographs.

    An image that the files list but never annotate gets a picture of 255 and a note.

    Args:
        annotations: Annotation files; those of the second are painted over those of the first.
        images: Folder of the photographs.
        out: New folder for the label pictures. It appears atomically.
        listed: File of stems to select.
        workers: Number of threads; 0 for all CPUs.

    Raises:
        ManifestError: A file has no COCO-Stuff annotations, a segment does not fit its image, an image has no entry,
            or an entry no image.
    """
    check_new_folder(out)
    photographs = files_by_stem(images.expanduser().resolve(), IMAGE_SUFFIXES, "images")
    annotated = _by_stem(read_annotations(annotations))
    stems = _matching_stems(photographs, annotated, read_list(listed) if listed else None, images, annotations)
    paint_folder(stems, lambda stem: paint(annotated[stem]), out, workers)
    folder = out.resolve()
    return [
        Pair(
            sample_id=stem,
            image=photographs[stem],
            label=folder / f"{stem}.png",
            note=_note(annotated[stem], annotations),
        )
        for stem in stems
    ]


def read_annotations(paths: Sequence[Path]) -> dict[int, AnnotatedImage]:
    """All images of the files by image id, with the segments of the first file before those of the second.

    Raises ManifestError for a file that is not COCO JSON, other category names than COCO's, unknown categories or
    images, and for two files that describe an image differently or have no image in common.
    """
    images: dict[int, AnnotatedImage] = {}
    for path in tqdm(paths, desc="reading", unit="file", disable=None):
        data = read_annotation_file(path, ("images", "annotations", "categories"), hint="download the file again")
        try:
            _add_file(images, data, path)
        except (KeyError, TypeError) as error:
            raise ManifestError(
                f"{path}: an entry that is not as in COCO's files: {type(error).__name__}: {error}"
            ) from error
    return images


def paint(image: AnnotatedImage) -> npt.NDArray[np.uint8]:
    """The label picture (H, W) uint8: category id - 1, 255 where nothing lies; later segments cover earlier ones."""
    canvas = np.full((image.height, image.width), UNLABELLED, np.uint8)
    for segment in image.segments:
        try:
            mask = segment_mask(segment.segmentation, image.height, image.width)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
            raise ManifestError(
                f"{segment.file}, annotation {segment.annotation_id} of {image.file_name}: {error}",
                hint="the annotation file is damaged or belongs to other images; download it again",
            ) from error
        canvas[mask] = segment.category_id - 1
    return canvas


def _add_file(images: dict[int, AnnotatedImage], data: Mapping[str, Any], path: Path) -> None:
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
        if LAST_THING < annotation["category_id"] <= NUM_CATEGORIES:
            raise ManifestError(
                f"{path}: annotation {annotation.get('id')} is stuff (category {annotation['category_id']}); painted "
                f"after {first}, it would cover the things there",
                hint="exchange --stuff-json and --instances-json",
            )


def _check_categories(path: Path, data: Mapping[str, Any]) -> None:
    """Another data set in COCO's form numbers its categories differently: its ids would pass, with wrong meanings."""
    classes = coco_stuff_vocabulary().classes
    for category in data["categories"]:
        index = CATEGORY_TO_CLASS.get(category["id"])
        if index is not None and category["name"] != classes[index]:
            raise ManifestError(
                f"{path}: category {category['id']} is {category['name']!r}, in COCO-Stuff it is {classes[index]!r}",
                hint="this is not a COCO-Stuff file; paint its labels yourself and use `physseg manifest folder`",
            )


def _add_image(images: dict[int, AnnotatedImage], entry: Mapping[str, Any], path: Path) -> None:
    known = images.get(entry["id"])
    name, sizes = entry["file_name"], (entry["height"], entry["width"])
    fits = all(type(size) is int and 1 <= size <= MAX_EDGE for size in sizes)
    if not (fits and isinstance(name, str) and Path(name).stem):
        expected = f"a file name, and a height and width of 1..{MAX_EDGE}"
        raise ManifestError.mismatch(f"{path}: image {entry['id']}", expected, f"{name!r} and {sizes}")
    if known is None:
        images[entry["id"]] = AnnotatedImage(
            file_name=name, height=entry["height"], width=entry["width"], files=[path.name]
        )
        return
    if path.name in known.files:
        raise ManifestError(f"{path}: image id {entry['id']} stands there twice")
    ours = (known.file_name, known.height, known.width)
    theirs = (name, *sizes)
    if ours != theirs:
        raise ManifestError(
            f"image {entry['id']}: {known.files[0]} says {ours}, {path.name} says {theirs} (name, height, width)",
            hint="give two files of the same release and split",
            path=str(path),
        )
    known.files.append(path.name)


def _add_segment(
    images: Mapping[int, AnnotatedImage],
    annotation: Mapping[str, Any],
    path: Path,
    listed: set[int],
    named: set[int],
) -> None:
    category, name = annotation["category_id"], f"{path}: annotation {annotation.get('id')}"
    if category == OTHER_CATEGORY:
        return
    if category not in CATEGORY_TO_CLASS:
        hint = "a COCO panoptic file? Its merged categories (184..200) cannot be split into COCO-Stuff's again"
        raise ManifestError.mismatch(
            name,
            "a category of COCO-Stuff (1..182 without the 11 unused)",
            category,
            hint=hint if category > OTHER_CATEGORY else "this is not a COCO-Stuff file",
        )
    if category not in named:
        raise ManifestError(f"{name}: its category {category} is not among the file's categories")
    if annotation["image_id"] not in listed:
        raise ManifestError(f"{name}: its image {annotation['image_id']} is not among the file's images")
    if "segmentation" not in annotation:
        raise ManifestError(f"{name}: has no segmentation", hint="boxes alone are not enough")
    images[annotation["image_id"]].segments.append(
        Segment(
            file=path.name,
            annotation_id=annotation.get("id"),
            category_id=category,
            segmentation=annotation["segmentation"],
        )
    )


def _by_stem(images: Mapping[int, AnnotatedImage]) -> dict[str, AnnotatedImage]:
    by_stem: dict[str, list[AnnotatedImage]] = defaultdict(list)
    for image in images.values():
        by_stem[Path(image.file_name).stem].append(image)
    for stem, entries in by_stem.items():
        if len(entries) > 1:
            raise ManifestError(
                f"images {entries[0].file_name} and {entries[1].file_name} would both be sample {stem!r}",
                hint="use one split at a time",
            )
    return {stem: entries[0] for stem, entries in by_stem.items()}


def _matching_stems(
    photographs: Mapping[str, Path],
    annotated: Mapping[str, AnnotatedImage],
    listed: Sequence[str] | None,
    images: Path,
    paths: Sequence[Path],
) -> list[str]:
    names = " and ".join(path.name for path in paths)
    wanted = photographs.keys() | annotated.keys() if listed is None else set(listed)
    no_entry, no_file = wanted - annotated.keys(), wanted - photographs.keys()
    parts = []
    if no_file:
        parts.append(f"{len(no_file)} images of {names} are not in {images} ({preview(sorted(no_file))})")
    if no_entry:
        parts.append(f"{len(no_entry)} images in {images} are not listed in {names} ({preview(sorted(no_entry))})")
    if parts:
        hint = LIST_HINT + "; for all that are in the folder: `ls IMAGES | sed 's/[.][^.]*$//' > FILE`"
        raise ManifestError("; ".join(parts), hint=hint)
    return sorted(wanted)


def _note(image: AnnotatedImage, paths: Sequence[Path]) -> str:
    notes = [f"not listed in {path.name}" for path in paths if path.name not in image.files]
    if not image.segments:
        notes.append("no annotation, nothing labelled")
    return "; ".join(notes)
