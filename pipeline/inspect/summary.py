"""What a store holds, in figures: counted from its schema, its commit records and a few measured samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ...common.storage.interface import Storage
from ...common.storage.location import Location, open_storage
from ...common.text import evenly
from ..store.commits import CommitRecord, QuarantineEntry, read_commits
from ..store.errors import StoreCorruptError
from ..store.layout import open_schema
from ..store.open_store import cut_sample
from ..store.reader import StoreReader
from ..store.schema import DONE, MISSING, QUARANTINED, STATUS, StoredArray, StoreSchema
from .drawing.layers import KEYPOINTS

COCO_TRAIN_IMAGES: Final = 118_287
"""Images of COCO train2017, the data set whose store the size is extrapolated to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFacts:
    """One array of the store."""

    name: str
    layer: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str
    disk_bytes: int
    """Bytes of the files that commit records name."""
    bytes_per_image: float | None
    """Bytes on disk of one sample; None while nothing is committed."""
    compression: float | None
    """Uncompressed bytes of the committed samples over bytes on disk."""
    fill: float | None
    """Share of values inside the frame that are not the array's fill value, on the measured samples."""
    keypoints: tuple[int, ...] | None
    """Number of keypoints of each measured sample; None for an array of something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFacts:
    """One layer: its settings and how far it is computed."""

    name: str
    settings: Mapping[str, Any]
    """Settings of its extractor, with hashes of weights where it has some."""
    shards_current: int
    """Number of shards whose record has the layer with today's settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSummary:
    """Everything that `physseg inspect STORE` prints."""

    path: str
    dataset: str
    vocabulary: str
    num_classes: int
    ignore_index: int
    samples: int
    done: int
    missing: int
    quarantined: int
    quarantine: tuple[QuarantineEntry, ...]
    shards: int
    shards_committed: int
    """Number of shards with a readable commit record."""
    damaged: tuple[str, ...]
    """Faults of the files that were looked at; `physseg verify` looks at every byte."""
    arrays: tuple[ArrayFacts, ...]
    layers: tuple[LayerFacts, ...]
    frame: Mapping[str, int]
    """Settings of the frame, px."""
    cell_px: int
    schema_version: int
    made_with: Mapping[str, str]
    manifest_fingerprint: str
    root: str
    """Place where the images are expected."""
    dropped_pixels: int
    """Number of labelled pixels that found no slot in their cell."""
    disk_bytes: int
    bytes_per_image: float | None
    """Bytes on disk of one sample's arrays together."""
    projected_images: int
    projected_bytes: float | None
    measured_samples: int
    """Number of samples that were read for `ArrayFacts.fill` and `ArrayFacts.keypoints`."""


def summarise(store: Location, *, measure: int = 64, root: str | None = None) -> StoreSummary:
    """Count what a store holds, finished or not; of samples that are not done, and of images, nothing is read.

    `measure` samples, evenly spread, are read for the shares of values that are not fill. `root` is where the
    manifest's paths start, if the data set was moved.
    """
    store = open_storage(store)
    schema = open_schema(store)
    reader = StoreReader(store, schema.array_names, root=root)
    location = reader.manifest.root  # the manifest first: it bounds how many shards a store may claim to have
    found = list(read_commits(store, range(schema.num_shards)))
    records = [record for record in found if isinstance(record, CommitRecord)]
    damaged = [str(error.args[0]) for error in found if isinstance(error, StoreCorruptError)]
    sizes = store.list()  # after the records, which may become more meanwhile
    files, absent = _committed_files(store, schema, records, sizes)
    committed = {record.shard for record in records}
    readable = [i for i in reader.usable.tolist() if i // schema.samples_per_shard in committed]
    measured = evenly(readable, measure)
    filled = _filled(reader, measured)
    arrays = tuple(_array_facts(spec, schema, files[spec.name], filled.get(spec.name)) for spec in schema.specs)
    per_image = sum(array.bytes_per_image or 0 for array in arrays) if records else None
    missing, done, quarantined = (int((reader.status == status).sum()) for status in (MISSING, DONE, QUARANTINED))
    return StoreSummary(
        path=str(store),
        dataset=schema.dataset,
        vocabulary=schema.vocabulary.name,
        num_classes=len(reader.vocabulary.class_names),
        ignore_index=schema.vocabulary.ignore_index,
        samples=schema.num_samples,
        done=done,
        missing=missing,
        quarantined=quarantined,
        quarantine=tuple(entry for record in records for entry in record.quarantine),
        shards=schema.num_shards,
        shards_committed=len(records),
        damaged=(*damaged, *absent),
        arrays=arrays,
        layers=tuple(
            LayerFacts(
                name=name,
                settings=dict(settings),
                shards_current=sum(record.has(name, schema.layer_digest(name)) for record in records),
            )
            for name, settings in schema.layers.items()
        ),
        frame=asdict(schema.frame),
        cell_px=schema.cell_px,
        schema_version=schema.version,
        made_with=dict(schema.made_with),
        manifest_fingerprint=schema.manifest_fingerprint,
        root=location,
        dropped_pixels=sum(record.dropped_pixels for record in records),
        disk_bytes=sum(sizes.values()),
        bytes_per_image=per_image,
        projected_images=COCO_TRAIN_IMAGES,
        projected_bytes=per_image * COCO_TRAIN_IMAGES if per_image is not None else None,
        measured_samples=len(measured),
    )


def _committed_files(
    store: Storage, schema: StoreSchema, records: Sequence[CommitRecord], sizes: Mapping[str, int]
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Bytes and samples per array, of the files that the records name; and the files that are not there."""
    found: dict[str, Counter[str]] = {spec.name: Counter() for spec in schema.specs}
    absent = []
    for record in records:
        named = [path for layer in record.layers.values() for path in layer.files]
        for path in (*named, schema.shard_file(STATUS, record.shard)):
            array = path.split("/", 1)[0]
            if array not in found:  # of a layer that the store no longer has
                continue
            if path in sizes:
                found[array].update(bytes=sizes[path], samples=record.samples[1] - record.samples[0])
            elif array != STATUS.name:  # a shard that is being computed again has no status
                absent.append(f"{store.at(path)}: missing although it is committed")
    return found, absent


def _filled(reader: StoreReader, chosen: Sequence[int]) -> dict[str, list[tuple[int, int]]]:
    """Per array: number of values inside the frame of each sample that are not fill, and of all values."""
    fills = {spec.name: reader.schema.fill(spec) for spec in reader.schema.arrays}
    filled: dict[str, list[tuple[int, int]]] = {}
    for index in chosen:
        for name, inside in cut_sample(reader, index).arrays.items():
            counts = int(np.count_nonzero(inside != fills[name])), inside.size
            filled.setdefault(name, []).append(counts)
    return filled


def _array_facts(
    spec: StoredArray, schema: StoreSchema, files: Counter[str], filled: Sequence[tuple[int, int]] | None
) -> ArrayFacts:
    shape, dtype = schema.sample_shape(spec), schema.dtype(spec)
    size, samples = files["bytes"], files["samples"]
    raw = samples * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return ArrayFacts(
        name=spec.name,
        layer=spec.layer,
        dtype=dtype.name,
        shape=(schema.num_samples, *shape),
        meaning=spec.meaning,
        disk_bytes=size,
        bytes_per_image=size / samples if samples else None,
        compression=raw / size if size else None,
        fill=sum(count for count, _ in filled) / sum(size for _, size in filled) if filled else None,
        keypoints=tuple(count for count, _ in filled or ()) if spec.drawn == KEYPOINTS else None,
    )
