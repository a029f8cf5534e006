"""Plans and results in words, for the terminal."""

from collections.abc import Iterator

from ..manifests.checking import available_cpus
from .plan import memory_per_worker, probe
from .run import Job, RunReport

SHOWN = 10
"""Quarantined samples that are named on the terminal; the others are in the store."""


def describe_job(job: Job, *, workers: int | None, measure: bool) -> Iterator[str]:
    """What a run will do. With ``measure`` a few images are computed first, for bytes, time and memory."""
    plan, schema, frame = job.todo, job.schema, job.schema.frame
    origin = "new store" if job.is_new else "existing store"
    yield f"{job.store}: {origin}, {plan.num_samples} samples in {plan.num_shards} shards"
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
        yield from _estimate(job, min(workers or available_cpus(), len(plan.tasks)))


def _estimate(job: Job, workers: int) -> Iterator[str]:
    """Bytes, time and memory, measured on a few images."""
    todo = {extractor.name for task in job.todo.tasks for extractor in task.extractors}
    extractors = [extractor for extractor in job.extractors if extractor.name in todo]
    measured = probe(job.schema, job.manifest, extractors)
    if measured is None:
        yield "  estimate    none of the probed images could be computed: the run will quarantine them"
        return
    samples = job.todo.samples_to_compute
    seconds = measured.seconds_per_sample * samples
    memory = memory_per_worker(job.schema, job.manifest, measured.bytes_per_sample)
    parts = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in measured.seconds.items())
    yield f"  estimate    from {measured.images} images, computed in this process:"
    each, total = human(measured.bytes_per_sample), human(measured.bytes_per_sample * samples)
    yield f"    bytes     {each} an image, {total} in all"
    yield f"    time      {measured.seconds_per_sample * 1e3:.1f} ms an image ({parts})"
    yield f"              {_duration(seconds)} on one core, about {_duration(seconds / workers)} on {workers}"
    yield f"    memory    {human(memory)} a worker, {human(memory * workers)} for {workers} workers"


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
