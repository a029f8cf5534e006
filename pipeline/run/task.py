"""The unit of work: compute some layers of one shard, write its files, and commit.

A task owns its shard's files alone, depends on nothing but the manifest's rows and the settings, and writes its commit
record last; so whatever kills it, a second run of the same task gives the same bytes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

import cv2

from ...common.processes import keep_freed_memory
from ...common.storage.interface import Storage
from ...common.storage.location import is_url, open_storage
from ...manifests.manifest import Manifest
from ...structure_extractors.registry import Request
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
from ..store.layout import open_schema, read_manifest, settings_digest, unpublish_shards
from ..store.locks import writing
from ..store.schema import LABELS_LAYER, STATUS, StoreSchema
from ..store.shard_files import Planes, ShardBuffer, encode_status
from .sample import Clock, Fetch, compute_sample

FETCHED_AHEAD = 8
"""Samples whose files are on their way where each takes tens of milliseconds of waiting."""
OnSample = Callable[[int], None]
"""Hears the index of a sample before it is computed."""


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
    extractors: tuple[Request, ...]
    """Compute their layers; the layer `labels` is computed if `with_labels`. Without any: status and record."""
    with_labels: bool
    refused: Mapping[int, str] = field(default_factory=dict)
    """Samples (index in the store -> reason) to quarantine untried.

    The shard's other layers, which stay, have them in quarantine (a sample is whole or not at all), or computing them
    has killed their process.
    """

    @property
    def layers(self) -> tuple[str, ...]:
        return (*((LABELS_LAYER,) if self.with_labels else ()), *(extractor.name for extractor in self.extractors))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of one task; timings are for the log, never for the store."""

    shard: int
    num_samples: int
    quarantine: tuple[QuarantineEntry, ...]
    dropped_pixels: int
    """Labelled pixels of the shard that found no slot in their cell."""
    bytes_written: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by part: `load`, one entry per layer, `compress`, `write`."""


def compute_shard(task: ShardTask, on_sample: OnSample = lambda _: None) -> ShardReport:
    """Run one task; returns after its commit record is on disk.

    Raises StoreError where the store's settings are not those that the task was planned for.
    """
    cv2.setNumThreads(1)  # one task, one core: threads of a library's own oversubscribe a full machine
    keep_freed_memory()
    store, clock = open_storage(task.store), Clock()
    schema = _check_settings(store, task)
    manifest = _read_manifest(task.store, task.settings, task.root)
    buffer, quarantine = _compute(task, schema, manifest, clock, on_sample)
    with clock.part("write"):
        record, written = _commit(store, task, manifest, buffer, quarantine)
    return ShardReport(
        shard=task.shard,
        num_samples=record.samples[1] - record.samples[0],
        quarantine=record.quarantine,
        dropped_pixels=record.dropped_pixels,
        bytes_written=written,
        seconds=clock.seconds,
    )


def _compute(
    task: ShardTask, schema: StoreSchema, manifest: Manifest, clock: Clock, on_sample: OnSample
) -> tuple[ShardBuffer, list[QuarantineEntry]]:
    buffer = ShardBuffer(schema, [spec for spec in schema.specs if spec.layer in task.layers])
    extractors = [request.make(schema.layers[request.name]) for request in task.extractors]
    quarantine = []
    indices = range(*schema.shard_range(task.shard)) if task.layers else range(0)
    for index, fetch in zip(indices, _fetched(manifest, indices), strict=True):
        reason = manifest.table.value("problem", index) or task.refused.get(index, "")
        planes: Planes = {}
        if not reason:
            on_sample(index)
            reason, planes = compute_sample(manifest, index, fetch, schema, extractors, clock)
        with clock.part("compress"):
            buffer.append(planes)
        if reason:
            quarantine.append(QuarantineEntry(index=index, sample_id=manifest.samples[index].sample_id, reason=reason))
    return buffer, quarantine


def _commit(
    store: Storage, task: ShardTask, manifest: Manifest, buffer: ShardBuffer, quarantine: Sequence[QuarantineEntry]
) -> tuple[CommitRecord, int]:
    """Write the shard's files, its status, then its record; returns the record, and the bytes of the files.

    What the earlier record knows of other, current layers is kept. It is read here, where nobody changes the store's
    settings, and no sooner: computing takes a while.
    """
    schema, shard = buffer.schema, task.shard
    samples = schema.shard_range(shard)
    inputs = manifest.row_digests(*samples)
    files = buffer.files(shard)
    hashes: dict[str, dict[str, str]] = {}
    for path, data in files.items():
        hashes.setdefault(schema.layer_of(path), {})[path] = sha256(data)
    with writing(store):
        _check_settings(store, task)  # once more
        (found,) = read_commits(store, [shard])
        current = isinstance(found, CommitRecord) and found.inputs == inputs
        kept = found.without(task.layers) if isinstance(found, CommitRecord) and current else None
        # Before the files: a run that dies between a layer's new file and the new record must leave no record that
        # vouches for the old one.
        replace_commit(store, shard, found, kept)
        store.put_many(files)
        entries = {entry.index: entry for entry in (*(kept.quarantine if kept else ()), *quarantine)}
        dropped = buffer.dropped_pixels()
        record = CommitRecord(
            shard=shard,
            samples=samples,
            inputs=inputs,
            layers={
                **(kept.layers if kept else {}),
                **{name: LayerCommit(settings=schema.layer_digest(name), files=of) for name, of in hashes.items()},
            },
            quarantine=tuple(entries[index] for index in sorted(entries)),
            dropped_pixels=(kept.dropped_pixels if kept else 0) if dropped is None else dropped,
        )
        store.put(schema.shard_file(STATUS, shard), encode_status(record, schema))
        write_commit(store, record)
        try:  # where no lock holds settings, as in object stores: what they changed to must not find this shard done
            _check_settings(store, task)
        except StoreError:
            unpublish_shards(store, schema, [shard])
            raise
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
        message = f"{task.store}: its settings are not those that shard {task.shard} was planned with"
        hint = "another run changed the store, or this machine sees an old copy of it: run the same command again"
        raise StoreError(message, hint=hint)
    return schema


@lru_cache(maxsize=4)
def _read_manifest(store: str, _settings: str, root: str) -> Manifest:
    """Kept from task to task: reading the rows of a large data set takes longer than many an image."""
    storage = open_storage(store)
    return read_manifest(storage, open_schema(storage), root)
