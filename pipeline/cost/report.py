"""What a run will take, in words for the terminal."""

from collections.abc import Iterator
from typing import Any

from ...common.text import between, counted, format_bytes
from ..run.run import Job
from .estimate import Estimate, estimate_job

BUSY_ENOUGH = 0.85
"""CPU seconds over wall seconds; a process with a core to itself and its files in memory has 0.97 and more."""
SCHEDULER_TASKS_PER_SECOND = 270
"""Tasks that a Dask scheduler manages at the least; docs/clusters.md says where else limits are."""


def describe_cost(job: Job, **options: Any) -> Iterator[str]:
    """Measure some images of a job that has work to do, and say what it takes; options are those of `estimate_job`."""
    if job.todo.tasks:
        estimate = estimate_job(job, **options)
        none = "  estimate    none of a few images could be computed: the run will quarantine such"
        yield from describe_estimate(estimate) if estimate else [none]


def describe_estimate(estimate: Estimate) -> Iterator[str]:
    """What the run takes: time, bytes, memory, and what training will read."""
    at_once = "one process" if estimate.processes == 1 else f"{estimate.processes} processes at once"
    workers = counted(estimate.workers, "worker")
    parts = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in estimate.parts.items())
    cores = between(*(hours * 3600 for hours in estimate.core_hours), core=True)
    one, all_ = (format_bytes(count * estimate.memory_bytes) for count in (1, estimate.workers))
    sample, rate, images = map(
        format_bytes, (estimate.sample_bytes, 100 * estimate.sample_bytes, 100 * estimate.image_file_bytes)
    )
    yield f"  estimate    from {counted(estimate.images, 'image')}, computed here in {at_once}:"
    yield f"    time      {estimate.core_seconds / estimate.samples * 1e3:.1f} ms an image ({parts})"
    yield f"              {cores}; {between(*estimate.wall_seconds_range)} on {workers}"
    if estimate.target_workers is not None:
        yield f"    deadline  {_deadline(f'{estimate.target_hours:g} h', *estimate.target_workers)}"
    yield f"    bytes     {format_bytes(estimate.store_bytes)} in {estimate.files:,} files"
    yield f"    memory    {one} a worker, {all_} for {workers}"
    yield (
        f"    training  at 100 images/s reads {rate}/s from the store ({sample} a sample, {100 * estimate.reads:,} "
        f"reads/s) and {images}/s of images"
    )
    if estimate.failed:
        yield f"    warning   {estimate.failed} of the images that were computed to measure will go to quarantine"
    if estimate.busy < BUSY_ENOUGH:
        yield (
            f"    warning   measured while processes got {100 * estimate.busy:.0f} % of a core: they wait for files, "
            "or other programs use this machine; a run in other conditions takes another time"
        )
    if estimate.processes < estimate.workers <= estimate.shards:
        yield f"    assumed   {workers} on cores like these, one thread each, and disks that serve them all as fast"
    if estimate.workers > estimate.shards:
        yield f"    note      {counted(estimate.shards, 'shard')}: more workers than that have nothing to do"
    if (tasks := estimate.shards / estimate.wall_seconds) > SCHEDULER_TASKS_PER_SECOND / 2:
        yield f"    warning   {tasks:.0f} tasks/s are near what one Dask scheduler manages; use --part i/n instead"


def _deadline(hours: str, low: int, high: int) -> str:
    if not low:
        return f"{hours} are not enough on any number of cores: the start and one shard take longer"
    if not high:
        return f"{low} cores at the least for {hours}, and perhaps no number of them: one shard takes nearly as long"
    return f"{'1 core' if high == 1 else f'{low} cores' if low == high else f'{low} to {high} cores'} for {hours}"
