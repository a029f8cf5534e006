"""COCO-Stuff (train + test): 171 classes, from the published `stuffthingmaps` pictures."""

from pathlib import Path

from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..vocabulary import Vocabulary, published_vocabulary
from .archive import Release, existing_folder
from .folder import no_folders

UNLABELLED = 255
NUM_CATEGORIES = 182  # things 1..91, stuff 92..182
ABSENT_CATEGORIES = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Thing categories without a pixel in any mask: street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door,
blender, hair brush. They are not among the 171; a label picture that holds one is not a COCO-Stuff label."""
CATEGORY_TO_CLASS = {
    category: index
    for index, category in enumerate(c for c in range(1, NUM_CATEGORIES + 1) if c not in ABSENT_CATEGORIES)
}

IMAGE_FOLDERS = ("{split}", "images/{split}")
LABEL_FOLDERS = ("stuffthingmaps/{split}", "annotations/{split}", "stuffthingmaps_trainval2017/{split}")
SOURCE = (
    "unpack http://images.cocodataset.org/zips/{split}.zip and stuffthingmaps_trainval2017.zip "
    "(https://github.com/nightrome/cocostuff) into --root; or name the folders with --images and --labels"
)
RELEASES = {
    split: Release(title=f"COCO-Stuff, {split}", counts=(count,), source=SOURCE.format(split=split))
    for split, count in (("train2017", 118287), ("val2017", 5000))
}
OTHER_SPLIT = Release(
    title=f"COCO-Stuff, not counted (--split {' or '.join(RELEASES)})",
    counts=(),
    source="name the folders with --images and --labels",
)


def coco_stuff_ids() -> LabelIds:
    """What the numbers in `stuffthingmaps` mean: category id - 1, 0..181, and 255 for unlabelled pixels."""
    return LabelIds(
        vocabulary=coco_stuff_vocabulary(),
        raw_to_class={category - 1: index for category, index in CATEGORY_TO_CLASS.items()},
        raw_ignore=(UNLABELLED,),
    )


def coco_stuff_vocabulary() -> Vocabulary:
    """The 171 classes by ascending category id: 80 things (0 person .. 79 toothbrush), 91 stuff (.. 170 wood)."""
    return published_vocabulary("coco-stuff-171")


def find_folder(root: Path | None, split: str, templates: tuple[str, ...], what: str) -> Path:
    """The folder of a split's photographs or label pictures, under one of the names in use."""
    if root is None:
        raise no_folders("--root DIR with --split train2017 or val2017")
    if not split:
        hint = "`physseg manifest coco-stuff` with --split train2017 or --split val2017"
        raise ManifestError("--root was given without --split", hint=hint)
    places = [template.format(split=split) for template in templates]
    return existing_folder(root, places, what, RELEASES.get(split, OTHER_SPLIT))
