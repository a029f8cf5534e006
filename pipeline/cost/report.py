"""What a run will take, in words for the terminal."""

import math
from collections.abc import Iterator

from ...common.text import between, counted, format_bytes, format_duration
from ..run.run import Job
from .estimate import Estimate

BUSY_ENOUGH = 0.85
"""CPU seconds over wall seconds; a process with a core to itself and its files in memory has 0.97 and more."""
SCHEDULER_TASKS_PER_SECOND = 270
"""Tasks that a Dask scheduler manages at the least; docs/clusters.md says where else limits are."""


def describe_cost(job: Job, estimate: Estimate | None) -> Iterator[str]:
    """What a job that has work to do takes, by the estimate of `estimate_job`."""
    if job.todo.tasks:
        none = "  estimate    none of a few images could be computed: the run will quarantine such"
        yield from describe_estimate(estimate) if estimate else [none]


def describe_estimate(estimate: Estimate) -> Iterator[str]:
    """What the run takes: time, bytes, memory, and what training will read."""
    at_once = "one process" if estimate.processes == 1 else f"{estimate.processes} processes at once"
    workers = counted(estimate.workers, "worker")
    parts = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in estimate.parts.items())
    cores = between(*(hours * 3600 for hours in estimate.core_hours), core=True)
    one, all_ = (format_bytes(count * estimate.memory_bytes) for count in (1, estimate.workers))
    epoch, sample = map(format_bytes, (estimate.epoch_bytes, estimate.sample_bytes))
    image = f" and an image of {format_bytes(estimate.image_file_bytes)}" if estimate.image_file_bytes else ""
    rate = estimate.loader_samples_per_second
    yield f"  estimate    from {counted(estimate.images, 'image')}, computed here in {at_once}:"
    yield f"    time      {estimate.core_seconds / estimate.samples * 1e3:.1f} ms an image ({parts})"
    yield f"              {cores}; {between(*estimate.wall_seconds_range)} on {workers}"
    if estimate.wall_seconds_on:
        times = (f"{format_duration(seconds)} on {many}" for many, seconds in estimate.wall_seconds_on.items())
        yield f"              {', '.join(times)}"
    yield f"    bytes     {format_bytes(estimate.store_bytes)} in {estimate.files:,} files"
    yield f"    memory    {one} a worker, {all_} for {workers}"
    yield f"    training  an epoch reads {epoch}, a sample {sample} in {estimate.reads} reads{image}"
    yield f"              a loader process reads up to {rate:.0f} samples/s here, {math.ceil(1000 / rate)} feed 1,000"
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
