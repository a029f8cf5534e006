"""Pascal Context: labels of all pixels of VOC 2010's trainval images, 459 classes or the 59 most frequent of them.

With 60, "background" is class 0, and the 59 follow in their order: all that is none of them is background.

All forms but one number classes as the list of 459 does, from 1; so the 59 are found in it by name. The older
colour-coded form has VOC's 20 objects first, then 39 others in the order of VOC-20b's prompts.
"""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..pairing import IMAGE_SUFFIXES, files_by_stem, read_list
from ..vocabulary import Vocabulary, published_vocabulary
from .annotations.context_json import NUM_CATEGORIES, paint_context
from .archive import Archive, Release, existing_folder, existing_list

RENAMED = {"diningtable": "table"}  # name among the 59 -> name among the 459

DEVKITS = ("VOCdevkit/VOC2010", "VOC2010", ".")
MERGED_JSON = "trainval_merged.json"
MAT_FOLDER = "trainval"
LISTS = ("pascalcontext_{split}.txt", "ImageSets/SegmentationContext/{split}.txt", "ImageSets/Main/{split}.txt")
"""CAT-Seg's list (5104 names), MMSegmentation's, and VOC 2010's own: its main lists are those of Pascal Context."""
SOURCE = (
    "unpack VOCtrainval_03-May-2010.tar (http://host.robots.ox.ac.uk/pascal/VOC/voc2010/) into --root, and beside its "
    "JPEGImages trainval.tar.gz (https://www.cs.stanford.edu/~roozbeh/pascal-context/: trainval/*.mat) or "
    "trainval_merged.json (https://codalabuser.blob.core.windows.net/public/trainval_merged.json)"
)
RELEASES = {
    "val": Release(title="Pascal Context, val", counts=(5105, 5104), source=SOURCE),
    "train": Release(title="Pascal Context, train", counts=(4998,), source=SOURCE),
}
FORMS = {
    "json": f"{MERGED_JSON}, painted into --write-labels",
    "mat": f"{MAT_FOLDER}/*.mat",
    "painted": "PNGs painted from the JSON before",
    "ids": "PNGs of class ids: of 59 classes with 255 for none of them, of 60 with 0 for background",
    "colours": "the older form in VOC's colours",
}


@cache
def category_to_class_59() -> Mapping[int, int]:
    """Category id in the list of 459, from 1, -> class id among the 59; both lists are in the same order."""
    names = published_vocabulary("pascal-context-459").classes
    return {names.index(RENAMED.get(name, name)) + 1: index for index, name in enumerate(_names_59())}


@cache
def legacy_to_class_59() -> Mapping[int, int]:
    """Id in the older form, where 0 is background and 1..20 are VOC's objects, -> class id among the 59."""
    order = published_vocabulary("pascal-voc-20b").classes
    return {legacy: _names_59().index(name) for legacy, name in enumerate(order, start=1)}


def context_ids(num_classes: int, form: str) -> LabelIds:
    """What the numbers in label files of a form mean, for 59, 60 or 459 classes.

    Beside the 59, everything else is ignored, background included; among the 60 it is background. Of the 459 every
    pixel has a class, `unknown` is one of them, and 0 is an error of the file.
    """
    if num_classes == 459:
        vocabulary = published_vocabulary("pascal-context-459")
        return _ids(vocabulary, {raw + 1: raw for raw in range(NUM_CATEGORIES)}, (), "mat")
    if num_classes == 60:
        return _with_background(form)
    vocabulary = published_vocabulary("pascal-context-59")
    if form == "colours":
        return _ids(vocabulary, legacy_to_class_59(), (0, 255), "voc-colours")
    if form == "ids":
        return _ids(vocabulary, {index: index for index in range(59)}, (255,), "ids")
    others = tuple(raw for raw in range(NUM_CATEGORIES + 1) if raw not in category_to_class_59())
    return _ids(vocabulary, category_to_class_59(), others, "mat" if form == "mat" else "ids")


def _with_background(form: str) -> LabelIds:
    """What is none of the 59 as class 0, and the 59 after it.

    In the form "ids" the files have 0..59 already. There 255 is an error: files of the 59 classes are full of it.
    """
    vocabulary = published_vocabulary("pascal-context-60")
    if form == "ids":
        return _ids(vocabulary, {index: index for index in range(60)}, (), "ids")
    of_59, void = context_ids(59, form), (255,) if form == "colours" else ()
    background = {raw: 0 for raw in of_59.raw_ignore if raw not in void}
    objects = {raw: index + 1 for raw, index in of_59.raw_to_class.items()}
    return _ids(vocabulary, background | objects, void, of_59.label_form)


def find_context(
    root: Path,
    split: str,
    *,
    num_classes: int,
    form: str | None = None,
    labels: Path | None = None,
    write_labels: Path | None = None,
    listed_in: Path | None = None,
    workers: int = 0,
    scratch: Path | None = None,
) -> Archive:
    """A split of Pascal Context below `root`; the other arguments are options of `physseg manifest pascal-context-59`.

    `scratch` is the folder of painted labels that nobody wants to keep.
    """
    release = RELEASES[split]
    images = existing_folder(root, [f"{kit}/JPEGImages" for kit in DEVKITS], "photographs", release)
    kit = images.parent
    allowed = FORMS if num_classes != 459 else {"mat": FORMS["mat"]}
    form = _chosen_form(form, allowed, labels, kit)
    image_files = files_by_stem(images.resolve(), IMAGE_SUFFIXES, "photographs")
    notes: Mapping[str, str] = {}
    if form == "json":
        write_labels = write_labels or scratch
        if write_labels is None:
            missing = f"{kit / MERGED_JSON}: its labels have to be painted, --write-labels is missing"
            raise ManifestError(missing, hint="--write-labels DIR, a new folder; or --form mat")
        names = read_list(listed_in) if listed_in else None
        labels, listed_in = write_labels.expanduser().resolve(), listed_in or kit / MERGED_JSON
        notes = paint_context(
            kit / MERGED_JSON, split, labels, expected_names=_category_names_59(), listed=names, workers=workers
        )
        listed = names or tuple(notes)
    else:
        labels = existing_folder(labels or kit, ["."] if labels else [MAT_FOLDER], "label files", release)
        listed_in = listed_in or existing_list([kit / name.format(split=split) for name in LISTS], release)
        listed = read_list(listed_in)
    suffixes = (".mat",) if form == "mat" else (".png", ".tif", ".tiff")
    return Archive(
        release=release,
        ids=context_ids(num_classes, form),
        images=image_files,
        labels=files_by_stem(labels.resolve(), suffixes, "label files"),
        listed=listed,
        listed_in=listed_in,
        notes=notes,
    )


FINDERS = {f"pascal-context-{number}": partial(find_context, num_classes=number) for number in (59, 60, 459)}


def _chosen_form(form: str | None, allowed: Mapping[str, str], labels: Path | None, kit: Path) -> str:
    """Refuse options that contradict each other. What `labels` holds is never guessed: ids of several forms overlap."""
    if form is not None and form not in allowed:
        raise ManifestError.mismatch("--form", " or ".join(allowed), repr(form))
    if labels is not None and form is None and len(allowed) > 1:
        hint = "; ".join(f"{name}: {what}" for name, what in allowed.items() if name != "json")
        raise ManifestError(f"{labels}: what its numbers mean is not known, --form is missing", hint=hint)
    if form == "json" and labels is not None:
        raise ManifestError("--form json makes its label pictures, --labels names others", hint="leave one of them out")
    if form in ("painted", "ids", "colours") and labels is None:
        raise ManifestError(f"--form {form}: the folder of the pictures is missing", hint="name it with --labels DIR")
    return form or ("json" if "json" in allowed and (kit / MERGED_JSON).is_file() else "mat")


def _category_names_59() -> dict[int, tuple[str, str]]:
    """What a category of the 59 is called in either list."""
    names = _names_59()
    return {raw: (names[i], RENAMED.get(names[i], names[i])) for raw, i in category_to_class_59().items()}


def _names_59() -> tuple[str, ...]:
    return published_vocabulary("pascal-context-59").classes


def _ids(vocabulary: Vocabulary, raw_to_class: Mapping[int, int], raw_ignore: tuple[int, ...], form: str) -> LabelIds:
    return LabelIds(vocabulary=vocabulary, raw_to_class=raw_to_class, raw_ignore=raw_ignore, label_form=form)
