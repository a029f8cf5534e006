"""What a run takes, from what was measured on a few of its images: arithmetic.

Assumed: one thread a worker; machines like this one, as loaded as it was; one shard a task, handed to whichever worker
is free; and that workers on more machines do not slow each other down (their shared disk may).
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...common.processes import available_cpus
from ..run.prepare import Job
from ..store.layout import MANIFEST_FILE, metadata_documents
from ..store.schema import STATUS
from ..store.shard_codec import index_size
from ..store.shard_files import encode_rows
from .trial import SAMPLES_PER_SHARD, Rows, Trial, run_trial

LEAST_SPREAD = 0.07
"""Share by which the same work takes longer or shorter another time, however many images were measured."""
MOST_SPREAD = 0.5
"""The same where it is unknown, or worse."""
CLUSTER_SECONDS = 0.5
"""Seconds to start and stop a local cluster, besides the start of its workers; measured."""
DASK_BYTES = 25 * 2**20
"""Bytes that a worker holds beyond a process that has imported what it imports; measured."""
BYTES_PER_PIXEL = 10
"""Bytes per pixel of the largest image in flight: decoded, turned or resized copy, labels, resized labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run takes, and what that is based on."""

    images: int
    """Number of images measured."""
    failed: int
    """Number of those that could not be computed."""
    processes: int
    """Number of processes measured at once."""
    busy: float
    """CPU seconds of those processes over wall seconds; well below one, they waited for files or for a core."""
    parts: dict[str, float]
    """Seconds an image by part; `write` is its share of a shard's."""
    samples: int
    """Number of samples to compute, without those that the manifest has in quarantine."""
    shards: int
    """Number of shards to compute."""
    workers: int
    """Number of workers of the run."""
    core_seconds: float
    """Seconds of all tasks together."""
    spread: float
    """Two standard errors as a share of the time; at least `LEAST_SPREAD`."""
    start_seconds: float
    """Seconds until the workers are warm."""
    wall_seconds: float
    """Seconds of the run on `workers`, with their start."""
    target_hours: float | None
    """Deadline that was asked for."""
    target_workers: tuple[int, int] | None
    """Workers that hold the deadline, at the short and at the long end of the spread; 0: no number does."""
    store_bytes: int
    """Bytes that the run writes."""
    files: int
    """Number of files that the run writes."""
    sample_bytes: float
    """Bytes a sample of the arrays that training reads, whether this run computes them or the store has them."""
    reads: int
    """Number of reads a sample in training."""
    image_file_bytes: float
    """Mean size of an image file."""
    memory_bytes: int
    """Resident memory of a worker at its peak."""

    @property
    def core_hours(self) -> tuple[float, float]:
        """Hours of all tasks together, low and high."""
        hours = self.core_seconds / 3600
        return hours * (1 - self.spread), hours * (1 + self.spread)

    @property
    def wall_range(self) -> tuple[float, float]:
        """Seconds on `workers`, low and high."""
        margin = (self.wall_seconds - self.start_seconds) * self.spread
        return self.wall_seconds - margin, self.wall_seconds + margin

    def as_dict(self) -> dict[str, Any]:
        """These fields, and the ranges, for JSON."""
        return asdict(self) | {"core_hours": self.core_hours, "wall_seconds_range": self.wall_range}


def estimate_job(
    job: Job,
    *,
    workers: int | None = None,
    images: int | None = None,
    target_hours: float | None = None,
    in_one_process: bool = False,
) -> Estimate | None:
    """Measure some images of a prepared job on this machine, and reckon.

    Args:
        job: The prepared run.
        workers: Workers of the run, by default one for each core of this machine. As many as fit here are measured.
        images: Number of images to measure, about. Default: as ten seconds allow.
        target_hours: Deadline to find the number of workers for.
        in_one_process: Whether the run has no cluster to start.

    Returns:
        The estimate, or None if nothing is to be computed, or no image can be.
    """
    cores, tasks = available_cpus(), job.todo.tasks
    wanted = 1 if in_one_process else workers or cores
    rows = np.concatenate([np.zeros(0, np.intp), *rows_of_tasks(job)])
    if not len(rows):
        return None
    trial = run_trial(job, rows, processes=min(wanted, cores, len(tasks)), images=images)
    if trial is None:
        return None
    return estimate(job, trial, workers=wanted, in_one_process=in_one_process, target_hours=target_hours)


def estimate(
    job: Job, trial: Trial, *, workers: int, in_one_process: bool = False, target_hours: float | None = None
) -> Estimate:
    """What a job takes on that many workers; the arguments are those of `estimate_job`."""
    tasks, rows, shards = job.todo.tasks, rows_of_tasks(job), trial.shards
    write_seconds = float(np.median([shard.seconds["write"] for shard in shards]))
    kinds = {layers: float(np.median(_image_seconds(job, trial, layers))) for layers in {task.layers for task in tasks}}
    seconds = [write_seconds + len(part) * kinds[task.layers] for task, part in zip(tasks, rows, strict=True)]
    spread = _spread(_image_seconds(job, trial, job.schema.layers))
    start = 0.0 if in_one_process else trial.start_seconds + CLUSTER_SECONDS
    target = None
    if target_hours is not None:
        limit = target_hours * 3600 - start
        target = workers_for(seconds, limit / (1 - spread)), workers_for(seconds, limit / (1 + spread))
    parts = {name: float(np.median([s.seconds[name] / s.samples for s in shards])) for name in shards[0].seconds}
    files, store_bytes = _written(job, trial)
    sample_bytes = _sample_bytes(job, trial)
    return Estimate(
        images=sum(shard.samples for shard in shards),
        failed=sum(shard.failed for shard in shards),
        processes=trial.processes,
        busy=sum(shard.cpu_seconds for shard in shards) / sum(shard.wall_seconds for shard in shards),
        parts=parts | {"write": write_seconds / job.schema.samples_per_shard},
        samples=sum(map(len, rows)),
        shards=len(tasks),
        workers=workers,
        core_seconds=sum(seconds),
        spread=spread,
        start_seconds=start,
        wall_seconds=start + makespan(seconds, workers),
        target_hours=target_hours,
        target_workers=target,
        store_bytes=store_bytes,
        files=files,
        sample_bytes=sample_bytes,
        reads=sum(spec.is_sharded for spec in job.schema.specs),
        image_file_bytes=trial.image_file_bytes,
        memory_bytes=_memory(job, trial, np.concatenate(rows), sample_bytes),
    )


def rows_of_tasks(job: Job) -> list[Rows]:
    """The samples that each task computes, without those that the manifest has in quarantine."""
    usable = np.zeros(len(job.manifest), np.bool_)
    usable[job.manifest.usable] = True
    rows = []
    for task in job.todo.tasks:
        wanted = np.arange(*job.schema.shard_range(task.shard))
        rows.append(wanted[usable[wanted]] if task.layers else wanted[:0])
    return rows


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Wall seconds of tasks that are handed in this order to the first free worker.

    >>> makespan([2.0, 2.0, 2.0, 2.0, 2.0], 2)
    6.0
    """
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def workers_for(seconds: Sequence[float], limit: float) -> int:
    """The fewest workers whose makespan is within `limit` seconds; 0 if no number of them can do it.

    >>> workers_for([2.0] * 10, 4.5), workers_for([2.0] * 10, 1.0)
    (5, 0)
    """
    if max(seconds) > limit:
        return 0
    return 1 + bisect_left(range(1, len(seconds)), True, key=lambda workers: makespan(seconds, workers) <= limit)


# --- helpers --------------------------------------------------------------------------------------------------------


def _image_seconds(job: Job, trial: Trial, layers: Collection[str]) -> list[float]:
    """Seconds an image of some of the layers, from each small shard; compressing takes them by their bytes."""
    layer_of = {spec.name: spec.layer for spec in job.schema.specs}
    chosen = sum(size for name, size in trial.array_bytes.items() if layer_of[name] in layers)
    share = chosen / sum(trial.array_bytes.values())
    return [
        (
            shard.seconds["load"]
            + share * shard.seconds["compress"]
            + sum(value for name, value in shard.seconds.items() if name in layers)
        )
        / shard.samples
        for shard in trial.shards
    ]


def _spread(image_seconds: Sequence[float]) -> float:
    """Two standard errors of a median of shards, as a share of it; of one shard nobody knows how far others are."""
    if len(image_seconds) < 2:
        return MOST_SPREAD
    error = 1.25 * np.std(image_seconds, ddof=1) / math.sqrt(len(image_seconds))
    return float(np.clip(2 * error / np.median(image_seconds), LEAST_SPREAD, MOST_SPREAD))


def _written(job: Job, trial: Trial) -> tuple[int, int]:
    """Files and bytes that the run writes."""
    schema, per_shard = job.schema, job.schema.samples_per_shard
    documents = metadata_documents(schema) | {MANIFEST_FILE: job.manifest.to_bytes()} if job.is_new else {}
    status = len(encode_rows([0] * per_shard, STATUS, schema))
    inputs = trial.record.inputs
    record, longer = (len(replace(trial.record, inputs=inputs * n).to_bytes()) for n in (1, 2))
    files, size = len(documents), float(sum(map(len, documents.values())))
    usable = np.array(job.manifest.usable)
    for task in job.todo.tasks:
        specs = [spec for spec in schema.specs if spec.layer in task.layers]
        start, stop = schema.shard_range(task.shard)
        stored = np.diff(np.searchsorted(usable, (start, stop)))[0]  # what is taken over is written again, too
        sample_bytes = [trial.array_bytes[spec.name] for spec in specs if spec.is_sharded]
        files += len(specs) + 2
        size += stored * sum(sample_bytes) + len(sample_bytes) * index_size(per_shard) + status
        size += record + (longer - record) * ((stop - start) / len(inputs) - 1)
    return files, round(size)


def _sample_bytes(job: Job, trial: Trial) -> float:
    """Bytes of a sample in the store: of arrays that are computed as measured, of others from the sizes of files."""
    total = sum(trial.array_bytes.values())
    for spec in job.schema.specs:
        if spec.is_sharded and spec.name not in trial.array_bytes:
            sizes = list(job.store.list(f"{spec.name}/c").values())
            total += float(np.mean(sizes)) / min(job.schema.samples_per_shard, job.schema.num_samples) if sizes else 0.0
    return total


def _memory(job: Job, trial: Trial, rows: Rows, sample_bytes: float) -> int:
    """The measured peak, and what the run has more of: a larger image, and longer shards, in chunks and in files."""
    more_samples = max(0, job.schema.samples_per_shard - SAMPLES_PER_SHARD)
    more_pixels = max(0, int(job.manifest.table.pixels[rows].max()) - trial.largest_pixels)
    return int(trial.peak_bytes + DASK_BYTES + BYTES_PER_PIXEL * more_pixels + 2 * more_samples * sample_bytes)
