"""A data set of one's own: a folder of images, a folder of label pictures, and a file with one class per line."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..vocabulary import Vocabulary, read_classes


def folder_ids(classes: Path, *, ignore: Sequence[int] = (), first_id: int = 0, name: str | None = None) -> LabelIds:
    """What the numbers in the label pictures mean: `first_id` is the class in line 1, the next id that in line 2, ...

    `ignore` lists the ids that mean "no class"; none given: 255, or 65535 where more than 255 classes need 16 bits.
    Raises ManifestError when an id is both a class and ignored.
    """
    vocabulary = Vocabulary(name=name or classes.stem, classes=read_classes(classes))
    last_id = first_id + vocabulary.num_classes - 1
    raw_ignore = tuple(ignore) or ((255,) if last_id < 255 else (65535,))
    for raw in raw_ignore:
        if first_id <= raw <= last_id:
            line = raw - first_id + 1
            raise ManifestError(
                f"{classes}, line {line}: id {raw} is the class {vocabulary.classes[line - 1]!r}, "
                f"and --ignore {raw} ignores it",
                hint="ignore another id, or take the class out of the file: a background class in line 1 goes with "
                "`--first-id 1 --ignore 0`",
                path=str(classes),
            )
    raw_to_class = {first_id + index: index for index in range(vocabulary.num_classes)}
    return LabelIds(vocabulary=vocabulary, raw_to_class=raw_to_class, raw_ignore=raw_ignore)


def find_folders(root: Path, split: str | None) -> tuple[Path, Path]:
    """The folders `images/SPLIT` and `labels/SPLIT` below `root`; plain `images` and `labels` without a split."""
    if not root.is_dir():
        raise ManifestError(
            f"{root}: expected the data set's folder, got nothing there", hint="check --root", path=str(root)
        )
    images, labels = (root / kind / split if split else root / kind for kind in ("images", "labels"))
    for folder in (images, labels):
        if not folder.is_dir():
            hint = "name the folders with --images and --labels"
            if folder.parent != root and folder.parent.is_dir():
                splits = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
                hint = (
                    f"splits there: {', '.join(splits)}" if splits else "leave --split out: there are no split folders"
                )
            raise ManifestError(f"{folder}: expected a folder, got none there", hint=hint, path=str(folder))
    return images, labels
