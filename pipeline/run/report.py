"""Jobs and their results in words, for the terminal."""

from collections.abc import Iterator

from ...common.text import counted, format_bytes, format_duration
from .run import Job, RunReport

SHOWN = 10
"""Quarantined samples that are named on the terminal; the others are in the store."""


def describe_job(job: Job, *, name: str | None = None) -> Iterator[str]:
    """What a run will do. `name`: what to call the store, if not by its place."""
    plan, schema, frame = job.todo, job.schema, job.schema.frame
    origin = "existing store" if job.found else "new store"
    size = f"{counted(schema.num_samples, 'sample')} in {counted(schema.num_shards, 'shard')}"
    yield f"{name or job.store}: {origin}, {size}"
    yield f"  vocabulary  {schema.vocabulary.name}, {counted(len(schema.vocabulary.class_names), 'class')}"
    yield f"  frame       short edge {frame.short_edge} px, long edge <= {frame.max_long_edge}, canvas {frame.canvas}"
    yield f"  layers      {', '.join(schema.layers)}"
    for warning in job.warnings:
        yield f"  warning     {warning}"
    if job.part:
        yield f"  part        {job.part}: one shard in {job.part.parts}; `physseg verify` checks them all together"
    if not plan.tasks:
        yield f"  to do       nothing: every shard{' of this part' if job.part else ''} is committed"
        return
    yield f"  to do       {counted(plan.samples_to_compute, 'sample')} in {counted(len(plan.tasks), 'shard')}"
    for reason, count in plan.reasons.most_common():
        yield f"              {counted(count, 'shard')}: {reason}"


def describe_run(report: RunReport, store: object) -> Iterator[str]:
    """What a run did, and what is wrong with the data."""
    if report.shards_computed:
        rate = report.samples_computed / report.seconds
        yield (
            f"computed {counted(report.samples_computed, 'sample')} in {counted(report.shards_computed, 'shard')}, "
            f"{format_bytes(report.bytes_written)}, {format_duration(report.seconds)} ({rate:.1f} images/s)"
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
