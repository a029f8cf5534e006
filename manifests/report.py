"""What `physseg manifest` says at the end: how many samples, what is wrong by name, which classes occur."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..common.text import between, counted, format_bytes, preview
from .checking import REPAIRS, Checked, Trial, shifted_ids
from .datasets.published import Found
from .manifest import Manifest

MAX_LISTED = 50  # quarantined samples listed per reason; the manifest's `problem` column has them all
PREPROCESS = "preprocess {path} {stem}.zarr"
EVALUATE = "evaluate RUN {path}"


def summary_lines(
    checked: Checked, path: Path | str | None, *, verbose: bool = False, next_step: str = PREPROCESS
) -> Iterator[str]:
    """The summary, line by line; `verbose` adds the share of every class. `path` is None where nothing was written."""
    manifest = checked.manifest
    total = int(checked.class_pixels.sum()) + checked.ignored_pixels
    quarantined = manifest.quarantined
    classes = manifest.vocabulary.class_names
    pixels = checked.class_pixels[: len(classes)]  # no label holds a folded class
    absent = [name for name, count in zip(classes, pixels, strict=True) if not count]
    splits = sorted(set(manifest.table.each("split")) - {""})
    yield f"data set     {manifest.dataset}" + (f", split {', '.join(splits)}" if splits else "")
    yield f"root         {manifest.root}"
    yield f"samples      {len(manifest)}: {len(manifest) - len(quarantined)} usable, {len(quarantined)} quarantined"
    notes = Counter(note.split(": ")[0] for notes in manifest.table.each("note") for note in notes.split("; ") if note)
    for note, count in sorted(notes.items()):
        yield f"note         {count} x {note}"
    ids = sorted((index, raw) for raw, index in manifest.raw_to_class.items())
    ends = [f"{raw} {classes[index]}" for index, raw in dict.fromkeys((ids[0], ids[-1]))]
    yield f"label ids    {' ... '.join(ends)}"
    yield (
        f"classes      {len(classes) - len(absent)} of {len(classes)} occur; "
        f"{checked.ignored_pixels / max(total, 1):.1%} of the pixels are unlabelled"
    )
    if doubt := shifted_ids(manifest, checked.raw_ids):
        yield f"WARNING      {doubt}"
    if absent:
        yield f"absent       {preview(sorted(absent), 12)}"
    yield from _prompt_lines(manifest)
    if verbose:
        yield from _class_table(checked, total)
    yield from _quarantine_lines(checked)
    if path is not None:
        yield f"written      {path} ({sum(map(len, manifest.chunks())) / 1024:.0f} KB)"
        step = PREPROCESS if any("train" in split for split in splits) else next_step
        yield "next         physseg " + step.format(path=path, stem=str(path).removesuffix(".parquet"))


def trial_lines(found: Found, *, check: bool) -> Iterator[str]:
    """What a dry run says: what would be read, how long that takes, and what was wrong with the few that were read."""
    trial, name = found.checked, found.checked.manifest.dataset
    assert isinstance(trial, Trial)
    tried, usable = len(trial.manifest), len(trial.manifest.usable)
    yield f"dry run      of {name}: nothing is written"
    yield f"root         {trial.manifest.root}"
    yield f"reads        {trial.num_samples:,} samples, about {format_bytes(trial.num_bytes)} in two files each"
    yield f"tried        {tried} of them, evenly spread: {usable} usable, {tried - usable} quarantined"
    yield from _quarantine_lines(trial)
    yield from (f"incomplete   {fault}" for fault in found.faults if check)
    processes = counted(trial.workers, "process")
    yield f"time         {trial.sample_seconds * 1e3:.1f} ms a sample; {between(*trial.wall_seconds)} in {processes}"


def archive_lines(found: Found) -> Iterator[str]:
    """What `--check` says of the archive: complete, or what is missing and where one gets it."""
    num_samples = len(found.checked.manifest)
    num_usable = num_samples - len(found.checked.manifest.quarantined)
    if not found.faults:
        every = "every id known" if num_usable == num_samples else f"{num_usable} of them usable, see above"
        yield f"checked      {found.release.title}: {num_samples} samples, {every}"
    for fault in found.faults:
        yield f"incomplete   {fault}"
    if found.faults:
        yield f"get it       {found.release.source}"


def _prompt_lines(manifest: Manifest) -> Iterator[str]:
    """What is not plain about the prompts: words that count as background, and classes that read the same."""
    vocabulary = manifest.vocabulary
    if vocabulary.fold_from is not None:
        words, total = vocabulary.prompt_names[vocabulary.fold_from :], vocabulary.num_classes
        yield f"background   {len(words)} of {total} prompts count as one class: {preview(sorted(words))}"
    shared = vocabulary.shared_prompts
    if shared:
        named = "; ".join(f"{name} {'/'.join(map(str, ids))}" for name, ids in shared.items())
        count = sum(map(len, shared.values()))
        yield f"prompts      {count} classes in {len(shared)} groups share their first synonym: {named}"


def _quarantine_lines(checked: Checked) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for sample in checked.manifest.quarantined:
        reason = sample.problem.split(":")[0]
        by_reason.setdefault(reason, []).append(f"{sample.sample_id}: {sample.problem.removeprefix(f'{reason}: ')}")
    for reason, problems in sorted(by_reason.items()):
        yield f"quarantined  {len(problems)} x {reason}; repair: {REPAIRS[reason]}"
        yield from (f"             - {problem}" for problem in problems[:MAX_LISTED])
        if len(problems) > MAX_LISTED:
            yield f"             and {len(problems) - MAX_LISTED} more, named in the manifest's `problem` column"


def _class_table(checked: Checked, total: int) -> Iterator[str]:
    names = checked.manifest.vocabulary.class_names
    width = max(map(len, names))
    for index, (name, count) in enumerate(zip(names, checked.class_pixels[: len(names)], strict=True)):
        yield f"             {index:>5} {name:<{width}} {count / max(total, 1):>8.3%}"
