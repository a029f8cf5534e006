"""The unit of work: compute some layers of one shard, write its files, and commit.

A task owns its shard's files alone, depends on nothing but the manifest's rows and the settings, and writes its commit
record last; so whatever kills it, a second run of the same task gives the same bytes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..manifests.errors import ContentError
from ..manifests.table import Manifest
from ..manifests.whole_file import write_whole
from ..structure_extractors.errors import ExtractorError
from ..structure_extractors.interface import Extractor
from ..structure_extractors.patch_counts import CELL_PX
from .commits import CommitRecord, LayerCommit, QuarantineEntry, read_commit, sha256, write_commit
from .errors import StoreCorruptError
from .schema import DONE, QUARANTINED, STATUS, ArraySpec, StoreSchema
from .shard_codec import compress, encode_shard
from .store import open_schema, read_manifest

LABELS_LAYER = "labels"

Planes = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything one task needs; small enough to send, whatever the size of the data set."""

    store: str
    shard: int
    extractors: tuple[Extractor, ...]
    """Computes these layers; the layer ``labels`` is computed if ``with_labels``."""
    with_labels: bool
    root: str | None = None
    """Where the manifest's paths start, if elsewhere than the manifest says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of one task; timings are for the log, never for the store."""

    shard: int
    num_samples: int
    quarantine: tuple[QuarantineEntry, ...]
    dropped_pixels: int
    bytes_written: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by part: ``load``, one entry per layer, ``compress``, ``write``."""


def compute_shard(task: ShardTask) -> ShardReport:
    """Run one task; returns after its commit record is on disk."""
    _hold_to_one_thread()
    store = Path(task.store)
    schema, manifest = _open(task.store, task.root, _identity_of(store))
    start, stop = schema.shard_range(task.shard)
    clock = Clock()
    layers = ([LABELS_LAYER] if task.with_labels else []) + [extractor.name for extractor in task.extractors]
    shard = ShardBuffer(schema, [spec for spec in schema.specs if spec.layer in layers])
    quarantine: list[QuarantineEntry] = []
    for index in range(start, stop):
        reason, planes = _compute_sample(manifest, index, schema, task, clock)
        with clock.part("compress"):
            shard.append(planes)
        if reason:
            quarantine.append(QuarantineEntry(index=index, sample_id=manifest.samples[index].sample_id, reason=reason))
    with clock.part("write"):
        record, bytes_written = _write(store, schema, task, manifest.row_digest(start, stop), shard, quarantine)
    return ShardReport(
        shard=task.shard,
        num_samples=stop - start,
        quarantine=record.quarantine,
        dropped_pixels=record.dropped_pixels,
        bytes_written=bytes_written,
        seconds=clock.seconds,
    )


def compute_planes(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[Any],
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
                padded = np.pad(labels, [(0, -edge % CELL_PX) for edge in labels.shape], constant_values=ignore_index)
                planes |= extractor(image, padded, ignore_index=ignore_index)
            else:
                planes |= extractor(image, labels, ignore_index=ignore_index)
    return planes


def _compute_sample(
    manifest: Manifest, index: int, schema: StoreSchema, task: ShardTask, clock: "Clock"
) -> tuple[str, Planes]:
    """The reason for quarantine ("" if none) and the sample's planes (none if quarantined)."""
    problem = manifest.samples[index].problem
    if problem:
        return problem, {}
    try:
        with clock.part("load"):
            image, labels = manifest.load(index)
        return "", compute_planes(image, labels, schema, task.extractors, clock)
    except (ContentError, ExtractorError, cv2.error) as error:
        return " ".join(str(error).split()), {}


class ShardBuffer:
    """The growing files of one shard: compressed chunks, one per sample, and the arrays too small for that."""

    def __init__(self, schema: StoreSchema, specs: Sequence[ArraySpec]) -> None:
        self.schema = schema
        self.specs = specs
        self.chunks: dict[str, list[bytes]] = {spec.name: [] for spec in specs if spec.is_sharded}
        self.rows: dict[str, list[npt.NDArray[Any]]] = {spec.name: [] for spec in specs if not spec.is_sharded}
        self._empty: dict[str, bytes] = {}

    def append(self, planes: Planes) -> None:
        """Add one sample; arrays that ``planes`` lacks (a quarantined sample) hold fill."""
        for spec in self.specs:
            plane = planes.get(spec.name)
            if not spec.is_sharded:
                empty = np.full(self.schema.sample_shape(spec), self.schema.fill(spec), self.schema.dtype(spec))
                self.rows[spec.name].append(empty if plane is None else np.asarray(plane, dtype=empty.dtype))
            elif plane is None:
                self.chunks[spec.name].append(self._empty_chunk(spec))
            else:
                self.chunks[spec.name].append(compress(_on_canvas(plane, spec, self.schema)))

    def files(self, shard: int) -> dict[str, bytes]:
        """Path inside the store -> bytes."""
        files = {}
        for spec in self.specs:
            if spec.is_sharded:
                data = encode_shard(self.chunks[spec.name], self.schema.samples_per_shard)
            else:
                data = encode_rows(self.rows[spec.name], spec, self.schema)
            files[self.schema.shard_file(spec, shard)] = data
        return files

    def dropped_pixels(self) -> int | None:
        rows = self.rows.get("cell_dropped")
        return None if rows is None else int(np.sum(rows))

    def _empty_chunk(self, spec: ArraySpec) -> bytes:
        if spec.name not in self._empty:
            shape = (1, *self.schema.sample_shape(spec))
            self._empty[spec.name] = compress(np.full(shape, self.schema.fill(spec), self.schema.dtype(spec)))
        return self._empty[spec.name]


def encode_rows(rows: Sequence[Any], spec: ArraySpec, schema: StoreSchema) -> bytes:
    """The one-chunk file of an unsharded array: a row per sample, then fill (Zarr stores edge chunks whole)."""
    shape = (schema.samples_per_shard, *schema.sample_shape(spec))
    chunk = np.full(shape, schema.fill(spec), dtype=schema.dtype(spec))
    chunk[: len(rows)] = rows
    return compress(chunk)


def status_rows(record_range: tuple[int, int], quarantine: Sequence[QuarantineEntry]) -> npt.NDArray[np.uint8]:
    """Status of each sample of a shard whose layers are all committed."""
    start, stop = record_range
    status = np.full(stop - start, DONE, dtype=np.uint8)
    status[[entry.index - start for entry in quarantine]] = QUARANTINED
    return status


def _on_canvas(plane: npt.NDArray[Any], spec: ArraySpec, schema: StoreSchema) -> npt.NDArray[Any]:
    """``plane`` at the top left of the array's canvas, fill elsewhere; leading dimensions are kept."""
    dtype = schema.dtype(spec)
    if plane.dtype != dtype:
        raise ExtractorError(f"{spec.name}: expected {dtype} from its extractor, got {plane.dtype}")
    canvas = np.full((1, *schema.sample_shape(spec)), schema.fill(spec), dtype=dtype)
    canvas[..., : plane.shape[-2], : plane.shape[-1]] = plane
    return canvas


def _write(
    store: Path,
    schema: StoreSchema,
    task: ShardTask,
    inputs: str,
    shard: ShardBuffer,
    quarantine: Sequence[QuarantineEntry],
) -> tuple[CommitRecord, int]:
    """Write the shard's files, then its status, then its record; keeps what the record knows of other layers."""
    files = shard.files(task.shard)
    for path, data in files.items():
        write_whole(store / path, data)
    computed = {spec.layer: {} for spec in shard.specs}  # type: dict[str, dict[str, str]]
    for spec in shard.specs:
        path = schema.shard_file(spec, task.shard)
        computed[spec.layer][path] = sha256(files[path])
    kept = _kept_layers(store, schema, task.shard, inputs, computed)
    layers = kept.layers if kept else {}
    entries = {entry.index: entry for entry in (kept.quarantine if kept else ())}
    entries |= {entry.index: entry for entry in quarantine}
    merged = tuple(entries[index] for index in sorted(entries))
    sample_range = schema.shard_range(task.shard)
    status = encode_rows(list(status_rows(sample_range, merged)), STATUS, schema)
    write_whole(store / schema.shard_file(STATUS, task.shard), status)
    dropped = shard.dropped_pixels()
    record = CommitRecord(
        shard=task.shard,
        samples=sample_range,
        inputs=inputs,
        layers={
            **layers,
            **{name: LayerCommit(settings=schema.layer_digest(name), files=paths) for name, paths in computed.items()},
        },
        status_sha256=sha256(status),
        quarantine=merged,
        dropped_pixels=(kept.dropped_pixels if kept else 0) if dropped is None else dropped,
    )
    write_commit(store, record)
    return record, sum(map(len, files.values())) + len(status)


def _kept_layers(
    store: Path, schema: StoreSchema, shard: int, inputs: str, computed: Mapping[str, Any]
) -> CommitRecord | None:
    """The earlier record, reduced to the layers that this task leaves alone and that are still current."""
    try:
        record = read_commit(store, shard)
    except StoreCorruptError:
        return None
    if record is None or record.inputs != inputs:
        return None
    layers = {name: commit for name, commit in record.layers.items() if name not in computed and name in schema.layers}
    if not layers:
        return None
    return CommitRecord(
        shard=record.shard,
        samples=record.samples,
        inputs=record.inputs,
        layers=layers,
        status_sha256=record.status_sha256,
        quarantine=record.quarantine,
        dropped_pixels=record.dropped_pixels,
    )


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


def _identity_of(store: Path) -> tuple[int, int]:
    """Changes when the store's root document does, so that a long-lived worker notices new settings."""
    stat = (store / "zarr.json").stat()
    return stat.st_mtime_ns, stat.st_ino


@lru_cache(maxsize=4)
def _open(store: str, root: str | None, _identity: tuple[int, int]) -> tuple[StoreSchema, Manifest]:
    schema = open_schema(Path(store))
    return schema, read_manifest(Path(store), schema, root)
