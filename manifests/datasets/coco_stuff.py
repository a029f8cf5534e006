"""COCO-Stuff (train + test): 171 classes, from the published `stuffthingmaps` pictures."""

from pathlib import Path

from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..vocabulary import VOCABULARIES, Vocabulary, read_classes
from .archive import Release

DATASET = "coco-stuff"
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
    "(https://github.com/nightrome/cocostuff) into --root"
)
RELEASES = {
    split: Release(title=f"COCO-Stuff, {split}", counts=(count,), source=SOURCE.format(split=split))
    for split, count in (("train2017", 118287), ("val2017", 5000))
}


def coco_stuff_ids() -> LabelIds:
    """What the numbers in `stuffthingmaps` mean: category id - 1, 0..181, and 255 for unlabelled pixels."""
    return LabelIds(
        vocabulary=coco_stuff_vocabulary(),
        raw_to_class={category - 1: index for category, index in CATEGORY_TO_CLASS.items()},
        raw_ignore=(UNLABELLED,),
    )


def coco_stuff_vocabulary() -> Vocabulary:
    """The 171 classes by ascending category id: 80 things (0 person .. 79 toothbrush), 91 stuff (.. 170 wood)."""
    return Vocabulary(name="coco-stuff-171", classes=read_classes(VOCABULARIES / "coco_stuff_171.txt"))


def find_images(root: Path, split: str) -> Path:
    """The folder with a split's photographs, in either of the two layouts in use."""
    return _find(root, split, IMAGE_FOLDERS, "photographs")


def find_labels(root: Path, split: str) -> Path:
    """The folder with a split's label pictures, under one of the names in use."""
    return _find(root, split, LABEL_FOLDERS, "label pictures")


def _find(root: Path, split: str, templates: tuple[str, ...], what: str) -> Path:
    if not root.is_dir():
        raise ManifestError.mismatch(root, "the data set's folder", "nothing there", hint="check --root")
    candidates = [root / template.format(split=split) for template in templates]
    if found := next(filter(Path.is_dir, candidates), None):
        return found
    source = f"{RELEASES[split].source}; or " if split in RELEASES else ""
    raise ManifestError(
        f"{what} of {split}: expected one of " + ", ".join(map(str, candidates)) + "; none exists",
        hint=f"{source}name the folders with --images and --labels",
    )
