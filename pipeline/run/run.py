"""Running a prepared job: the store is locked and initialised, the tasks run, and the result is summed up."""

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...common.progress import ProgressBar
from ...common.storage.local import LocalStorage
from ...common.storage.location import Location
from ...manifests.manifest import Manifest
from ..store.commits import CommitRecord, QuarantineEntry, read_commits
from ..store.errors import StoreBusyError, StoreError, StoreIncompleteError
from ..store.layout import (
    create_store,
    has_manifest,
    is_store,
    migrate_store,
    open_schema,
    shard_of,
    unpublish_shards,
)
from ..store.locks import StillOurs, locked, no_task_writes
from ..store.schema import StoreSchema
from .executors.choose import LOCAL, choose_executor
from .executors.interface import Executor
from .plan import memory_per_worker
from .prepare import Job, prepare
from .task import ShardReport
from .witnesses import certain_schema

__all__ = ["Job", "RunReport", "execute", "prepare", "preprocess"]

INITIALISE_SECONDS = 60.0
"""How long parts that start together wait for each other while one initialises the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What a run did and what the store now holds."""

    num_samples: int
    """Number of samples in the shards that the run answers for."""
    samples_computed: int
    """Number of samples in the shards that were computed."""
    shards_computed: int
    bytes_written: int
    seconds: float
    """Wall seconds of the whole run."""
    quarantine: tuple[QuarantineEntry, ...]
    """Every quarantined sample of the run's shards, whenever it was computed."""
    dropped_pixels: int
    """Labelled pixels of the run's shards that found no slot in their cell."""


def preprocess(
    manifest: Manifest | Path,
    store: Location,
    *,
    scheduler: str = LOCAL,
    workers: int | None = None,
    memory_limit: int | None = None,
    log: Path | None = None,
    progress: bool = True,
    **options: Any,
) -> RunReport:
    """`prepare` and `execute` in one call, for notebooks and tests; the other options are those of `prepare`."""
    table = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    executor = choose_executor(scheduler, workers=workers, memory_limit=memory_limit)
    return execute(prepare(table, store, **options, elsewhere=executor.elsewhere), executor, log=log, progress=progress)


def execute(job: Job, executor: Executor | None = None, *, log: Path | None = None, progress: bool = True) -> RunReport:
    """Run a prepared job to its end, by default in worker processes on this machine. Running it again resumes.

    JSON lines are appended to the file `log`, one per shard. Where nothing is left to do, nothing is written or locked.

    Raises:
        ShardFailedError: A task failed; what was committed before stays.
        StoreError: Another run is writing the store, or has changed it since the job was prepared.
    """
    started = time.perf_counter()
    store = job.store
    if not job.todo.tasks and isinstance(store, LocalStorage) and not os.access(store.path, os.W_OK):
        return _report(job, [], started)  # nothing is to be computed, where nothing can be written
    if job.part is not None:
        _initialise_for_parts(job)
    alone = job.part is None
    make = partial(create_store, job.store, job.schema, job.manifest) if job.found is None and alone else None
    wait = 0 if alone else INITIALISE_SECONDS  # for the short moments in which another part initialises
    with locked(job.store, shared=not alone, make=make, wait_seconds=wait) as still_ours:
        _check_unchanged(job, open_schema(job.store), initialised=not alone)
        if alone:
            if job.todo.tasks:  # they are looked for everywhere; `verify` names those of complete stores
                job.store.delete(job.store.leftovers())
            _initialise(job)
        else:
            unpublish_shards(job.store, job.schema, [task.shard for task in job.todo.tasks])
        reports = _run(job, executor or choose_executor(LOCAL), still_ours, log, progress)
        if reports:  # what workers that were killed on the way left half-written, of this run's own shards
            ours = set(job.shards)
            job.store.delete(path for path in job.store.leftovers() if shard_of(path) in ours)
        return _report(job, reports, started)


def _run(job: Job, executor: Executor, still_ours: StillOurs, log: Path | None, progress: bool) -> list[ShardReport]:
    """All tasks of this run, with its bar and its log."""
    reports = []
    tasks, started = job.todo.tasks, time.perf_counter()
    part = {"part": str(job.part)} if job.part else {}
    _log(log, event="start", store=str(job.store), tasks=len(tasks), scheduler=executor.name, **part)
    needed = memory_per_worker(job.schema, job.manifest, tasks)
    total = job.todo.samples_to_compute
    with ProgressBar(total=total, unit="img", disable=not progress, smoothing=0.01, miniters=1) as bar:
        most: dict[int, int] = {}  # samples of each shard; one that is tried again, or told late, counts once

        def reach(shard: int, samples: int) -> None:
            if not most:
                bar.unpause()  # rate and time left are those of computing: workers take seconds to start
            before = most.get(shard, 0)
            most[shard] = max(before, samples)
            bar.update(most[shard] - before)

        def on_sample(index: int) -> None:
            reach(*divmod(index, job.schema.samples_per_shard))

        for report in executor.run(tasks, memory_needed=needed, still_ours=still_ours, on_sample=on_sample):
            reports.append(replace(report, seconds={}))  # a hundred thousand are kept, in which they take the most
            reach(report.shard, report.num_samples)
            _log(log, event="shard", **asdict(report))
    _log(log, event="end", seconds=time.perf_counter() - started)
    return reports


def _initialise(job: Job) -> None:
    """Give the store its settings, and unpublish what they change; for who holds the store alone."""
    with no_task_writes(job.store):
        migrate_store(job.store, job.schema, job.manifest, [task.shard for task in job.plan.tasks])


def _initialise_for_parts(job: Job) -> None:
    """The first part to come creates the store, or gives it its new settings; the others find it so."""
    give_up = time.monotonic() + INITIALISE_SECONDS
    while not _is_initialised(job):
        try:
            with locked(job.store, make=partial(_create_unless_there, job)):
                if not _is_initialised(job):  # nobody did it while this one waited: what others computed must stay
                    now = open_schema(job.store)
                    if now != job.schema:
                        _check_unchanged(job, now, initialised=False)
                    _initialise(job)
        except StoreBusyError:  # another part that initialises, most likely: look again
            if time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.2, 1))


def _is_initialised(job: Job) -> bool:
    return (
        is_store(job.store)
        and open_schema(job.store) == job.schema
        and has_manifest(job.store, job.schema)  # if that was cut off: the root is last
    )


def _create_unless_there(job: Job) -> None:
    try:
        if not is_store(job.store):
            create_store(job.store, job.schema, job.manifest)
    except StoreError:
        if not is_store(job.store):
            raise


def _check_unchanged(job: Job, now: StoreSchema, *, initialised: bool) -> None:
    """Refuse to go on where another run changed the store since this one was planned."""
    expected = job.schema if initialised else job.found or job.schema
    if now != expected and certain_schema(job.store)[0] != expected:  # a root that was not believed is still there
        hint = "run the same command again"
        raise StoreError(f"{job.store}: was changed by another run since this one was planned", hint=hint)


def _report(job: Job, reports: Sequence[ShardReport], started: float) -> RunReport:
    """What was done, and what the records of this run's shards say; StoreIncompleteError where one is missing."""
    found = _records(job)
    return RunReport(
        num_samples=sum(stop - start for start, stop in map(job.schema.shard_range, job.shards)),
        samples_computed=sum(report.num_samples for report in reports),
        shards_computed=len(reports),
        bytes_written=sum(report.bytes_written for report in reports),
        seconds=time.perf_counter() - started,
        quarantine=tuple(entry for record in found for entry in record.quarantine),
        dropped_pixels=sum(record.dropped_pixels for record in found),
    )


def _records(job: Job) -> list[CommitRecord]:
    """The records of this run's shards that have something to report, as read by now or for the plan."""
    records = {shard: record for shard, record in job.plan.found.items() if not job.part or job.part.owns(shard)}
    todo = [task.shard for task in job.todo.tasks]
    for shard, record in zip(todo, read_commits(job.store, todo), strict=True):
        if not isinstance(record, CommitRecord):
            raise record or StoreIncompleteError(
                f"{job.store}: shard {shard} of {job.schema.num_shards} is not computed"
            )
        if record.quarantine or record.dropped_pixels:
            records[shard] = record.to_report()
    return [records[shard] for shard in sorted(records)]


def _log(path: Path | None, **event: Any) -> None:
    """Append a JSON line to the run's log, if it has one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # As everywhere a FIFO that nobody reads is an error, where "a" alone would wait; with a reader it is a log.
        with open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666)) as file:
            file.write(json.dumps({"time": time.time(), "pid": os.getpid(), **event}) + "\n")
