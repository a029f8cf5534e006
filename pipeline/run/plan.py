"""What a run has to do, known before it does anything: shards, layers, reasons, bytes and memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...common.storage.interface import Storage
from ...common.storage.location import absolute
from ...common.text import Part
from ...manifests.manifest import Manifest
from ...structure_extractors.interface import Extractor
from ..store.commits import CommitRecord, read_commits
from ..store.errors import StoreError
from ..store.layout import settings_digest
from ..store.schema import STATUS, StoreSchema
from .task import LABELS_LAYER, ShardTask

WORKER_BASE_BYTES = 300 * 2**20
"""Resident memory of a worker process with Dask, OpenCV and Zarr imported, before any image; measured."""
TORCH_BYTES = 550 * 2**20
"""What torch and a detector network add to it; measured."""
TYPICAL_BYTES_PER_SAMPLE = 75_000
"""Of a photograph with four structures, compressed; for estimates where nothing was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The tasks of a run, and what is known of their cost."""

    tasks: tuple[ShardTask, ...]
    reason_of: Mapping[int, str]
    """Why each of the tasks' shards is computed."""
    num_samples: int
    num_shards: int
    samples_per_shard: int

    @property
    def reasons(self) -> Counter[str]:
        """Why shards are computed -> how many."""
        return Counter(self.reason_of[task.shard] for task in self.tasks)

    @property
    def samples_to_compute(self) -> int:
        return sum(self.samples_of(task) for task in self.tasks)

    def samples_of(self, task: ShardTask) -> int:
        """How many samples a task computes."""
        start = task.shard * self.samples_per_shard
        return min(self.samples_per_shard, self.num_samples - start) if task.only is None else len(task.only)

    def share(self, part: Part) -> "Plan":
        """What one of several jobs does of it."""
        return replace(self, tasks=tuple(task for task in self.tasks if part.owns(task.shard)))


def make_plan(
    store: Storage,
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
    reason_of: dict[int, str] = {}
    present = store.list()
    location = absolute(str(store))
    for shard, read in enumerate(read_commits(store, range(schema.num_shards))):
        start, stop = schema.shard_range(shard)
        record = read if isinstance(read, CommitRecord) else None
        reason = "" if record else "not computed yet" if read is None else "commit record damaged"
        inputs = manifest.row_digests(start, stop)
        todo = set(schema.layers)
        only: tuple[int, ...] | None = None
        if record is not None:
            changed = _changed_samples(record, start, inputs, retry_quarantined=retry_quarantined)
            lost = {spec.layer for spec in schema.specs if schema.shard_file(spec, shard) not in present}
            stale = {layer for layer in schema.layers if not record.has(layer, digests[layer])}
            if changed:
                only = None if stale | (lost & set(schema.layers)) else changed
                reason = _samples_reason(record, inputs)
            else:
                todo = stale | (lost & set(schema.layers))
                reason = _layers_reason(record, stale, lost)
        if not reason:
            continue
        _check_computable(store, todo, extractors)
        reason_of[shard] = reason
        tasks.append(
            ShardTask(
                store=location,
                settings=settings,
                root=manifest.root,
                shard=shard,
                extractors=tuple(extractor for extractor in extractors if extractor.name in todo),
                with_labels=LABELS_LAYER in todo,
                only=only,
            )
        )
    return Plan(
        tasks=tuple(tasks),
        reason_of=reason_of,
        num_samples=schema.num_samples,
        num_shards=schema.num_shards,
        samples_per_shard=schema.samples_per_shard,
    )


def memory_per_worker(schema: StoreSchema, manifest: Manifest, tasks: Sequence[ShardTask]) -> int:
    """Bytes one worker needs at its peak, about; `estimate` measures it.

    The process itself, the largest image in flight, the sample's planes, and one shard's compressed chunks twice (once
    as chunks, once joined into files).
    """
    largest = int(manifest.table.pixels.max(initial=1))
    image_bytes = largest * (3 + 3 + 2 + 2)  # decoded, turned or resized copy, labels, resized labels
    canvas_bytes = sum(schema.frame.canvas**2 * 4 for _ in schema.specs)  # planes, float intermediates
    shard_bytes = 2 * schema.samples_per_shard * TYPICAL_BYTES_PER_SAMPLE
    with_torch = any(extractor.name == "superpoint" for task in tasks for extractor in task.extractors)
    return WORKER_BASE_BYTES + image_bytes + canvas_bytes + shard_bytes + (TORCH_BYTES if with_torch else 0)


def _check_computable(store: Storage, todo: set[str], extractors: Sequence[Extractor]) -> None:
    missing = todo.difference({LABELS_LAYER}, (extractor.name for extractor in extractors))
    if missing:
        layer = min(missing)
        raise StoreError(
            f"{store}: layer {layer} has to be computed again, and its weights were not given",
            hint=f"run `physseg preprocess MANIFEST STORE --structures {layer} --set {layer}.weights=FILE`",
        )


def _changed_samples(
    record: CommitRecord, start: int, inputs: Sequence[str], *, retry_quarantined: bool
) -> tuple[int, ...]:
    """Samples of a shard whose stored arrays, of whatever layer, are not those of today's inputs."""
    if len(record.inputs) != len(inputs):
        return tuple(range(start, start + len(inputs)))
    again = {entry.index for entry in record.quarantine} if retry_quarantined else set()
    pairs = enumerate(zip(record.inputs, inputs, strict=True), start)
    return tuple(index for index, (then, now) in pairs if then != now or index in again)


def _samples_reason(record: CommitRecord, inputs: Sequence[str]) -> str:
    same = record.inputs == tuple(inputs)
    return "quarantined samples are tried again" if same else "inputs changed since they were computed"


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
