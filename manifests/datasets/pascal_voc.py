"""Pascal VOC 2012 segmentation: its 20 objects (VOC-20), or with the background (VOC-20b, VOC-21)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..pairing import IMAGE_SUFFIXES, files_by_stem, read_list
from ..vocabulary import published_vocabulary
from .archive import Archive, Release, existing_folder, existing_list

NUM_OBJECTS = 20
BACKGROUND, VOID = 0, 255
"""Ids in label pictures (palette PNGs): 0 is background, 1..20 the objects, 255 the border around them."""

DEVKITS = ("VOCdevkit/VOC2012", "VOC2012", ".")
SOURCE = (
    "unpack VOCtrainval_11-May-2012.tar (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/) into --root: it brings "
    "VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets"
)
AUGMENTED_SOURCE = (
    "SegmentationClassAug.zip and its list train_aug.txt (10582 names) are no part of VOC's own archive: put them into "
    "VOCdevkit/VOC2012 and VOCdevkit/VOC2012/ImageSets/Segmentation"
)
RELEASES = {
    "val": Release(title="Pascal VOC 2012, val", counts=(1449,), source=SOURCE),
    "train": Release(title="Pascal VOC 2012, train", counts=(1464,), source=SOURCE),
    "trainval": Release(title="Pascal VOC 2012, trainval", counts=(2913,), source=SOURCE),
    "train_aug": Release(title="Pascal VOC 2012, train_aug", counts=(10582,), source=AUGMENTED_SOURCE),
}
LISTS = {"train_aug": ("train_aug", "trainaug")}  # names in use of a split's list file


def voc_20_ids() -> LabelIds:
    """Objects 1..20 are classes 0..19; background and border are ignored."""
    return LabelIds(
        vocabulary=published_vocabulary("pascal-voc-20"),
        raw_to_class={index + 1: index for index in range(NUM_OBJECTS)},
        raw_ignore=(BACKGROUND, VOID),
    )


def voc_20b_ids() -> LabelIds:
    """Objects as in VOC-20, and background as class 20; the border is ignored.

    The prompts are the 20 objects and 39 more names of Pascal Context: words for what background may be. A prediction
    of any of them (class 20 and above) counts as background, so 21 classes are scored.
    """
    return LabelIds(
        vocabulary=published_vocabulary("pascal-voc-20b"),
        raw_to_class={BACKGROUND: NUM_OBJECTS} | {index + 1: index for index in range(NUM_OBJECTS)},
        raw_ignore=(VOID,),
    )


def voc_21_ids() -> LabelIds:
    """Ids as in the files: background, prompted as such, is class 0, and objects are 1..20; the border is ignored."""
    return LabelIds(
        vocabulary=published_vocabulary("pascal-voc-21"),
        raw_to_class={raw: raw for raw in range(BACKGROUND, NUM_OBJECTS + 1)},
        raw_ignore=(VOID,),
    )


def find_voc(root: Path, split: str, *, ids: Callable[[], LabelIds], listed_in: Path | None = None) -> Archive:
    """A split of VOC 2012 below `root`, by its list in ImageSets/Segmentation, or by `listed_in` instead."""
    release = RELEASES[split]
    images = existing_folder(root, [f"{kit}/JPEGImages" for kit in DEVKITS], "photographs", release)
    kit = images.parent
    folders = ["SegmentationClass"] * (split != "train_aug") + ["SegmentationClassAug"]
    labels = existing_folder(kit, folders, "label pictures", release)
    lists = kit / "ImageSets" / "Segmentation"
    listed_in = listed_in or existing_list([lists / f"{name}.txt" for name in LISTS.get(split, (split,))], release)
    return Archive(
        release=release,
        ids=ids(),
        images=files_by_stem(images.resolve(), IMAGE_SUFFIXES, "photographs"),
        labels=files_by_stem(labels.resolve(), (".png",), "label pictures"),
        listed=list_names(listed_in),
        listed_in=listed_in,
    )


FINDERS = {
    "pascal-voc-20": partial(find_voc, ids=voc_20_ids),
    "pascal-voc-20b": partial(find_voc, ids=voc_20b_ids),
    "pascal-voc-21": partial(find_voc, ids=voc_21_ids),
}


def list_names(path: Path) -> tuple[str, ...]:
    """The names in a list of VOC's form; lists of the augmented split often give the two files of a sample instead.

    Raises ManifestError for a line whose files have different names, and for repeats.
    """
    names: dict[str, str] = {}
    for line in read_list(path):
        stems = {Path(word).stem if "/" in word else word for word in line.split()}
        name = min(stems)
        if len(stems) > 1 or name in names:
            got = f"{line!r} after {names[name]!r}" if name in names else repr(line)
            expected = "one name, or the two files of one sample, once per line"
            raise ManifestError.mismatch(path, expected, got, hint="take the list out of the archive again")
        names[name] = line
    return tuple(names)
