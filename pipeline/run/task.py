"""The unit of work: compute some layers of one shard, write its files, and commit.

A task owns its shard's files alone, depends on nothing but the manifest's rows and the settings, and writes its commit
record last; so whatever kills it, a second run of the same task gives the same bytes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from ...common.processes import keep_freed_memory
from ...common.storage.interface import Storage
from ...common.storage.location import is_url, open_storage
from ...manifests.errors import ContentError
from ...manifests.manifest import Manifest
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.interface import Extractor, Labels
from ...structure_extractors.patch_counts import CELL_PX
from ..store.commits import CommitRecord, LayerCommit, QuarantineEntry, forget_layers, read_commit, sha256, write_commit
from ..store.errors import StoreCorruptError, StoreError
from ..store.layout import open_schema, read_manifest, settings_digest
from ..store.locks import writing
from ..store.schema import DONE, QUARANTINED, SPECS, STATUS, ArraySpec, StoreSchema
from ..store.shard_files import Planes, ShardBuffer, StoredShard, encode_rows

LABELS_LAYER = "labels"
FETCHED_AHEAD = 8
"""Samples whose files are on their way where each takes tens of milliseconds of waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything one task needs; small enough to send, whatever the size of the data set."""

    store: str
    """URL, or absolute path: a worker may have been started in another folder."""
    settings: str
    """``settings_digest`` of the store that the task was planned for; any other is refused."""
    root: str
    """Where the manifest's paths start."""
    shard: int
    extractors: tuple[Extractor, ...]
    """Computes these layers; the layer ``labels`` is computed if ``with_labels``. Without any: status and record."""
    with_labels: bool
    only: tuple[int, ...] | None = None
    """Compute these samples of all layers, and take the shard's others over as they are stored; None: compute all."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Samples (index in the store -> reason) to quarantine untried: computing them has killed their process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of one task; timings are for the log, never for the store."""

    shard: int
    num_samples: int
    """Samples computed; the others were taken over."""
    quarantine: tuple[QuarantineEntry, ...]
    dropped_pixels: int
    bytes_written: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by part: ``load``, one entry per layer, ``compress``, ``write``."""


def compute_shard(task: ShardTask, on_sample: Callable[[int], None] | None = None) -> ShardReport:
    """Run one task; returns after its commit record is on disk. ``on_sample`` hears each index before its computing."""
    _hold_to_one_thread()
    keep_freed_memory()
    store = open_storage(task.store)
    schema, manifest = _open(store, task)
    start, stop = schema.shard_range(task.shard)
    clock = Clock()
    layers = ([LABELS_LAYER] if task.with_labels else []) + [extractor.name for extractor in task.extractors]
    shard = ShardBuffer(schema, [spec for spec in schema.specs if spec.layer in layers])
    inputs = manifest.row_digests(start, stop)
    record = _readable_commit(store, task.shard)
    kept = _kept_samples(store, schema, shard.specs, task, record, inputs)
    # What other layers, which stay, have in quarantine is so for this one, too: a sample is whole or not at all.
    others = _kept_layers(schema, record, inputs, layers)
    refused = {entry.index: entry.reason for entry in others.quarantine} if others else {}
    refused |= task.refused
    chosen = range(start, stop) if kept is None else task.only or ()
    quarantine = [] if kept is None else [entry for entry in kept.record.quarantine if entry.index not in chosen]
    files_of = _fetched(manifest, chosen if layers else ())
    for index in range(start, stop) if layers else ():
        if kept is not None and index not in chosen:
            shard.keep(kept, index - start)
            continue
        fetch, planes = next(files_of), Planes()
        reason = manifest.table.value("problem", index) or refused.get(index, "")
        if not reason:
            if on_sample is not None:
                on_sample(index)
            reason, planes = _compute_sample(manifest, index, fetch, schema, task, clock)
        with clock.part("compress"):
            shard.append(planes)
        if reason:
            quarantine.append(QuarantineEntry(index=index, sample_id=manifest.samples[index].sample_id, reason=reason))
    with clock.part("write"), writing(store):
        files = shard.files(task.shard)
        _check_settings(store, task)  # once more: computing takes a while
        forget_layers(store, task.shard, layers)
        store.put_many(files)
        record = _commit(store, schema, task.shard, inputs, files, quarantine, dropped=shard.dropped_pixels())
    return ShardReport(
        shard=task.shard,
        num_samples=len(chosen),
        quarantine=record.quarantine,
        dropped_pixels=record.dropped_pixels,
        bytes_written=sum(map(len, files.values())),
        seconds=clock.seconds,
    )


def compute_planes(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    schema: StoreSchema,
    extractors: Sequence[Extractor],
    clock: "Clock | None" = None,
) -> Planes:
    """All arrays of one sample at frame size, from the image (H, W, 3) uint8 RGB and its label map (H, W).

    Cell counts are computed on the frame padded with ignored pixels to whole cells.
    """
    clock = clock or Clock()
    with clock.part("load"):
        image = schema.frame.resize_image(image)
        labels = schema.frame.resize_labels(labels)
    planes: Planes = {"labels": labels, "frame_size": np.array(labels.shape, dtype=np.uint16)}
    ignore_index = schema.vocabulary.ignore_index
    for extractor in extractors:
        with clock.part(extractor.name):
            if "cell_counts" in extractor.arrays:
                made = extractor(image, _to_whole_cells(labels, ignore_index), ignore_index=ignore_index)
            else:
                made = extractor(image, labels, ignore_index=ignore_index)
        _check_made(made, extractor, schema, (labels.shape[0], labels.shape[1]))
        planes |= made
    return planes


Fetch = Callable[[], tuple[bytes, bytes]]
"""`Manifest.fetch` of one sample: its files, or its ContentError."""


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


def _readable_commit(store: Storage, shard: int) -> CommitRecord | None:
    try:
        return read_commit(store, shard)
    except StoreCorruptError:
        return None


def _kept_samples(
    store: Storage,
    schema: StoreSchema,
    specs: Sequence[ArraySpec],
    task: ShardTask,
    record: CommitRecord | None,
    inputs: Sequence[str],
) -> StoredShard | None:
    """The shard as it is stored, if the task is to take samples over, and they are what their record says.

    That is: of today's inputs, which may have changed since the task was planned, and true to every byte.
    """
    if task.only is None or record is None or len(record.inputs) != len(inputs):
        return None
    first = record.samples[0]
    pairs = enumerate(zip(record.inputs, inputs, strict=True), first)
    if any(then != now and index not in task.only for index, (then, now) in pairs):
        return None
    return StoredShard.read(store, schema, specs, record)


def _compute_sample(
    manifest: Manifest, index: int, fetch: Fetch, schema: StoreSchema, task: ShardTask, clock: "Clock"
) -> tuple[str, Planes]:
    """The reason for quarantine ("" if none) and the sample's planes (none if quarantined)."""
    try:
        with clock.part("load"):
            image, labels = manifest.decode(index, fetch())
        return "", compute_planes(image, labels, schema, task.extractors, clock)
    except (ContentError, ExtractorError, cv2.error) as error:
        if isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error  # the machine's fault, not the sample's
        return " ".join(str(error).split()), {}


def status_rows(record_range: tuple[int, int], quarantine: Sequence[QuarantineEntry]) -> npt.NDArray[np.uint8]:
    """Status of each sample of a shard whose layers are all committed."""
    start, stop = record_range
    status = np.full(stop - start, DONE, dtype=np.uint8)
    status[[entry.index - start for entry in quarantine]] = QUARANTINED
    return status


def _check_made(
    made: Mapping[str, npt.NDArray[Any]], extractor: Extractor, schema: StoreSchema, frame_size: tuple[int, int]
) -> None:
    """Refuse what an extractor promised otherwise: a missing array, or a part of one, would be stored as fill."""
    if set(made) != set(extractor.arrays):
        raise StoreError(
            f"extractor {extractor.name}: expected the arrays {', '.join(extractor.arrays)}, got {', '.join(made)}",
            hint="this is a bug of the extractor",
        )
    cells = tuple(-(-edge // CELL_PX) for edge in frame_size)
    for name, plane in made.items():
        dims = SPECS[name].dims
        sizes = {"y": frame_size[0], "x": frame_size[1], "cell_y": cells[0], "cell_x": cells[1]}
        expected = tuple(sizes[dim] if dim in sizes else schema.dimension_size(dim) for dim in dims)
        if plane.shape != expected or plane.dtype != schema.dtype(SPECS[name]):
            raise StoreError(
                f"extractor {extractor.name}: expected {name} as {schema.dtype(SPECS[name])} {expected}, "
                f"got {plane.dtype} {plane.shape}",
                hint="this is a bug of the extractor",
            )


def _to_whole_cells(labels: Labels, ignore_index: int) -> Labels:
    height, width = (edge + -edge % CELL_PX for edge in labels.shape)
    padded = np.full((height, width), ignore_index, dtype=labels.dtype)
    padded[: labels.shape[0], : labels.shape[1]] = labels
    return cast(Labels, padded)


def _commit(
    store: Storage,
    schema: StoreSchema,
    shard: int,
    inputs: tuple[str, ...],
    files: Mapping[str, bytes],
    quarantine: Sequence[QuarantineEntry],
    *,
    dropped: int | None,
) -> CommitRecord:
    """Write the shard's status, then its record; what the earlier record knows of other, current layers is kept."""
    computed: dict[str, dict[str, str]] = {}
    for path, data in files.items():
        computed.setdefault(SPECS[path.split("/")[0]].layer, {})[path] = sha256(data)
    kept = _kept_layers(schema, _readable_commit(store, shard), inputs, computed)
    entries = {entry.index: entry for entry in (*(kept.quarantine if kept else ()), *quarantine)}
    merged = tuple(entries[index] for index in sorted(entries))
    sample_range = schema.shard_range(shard)
    status = encode_rows(list(status_rows(sample_range, merged)), STATUS, schema)
    store.put(schema.shard_file(STATUS, shard), status)
    layers = {name: LayerCommit(settings=schema.layer_digest(name), files=paths) for name, paths in computed.items()}
    record = CommitRecord(
        shard=shard,
        samples=sample_range,
        inputs=inputs,
        layers={**(kept.layers if kept else {}), **layers},
        quarantine=merged,
        dropped_pixels=(kept.dropped_pixels if kept else 0) if dropped is None else dropped,
    )
    write_commit(store, record)
    return record


def _kept_layers(
    schema: StoreSchema, record: CommitRecord | None, inputs: tuple[str, ...], computed: Iterable[str]
) -> CommitRecord | None:
    """The earlier record, reduced to the layers that this task leaves alone; None if it is of other inputs."""
    if record is None or record.inputs != inputs:
        return None
    names = schema.layers.keys() - set(computed)
    layers = {name: commit for name, commit in record.layers.items() if name in names}
    return replace(record, layers=layers) if layers else None


class Clock:
    """Wall seconds by named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _hold_to_one_thread() -> None:
    """One task, one core: libraries that start threads of their own oversubscribe a full machine."""
    cv2.setNumThreads(1)


def _open(store: Storage, task: ShardTask) -> tuple[StoreSchema, Manifest]:
    """The store as the task was planned for; raises StoreError if it is another by now, or still another here."""
    return _check_settings(store, task), _read_manifest(task.store, task.settings, task.root)


def _check_settings(store: Storage, task: ShardTask) -> StoreSchema:
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
