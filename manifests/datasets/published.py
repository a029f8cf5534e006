"""From the folder of a published benchmark to its checked manifest: what `physseg manifest NAME` calls."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import build
from ..checking import Checked, CheckSettings, check_samples
from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..pairing import IMAGE_SUFFIXES, read_list, some
from .ade20k import JSON_DISAGREES, find_ade20k_150, find_ade20k_847
from .archive import Archive, Release, miscounted
from .coco_stuff import RELEASES as COCO_RELEASES
from .pascal_context import find_context
from .pascal_voc import find_voc, voc_20_ids, voc_20b_ids

ADE: Mapping[str, Callable[[Path, str], Archive]] = {"ade20k-150": find_ade20k_150, "ade20k-847": find_ade20k_847}
VOC: Mapping[str, Callable[[], LabelIds]] = {"pascal-voc-20": voc_20_ids, "pascal-voc-20b": voc_20b_ids}
CONTEXT = {"pascal-context-59": 59, "pascal-context-459": 459}
TEST_SPLITS = dict.fromkeys(ADE, "validation") | dict.fromkeys((*VOC, *CONTEXT), "val")
"""Benchmark -> the split it is evaluated on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A manifest with what the archive lacks, one line each; `source` says where one gets that."""

    checked: Checked
    title: str  # of the release
    faults: tuple[str, ...]
    source: str


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
    settings: CheckSettings | None = None,
) -> Found:
    """The manifest of a benchmark's split, by default the one it is evaluated on.

    `listed` selects samples; then the published number does not count. `form`, `labels` and `write_labels` are for
    Pascal Context, see `find_context`. `check` collects what is missing in `faults` and goes on with the rest. Without
    it ManifestError is raised for a name without files, and a wrong number is a warning. `keep` false: the manifest is
    looked at, not used, so that pictures painted from annotation files need no folder.
    """
    settings = settings or CheckSettings()
    split = split or TEST_SPLITS[name]
    if name not in CONTEXT:
        if form or labels or write_labels:
            raise ManifestError(f"{name}: --form, --labels and --write-labels are for Pascal Context only")
        if name in VOC:
            archive = find_voc(root, split, dataset=name, ids=VOC[name](), listed_in=listed)
        else:
            archive = ADE[name](root, split)
            if listed is not None:
                archive = replace(archive, listed=read_list(listed), listed_in=listed)
        return _found(archive, check, settings, selected=listed is not None)
    with tempfile.TemporaryDirectory(prefix="physseg.") as scratch:
        archive = find_context(
            root,
            split,
            num_classes=CONTEXT[name],
            form=form,
            labels=labels,
            write_labels=write_labels or (None if keep else Path(scratch) / "labels"),
            listed_in=listed,
            workers=settings.workers,
        )
        return _found(archive, check, settings, selected=listed is not None)


def coco_stuff(*, keep: bool = True, write_labels: Path | None = None, **options: Any) -> Found:
    """`build.coco_stuff` with these options, and whether its split has as many samples as were published.

    A split of another name has no published number. `keep` false: as in `benchmark`.
    """
    from_json = options.get("stuff_json") or options.get("instances_json")
    with tempfile.TemporaryDirectory(prefix="physseg.") as scratch:
        if from_json and not keep:
            write_labels = write_labels or Path(scratch) / "labels"
        checked = build.coco_stuff(write_labels=write_labels, **options)
    uncounted = Release(title=f"COCO-Stuff, not counted (--split {' or '.join(COCO_RELEASES)})", counts=(), source="")
    release = COCO_RELEASES.get(options.get("split") or "", uncounted)
    selected = options.get("listed") is not None
    line = "" if selected else miscounted(release, checked.manifest.table.values("sample_id"))
    return Found(checked=checked, title=release.title, faults=(line,) if line else (), source=release.source)


def _found(archive: Archive, check: bool, settings: CheckSettings, *, selected: bool) -> Found:
    missing, count = list(archive.missing()), "" if selected else archive.miscounted()
    pairs = archive.pairs()
    if missing and (not check or not pairs):
        hint = f"complete the archive: {archive.release.source}; or choose samples with --list FILE"
        if selected and any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in archive.names):
            hint = "list names without their extension"
        raise ManifestError("; ".join(missing), hint=hint)
    if count and not check:
        logging.getLogger(__name__).warning("warning: %s (--check says more)", count)
    checked = check_samples(
        pairs,
        archive.ids,
        dataset=archive.dataset,
        split=archive.split,
        settings=settings,
        second_opinion=archive.second_opinion,
    )
    _refuse_other_ids(checked, archive)
    faults = [*([count] if count else []), *missing]
    return Found(checked=checked, title=archive.release.title, faults=tuple(faults), source=archive.release.source)


def _refuse_other_ids(checked: Checked, archive: Archive) -> None:
    """A scene or two whose JSON file disagrees are noted in their rows; where most do, the ids mean other things."""
    doubtful = [sample.sample_id for sample in checked.manifest.samples if JSON_DISAGREES in sample.note]
    if 2 * len(doubtful) > len(checked.manifest):
        raise ManifestError(
            f"{archive.label_folder}: {len(doubtful)} of {len(checked.manifest)} scenes have {JSON_DISAGREES} "
            f"({some(doubtful)}): expected {archive.release.title}, got another release or converted labels",
            hint=archive.release.source,
        )
