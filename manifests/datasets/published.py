"""From the folder of a published benchmark to its checked manifest: what `physseg manifest NAME` calls."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...common.text import preview
from ..checking import DEFAULT_CHECKS, Checked, CheckSettings, check_samples
from ..errors import ManifestError
from ..pairing import IMAGE_SUFFIXES, pair_files
from .ade20k import JSON_DISAGREES, find_ade20k_150, find_ade20k_847
from .annotations.coco_json import paint_labels
from .archive import Archive, Release, folder_of, miscounted
from .coco_stuff import IMAGE_FOLDERS, LABEL_FOLDERS, OTHER_SPLIT, coco_stuff_ids, find_folder
from .coco_stuff import RELEASES as COCO_RELEASES
from .folder import check_root
from .pascal_context import find_context
from .pascal_voc import find_voc, voc_20_ids, voc_20b_ids, voc_21_ids

FINDERS: Mapping[str, Callable[..., Archive]] = {
    "ade20k-150": find_ade20k_150,
    "ade20k-847": find_ade20k_847,
    "pascal-voc-20": partial(find_voc, ids=voc_20_ids),
    "pascal-voc-20b": partial(find_voc, ids=voc_20b_ids),
    "pascal-voc-21": partial(find_voc, ids=voc_21_ids),
    "pascal-context-59": partial(find_context, num_classes=59),
    "pascal-context-60": partial(find_context, num_classes=60),
    "pascal-context-459": partial(find_context, num_classes=459),
}
TEST_SPLITS = {name: "validation" if name.startswith("ade20k") else "val" for name in FINDERS}
"""Benchmark -> the split it is evaluated on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A manifest, and what the archive lacks."""

    checked: Checked
    release: Release
    faults: list[str]
    """What is missing, one line each."""


def benchmark(
    name: str,
    *,
    root: Path,
    split: str | None = None,
    form: str | None = None,
    labels: Path | None = None,
    write_labels: Path | None = None,
    listed: Path | None = None,
    check: bool = False,
    keep: bool = True,
    settings: CheckSettings = DEFAULT_CHECKS,
) -> Found:
    """The manifest of a benchmark's split; most arguments are the options of `physseg manifest NAME`.

    Args:
        split: Its name; None for the one that is evaluated.
        listed: File of sample names. It selects samples; then the published number does not count.
        check: Collect what is missing in `faults` and go on with the rest. Otherwise a wrong number is a warning.
        keep: Whether the manifest is used afterwards. Otherwise pictures painted from annotation files need no folder.

    Raises:
        ManifestError: The archive is not there, or a name has no files and `check` is not set.
    """
    find = FINDERS[name]
    with tempfile.TemporaryDirectory(prefix="physseg.") as scratch:
        if name.startswith("pascal-context"):
            write_labels = write_labels or (None if keep else Path(scratch) / "labels")
            find = partial(find, form=form, labels=labels, write_labels=write_labels, workers=settings.workers)
        elif form or labels or write_labels:
            raise ManifestError(f"{name}: --form, --labels and --write-labels are for Pascal Context only")
        split = split or TEST_SPLITS[name]
        archive = find(root, split, listed_in=listed)
        faults = _faults(archive, check=check, selected=listed is not None)
        checked = check_samples(
            archive.pairs(), archive.ids, dataset=name, split=split, settings=settings, cross_check=archive.cross_check
        )
    _refuse_other_ids(checked, archive)
    return Found(checked=checked, release=archive.release, faults=faults)


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
    name: str = "coco-stuff",
    keep: bool = True,
    settings: CheckSettings = DEFAULT_CHECKS,
) -> Found:
    """A COCO-Stuff manifest from label pictures, or from annotation files, which are painted first.

    The arguments are the options of `physseg manifest coco-stuff`. Explicit folders win over those below `root`. Only
    train2017 and val2017 have a published number of samples. `keep` is as in `benchmark`.
    """
    annotations = list(filter(None, (stuff_json, instances_json)))
    if annotations and labels is not None:
        raise ManifestError("expected label pictures (--labels) or annotation files, got both")
    with tempfile.TemporaryDirectory(prefix="physseg.") as scratch:
        if annotations and not keep:
            write_labels = write_labels or Path(scratch) / "labels"
        if bool(annotations) != (write_labels is not None):
            expected = "annotation files together with a new folder for the label pictures"
            hint = "--stuff-json FILE, --instances-json FILE or both, and --write-labels DIR"
            raise ManifestError(f"expected {expected}, got only one of them", hint=hint)
        check_root(root, images, labels or write_labels)
        images = images or find_folder(root, split, IMAGE_FOLDERS, "photographs")
        if write_labels is not None:
            pairs = paint_labels(annotations, images, write_labels, listed=listed, workers=settings.workers)
        else:
            labels = labels or find_folder(root, split, LABEL_FOLDERS, "label pictures")
            pairs = pair_files(images, labels, listed=listed)
        checked = check_samples(pairs, coco_stuff_ids(), dataset=name, split=split or "", settings=settings)
    release = COCO_RELEASES.get(split or "", OTHER_SPLIT)
    faults = [] if listed else miscounted(release, checked.manifest.table.values("sample_id"))
    return Found(checked=checked, release=release, faults=faults)


def _faults(archive: Archive, *, check: bool, selected: bool) -> list[str]:
    """What the archive lacks. Without `check` a missing file is an error and a wrong number a warning."""
    count, missing = [] if selected else archive.miscounted(), list(archive.missing())
    if missing and not (check and archive.pairs()):
        hint = f"complete the archive: {archive.release.source}; or choose samples with --list FILE"
        if selected and any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in archive.names):
            hint = "list names without their extension"
        raise ManifestError("; ".join(missing), hint=hint)
    if count and not check:
        logging.getLogger(__name__).warning("warning: %s (--check says more)", count[0])
    return count + missing


def _refuse_other_ids(checked: Checked, archive: Archive) -> None:
    """A scene or two whose JSON file disagrees are noted in their rows; where most do, the ids mean other things."""
    doubtful = [sample.sample_id for sample in checked.manifest.samples if JSON_DISAGREES in sample.note]
    if 2 * len(doubtful) > len(checked.manifest):
        scenes = f"{folder_of(archive.labels)}: {len(doubtful)} of {len(checked.manifest)} scenes"
        where = f"{scenes} have {JSON_DISAGREES} ({preview(sorted(doubtful))})"
        got = "another release or converted labels"
        raise ManifestError.mismatch(where, archive.release.title, got, hint=archive.release.source)
