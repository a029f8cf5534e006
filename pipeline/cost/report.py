"""What a run will take, in words for the terminal."""

from collections.abc import Iterator
from typing import Any

from ...common.text import format_bytes
from ..run.run import Job
from .estimate import Estimate, estimate_job

NO_ESTIMATE = "  estimate    none of a few images could be computed: the run will quarantine such"
BUSY_ENOUGH = 0.85
"""CPU seconds over wall seconds; a process with a core to itself and its files in memory has 0.97 and more."""
SCHEDULER_TASKS_PER_SECOND = 270
"""Tasks that a Dask scheduler manages at the least; docs/clusters.md says where else limits are."""


def describe_cost(job: Job, **options: Any) -> Iterator[str]:
    """Measure some images of a job that has work to do, and say what it takes; options are those of `estimate_job`."""
    if job.todo.tasks:
        estimate = estimate_job(job, **options)
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
    yield f"    bytes     {format_bytes(estimate.store_bytes)} in {estimate.files:,} files"
    one, all_ = (format_bytes(count * estimate.memory_bytes) for count in (1, estimate.workers))
    yield f"    memory    {one} a worker, {all_} for {_workers(estimate.workers)}"
    store, images = (format_bytes(100 * size) for size in (estimate.sample_bytes, estimate.image_file_bytes))
    sample = format_bytes(estimate.sample_bytes)
    yield (
        f"    training  at 100 images/s reads {store}/s from the store ({sample} a sample, "
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


def between(low: float, high: float, *, core: bool = False) -> str:
    """A range of seconds in a unit that suits it.

    >>> between(6480, 7560), between(100, 130, core=True)
    ('1.8 to 2.1 hours', '1.7 to 2.2 core-minutes')
    """
    name, unit = "seconds", 1.0
    if high >= 1.5 * 60:
        name, unit = ("hours", 3600.0) if high >= 1.5 * 3600 else ("minutes", 60.0)
    digits = 0 if low >= 10 * unit else 1
    texts = [f"{value / unit:.{digits}f}" for value in (low, high)]
    return f"{' to '.join(dict.fromkeys(texts))} {'core-' if core else ''}{name}"


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"
