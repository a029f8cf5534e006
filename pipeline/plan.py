"""What a run has to do, known before it does anything: shards, layers, reasons, bytes and memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from ..manifests.errors import ContentError
from ..manifests.table import Manifest
from ..structure_extractors.errors import ExtractorError
from ..structure_extractors.interface import Extractor
from .commits import CommitRecord, read_commit
from .errors import StoreCorruptError, StoreError
from .schema import STATUS, StoreSchema
from .shard_files import ShardBuffer
from .shard_task import LABELS_LAYER, Clock, ShardTask, compute_planes
from .store import settings_digest

WORKER_BASE_BYTES = 300 * 2**20
"""Resident memory of a worker process with Dask, OpenCV and Zarr imported, before any image; measured."""
TYPICAL_BYTES_PER_SAMPLE = 75_000
"""Of a photograph with four structures, compressed; for estimates where nothing was measured."""
PROBED_IMAGES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The tasks of a run, and what is known of their cost."""

    tasks: tuple[ShardTask, ...]
    num_samples: int
    num_shards: int
    samples_to_compute: int
    reasons: Counter[str]
    """Why shards are computed -> how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Measured on a few images of the manifest, on this machine, in this process."""

    images: int
    bytes_per_sample: float
    seconds_per_sample: float
    seconds: dict[str, float]
    """Per image, by part."""


def make_plan(
    store: Path,
    schema: StoreSchema,
    manifest: Manifest,
    extractors: Sequence[Extractor],
    *,
    retry_quarantined: bool = False,
) -> Plan:
    """Compare each shard's commit record with today's inputs and settings; what differs becomes a task."""
    settings = settings_digest(schema)
    digests = {layer: schema.layer_digest(layer) for layer in schema.layers}
    tasks: list[ShardTask] = []
    reasons: Counter[str] = Counter()
    samples = 0
    for shard in range(schema.num_shards):
        start, stop = schema.shard_range(shard)
        record, reason = _read_record(store, shard)
        inputs = manifest.row_digest(start, stop)
        todo = set(schema.layers)
        if record is not None and record.inputs != inputs:
            reason = "inputs changed since they were computed"
        elif record is not None and retry_quarantined and record.quarantine:
            reason = "quarantined samples are tried again"
        elif record is not None:
            lost = _layers_without_files(store, schema, shard)
            stale = {layer for layer in schema.layers if not record.is_current(layer, inputs, digests[layer])}
            todo = stale | (lost & set(schema.layers))
            reason = _layers_reason(record, stale, lost)
        if not reason:
            continue
        _check_computable(store, todo, extractors)
        reasons[reason] += 1
        samples += stop - start
        tasks.append(
            ShardTask(
                store=str(store.absolute()),
                settings=settings,
                root=manifest.root,
                shard=shard,
                extractors=tuple(extractor for extractor in extractors if extractor.name in todo),
                with_labels=LABELS_LAYER in todo,
            )
        )
    return Plan(
        tasks=tuple(tasks),
        num_samples=schema.num_samples,
        num_shards=schema.num_shards,
        samples_to_compute=samples,
        reasons=reasons,
    )


def probe(schema: StoreSchema, manifest: Manifest, extractors: Sequence[Extractor]) -> Probe | None:
    """Compute a few images, evenly spread, without writing anything; None if none of them can be computed."""
    step = max(1, len(manifest) // PROBED_IMAGES)
    clock = Clock()
    buffer = ShardBuffer(schema, schema.specs[:-1])
    images = 0
    for index in range(0, len(manifest), step)[:PROBED_IMAGES]:
        try:
            with clock.part("load"):
                image, labels = manifest.load(index)
            planes = compute_planes(image, labels, schema, extractors, clock)
        except (ContentError, ExtractorError):
            continue
        with clock.part("compress"):
            buffer.append(planes)
        images += 1
    if not images:
        return None
    size = sum(map(len, buffer.files(0).values()))
    seconds = {name: value / images for name, value in clock.seconds.items()}
    return Probe(
        images=images, bytes_per_sample=size / images, seconds_per_sample=sum(seconds.values()), seconds=seconds
    )


def memory_per_worker(
    schema: StoreSchema, manifest: Manifest, bytes_per_sample: float = TYPICAL_BYTES_PER_SAMPLE
) -> int:
    """Bytes one worker needs at its peak.

    The process itself, the largest image in flight, the sample's planes, and one shard's compressed chunks twice (once
    as chunks, once joined into files).
    """
    columns = manifest.table
    largest = max(pc.max(pc.multiply(columns.column("height"), columns.column("width"))).as_py() or 0, 1)
    image_bytes = largest * (3 + 3 + 2 + 2)  # decoded, turned or resized copy, labels, resized labels
    canvas_bytes = sum(schema.frame.canvas**2 * 4 for _ in schema.specs)  # planes, float intermediates
    return int(WORKER_BASE_BYTES + image_bytes + canvas_bytes + 2 * schema.samples_per_shard * bytes_per_sample)


def _read_record(store: Path, shard: int) -> tuple[CommitRecord | None, str]:
    try:
        record = read_commit(store, shard)
    except StoreCorruptError:
        return None, "commit record damaged"
    return record, "" if record else "not computed yet"


def _check_computable(store: Path, todo: set[str], extractors: Sequence[Extractor]) -> None:
    missing = todo.difference({LABELS_LAYER}, (extractor.name for extractor in extractors))
    if missing:
        layer = min(missing)
        raise StoreError(
            f"{store}: layer {layer} has to be computed again, and its weights were not given",
            hint=f"run `physseg preprocess MANIFEST STORE --structures {layer} --set {layer}.weights=FILE`",
        )


def _layers_without_files(store: Path, schema: StoreSchema, shard: int) -> set[str]:
    """Layers that lack a file of this shard; the status file is of a layer without a name."""
    return {spec.layer for spec in schema.specs if not (store / schema.shard_file(spec, shard)).exists()}


def _layers_reason(record: CommitRecord, stale: set[str], lost: set[str]) -> str:
    changed = sorted(stale.intersection(record.layers))
    missing = sorted(stale.difference(record.layers))
    lost_files = sorted(lost - stale - {STATUS.layer})
    parts = [f"settings changed: {', '.join(changed)}"] if changed else []
    parts += [f"not computed yet: {', '.join(missing)}"] if missing else []
    parts += [f"files missing: {', '.join(lost_files)}"] if lost_files else []
    if not parts and lost:
        parts = ["status to be written again"]
    return "; ".join(parts)
