"""What a run takes, from what was measured on a few of its images: arithmetic.

Assumed: one thread a worker; machines like this one, as loaded as it was; one shard a task, handed to whichever worker
is free; and that workers on more machines do not slow each other down (their shared disk may).
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ...common.processes import available_cpus
from ...manifests.manifest import Manifest
from ..run.run import Job
from ..store.commits import CommitRecord, LayerCommit
from ..store.layout import metadata_documents
from ..store.schema import STATUS, StoreSchema
from ..store.shard_files import encode_rows
from .measure import (
    SAMPLES_PER_SHARD,
    Measurement,
    Work,
    bytes_of_empty_shard,
    image_pixels,
    kinds_of_work,
    measure,
    usable_rows,
)

LEAST_SPREAD = 0.07
"""By this share the same work takes longer or shorter another time, however many images were measured."""
CLUSTER_SECONDS = 0.5
"""To start and stop a local cluster, besides the start of its workers; measured."""
DASK_BYTES = 25 * 2**20
"""That a worker holds beyond a process that has imported what it imports; measured."""
BYTES_PER_PIXEL = 10
"""Of the largest image in flight: decoded, turned or resized copy, labels, resized labels."""

Tasks = Sequence[tuple[int, float]]
"""Groups of equal tasks, in the order in which they are handed out: how many, and the seconds of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run takes, and what that is based on."""

    images: int
    """Measured."""
    failed: int
    """Of all that were computed to measure."""
    processes: int
    """That computed at once."""
    busy: float
    """Their CPU seconds over wall seconds."""
    parts: dict[str, float]
    """Seconds an image by part, of the most common kind of work; ``write`` is its share of a shard's."""
    samples: int
    """To be computed, without those that the manifest has in quarantine."""
    shards: int
    workers: int
    core_seconds: float
    spread: float
    """Two standard errors as a share of the time; at least ``LEAST_SPREAD``."""
    start_seconds: float
    wall_seconds: float
    """On ``workers``, with their start."""
    target_hours: float | None
    target_workers: tuple[int, int] | None
    """So many finish in that time, at the short and at the long end of the spread; 0: no number does."""
    store_bytes: int
    """That the run writes."""
    files: int
    """Likewise."""
    sample_bytes: float
    """In the store, of the arrays that training reads, whether this run computes them or the store has them."""
    reads: int
    """In so many pieces."""
    image_file_bytes: float
    memory_bytes: int
    """A worker's, at its peak."""

    @property
    def core_hours(self) -> tuple[float, float]:
        """Low and high."""
        hours = self.core_seconds / 3600
        return hours * (1 - self.spread), hours * (1 + self.spread)

    @property
    def wall_range(self) -> tuple[float, float]:
        """Seconds on ``workers``: low and high."""
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
    """Measure about ``images`` images of a prepared job on this machine, and reckon.

    ``workers``: those of the run, by default one for each core of this machine; as many as fit here are measured at
    once. None if nothing is to be computed, or no image can be.
    """
    work = kinds_of_work(job.todo.tasks)
    cores = available_cpus()
    wanted = 1 if in_one_process else workers or cores
    processes = min(wanted, cores, max(1, len(job.todo.tasks)))
    measured = measure(job.schema, job.manifest, work, job.store, processes=processes, images=images)
    if measured is None:
        return None
    return estimate(
        job.schema,
        job.manifest,
        work,
        measured,
        workers=wanted,
        is_new=job.is_new,
        in_one_process=in_one_process,
        target_hours=target_hours,
    )


def estimate(
    schema: StoreSchema,
    manifest: Manifest,
    work: Sequence[Work],
    measured: Measurement,
    *,
    workers: int,
    is_new: bool,
    in_one_process: bool = False,
    target_hours: float | None = None,
) -> Estimate:
    """What ``work`` takes on so many workers; ``in_one_process`` there is no cluster to start."""
    pixels = image_pixels(manifest)
    rows = [usable_rows(schema, manifest, kind) for kind in work]
    means = [
        mean_seconds(found.image_seconds, found.pixels, float(pixels[part].mean())) if len(part) else (0.0, 0.0)
        for found, part in zip(measured.kinds, rows, strict=True)
    ]
    tasks: list[tuple[int, float]] = []
    for kind, found, part, (mean, _) in zip(work, measured.kinds, rows, means, strict=True):
        in_shard = np.bincount(part // schema.samples_per_shard, minlength=schema.num_shards)[list(kind.shards)]
        sizes, counts = np.unique(in_shard, return_counts=True)
        seconds = found.shard_seconds + mean * sizes
        tasks += zip(counts[::-1].tolist(), seconds[::-1].tolist(), strict=True)
    core_seconds = sum(count * seconds for count, seconds in tasks)
    error = math.sqrt(sum((error * len(part)) ** 2 for (_, error), part in zip(means, rows, strict=True)))
    spread = min(0.9, max(LEAST_SPREAD, 2 * error / core_seconds))
    start = 0.0 if in_one_process else measured.start_seconds + CLUSTER_SECONDS
    target = None
    if target_hours is not None:
        limit = target_hours * 3600 - start
        low, high = (
            workers_for([(count, seconds * (1 + sign * spread)) for count, seconds in tasks], limit) for sign in (-1, 1)
        )
        target = low, high
    files, written = _written(schema, manifest, work, measured, is_new=is_new)
    most_common = measured.kinds[0]
    return Estimate(
        images=measured.images,
        failed=measured.failed,
        processes=measured.processes,
        busy=measured.busy,
        parts=dict(most_common.parts) | {"write": most_common.shard_seconds / schema.samples_per_shard},
        samples=sum(map(len, rows)),
        shards=sum(len(kind.shards) for kind in work),
        workers=workers,
        core_seconds=core_seconds,
        spread=spread,
        start_seconds=start,
        wall_seconds=start + makespan(tasks, workers),
        target_hours=target_hours,
        target_workers=target,
        store_bytes=written,
        files=files,
        sample_bytes=max(found.sample_bytes for found in measured.kinds) + measured.stored_sample_bytes,
        reads=sum(spec.is_sharded for spec in schema.specs),
        image_file_bytes=measured.image_file_bytes,
        memory_bytes=_memory(schema, measured, largest=int(max(pixels[part].max() for part in rows if len(part)))),
    )


def mean_seconds(seconds: Sequence[float], pixels: Sequence[int], population_pixels: float) -> tuple[float, float]:
    """Mean seconds of images whose mean size is ``population_pixels``, from a sample; and its standard error.

    The regression estimator: a sample that happens to be of larger images than the whole is corrected by the slope of
    time over size, where there are enough of them for a slope.

    >>> mean_seconds([1.0] * 8 + [3.0] * 8, [100] * 8 + [300] * 8, 150.0)
    (1.5, 0.0)
    """
    times, sizes = np.asarray(seconds, float), np.asarray(pixels, float)
    mean, offset = float(times.mean()), population_pixels - float(sizes.mean())
    residuals = times - mean
    if len(times) >= 16 and sizes.std() > 0.01 * sizes.mean():
        slope = max(0.0, float(np.mean(residuals * (sizes - sizes.mean())) / sizes.var()))
        mean += slope * offset
        residuals = residuals - slope * (sizes - sizes.mean())
    error = float(residuals.std(ddof=1) / math.sqrt(len(times))) if len(times) > 1 else mean
    return mean, error


def makespan(tasks: Tasks, workers: int) -> float:
    """Wall seconds of tasks that are each handed to the first free worker.

    >>> makespan([(5, 2.0)], 2)
    6.0
    >>> makespan([(3, 3.0), (1, 1.0)], 3)
    4.0
    """
    # Workers that are free at the same moment are one entry, so that ten thousand tasks of a kind are quick to place.
    free = [(0.0, workers)]
    end = 0.0
    for count, each in tasks:
        left = count
        while left:
            moment, idle = heapq.heappop(free)
            taken = min(idle, left)
            heapq.heappush(free, (moment + each, taken))
            if idle > taken:
                heapq.heappush(free, (moment, idle - taken))
            left -= taken
            end = max(end, moment + each)
    return end


def workers_for(tasks: Tasks, limit: float) -> int:
    """The fewest workers whose makespan is within ``limit`` seconds; 0 if no number of them can do it.

    >>> workers_for([(10, 2.0)], 4.5)
    5
    >>> workers_for([(10, 2.0)], 1.0)
    0
    """
    most = max(1, sum(count for count, _ in tasks))
    if makespan(tasks, most) > limit:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if makespan(tasks, middle) <= limit else (middle + 1, high)
    return low


def _written(
    schema: StoreSchema, manifest: Manifest, work: Sequence[Work], measured: Measurement, *, is_new: bool
) -> tuple[int, int]:
    """Files and bytes that the run writes."""
    documents = metadata_documents(schema) if is_new else {}
    files = len(documents) + is_new
    size = float(sum(map(len, documents.values())) + (len(manifest.to_bytes()) if is_new else 0))
    status = len(encode_rows([0] * schema.samples_per_shard, STATUS, schema))
    for kind, found in zip(work, measured.kinds, strict=True):
        arrays = sum(spec.layer in kind.layers for spec in schema.specs)
        each = bytes_of_empty_shard(schema, kind.layers) + status + _record_bytes(schema)
        files += len(kind.shards) * (arrays + 2)
        # What is taken over is written again, too.
        size += (
            len(kind.shards) * each + len(usable_rows(schema, manifest, replace(kind, only=None))) * found.sample_bytes
        )
    return files, round(size)


def _record_bytes(schema: StoreSchema) -> int:
    """Of a commit record that names every layer."""
    shard, digest = schema.num_shards - 1, "0" * 64
    layers = {
        layer: LayerCommit(
            settings=digest,
            files={schema.shard_file(spec, shard): digest for spec in schema.specs if spec.layer == layer},
        )
        for layer in schema.layers
    }
    start, stop = schema.shard_range(shard)
    record = CommitRecord(shard=shard, samples=(start, stop), inputs=(digest[:16],) * (stop - start), layers=layers)
    return len(record.to_bytes())


def _memory(schema: StoreSchema, measured: Measurement, *, largest: int) -> int:
    """The measured peak, and what the run has more of: a larger image, and longer shards, in chunks and in files."""
    sample_bytes = max(found.sample_bytes for found in measured.kinds)
    more_samples = max(0, schema.samples_per_shard - SAMPLES_PER_SHARD)
    more_pixels = max(0, largest - measured.largest_pixels)
    return int(measured.peak_bytes + DASK_BYTES + BYTES_PER_PIXEL * more_pixels + 2 * more_samples * sample_bytes)
