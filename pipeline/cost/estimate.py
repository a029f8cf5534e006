"""What a run takes, from what was measured on a few of its images: arithmetic.

Assumed: one thread a worker; machines like this one, as loaded as it was; one shard a task, handed to whichever worker
is free; and that workers on more machines do not slow each other down (their shared disk may).
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...common.processes import available_cpus
from ..run.prepare import Job
from ..store.layout import id_files, metadata_documents
from ..store.shard_codec import index_size
from .trial import SAMPLES_PER_SHARD, Rows, Trial, run_trial

CLUSTER_SECONDS = 0.5
"""Seconds to start and stop a local cluster, besides the start of its workers; measured."""
DASK_BYTES = 25 * 2**20
"""Bytes that a worker holds beyond a process that has imported what it imports; measured."""
BYTES_PER_PIXEL = 10
"""Bytes per pixel of the largest image in flight: decoded, turned or resized copy, labels, resized labels."""
BYTES_PER_INPUT = 24
"""Bytes of a commit record that each sample of a shard adds."""
OTHER_WORKERS = (8, 64, 512)
"""For how many workers the time is told, besides those that were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate(Trial):
    """What a run takes, and what that is based on."""

    samples: int
    """Number of samples to compute, without those that the manifest has in quarantine."""
    shards: int
    workers: int
    core_seconds: float
    """Seconds of all tasks together."""
    core_hours: tuple[float, float]
    """Hours of all tasks together, at the short and at the long end of the spread."""
    start_seconds: float
    """Seconds until the workers are warm."""
    wall_seconds: float
    """Seconds of the run on `workers`, with their start."""
    wall_seconds_range: tuple[float, float]
    """The same at the short and at the long end of the spread."""
    wall_seconds_on: dict[int, float]
    """Seconds of the run on each of `OTHER_WORKERS`, as far as there are shards for them."""
    store_bytes: int
    """Bytes that the run writes."""
    files: int
    sample_bytes: float
    """Bytes a sample of the arrays that training reads, whether this run computes them or the store has them."""
    reads: int
    """Number of reads a sample in training."""
    memory_bytes: int
    """Resident memory of a worker at its peak."""
    epoch_bytes: int
    """Bytes that an epoch of training reads of the store and of images: all usable samples of the manifest, once."""
    loader_samples_per_second: float
    """Samples/s that one loader process reads on this machine at the most; see `read_seconds`."""


def estimate_job(
    job: Job,
    *,
    workers: int | None = None,
    images: int | None = None,
    in_one_process: bool = False,
) -> Estimate | None:
    """Measure some images of a prepared job on this machine, and reckon.

    Args:
        workers: Workers of the run, by default one for each core of this machine. As many as fit here are measured.
        images: Number of images to measure, about. Default: as ten seconds allow.
        in_one_process: Whether the run has no cluster to start.

    Returns:
        The estimate, or None if nothing is to be computed, or no image can be.
    """
    cores, rows = available_cpus(), rows_of_tasks(job)
    wanted = 1 if in_one_process else workers or cores
    if not any(map(len, rows)):
        return None
    trial = run_trial(job, np.concatenate(rows), processes=min(wanted, cores, len(rows)), images=images)
    if trial is None:
        return None
    return estimate(job, trial, workers=wanted, in_one_process=in_one_process)


def estimate(job: Job, trial: Trial, *, workers: int, in_one_process: bool = False) -> Estimate:
    """What a job takes on that many workers; the arguments are those of `estimate_job`."""
    schema, tasks, rows = job.schema, job.todo.tasks, rows_of_tasks(job)
    write = trial.parts["write"] * schema.samples_per_shard
    seconds = [write + len(of) * _image_seconds(job, trial, task.layers) for task, of in zip(tasks, rows, strict=True)]
    start = trial.first_seconds + (0.0 if in_one_process else trial.process_seconds + CLUSTER_SECONDS)
    core, run = sum(seconds) + trial.first_seconds * min(workers, len(tasks)), makespan(seconds, workers)
    low, high = 1 - trial.spread, 1 + trial.spread
    files, store_bytes = _written(job, trial)
    sharded = [spec.name for spec in schema.specs if spec.is_sharded]
    kept = [list(job.store.list(f"{name}/c").values()) for name in sharded if name not in trial.array_bytes]
    per_shard = min(schema.samples_per_shard, schema.num_samples)
    sample_bytes = sum(trial.array_bytes.values()) + sum(float(np.mean(sizes)) / per_shard for sizes in kept if sizes)
    # What the run has more of than the trial: a larger image, and longer shards, in chunks and in files.
    more_samples = max(0, schema.samples_per_shard - SAMPLES_PER_SHARD)
    more_pixels = max(0, int(job.manifest.table.pixels[np.concatenate(rows)].max()) - trial.largest_pixels)
    memory = trial.peak_bytes + DASK_BYTES + BYTES_PER_PIXEL * more_pixels + 2 * more_samples * sample_bytes
    return Estimate(
        **asdict(trial),
        samples=sum(map(len, rows)),
        shards=len(tasks),
        workers=workers,
        core_seconds=core,
        core_hours=(core * low / 3600, core * high / 3600),
        start_seconds=start,
        wall_seconds=start + run,
        wall_seconds_range=(start + run * low, start + run * high),
        wall_seconds_on={many: start + makespan(seconds, many) for many in OTHER_WORKERS if many <= len(tasks)},
        store_bytes=store_bytes,
        files=files,
        sample_bytes=sample_bytes,
        reads=len(sharded),
        memory_bytes=int(memory),
        epoch_bytes=round(len(job.manifest.usable) * (sample_bytes + trial.image_file_bytes)),
        loader_samples_per_second=1 / trial.read_seconds,
    )


def rows_of_tasks(job: Job) -> list[Rows]:
    """The samples that each task computes, without those that the manifest has in quarantine."""
    usable = job.manifest.table.usable
    limits = [np.searchsorted(usable, job.schema.shard_range(task.shard)) for task in job.todo.tasks]
    return [
        usable[slice(*limit)] if task.layers else usable[:0] for task, limit in zip(job.todo.tasks, limits, strict=True)
    ]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall seconds of tasks that are handed in this order to the first free worker.

    >>> makespan([2.0] * 5, 2)
    6.0
    """
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def _image_seconds(job: Job, trial: Trial, layers: Collection[str]) -> float:
    """Seconds an image of some of the layers; compressing takes them by their bytes."""
    chosen = sum(trial.array_bytes.get(spec.name, 0.0) for spec in job.schema.specs if spec.layer in layers)
    compress = trial.parts["compress"] * chosen / sum(trial.array_bytes.values())
    return trial.parts["load"] + compress + sum(trial.parts.get(name, 0.0) for name in layers)


def _written(job: Job, trial: Trial) -> tuple[int, int]:
    """Files and bytes that the run writes."""
    schema, usable = job.schema, job.manifest.table.usable
    documents = {**id_files(schema, job.manifest), **metadata_documents(schema)} if job.found is None else {}
    files, size = len(documents), float(sum(map(len, documents.values())))
    if job.found is None:
        files, size = files + 1, size + sum(map(len, job.manifest.chunks()))
    for task in job.todo.tasks:
        specs = [spec for spec in schema.specs if spec.layer in task.layers]
        sharded = [trial.array_bytes[spec.name] for spec in specs if spec.is_sharded]
        start, stop = schema.shard_range(task.shard)
        stored = np.diff(np.searchsorted(usable, (start, stop)))[0]
        files += len(specs) + 2
        size += stored * sum(sharded) + len(sharded) * index_size(schema.samples_per_shard)
        size += trial.record_bytes + BYTES_PER_INPUT * (stop - start - SAMPLES_PER_SHARD)
    return files, round(size)
