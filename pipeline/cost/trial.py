"""Some images of a run computed on this machine as the run computes them, timed, and thrown away.

Truthful because little differs from the run: the same tasks on the same files, a manifest as long, a store on the same
disk, and as many processes at once as there will be workers here (two on one core's threads, or on one memory bus, are
each slower than one alone). Only the shards are small, so that slow extractors can be measured at all.
"""

import os
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from ...common.errors import PhyssegError
from ...common.processes import environment, peak_bytes
from ...common.storage.interface import Storage
from ...common.storage.local import LocalStorage
from ...common.storage.location import open_storage, read_below
from ...manifests.manifest import Manifest
from ..run.errors import ExecutorError
from ..run.executors.worker import WORKER_ENVIRONMENT
from ..run.prepare import Job
from ..run.task import ShardTask, compute_shard
from ..store.commits import CommitRecord, read_commit, sha256
from ..store.layout import create_store, settings_digest
from ..store.shard_codec import index_size

Rows = npt.NDArray[np.intp]

SAMPLES_PER_SHARD = 8
"""Samples in a shard of the store that is thrown away."""
SECONDS = 10.0
"""Seconds that measuring takes by default, besides the start of the processes."""
MAX_IMAGES = 512
FILES_LOOKED_AT = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallShard:
    """A few samples, computed and timed."""

    samples: int
    """Number of samples computed."""
    failed: int
    """Number of samples that went to quarantine."""
    seconds: Mapping[str, float]
    """Wall seconds by part: `load`, one entry per layer, `compress`, and everything else as `write`."""
    cpu_seconds: float
    """CPU seconds of the process meanwhile."""
    process: int
    """Id of the process."""
    begun: float
    """Time of day at the beginning, the one clock that processes share."""
    peak_bytes: int
    """Resident memory of the process at its most so far."""

    @property
    def wall_seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What was measured, and what was written."""

    shards: tuple[SmallShard, ...]
    """Small shards, each as mixed in size as the whole, of processes that were warm."""
    processes: int
    """Number of processes that computed at once."""
    start_seconds: float
    """Seconds until a process is warm: interpreter, libraries, manifest, and what its first shard takes longer."""
    peak_bytes: int
    """Resident memory of the process that took most."""
    largest_pixels: int
    """Pixels of the largest image that was computed."""
    array_bytes: Mapping[str, float]
    """Compressed bytes a sample of each array that was computed, without those of a few bytes."""
    record: CommitRecord
    """Commit record of one small shard."""
    image_file_bytes: float
    """Mean size of an image file."""


def run_trial(job: Job, rows: Rows, *, processes: int, images: int | None = None) -> Trial | None:
    """Compute some of a job's samples in a store beside the job's, on its disk, and remove that store again.

    Args:
        job: The prepared run.
        rows: Samples of the manifest that the job computes.
        processes: Number of processes that compute at once.
        images: Number of images, about. Default: what `SECONDS` allow, and at most a quarter of the job.

    Returns:
        What was measured, or None if no image can be computed.

    Raises:
        ExecutorError: A process died.
    """
    pixels = job.manifest.table.pixels
    least = 4 * processes * SAMPLES_PER_SHARD
    wanted = images or min(max(len(rows) // 4, least), max(MAX_IMAGES, least))
    chosen = evenly(rows, pixels[rows], max(processes, round(wanted / SAMPLES_PER_SHARD)))
    place = _place_near(job.store)
    try:
        tasks = _make_store(place, job, chosen)
        processes = min(processes, len(tasks))
        tasks = [*tasks[:processes], *reversed(tasks)]  # some twice, since what a process computes first does not count
        started = time.time()
        found = compute_at_once(tasks, processes, SECONDS if images is None else float("inf"))
        record, sizes = read_commit(place, 0), place.list()
    finally:
        place.delete_folder("")
    if record is None or all(shard.failed == shard.samples for shard in found):
        return None
    first = {shard.process: shard for shard in reversed(found)}
    warm = [shard for shard in found if shard is not first[shard.process]]
    usual = float(np.median([shard.wall_seconds for shard in warm]))
    starts = [shard.begun - started + max(0.0, shard.wall_seconds - usual) for shard in first.values()]
    return Trial(
        shards=tuple(warm),
        processes=processes,
        start_seconds=max(starts),
        peak_bytes=max(shard.peak_bytes for shard in found),
        largest_pixels=int(pixels[chosen].max()),
        array_bytes=_array_bytes(job, sizes, record),
        record=record,
        image_file_bytes=_image_file_bytes(job.manifest, chosen),
    )


def evenly(rows: Rows, pixels: npt.NDArray[np.int64], shards: int) -> Rows:
    """Rows for small shards, such that each of these shards is like all of the rows.

    In order of size, and within one size of their place in the manifest, every n-th row is taken. Shard i has the i-th
    of those, the (i + shards)-th and so on.

    Args:
        rows: Rows to choose from.
        pixels: Size of each of them.
        shards: Number of small shards. There are fewer where there are not enough rows to fill them.
    """
    shards = min(shards, max(1, len(rows) // SAMPLES_PER_SHARD))
    count = min(len(rows), shards * SAMPLES_PER_SHARD)
    by_size = rows[np.argsort(pixels, kind="stable")]
    picked = by_size[(2 * np.arange(count) + 1) * len(rows) // max(1, 2 * count)]
    return np.concatenate([picked[shard::shards] for shard in range(shards)])


def compute_at_once(tasks: Sequence[ShardTask], processes: int, seconds: float) -> list[SmallShard]:
    """Compute tasks in several processes, in the order given, and no further one when the time is over.

    Raises:
        ExecutorError: A process died, or a task failed in a way that is not ours.
    """
    coming = iter(tasks)
    found: list[SmallShard] = []
    with (
        environment(WORKER_ENVIRONMENT),
        ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_become_worker) as pool,
    ):
        running = {pool.submit(_compute, task) for task in islice(coming, processes)}
        end = float("inf")
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                end = min(end, time.monotonic() + seconds)
                found += [future.result() for future in done]
                if time.monotonic() < end or len(found) < 2 * processes:
                    running |= {pool.submit(_compute, task) for task in islice(coming, len(done))}
        except BrokenProcessPool:
            raise ExecutorError(
                "a process that computed a few images, to measure their cost, was killed",
                hint="usually memory: try with fewer --workers",
            ) from None
        except PhyssegError:
            raise
        except Exception as error:
            raise ExecutorError(f"computing a few images failed: {type(error).__name__}: {error}") from error
    return found


# --- helpers --------------------------------------------------------------------------------------------------------


def _become_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    import distributed.worker  # noqa: F401  (a worker of a run has it in memory, and has waited for it)


def _compute(task: ShardTask) -> SmallShard:
    begun, wall, cpu = time.time(), time.perf_counter(), time.process_time()
    report = compute_shard(task)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    parts = {name: seconds for name, seconds in report.seconds.items() if name != "write"}
    return SmallShard(
        samples=report.num_samples,
        failed=len(report.quarantine),
        seconds=parts | {"write": wall - sum(parts.values())},
        cpu_seconds=cpu,
        process=os.getpid(),
        begun=begun,
        peak_bytes=peak_bytes(),
    )


def _make_store(place: Storage, job: Job, chosen: Rows) -> list[ShardTask]:
    """A store of small shards whose first samples are the chosen ones; returns the tasks that compute those.

    Its manifest holds all rows: it is as large to read and to hold as the run's.
    """
    order = np.concatenate([chosen, np.setdiff1d(np.arange(len(job.manifest)), chosen)])
    manifest = replace(job.manifest, samples=job.manifest.table.take(order))
    schema = replace(
        job.schema,
        samples_per_shard=SAMPLES_PER_SHARD,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=sha256(manifest.to_bytes()),
    )
    create_store(place, schema, manifest)
    extractors = {extractor.name: extractor for task in job.todo.tasks for extractor in task.extractors}
    first = ShardTask(
        store=str(place),
        settings=settings_digest(schema),
        root=manifest.root,
        shard=0,
        extractors=tuple(extractors.values()),
        with_labels=any(task.with_labels for task in job.todo.tasks),
    )
    return [replace(first, shard=shard) for shard in range(-(-len(chosen) // SAMPLES_PER_SHARD))]


def _array_bytes(job: Job, sizes: Mapping[str, int], record: CommitRecord) -> dict[str, float]:
    """Bytes a sample of each sharded array, from the files of small shards, without their indices."""
    found = {}
    for spec in (spec for spec in job.schema.specs if spec.is_sharded and spec.layer in record.layers):
        files = [size for path, size in sizes.items() if path.startswith(f"{spec.name}/c/")]
        found[spec.name] = (sum(files) / len(files) - index_size(SAMPLES_PER_SHARD)) / SAMPLES_PER_SHARD
    return found


def _place_near(store: Storage) -> Storage:
    """A folder that does not exist, on the disk or in the bucket that the store is or will be in."""
    name = f".plan-{uuid.uuid4().hex[:12]}"
    if not isinstance(store, LocalStorage):
        return open_storage(f"{store}{name}")
    folder = store.path.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return open_storage(folder / f".{store.path.name}{name}")


def _image_file_bytes(manifest: Manifest, rows: Rows) -> float:
    sizes = []
    for row in rows[:: max(1, len(rows) // FILES_LOOKED_AT)].tolist():
        with suppress(OSError):
            sizes.append(len(read_below(manifest.root, manifest.table.value("image_path", row))))
    return float(np.mean(sizes)) if sizes else 0.0
