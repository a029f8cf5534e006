"""One function per data set, from folders to a checked manifest: what the commands of `physseg manifest` call."""

from collections.abc import Sequence
from pathlib import Path

from .checking import Checked, CheckSettings, check_samples
from .datasets.coco_stuff import DATASET, coco_stuff_ids, find_images, find_labels
from .datasets.folder import find_folders, folder_ids
from .errors import ManifestError
from .pairing import pair_files


def coco_stuff(
    *,
    root: Path | None = None,
    split: str | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    stuff_json: Path | None = None,
    instances_json: Path | None = None,
    write_labels: Path | None = None,
    listed: Path | None = None,
    name: str = DATASET,
    settings: CheckSettings | None = None,
) -> Checked:
    """A COCO-Stuff manifest from label pictures (`labels`, or found below `root`) or from annotation files.

    The annotation files are painted into `write_labels` first. Explicit folders win over those below `root`.
    """
    settings = settings or CheckSettings()
    from_json = stuff_json is not None or instances_json is not None
    if from_json and labels is not None:
        raise ManifestError("expected label pictures (--labels) or annotation files, got both")
    if from_json != (write_labels is not None):
        raise ManifestError(
            "expected annotation files together with a new folder for the label pictures, got only one of them",
            hint="--stuff-json FILE, --instances-json FILE or both, and --write-labels DIR",
        )
    _check_root(root, images, labels or write_labels)
    images = images or find_images(*_root_and_split(root, split))
    if write_labels is not None:
        from .datasets.coco_json import paint_labels  # pycocotools is needed here only

        pairs = paint_labels(
            stuff=stuff_json,
            instances=instances_json,
            images=images,
            out=write_labels,
            listed=listed,
            workers=settings.workers,
        )
    else:
        pairs = pair_files(images, labels or find_labels(*_root_and_split(root, split)), listed=listed)
    return check_samples(pairs, coco_stuff_ids(), dataset=name, split=split or "", settings=settings)


def folder(
    *,
    classes: Path,
    root: Path | None = None,
    split: str | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    ignore: Sequence[int] = (),
    first_id: int = 0,
    listed: Path | None = None,
    name: str | None = None,
    settings: CheckSettings | None = None,
) -> Checked:
    """A manifest of a data set of one's own; `images` and `labels`, or both below `root`."""
    ids = folder_ids(classes, ignore=ignore, first_id=first_id)
    _check_root(root, images, labels)
    if images is None or labels is None:
        if root is None:
            raise _where("--root DIR")
        found_images, found_labels = find_folders(root, split)
        images, labels = images or found_images, labels or found_labels
    pairs = pair_files(images, labels, listed=listed)
    dataset = name or (root or images.parent).resolve().name or "folder"
    return check_samples(pairs, ids, dataset=dataset, split=split or "", settings=settings)


def _check_root(root: Path | None, images: Path | None, labels: Path | None) -> None:
    if root is not None and images is not None and labels is not None:
        raise ManifestError(
            "--root is not used beside explicit folders for both images and labels", hint="leave it out"
        )


def _root_and_split(root: Path | None, split: str | None) -> tuple[Path, str]:
    if root is None:
        raise _where("--root DIR with --split train2017 or val2017")
    if split is None:
        raise ManifestError("--root was given without --split", hint="e.g. --split train2017 or --split val2017")
    return root, split


def _where(root: str) -> ManifestError:
    return ManifestError(
        "expected the folders of images and labels, got neither", hint=f"{root}, or --images and --labels"
    )
