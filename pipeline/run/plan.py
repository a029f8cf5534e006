"""What a run has to do, known before it does anything: shards, layers, reasons, and the memory of a worker."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ...common import plugins
from ...common.storage.interface import Storage
from ...common.storage.location import absolute
from ...manifests.manifest import Manifest
from ...structure_extractors.interface import Extractor
from ...structure_extractors.registry import Request
from ..store.commits import CommitRecord, read_commits
from ..store.errors import StoreCorruptError, StoreError
from ..store.layout import settings_digest
from ..store.schema import LABELS_LAYER, STATUS, StoreSchema
from .task import ShardTask

WORKER_BASE_BYTES = 300 * 2**20
"""Resident memory of a worker process with Dask, OpenCV and Zarr imported, before any image; measured."""
TORCH_BYTES = 550 * 2**20
"""What torch and a detector network add to it; measured."""
TYPICAL_BYTES_PER_SAMPLE = 75_000
"""Compressed bytes of a photograph's four structures, for estimates where nothing was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The tasks of a run, and what is known of their cost."""

    tasks: tuple[ShardTask, ...]
    """One task for each shard of which something is to be computed."""
    reason_of: Mapping[int, str]
    """Shard of each task -> why it is computed."""
    found: Mapping[int, CommitRecord]
    """`CommitRecord.to_report` of the shards that no task computes and that have something to report."""
    schema: StoreSchema

    @property
    def reasons(self) -> Counter[str]:
        """Why shards are computed -> how many."""
        return Counter(self.reason_of[task.shard] for task in self.tasks)

    @property
    def samples_to_compute(self) -> int:
        return sum(stop - start for start, stop in (self.schema.shard_range(task.shard) for task in self.tasks))


def make_plan(
    store: Storage,
    schema: StoreSchema,
    manifest: Manifest,
    extractors: Sequence[Extractor],
    *,
    same_rows: bool = False,
    retry_quarantined: bool = False,
) -> Plan:
    """Compare each shard's commit record with today's inputs and settings; what differs becomes a task.

    `same_rows`: the store's settings name this very manifest. Then a shard that has a status was computed from it: a
    run takes away the status of those that were not before it writes other settings (`migrate_store`).

    Raises StoreError where a layer has to be computed and its extractor is not among `extractors`.
    """
    settings, location, present = settings_digest(schema), absolute(str(store)), store.known()
    digests = {layer: schema.layer_digest(layer) for layer in schema.layers}
    requests = {extractor.name: Request.of(extractor) for extractor in extractors}
    tasks: list[ShardTask] = []
    reason_of: dict[int, str] = {}
    to_report: dict[int, CommitRecord] = {}
    for shard, found in enumerate(read_commits(store, range(schema.num_shards))):
        rows = None if same_rows and schema.shard_file(STATUS, shard) in present else manifest
        reason, todo = _what_to_do(found, shard, schema, digests, rows, present, retry_quarantined)
        if not reason and isinstance(found, CommitRecord):
            if found.quarantine or found.dropped_pixels:
                to_report[shard] = found.to_report()
            continue
        _check_computable(store, todo, extractors, schema.made_with)
        reason_of[shard] = reason
        stays = isinstance(found, CommitRecord) and found.without(todo)
        tasks.append(
            ShardTask(
                store=location,
                settings=settings,
                root=manifest.root,
                shard=shard,
                extractors=tuple(requests[name] for name in requests if name in todo),
                with_labels=LABELS_LAYER in todo,
                refused={entry.index: entry.reason for entry in stays.quarantine} if stays else {},
            )
        )
    return Plan(tasks=tuple(tasks), reason_of=reason_of, found=to_report, schema=schema)


def memory_per_worker(schema: StoreSchema, manifest: Manifest, tasks: Sequence[ShardTask]) -> int:
    """Bytes one worker needs at its peak, about; the cost estimate measures it.

    The process itself, the largest image in flight, the sample's planes, and one shard's compressed chunks twice (once
    as chunks, once joined into files).
    """
    largest = int(manifest.table.pixels.max(initial=1))
    image_bytes = largest * (3 + 3 + 2 + 2)  # decoded, turned or resized copy, labels, resized labels
    canvas_bytes = sum(schema.frame.canvas**2 * 4 for _ in schema.specs)  # planes, float intermediates
    shard_bytes = 2 * schema.samples_per_shard * TYPICAL_BYTES_PER_SAMPLE
    with_torch = any(extractor.name == "superpoint" for task in tasks for extractor in task.extractors)
    return WORKER_BASE_BYTES + image_bytes + canvas_bytes + shard_bytes + (TORCH_BYTES if with_torch else 0)


def _what_to_do(
    found: CommitRecord | StoreCorruptError | None,
    shard: int,
    schema: StoreSchema,
    digests: Mapping[str, str],
    manifest: Manifest | None,
    present: Container[str],
    retry_quarantined: bool,
) -> tuple[str, set[str]]:
    """Why something of a shard is to be computed ("" if nothing is), and which layers.

    `manifest` is None where the shard is known to be computed from its rows.
    """
    if found is None:
        return "not computed yet", set(schema.layers)
    if isinstance(found, StoreCorruptError):
        return "commit record damaged", set(schema.layers)
    rows = schema.shard_range(shard)
    if (found.samples, found.inputs) != (rows, manifest.row_digests(*rows) if manifest else found.inputs):
        return "inputs changed since they were computed", set(schema.layers)
    if retry_quarantined and found.quarantine:
        return "quarantined samples are tried again", set(schema.layers)
    lost = {spec.layer for spec in schema.specs if schema.shard_file(spec, shard) not in present}
    stale = {layer for layer, digest in digests.items() if not found.has(layer, digest)}
    reasons = {
        "settings changed": stale.intersection(found.layers),
        "not computed yet": stale.difference(found.layers),
        "files missing": lost - stale - {STATUS.layer},
    }
    parts = [f"{reason}: {', '.join(sorted(layers))}" for reason, layers in reasons.items() if layers]
    return "; ".join(parts) or ("status to be written again" if lost else ""), stale | (lost - {STATUS.layer})


def _check_computable(
    store: Storage, todo: set[str], extractors: Sequence[Extractor], made_with: Mapping[str, str]
) -> None:
    missing = todo.difference({LABELS_LAYER}, (extractor.name for extractor in extractors))
    if missing:
        layer = min(missing)
        if layer in plugins.names("extractors"):
            needs = "its weights were not given"
            hint = f"run `physseg preprocess MANIFEST STORE --structures {layer} --set {layer}.weights=FILE`"
        else:
            needs = "no package installed here offers it"
            made = ", ".join(f"{name} {version}" for name, version in made_with.items())
            hint = f"install its package (the store was made with {made}); `physseg plugins` lists what is there"
        raise StoreError(f"{store}: layer {layer} has to be computed again, and {needs}", hint=hint)
