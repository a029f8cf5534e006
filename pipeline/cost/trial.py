"""Some images of a run computed on this machine as the run computes them, timed, and thrown away.

Truthful because little differs from the run: the same tasks on the same files, a manifest as long, a store on the same
disk, and as many processes at once as there will be workers here (two on one core's threads, or on one memory bus, are
each slower than one alone). Only the shards are small, so that slow extractors can be measured at all.
"""

import random
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ...common.processes import environment, in_processes, peak_bytes
from ...common.storage.interface import Storage
from ...common.storage.local import LocalStorage
from ...common.storage.location import open_storage, read_below
from ...common.text import spread_of
from ..run.errors import ExecutorError
from ..run.executors.dask_library import import_dask
from ..run.executors.worker import WORKER_ENVIRONMENT
from ..run.prepare import Job
from ..run.task import ShardReport, ShardTask, compute_shard
from ..store.commits import commit_path
from ..store.layout import create_store, open_schema, settings_digest
from ..store.reader import StoreReader
from ..store.schema import DONE, STATUS
from ..store.shard_codec import index_size

Rows = npt.NDArray[np.intp]
Timed = tuple[ShardReport, float, float]
"""What became of a shard, its wall seconds and its CPU seconds."""
Share = tuple[float, list[Timed], int, list[float]]
"""Of a process: the monotonic time when it was ready, its shards (the first takes longer), its peak bytes, and the
seconds in which it read each sample."""
SAMPLES_PER_SHARD = 8
"""Samples in a shard of the store that is thrown away."""
SECONDS = 10.0
"""Seconds that measuring takes by default, besides the start of the processes and `READ_SECONDS`."""
READ_SECONDS = 1.0
"""Seconds that reading what was computed is measured at the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What was measured, and what was written."""

    images: int
    failed: int
    processes: int
    busy: float
    """CPU seconds of those processes over wall seconds; well below one, they waited for files or for a core."""
    parts: dict[str, float]
    """Seconds an image by part; `write` is its share of a shard's."""
    spread: float
    """Two standard errors as a share of the time; at least `LEAST_SPREAD`."""
    process_seconds: float
    """Seconds until a process computes: interpreter, libraries."""
    first_seconds: float
    """Seconds that a process's first shard takes longer: manifest, memory, what libraries do once."""
    peak_bytes: int
    """Resident memory of the process that took most."""
    largest_pixels: int
    array_bytes: dict[str, float]
    """Compressed bytes a sample of each array that was computed, without those of a few bytes."""
    record_bytes: int
    """Bytes of a small shard's status and commit record."""
    image_file_bytes: float
    """Bytes of an image's file; 0 where training reads images from the store."""
    read_seconds: float
    """Seconds in which one loader process reads a sample: its image, resized to the frame, and the arrays that the run
    computes. Not in it: cropping and batching, a fifth of that, and waiting for a disk, as the files are in memory.
    """


def run_trial(job: Job, rows: Rows, *, processes: int, images: int | None = None) -> Trial | None:
    """Compute some of a job's samples `rows` in a store beside the job's, on its disk, and remove that store again.

    Returns None if no image can be computed; raises what `compute_at_once` raises. By default there are as many images
    as `SECONDS` allow, and at most a quarter of them.
    """
    table = job.manifest.table
    least = 4 * processes * SAMPLES_PER_SHARD
    wanted = images or min(max(len(rows) // 4, least), max(512, least))
    chosen = evenly(rows, table.pixels[rows], max(processes, round(wanted / SAMPLES_PER_SHARD)))
    place = _place_near(job.store)
    try:
        tasks = _make_store(place, job, chosen)
        shares = [tasks[number::processes] for number in range(min(processes, len(tasks)))]
        started = time.monotonic()
        found = compute_at_once(shares, SECONDS if images is None else float("inf"))
        sizes = place.list()
    finally:
        place.delete_folder("")
    ready, computed, peaks, reads = zip(*found, strict=True)
    first = float(np.mean([shards[0][1] for shards in computed]))
    reports, walls, cpus = zip(*(timed for shards in computed for timed in shards[1:]), strict=True)
    samples, failed = reports[0].num_samples, sum(len(report.quarantine) for report in reports)
    if failed == samples * len(reports):
        return None
    # Means, not medians: a run takes a sum, in which large images and slow reads count, few as they are.
    names, wall = [name for name in reports[0].seconds if name != "write"], float(np.mean(walls))
    parts = {name: float(np.mean([report.seconds[name] for report in reports])) / samples for name in names}
    parts["write"] = (wall - samples * sum(parts.values())) / job.schema.samples_per_shard
    return Trial(
        images=samples * len(reports),
        failed=failed,
        processes=len(found),
        busy=sum(cpus) / sum(walls),
        parts=parts,
        spread=spread_of(walls),
        process_seconds=max(ready) - started,
        first_seconds=max(0.0, first - wall),
        peak_bytes=max(peaks),
        largest_pixels=int(table.pixels[chosen].max()),
        array_bytes=_array_bytes(job, tasks[0].layers, sizes),
        record_bytes=sizes[commit_path(0)] + sizes[job.schema.shard_file(STATUS, 0)],
        image_file_bytes=0.0 if job.schema.picture else _image_file_bytes(job, chosen),
        read_seconds=float(np.mean(np.concatenate(reads))),
    )


def evenly(rows: Rows, pixels: npt.NDArray[np.int64], shards: int) -> Rows:
    """Rows for that many small shards, or for as many as they fill, each shard like all of the rows.

    In order of their `pixels`, then of their place in the manifest, every n-th row is taken; shards take turns.
    """
    shards = min(shards, max(1, len(rows) // SAMPLES_PER_SHARD))
    count = min(len(rows), shards * SAMPLES_PER_SHARD)
    by_size = rows[np.argsort(pixels, kind="stable")]
    picked = by_size[(2 * np.arange(count) + 1) * len(rows) // max(1, 2 * count)]
    return np.concatenate([picked[shard::shards] for shard in range(shards)])


def compute_at_once(shares: Sequence[Sequence[ShardTask]], seconds: float) -> list[Share]:
    """Compute each share of the tasks in a process of its own, and no further task when the time is over.

    Raises ExecutorError if a process died.
    """
    death = ExecutorError(
        "a process that computed a few images, to measure their cost, was killed",
        hint="usually memory: try with fewer --workers",
    )
    with environment(WORKER_ENVIRONMENT):
        return list(in_processes(partial(_compute, seconds=seconds), shares, workers=len(shares), death=death))


def _compute(tasks: Sequence[ShardTask], seconds: float) -> Share:
    import_dask()
    import distributed.worker  # noqa: F401  (a worker of a run has it in memory, and has waited for it)

    ready, end = time.monotonic(), float("inf")
    found: list[Timed] = []
    for task in (tasks[-1], *tasks):
        if len(found) == 1:
            end = time.monotonic() + seconds
        elif time.monotonic() > end:
            break
        wall, cpu = time.perf_counter(), time.process_time()
        report = compute_shard(task)
        found.append((report, time.perf_counter() - wall, time.process_time() - cpu))
    return ready, found, peak_bytes(), _read([tasks[-1], *tasks][: len(found)])


def _read(tasks: Sequence[ShardTask]) -> list[float]:
    """Wall seconds of reading each sample of these shards, as a loader process does: in random order, for a while."""
    schema, layers = open_schema(open_storage(tasks[0].store)), tasks[0].layers
    names = [spec.name for spec in schema.specs if spec.is_sharded and spec.layer in layers and spec != schema.picture]
    from_store = schema.picture is not None and schema.picture.layer in layers
    reader = StoreReader(tasks[0].store, names, root=None if from_store else tasks[0].root, images=True)
    rows = [row for task in tasks for row in range(*schema.shard_range(task.shard)) if reader.status[row] == DONE]
    random.Random(0).shuffle(rows)
    times = [time.perf_counter()]
    for row in [*rows[:1], *rows]:  # the first one reads the manifest, and is not counted
        reader.image(row, verify=False)
        for _ in reader.planes(row):
            pass
        times.append(time.perf_counter())
        if times[-1] > times[1] + READ_SECONDS:
            break
    return np.diff(times[1:]).tolist()


def _make_store(place: Storage, job: Job, chosen: Rows) -> list[ShardTask]:
    """A store of small shards of the chosen rows, and the first others: as many rows as a worker has in memory."""
    table = job.manifest.table
    others = np.setdiff1d(np.arange(min(len(table), table.rows_per_group)), chosen)
    order = np.concatenate([chosen, others])[: max(len(chosen), table.rows_per_group)]
    manifest = replace(job.manifest, samples=table.take(order))
    schema = replace(
        job.schema,
        num_samples=len(manifest),
        samples_per_shard=SAMPLES_PER_SHARD,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=manifest.sha256,
    )
    create_store(place, schema, manifest)
    todo = job.todo.tasks
    first = replace(
        todo[0],
        store=str(place),
        settings=settings_digest(schema),
        extractors=tuple({each.name: each for task in todo for each in task.extractors}.values()),
        with_labels=any(task.with_labels for task in todo),
        refused={},
    )
    return [replace(first, shard=shard) for shard in range(-(-len(chosen) // SAMPLES_PER_SHARD))]


def _array_bytes(job: Job, layers: Collection[str], sizes: Mapping[str, int]) -> dict[str, float]:
    found = {}
    for spec in job.schema.specs:
        if spec.is_sharded and spec.layer in layers:
            files = [size for path, size in sizes.items() if path.startswith(f"{spec.name}/c/")]
            found[spec.name] = (float(np.mean(files)) - index_size(SAMPLES_PER_SHARD)) / SAMPLES_PER_SHARD
    return found


def _image_file_bytes(job: Job, rows: Rows) -> float:
    sizes = [0]
    for row in rows[:: max(1, len(rows) // 32)].tolist():
        with suppress(OSError):
            sizes.append(len(read_below(job.manifest.root, job.manifest.table.value("image_path", row))))
    return sum(sizes) / max(1, len(sizes) - 1)


def _place_near(store: Storage) -> Storage:
    """A folder that does not exist, on the disk or in the bucket that the store is or will be in."""
    name = f".plan-{uuid.uuid4().hex[:12]}"
    if not isinstance(store, LocalStorage):
        return open_storage(f"{store}{name}")
    folder = next(parent for parent in store.path.absolute().parents if parent.is_dir())
    return open_storage(folder / f".{store.path.name}{name}")
