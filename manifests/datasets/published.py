"""From the folder of a data set to its checked manifest: what `physseg manifest NAME` calls."""

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...common.plugins import find
from ...common.text import preview
from ..checking import DEFAULT_CHECKS, Checked, CheckSettings, check_samples, try_samples
from ..errors import ManifestError
from ..journal import Journal
from ..labels.ids import LabelIds
from ..pairing import IMAGE_SUFFIXES, Pair, read_list
from .archive import Archive, Release
from .interface import Dataset, load_dataset

PAINTING = ("stuff_json", "instances_json", "write_labels")
"""Options of data sets whose labels are painted first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A manifest, and what the archive lacks."""

    checked: Checked
    release: Release
    faults: list[str]
    """What is missing, one line each."""


def benchmark(
    name: str,
    /,
    *,
    root: Path | None = None,
    split: str | None = None,
    listed: Path | None = None,
    check: bool = False,
    keep: bool = True,
    settings: CheckSettings = DEFAULT_CHECKS,
    journal: Journal | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Found:
    """The manifest of a data set's split; the arguments are the options of `physseg manifest NAME`.

    Args:
        root: Folder of the data set. Only those that take folders by options do without.
        split: Its name; None for the one that is evaluated.
        listed: File of sample names. It selects samples; then the published number does not count.
        check: Collect what is missing in `faults` and go on with the rest. Otherwise a wrong number is a warning.
        keep: Whether the manifest is used afterwards. Otherwise pictures painted from annotation files need no folder.
        settings: How strict the checks are.
        journal: Where samples that are checked are kept until the manifest is written.
        dry_run: Check a few samples only, for a `Trial`. Nothing is painted.
        options: What this data set's finder takes besides.

    Raises:
        ManifestError: The archive is not there, or a name has no files and `check` is not set. Or labels would be
            painted in a dry run.
        PluginError: Nobody offers the data set, or what another package offers fails.
    """
    if dry_run and (options.get("form") == "json" or any(options.get(key) for key in PAINTING)):
        hint = "run it without --dry-run, or name pictures that are painted already with --labels"
        raise ManifestError("--dry-run paints no labels from annotation files", hint=hint)
    offer = find("datasets", name)
    dataset = load_dataset(offer)
    known = getattr(dataset, "options", ())
    with tempfile.TemporaryDirectory(prefix="physseg.") as folder:
        scratch = None if keep or dry_run else Path(folder) / "labels"
        ours = {"listed_in": listed, "workers": settings.workers, "scratch": scratch}
        split = chosen_split(dataset, split)
        with offer.blamed(hint=f"is {root} its folder? {dataset.description} `physseg --debug` shows more"):
            archive = look(dataset, root, split, **options, **{key: ours[key] for key in known if key in ours})
        if listed and "listed_in" not in known:
            archive = replace(archive, listed=read_list(listed), listed_in=listed)
        faults = _faults(archive, check=check, selected=listed is not None)
        checked = (try_samples if dry_run else partial(check_samples, journal=journal))(
            archive.pairs(),
            archive.ids,
            dataset=archive.dataset or name,
            split=split,
            settings=settings,
            cross_check=archive.cross_check,
        )
    if archive.refuse and not dry_run:
        archive.refuse(checked)
    return Found(checked=checked, release=archive.release, faults=faults)


def chosen_split(dataset: Dataset, split: str | None) -> str:
    """A split's name, or that of the default. Raises ManifestError, which names the splits that there are."""
    splits = getattr(dataset, "splits", ())
    if splits and split and split not in splits:
        raise ManifestError.mismatch(dataset.name, f"--split {' or '.join(splits)}", repr(split))
    return split or next(iter(splits), "")


def look(dataset: Dataset, root: Path | None, split: str, **options: Any) -> Archive:
    """What a data set finds in a folder. Raises ManifestError where that is nothing, and whatever it raises itself."""
    folder: Any = root and root.expanduser().resolve()
    found = dataset.find(folder, split, **options)
    if isinstance(found, Archive):
        return found
    rows, meaning = found
    ids = meaning if isinstance(meaning, LabelIds) else LabelIds.named(dataset.name, meaning)
    title = f"{dataset.name}, {split}" if split else dataset.name
    pairs = [Pair(sample_id=name, image=_located(image), label=_located(label)) for name, image, label in rows]
    if not pairs:
        got = "none" if folder.is_dir() else "no such folder"
        raise ManifestError.mismatch(folder, f"samples of {title}", got, hint=dataset.description)
    counts = Counter(pair.sample_id for pair in pairs)
    if wrong := [repr(name) for name, count in counts.items() if count > 1 or not isinstance(name, str)]:
        raise ManifestError.mismatch(title, "ids of samples that are text, and each once", preview(wrong))
    return Archive.of(pairs, ids, Release(title=title, counts=(), source=dataset.description), check_files=True)


def _located(path: str | Path) -> Path:
    """A file by its folder's real path: the root of the manifest is that of all folders."""
    return Path(path).parent.resolve() / Path(path).name


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
