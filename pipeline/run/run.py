"""From a manifest to a store: settle the settings, plan, run the tasks, report."""

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ... import __version__
from ...common.storage.interface import Storage
from ...common.storage.location import Location, open_storage, read_below
from ...common.text import Part
from ...manifests.manifest import Manifest
from ...structure_extractors import registry
from ...structure_extractors.interface import Extractor
from ...structure_extractors.superpoint.inference import check_gpu
from ..store.commits import CommitRecord, QuarantineEntry, read_commits, sha256
from ..store.errors import StoreBusyError, StoreError, StoreIncompleteError
from ..store.frame import Frame
from ..store.layout import (
    MANIFEST_FILE,
    create_store,
    evolve_store,
    holds,
    is_store,
    open_schema,
    shard_of,
    withdraw_shards,
)
from ..store.locks import StillOurs, locked, no_task_writes
from ..store.schema import ARRAYS, StoreSchema
from .executors.dask import LOCAL, SYNC, run_tasks
from .plan import Plan, make_plan, memory_per_worker
from .task import LABELS_LAYER, ShardReport

ALWAYS = ("patch_counts",)
"""Layers that every store has besides labels: cheap, and needed by the patch alignment loss."""
SETTLING_SECONDS = 60.0
"""How long parts that start together wait for each other while one creates the store."""
PROBED_FILES = 16
"""Images looked for before a run begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run that is settled but has not begun."""

    store: Storage
    manifest: Manifest
    schema: StoreSchema
    extractors: tuple[Extractor, ...]
    """One per layer, save for layers that the store has, that were not asked for and that cannot be rebuilt."""
    plan: Plan
    """Of the whole store."""
    part: Part | None
    """Which share of the plan this run computes; None: all of it."""
    found: StoreSchema | None
    """What the store held when this was planned; None if there was none."""
    warnings: tuple[str, ...] = ()

    @property
    def is_new(self) -> bool:
        return self.found is None

    @property
    def todo(self) -> Plan:
        """What this run computes."""
        return self.plan if self.part is None else self.plan.share(self.part)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """What a run did and what the store now holds."""

    num_samples: int
    samples_computed: int
    shards_computed: int
    bytes_written: int
    seconds: float
    quarantine: tuple[QuarantineEntry, ...]
    """Every quarantined sample of the store, not of this run alone."""
    dropped_pixels: int


def prepare(
    manifest: Manifest,
    store: Location,
    *,
    structures: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    frame: Frame | None = None,
    retry_quarantined: bool = False,
    part: Part | None = None,
    elsewhere: bool = False,
) -> Job:
    """Settle what a run will do, writing nothing.

    Structures add to those that the store has. What is not said (``structures``, single ``settings``, ``frame``) is as
    in the store, or the default for a new one. Raises StoreError where the manifest or the frame cannot be the store's,
    DeviceError where a GPU is needed and this machine has none, unless the job will run ``elsewhere``.
    """
    if len(manifest) == 0:
        raise StoreError("the manifest has no samples", hint="make it again with `physseg manifest`")
    store = open_storage(store)
    existing = open_schema(store) if is_store(store) else None
    if existing is not None:
        _check_same_data(store, existing, manifest, frame)
    extractors, layers = _settle_layers(existing, structures, settings or {})
    made_with = _versions()
    schema = StoreSchema(
        num_samples=len(manifest),
        frame=existing.frame if existing else frame or Frame(),
        vocabulary=manifest.vocabulary,
        dataset=manifest.dataset,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=sha256(manifest.to_bytes()),
        layers={LABELS_LAYER: {"resize": "nearest", "revision": 1}, **layers},
        array_names=_array_names(existing, extractors, layers),
        made_with=existing.made_with if existing else made_with,
    )
    plan = make_plan(store, schema, manifest, extractors, retry_quarantined=retry_quarantined)
    if not elsewhere:
        check_gpu(extractor for task in plan.tasks for extractor in task.extractors)
    _check_data_there(manifest, [index for task in plan.tasks for index in range(*schema.shard_range(task.shard))])
    return Job(
        part=part,
        store=store,
        manifest=manifest,
        schema=schema,
        extractors=extractors,
        plan=plan,
        found=existing,
        warnings=_version_warnings(existing, made_with),
    )


def execute(
    job: Job,
    *,
    scheduler: str = LOCAL,
    workers: int | None = None,
    memory_limit: int | None = None,
    log: Path | None = None,
    progress: bool = True,
) -> RunReport:
    """Run a prepared job to its end; raises ShardFailedError if a task fails. Running it again resumes."""
    started = time.perf_counter()
    if job.part is not None:
        _settle_for_all_parts(job)
    alone = job.part is None
    make = partial(create_store, job.store, job.schema, job.manifest) if job.is_new and alone else None
    wait = 0 if alone else SETTLING_SECONDS  # for the short moments in which another part settles
    with locked(job.store, shared=not alone, make=make, wait_seconds=wait) as still_ours:
        _check_unchanged(job, open_schema(job.store), settled=not alone)
        if alone:
            job.store.delete(job.store.leftovers())
            _settle(job)
        else:
            withdraw_shards(job.store, job.schema, [task.shard for task in job.todo.tasks])
        reports = _run(job, still_ours, log, progress, scheduler=scheduler, workers=workers, memory_limit=memory_limit)
        if reports:
            _remove_leftovers(job)
        quarantine, dropped = _summary(job)
    return RunReport(
        num_samples=_num_samples(job),
        samples_computed=sum(report.num_samples for report in reports),
        shards_computed=len(reports),
        bytes_written=sum(report.bytes_written for report in reports),
        seconds=time.perf_counter() - started,
        quarantine=quarantine,
        dropped_pixels=dropped,
    )


def _run(job: Job, still_ours: StillOurs, log: Path | None, progress: bool, **running: Any) -> list[ShardReport]:
    """All tasks of this run, with its bar and its log."""
    reports = []
    tasks, started = job.todo.tasks, time.perf_counter()
    with (
        _Log(log) as write_log,
        tqdm(total=job.todo.samples_to_compute, unit="img", disable=not progress, smoothing=0.05) as bar,
    ):
        part = {"part": str(job.part)} if job.part else {}
        write_log(
            {"event": "start", "store": str(job.store), "tasks": len(tasks), "scheduler": running["scheduler"], **part}
        )
        needed = memory_per_worker(job.schema, job.manifest, tasks)
        for report in run_tasks(tasks, **running, memory_needed=needed, still_ours=still_ours):
            reports.append(report)
            bar.update(report.num_samples)
            write_log({"event": "shard", **asdict(report)})
        write_log({"event": "end", "seconds": time.perf_counter() - started})
    return reports


def _settle(job: Job) -> None:
    """Give the store its settings, and withdraw what they change; for who holds the store alone."""
    with no_task_writes(job.store):
        evolve_store(job.store, job.schema, job.manifest, [task.shard for task in job.plan.tasks])


def _settle_for_all_parts(job: Job) -> None:
    """The first part to come creates the store, or gives it its new settings; the others find it so."""
    give_up = time.monotonic() + SETTLING_SECONDS
    while not _is_settled(job):
        try:
            with locked(job.store, make=partial(_create_unless_there, job)):
                if not _is_settled(job):  # nobody did it while this one waited: what others computed must stay
                    now = open_schema(job.store)
                    if now != job.schema:
                        _check_unchanged(job, now, settled=False)
                    _settle(job)
        except StoreBusyError:  # another part that settles, most likely: look again
            if time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.2, 1))


def _is_settled(job: Job) -> bool:
    return (
        is_store(job.store)
        and open_schema(job.store) == job.schema
        and holds(job.store, MANIFEST_FILE, job.manifest.to_bytes())  # a settling that was cut off writes the root last
    )


def _create_unless_there(job: Job) -> None:
    if is_store(job.store):
        return
    try:
        create_store(job.store, job.schema, job.manifest)
    except StoreError:
        if not is_store(job.store):
            raise


def _check_unchanged(job: Job, now: StoreSchema, *, settled: bool) -> None:
    """Refuse to go on where another run changed the store since this one was planned."""
    if now != (job.schema if settled else job.found or job.schema):
        raise StoreError(
            f"{job.store}: was changed by another run since this one was planned", hint="run the same command again"
        )


def preprocess(manifest: Manifest | Path, store: Location, *, scheduler: str = LOCAL, **options: Any) -> RunReport:
    """``prepare`` and ``execute`` in one call, for notebooks and tests; options are theirs."""
    table = manifest if isinstance(manifest, Manifest) else Manifest.read(manifest)
    running = {name: options.pop(name) for name in ("workers", "memory_limit", "log", "progress") if name in options}
    job = prepare(table, store, **options, elsewhere=runs_elsewhere(scheduler))
    return execute(job, scheduler=scheduler, **running)


def runs_elsewhere(scheduler: str) -> bool:
    """Whether tasks run on other machines, as far as can be known."""
    return scheduler not in (LOCAL, SYNC)


def _settle_layers(
    existing: StoreSchema | None, structures: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Extractor, ...], dict[str, Mapping[str, Any]]]:
    """The extractors of this run, and every layer's identity; stored settings hold where none are given."""
    stored = {
        name: identity for name, identity in (existing.layers if existing else {}).items() if name != LABELS_LAYER
    }
    asked = list(structures) if structures is not None else [] if existing else list(registry.DEFAULT)
    names = list(dict.fromkeys([*asked, *ALWAYS, *stored]))
    names.sort(key=lambda name: list(registry.EXTRACTORS).index(name) if name in registry.EXTRACTORS else -1)
    extractors: list[Extractor] = []
    layers: dict[str, Mapping[str, Any]] = {}
    for name in settings:
        if name not in names:
            registry.build(names, settings)  # raises, naming what there is
    for name in names:
        options = dict(settings.get(name, {}))
        if name in stored:
            known = registry.options(name)
            options = {key: value for key, value in stored[name].items() if key in known} | options
        if name in stored and name not in asked and not settings.get(name) and _needs_a_file(name):
            layers[name] = stored[name]
            continue
        (extractor,) = registry.build([name], {name: options})
        extractors.append(extractor)
        layers[name] = extractor.identity()
    return tuple(extractors), layers


def _array_names(
    existing: StoreSchema | None, extractors: Sequence[Extractor], layers: Mapping[str, object]
) -> tuple[str, ...]:
    """What the extractors of this run yield, and what the store has of layers that it computed without them."""
    computed = {array for extractor in extractors for array in extractor.arrays}
    kept_layers = set(layers).difference(extractor.name for extractor in extractors)
    return tuple(
        spec.name
        for spec in ARRAYS
        if spec.layer == LABELS_LAYER
        or spec.name in computed
        or (existing and spec.name in existing.array_names and spec.layer in kept_layers)
    )


def _needs_a_file(name: str) -> bool:
    """Whether an extractor cannot be rebuilt from its stored identity, which holds a hash and never a path."""
    return "weights" in registry.options(name)


def _check_same_data(store: Storage, existing: StoreSchema, manifest: Manifest, frame: Frame | None) -> None:
    if existing.vocabulary.fingerprint != manifest.vocabulary.fingerprint:
        raise StoreError(
            f"{store}: holds labels of the vocabulary {existing.vocabulary.name} "
            f"({existing.vocabulary.num_classes} classes), the manifest has {manifest.vocabulary.name} "
            f"({manifest.vocabulary.num_classes} classes)",
            hint="choose another path for the store of this manifest",
        )
    if existing.num_samples != len(manifest):
        raise StoreError(
            f"{store}: holds {existing.num_samples} samples, the manifest has {len(manifest)}",
            hint="choose another path for the store of this manifest",
        )
    if frame is not None and frame != existing.frame:
        raise StoreError(
            f"{store}: was made with {existing.frame}, asked for {frame}",
            hint="every array depends on the frame: choose another path, or leave the frame options out",
        )


def _check_data_there(manifest: Manifest, indices: Sequence[int]) -> None:
    """Refuse to begin where the data set is not: every sample would be quarantined, one by one."""
    probed = [manifest.samples[index] for index in indices[:: max(1, len(indices) // PROBED_FILES)]]
    paths = [sample.image_path for sample in probed if not sample.problem]
    if paths and not any(_is_there(manifest.root, path) for path in paths):
        raise StoreError(
            f"{manifest.root}: expected the manifest's data set there, {paths[0]} and others do not exist",
            hint="if it was moved, say where to with --root; if it is on another machine, mount it",
        )


def _is_there(root: str, path: str) -> bool:
    try:
        read_below(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there, and one sample's trouble
        return True
    return True


def _versions() -> dict[str, str]:
    return {"physseg": __version__, "opencv": cv2.__version__, "numpy": np.__version__}


def _version_warnings(existing: StoreSchema | None, now: Mapping[str, str]) -> tuple[str, ...]:
    if existing is None:
        return ()
    return tuple(
        f"the store was begun with {name} {existing.made_with.get(name)}, this is {version}: details may differ"
        for name, version in now.items()
        if existing.made_with.get(name) != version
    )


def _remove_leftovers(job: Job) -> None:
    """What workers that were killed on the way left half-written, of this run's own shards."""
    ours = set(_shards(job))
    job.store.delete(path for path in job.store.leftovers() if shard_of(path) in ours)


def _summary(job: Job) -> tuple[tuple[QuarantineEntry, ...], int]:
    """What the records of this run's shards say; raises StoreIncompleteError where one is missing."""
    entries: list[QuarantineEntry] = []
    dropped = 0
    shards = _shards(job)
    for shard, record in zip(shards, read_commits(job.store, shards), strict=True):
        if not isinstance(record, CommitRecord):
            raise record or StoreIncompleteError(
                f"{job.store}: shard {shard} of {job.schema.num_shards} is not computed",
                hint="run `physseg preprocess MANIFEST STORE` again; it resumes",
            )
        entries += record.quarantine
        dropped += record.dropped_pixels
    return tuple(entries), dropped


def _num_samples(job: Job) -> int:
    """Samples in the shards that this run answers for."""
    return sum(stop - start for start, stop in map(job.schema.shard_range, _shards(job)))


def _shards(job: Job) -> Sequence[int]:
    """The shards that this run answers for."""
    every = range(job.schema.num_shards)
    return every if job.part is None else [shard for shard in every if job.part.owns(shard)]


class _Log:
    """Appends JSON lines to a file; does nothing without one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> "_Log":
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a") if self.path else None
        return self

    def __call__(self, event: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"time": time.time(), "pid": os.getpid(), **event}) + "\n")
            self.file.flush()

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
