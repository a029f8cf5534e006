"""What `physseg manifest` says at the end: how many samples, what is wrong by name, which classes occur."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .checking import REPAIRS, Checked
from .pairing import some

MAX_LISTED = 50  # quarantined samples listed per reason; the manifest's `problem` column has them all


def summary_lines(checked: Checked, path: Path, *, verbose: bool = False) -> Iterator[str]:
    """The summary, line by line; `verbose` adds the share of every class."""
    manifest, pixels = checked.manifest, checked.class_pixels
    total = int(pixels.sum()) + checked.ignored_pixels
    quarantined = manifest.quarantined
    classes = manifest.vocabulary.prompt_names
    absent = [name for name, count in zip(classes, pixels, strict=True) if not count]
    splits = sorted(set(manifest.table.column("split").to_pylist()) - {""})
    yield f"data set     {manifest.dataset}" + (f", split {', '.join(splits)}" if splits else "")
    yield f"root         {manifest.root}"
    yield f"samples      {len(manifest)}: {len(manifest) - len(quarantined)} usable, {len(quarantined)} quarantined"
    notes = Counter(note for notes in manifest.table.column("note").to_pylist() for note in notes.split("; ") if note)
    for note, count in sorted(notes.items()):
        yield f"note         {count} x {note}"
    yield (
        f"classes      {len(classes) - len(absent)} of {len(classes)} occur; "
        f"{checked.ignored_pixels / max(total, 1):.1%} of the pixels are unlabelled"
    )
    if absent:
        yield f"absent       {some(absent, 12)}"
    if verbose:
        yield from _class_table(checked, total)
    yield from _quarantine_lines(checked)
    yield f"written      {path} ({path.stat().st_size / 1024:.0f} KB)"
    yield f"next         physseg preprocess {path} {path.with_suffix('.zarr')}"


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
    names = checked.manifest.vocabulary.prompt_names
    width = max(map(len, names))
    for index, (name, count) in enumerate(zip(names, checked.class_pixels, strict=True)):
        yield f"             {index:>5} {name:<{width}} {count / max(total, 1):>8.3%}"
