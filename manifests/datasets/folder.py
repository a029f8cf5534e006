"""A data set of one's own: a folder of images, a folder of label pictures, and a file with one class per line."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..checking import Checked
from ..errors import ManifestError
from ..labels.class_file import read_class_file
from ..labels.ids import LabelIds
from ..pairing import pair_files
from ..vocabulary import Vocabulary
from .archive import Archive, Release


def find_samples(
    root: Path | None,
    split: str,
    *,
    classes: Path | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    ignore: Sequence[int] | None = None,
    first_id: int = 0,
    name: str | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    listed_in: Path | None = None,
) -> Archive:
    """The samples of a data set of one's own; the arguments are the options of `physseg manifest folder`.

    Explicit folders win over those below `root`, and so does a class file over `classes.txt` there.
    """
    ids = folder_ids(classes or (root or Path()) / "classes.txt", ignore=ignore or (), first_id=first_id)
    check_root(root, images, labels)
    if images is None or labels is None:
        if root is None:
            raise no_folders("--root DIR")
        found_images, found_labels = find_folders(root, split)
        images, labels = images or found_images, labels or found_labels
    pairs = pair_files(images, labels, listed=listed_in, image_suffix=image_suffix, label_suffix=label_suffix)
    dataset = name or (root or images.parent).resolve().name or "folder"
    return Archive.of(
        pairs,
        ids,
        Release(title=dataset, counts=(), source="your own"),
        dataset=dataset,
        refuse=None if ignore or first_id else partial(_refuse_masks, labels),
    )


def _refuse_masks(labels: Path, checked: Checked) -> None:
    """Masks of 0 and 255: the id that means no class by default is the only one beside the first."""
    default = checked.manifest.raw_ignore[0]
    if checked.raw_ids == {0, default}:
        raise ManifestError(
            f"{labels}: ids are 0 and {default} only, and {default} means no class by default: all that is left is "
            f"{checked.manifest.vocabulary.prompt_names[0]!r}",
            hint=f"masks of a foreground? Make it 1: Image.fromarray((np.asarray(Image.open(IN)) > 0).astype(np.uint8))"
            f".save(OUT); where {default} is no class indeed, say --ignore {default}",
        )


FINDERS = {"folder": find_samples}


def check_root(root: Path | None, images: Path | None, labels: Path | None) -> None:
    """Raise ManifestError for a `root` that explicit folders leave without a use."""
    if root is not None and images is not None and labels is not None:
        unused = "--root is not used beside explicit folders for both images and labels"
        raise ManifestError(unused, hint="leave it out")


def no_folders(root: str) -> ManifestError:
    """The error of a command that names no folders; `root` is the option that would."""
    return ManifestError(
        "expected the folders of images and labels, got neither", hint=f"{root}, or --images and --labels"
    )


def folder_ids(classes: Path, *, ignore: Sequence[int] = (), first_id: int = 0, name: str | None = None) -> LabelIds:
    """What the numbers in the label pictures mean: `first_id` is the class in line 1, the next id that in line 2, ...

    `ignore` lists the ids that mean "no class"; none given: 255, or 65535 where more than 255 classes need 16 bits.
    Raises ManifestError when an id is both a class and ignored.
    """
    vocabulary = Vocabulary(name=name or classes.stem, classes=read_class_file(classes, first_id=first_id))
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
            )
    raw_to_class = {first_id + index: index for index in range(vocabulary.num_classes)}
    return LabelIds(vocabulary=vocabulary, raw_to_class=raw_to_class, raw_ignore=raw_ignore)


def find_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folders `images/SPLIT` and `labels/SPLIT` below `root`; `images` and `labels` without a split."""
    if not root.is_dir():
        raise ManifestError.mismatch(root, "the data set's folder", "nothing there", hint="check --root")
    images, labels = (root / kind / split if split else root / kind for kind in ("images", "labels"))
    for folder in (images, labels):
        if not folder.is_dir():
            hint = "name the folders with --images and --labels"
            if folder.parent != root and folder.parent.is_dir():
                splits = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
                no_splits = "leave --split out: there are no split folders"
                hint = f"splits there: {', '.join(splits)}" if splits else no_splits
            raise ManifestError.mismatch(folder, "a folder", "none there", hint=hint)
    return images, labels
