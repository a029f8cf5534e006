"""The unit of work: compute some layers of one shard, write its files, and commit.

A task owns its shard's files alone, depends on nothing but the manifest's rows and the settings, and writes its commit
record last; so whatever kills it, a second run of the same task gives the same bytes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

import cv2

from ...common.processes import keep_freed_memory
from ...common.storage.interface import Storage
from ...common.storage.location import is_url, open_storage
from ...manifests.manifest import Manifest
from ...structure_extractors.interface import Extractor
from ..store.commits import (
    CommitRecord,
    LayerCommit,
    QuarantineEntry,
    read_commits,
    replace_commit,
    sha256,
    write_commit,
)
from ..store.errors import StoreError
from ..store.layout import open_schema, read_manifest, settings_digest
from ..store.locks import writing
from ..store.schema import LABELS_LAYER, SPECS, STATUS, StoreSchema
from ..store.shard_files import Planes, ShardBuffer, encode_status
from .sample import Clock, Fetch, compute_sample

FETCHED_AHEAD = 8
"""Samples whose files are on their way where each takes tens of milliseconds of waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything one task needs; small enough to send, whatever the size of the data set."""

    store: str
    """URL, or absolute path: a worker may have been started in another folder."""
    settings: str
    """`settings_digest` of the store that the task was planned for; any other is refused."""
    root: str
    """Where the manifest's paths start."""
    shard: int
    """Number of the shard in the store."""
    extractors: tuple[Extractor, ...]
    """Compute these layers; the layer `labels` is computed if `with_labels`. Without any: status and record."""
    with_labels: bool
    """Whether the layer `labels` is computed."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Samples (index in the store -> reason) to quarantine untried.

    The shard's other layers, which stay, have them in quarantine (a sample is whole or not at all), or computing them
    has killed their process.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are computed."""
        return (*((LABELS_LAYER,) if self.with_labels else ()), *(extractor.name for extractor in self.extractors))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of one task; timings are for the log, never for the store."""

    shard: int
    """Number of the shard in the store."""
    num_samples: int
    """Number of samples in the shard."""
    quarantine: tuple[QuarantineEntry, ...]
    """Samples of the shard that are in quarantine now."""
    dropped_pixels: int
    """Labelled pixels of the shard that found no slot in their cell."""
    bytes_written: int
    """Bytes of the shard files that were written."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by part: `load`, one entry per layer, `compress`, `write`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What a task starts from: the store as it was planned for, and the shard's rows of the manifest."""

    schema: StoreSchema
    manifest: Manifest
    samples: range
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Computed:
    """A shard in memory."""

    buffer: ShardBuffer
    quarantine: tuple[QuarantineEntry, ...]


def compute_shard(task: ShardTask, on_sample: Callable[[int], None] | None = None) -> ShardReport:
    """Run one task; returns after its commit record is on disk.

    Args:
        task: What to compute.
        on_sample: Hears the index of each sample before it is computed.

    Raises:
        StoreError: The store's settings are not those that the task was planned for.
    """
    cv2.setNumThreads(1)  # one task, one core: threads of a library's own oversubscribe a full machine
    keep_freed_memory()
    store, clock = open_storage(task.store), Clock()
    state = _read(store, task)
    computed = _compute(task, state, clock, on_sample)
    with clock.part("write"):
        record, written = _commit(store, task, state, computed)
    return ShardReport(
        shard=task.shard,
        num_samples=len(state.samples),
        quarantine=record.quarantine,
        dropped_pixels=record.dropped_pixels,
        bytes_written=written,
        seconds=clock.seconds,
    )


def _read(store: Storage, task: ShardTask) -> _State:
    schema = _check_settings(store, task)
    manifest = _read_manifest(task.store, task.settings, task.root)
    samples = range(*schema.shard_range(task.shard))
    return _State(
        schema=schema, manifest=manifest, samples=samples, inputs=manifest.row_digests(samples.start, samples.stop)
    )


def _compute(task: ShardTask, state: _State, clock: Clock, on_sample: Callable[[int], None] | None) -> _Computed:
    schema, manifest = state.schema, state.manifest
    buffer = ShardBuffer(schema, [spec for spec in schema.specs if spec.layer in task.layers])
    quarantine = []
    indices = state.samples if task.layers else range(0)
    for index, fetch in zip(indices, _fetched(manifest, indices), strict=True):
        reason = manifest.table.value("problem", index) or task.refused.get(index, "")
        planes: Planes = {}
        if not reason:
            if on_sample is not None:
                on_sample(index)
            reason, planes = compute_sample(manifest, index, fetch, schema, task.extractors, clock)
        with clock.part("compress"):
            buffer.append(planes)
        if reason:
            quarantine.append(QuarantineEntry(index=index, sample_id=manifest.samples[index].sample_id, reason=reason))
    return _Computed(buffer=buffer, quarantine=tuple(quarantine))


def _commit(store: Storage, task: ShardTask, state: _State, computed: _Computed) -> tuple[CommitRecord, int]:
    """Write the shard's files, its status, then its record; returns the record, and the bytes of the files.

    What the earlier record knows of other, current layers is kept. It is read here, where nobody changes the store's
    settings, and no sooner: computing takes a while.
    """
    schema, shard = state.schema, task.shard
    files = computed.buffer.files(shard)
    hashes: dict[str, dict[str, str]] = {}
    for path, data in files.items():
        hashes.setdefault(SPECS[path.split("/")[0]].layer, {})[path] = sha256(data)
    with writing(store):
        _check_settings(store, task)  # once more
        (found,) = read_commits(store, [shard])
        current = isinstance(found, CommitRecord) and found.inputs == state.inputs
        kept = found.without(task.layers) if isinstance(found, CommitRecord) and current else None
        # Before the files: a run that dies between a layer's new file and the new record must leave no record that
        # vouches for the old one.
        replace_commit(store, shard, found, kept)
        store.put_many(files)
        entries = {entry.index: entry for entry in (*(kept.quarantine if kept else ()), *computed.quarantine)}
        dropped = computed.buffer.dropped_pixels()
        record = CommitRecord(
            shard=shard,
            samples=(state.samples.start, state.samples.stop),
            inputs=state.inputs,
            layers={
                **(kept.layers if kept else {}),
                **{name: LayerCommit(settings=schema.layer_digest(name), files=of) for name, of in hashes.items()},
            },
            quarantine=tuple(entries[index] for index in sorted(entries)),
            dropped_pixels=(kept.dropped_pixels if kept else 0) if dropped is None else dropped,
        )
        store.put(schema.shard_file(STATUS, shard), encode_status(record, schema))
        write_commit(store, record)
    return record, sum(map(len, files.values()))


def _fetched(manifest: Manifest, indices: Iterable[int]) -> Iterator[Fetch]:
    """The files of each sample in turn; those of a URL are asked for a few samples ahead."""
    if not is_url(manifest.root):
        for index in indices:
            yield partial(manifest.fetch, index)
        return
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        coming: deque[Future[tuple[bytes, bytes]]] = deque()
        for index in indices:
            coming.append(pool.submit(manifest.fetch, index))
            if len(coming) > FETCHED_AHEAD:
                yield coming.popleft().result
        while coming:
            yield coming.popleft().result


def _check_settings(store: Storage, task: ShardTask) -> StoreSchema:
    """The store's schema; raises StoreError if it is not the one that the task was planned for."""
    schema = open_schema(store)
    if settings_digest(schema) != task.settings:
        raise StoreError(
            f"{task.store}: its settings are not those that shard {task.shard} was planned with",
            hint="another run changed the store, or this machine sees an old copy of it: run the same command again",
        )
    return schema


@lru_cache(maxsize=4)
def _read_manifest(store: str, _settings: str, root: str) -> Manifest:
    """Kept from task to task: reading the rows of a large data set takes longer than many an image."""
    storage = open_storage(store)
    return read_manifest(storage, open_schema(storage), root)
