"""COCO-Stuff's files: label pictures below one of the folder names in use, or painted from annotation files."""

from pathlib import Path

from ..errors import ManifestError
from ..pairing import pair_files
from .annotations.coco_json import paint_labels
from .archive import Archive
from .coco_stuff import IMAGE_FOLDERS, LABEL_FOLDERS, OTHER_SPLIT, RELEASES, coco_stuff_ids, find_folder
from .folder import check_root


def find_coco_stuff(
    root: Path | None,
    split: str,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    stuff_json: Path | None = None,
    instances_json: Path | None = None,
    write_labels: Path | None = None,
    name: str | None = None,
    listed_in: Path | None = None,
    workers: int = 0,
    scratch: Path | None = None,
) -> Archive:
    """A split from label pictures, or from annotation files, which are painted first.

    The arguments are the options of `physseg manifest coco-stuff`. Explicit folders win over those below `root`. Only
    train2017 and val2017 have a published number of samples. `scratch` is the folder of painted labels that nobody
    wants to keep.
    """
    annotations = list(filter(None, (stuff_json, instances_json)))
    if annotations and labels is not None:
        raise ManifestError("expected label pictures (--labels) or annotation files, got both")
    if annotations:
        write_labels = write_labels or scratch
    if bool(annotations) != (write_labels is not None):
        expected = "annotation files together with a new folder for the label pictures"
        hint = "--stuff-json FILE, --instances-json FILE or both, and --write-labels DIR"
        raise ManifestError(f"expected {expected}, got only one of them", hint=hint)
    check_root(root, images, labels or write_labels)
    images = images or find_folder(root, split, IMAGE_FOLDERS, "photographs")
    if write_labels is not None:
        pairs = paint_labels(annotations, images, write_labels, listed=listed_in, workers=workers)
    else:
        labels = labels or find_folder(root, split, LABEL_FOLDERS, "label pictures")
        pairs = pair_files(images, labels, listed=listed_in)
    return Archive.of(pairs, coco_stuff_ids(), RELEASES.get(split, OTHER_SPLIT), dataset=name or "coco-stuff")


FINDERS = {"coco-stuff": find_coco_stuff}
