"""Plans and results in words, for the terminal."""

from collections.abc import Iterator

from ..cost.estimate import Estimate, estimate_job
from .run import Job, RunReport

SHOWN = 10
"""Quarantined samples that are named on the terminal; the others are in the store."""
UNITS = {"hours": 3600.0, "minutes": 60.0}
NO_ESTIMATE = "  estimate    none of a few images could be computed: the run will quarantine such"
BUSY_ENOUGH = 0.85
"""CPU seconds over wall seconds; a process with a core to itself and its files in memory has 0.97 and more."""
SCHEDULER_TASKS_PER_SECOND = 270
"""That a Dask scheduler manages at the least; benchmarks/cluster_simulation.py says where else limits are."""


def describe_job(
    job: Job,
    *,
    workers: int | None = None,
    measure: bool = False,
    in_one_process: bool = False,
    name: str | None = None,
) -> Iterator[str]:
    """What a run will do. With ``measure`` a few images are computed first, for time, bytes and memory.

    ``name``: what to call the store, if not by its place.
    """
    plan, schema, frame = job.todo, job.schema, job.schema.frame
    origin = "new store" if job.is_new else "existing store"
    yield f"{name or job.store}: {origin}, {plan.num_samples} samples in {plan.num_shards} shards"
    yield f"  vocabulary  {schema.vocabulary.name}, {schema.vocabulary.num_classes} classes"
    yield f"  frame       short edge {frame.short_edge} px, long edge <= {frame.max_long_edge}, canvas {frame.canvas}"
    yield f"  layers      {', '.join(schema.layers)}"
    for warning in job.warnings:
        yield f"  warning     {warning}"
    if job.part:
        yield f"  part        {job.part}: every {job.part.parts}. shard; `physseg verify` checks them all together"
    if not plan.tasks:
        yield f"  to do       nothing: every shard{' of this part' if job.part else ''} is committed"
        return
    yield f"  to do       {plan.samples_to_compute} samples in {len(plan.tasks)} shards"
    for reason, count in plan.reasons.most_common():
        yield f"              {count} shards: {reason}"
    if measure:
        estimate = estimate_job(job, workers=workers, in_one_process=in_one_process)
        yield from describe_estimate(estimate) if estimate else [NO_ESTIMATE]


def describe_estimate(estimate: Estimate) -> Iterator[str]:
    """What the run takes: time, bytes, memory, and what training will read."""
    at_once = "one process" if estimate.processes == 1 else f"{estimate.processes} processes at once"
    yield f"  estimate    from {estimate.images} images, computed here in {at_once}:"
    parts = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in estimate.parts.items())
    yield f"    time      {estimate.core_seconds / estimate.samples * 1e3:.1f} ms an image ({parts})"
    wall, cores = between(*estimate.wall_range), between(*(hours * 3600 for hours in estimate.core_hours), core=True)
    yield f"              {cores}; {wall} on {_workers(estimate.workers)}"
    if estimate.target_workers is not None:
        yield f"    deadline  {_deadline(estimate)}"
    yield f"    bytes     {human(estimate.store_bytes)} in {estimate.files:,} files"
    memory = estimate.memory_bytes
    yield f"    memory    {human(memory)} a worker, {human(memory * estimate.workers)} for {_workers(estimate.workers)}"
    store, images = (human(100 * size) for size in (estimate.sample_bytes, estimate.image_file_bytes))
    yield (
        f"    training  at 100 images/s reads {store}/s from the store ({human(estimate.sample_bytes)} a sample, "
        f"{100 * estimate.reads:,} reads/s) and {images}/s of images"
    )
    yield from _doubts(estimate)


def _deadline(estimate: Estimate) -> str:
    low, high = estimate.target_workers or (0, 0)
    hours = f"{estimate.target_hours:g} h"
    if not low:
        return f"{hours} are not enough on any number of cores: the start and one shard take longer"
    if not high:
        return f"{low} cores at the least for {hours}, and perhaps no number of them: one shard takes nearly as long"
    cores = "1 core" if high == 1 else f"{low} cores" if low == high else f"{low} to {high} cores"
    return f"{cores} for {hours}"


def _doubts(estimate: Estimate) -> Iterator[str]:
    """What may make the figures wrong."""
    if estimate.failed:
        yield f"    warning   {estimate.failed} of the images that were computed to measure will go to quarantine"
    if estimate.busy < BUSY_ENOUGH:
        yield (
            f"    warning   measured while processes got {100 * estimate.busy:.0f} % of a core: they wait for files, "
            "or other programs use this machine; a run in other conditions takes another time"
        )
    if estimate.workers > estimate.processes and estimate.workers <= estimate.shards:
        yield (
            f"    assumed   {estimate.workers} workers on cores like these, one thread each, and disks that serve them "
            "all as fast"
        )
    if estimate.workers > estimate.shards:
        yield f"    note      there are {estimate.shards} shards: more workers than that have nothing to do"
    rate = estimate.shards / estimate.wall_seconds
    if rate > SCHEDULER_TASKS_PER_SECOND / 2:
        yield f"    warning   {rate:.0f} tasks/s are near what one Dask scheduler manages; use --part i/n instead"


def describe_run(report: RunReport, store: object) -> Iterator[str]:
    """What a run did, and what is wrong with the data."""
    if report.shards_computed:
        rate = report.samples_computed / report.seconds
        yield (
            f"computed {report.samples_computed} samples in {report.shards_computed} shards, "
            f"{human(report.bytes_written)}, {_duration(report.seconds)} ({rate:.1f} images/s)"
        )
    if report.dropped_pixels:
        yield (
            f"{report.dropped_pixels} labelled pixels found no slot in their cell; "
            "keep them with --set patch_counts.max_classes=N"
        )
    done = report.num_samples - len(report.quarantine)
    yield f"{store}: {done} of {report.num_samples} samples done, {len(report.quarantine)} quarantined"
    for entry in report.quarantine[:SHOWN]:
        yield f"  quarantined {entry.sample_id}: {entry.reason}"
    if len(report.quarantine) > SHOWN:
        yield f"  ... and {len(report.quarantine) - SHOWN} more; `physseg inspect {store}` lists them"
    if report.quarantine:
        yield "  to try them again: --retry-quarantined; files that were changed need a new manifest first"
    yield f"next: physseg inspect {store}"


def human(size: float) -> str:
    """Bytes in decimal units, e.g. 6.0 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def between(low: float, high: float, *, core: bool = False) -> str:
    """A range of seconds in a unit that suits it, of cores if so: "1.8 to 2.1 core-hours"."""
    name, unit = next(((name, unit) for name, unit in UNITS.items() if high >= 1.5 * unit), ("seconds", 1.0))
    digits = 0 if low >= 10 * unit else 1
    texts = [f"{value / unit:.{digits}f}" for value in (low, high)]
    return f"{' to '.join(dict.fromkeys(texts))} {'core-' if core else ''}{name}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
