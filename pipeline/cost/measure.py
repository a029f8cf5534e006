"""What a run costs on this machine: some of its images computed as the run computes them, and then thrown away.

Truthful because little differs from the run: the same tasks on the same files, a manifest as long, a store on the same
disk, and as many processes at once as there will be workers here (two on one core's threads, or on one memory bus, are
each slower than one alone). Only the shards are small, so that slow extractors can be measured at all.
"""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...common.storage.interface import Storage
from ...common.storage.local import LocalStorage
from ...common.storage.location import open_storage, read_below
from ...manifests.manifest import Manifest, SampleTable
from ...structure_extractors.interface import Extractor
from ..run.task import LABELS_LAYER, ShardTask
from ..store.commits import sha256
from ..store.layout import create_store, settings_digest
from ..store.schema import ArraySpec, StoreSchema
from ..store.shard_codec import compress, index_size
from .trial import Outcome, ShardTimes, Trial, run_trials

SAMPLES_PER_SHARD = 8
"""Of the store that is thrown away."""
SECONDS = 10.0
"""That measuring takes by default, besides the processes' start and a first shard of each, which does not count."""
MAX_IMAGES = 512
FILES_LOOKED_AT = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One kind of task: shards of which the same layers are to be computed."""

    extractors: tuple[Extractor, ...]
    with_labels: bool
    shards: tuple[int, ...]
    only: tuple[int, ...] | None = None
    """These samples alone, the shards' others being taken over; None: all."""

    @property
    def layers(self) -> tuple[str, ...]:
        return (*((LABELS_LAYER,) if self.with_labels else ()), *(extractor.name for extractor in self.extractors))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One kind of work, measured; empty where no image of it was computed."""

    image_seconds: tuple[float, ...] = ()
    """Wall seconds of each image, in a process that is warm while all the others work."""
    pixels: tuple[int, ...] = ()
    """Of the same images."""
    parts: tuple[tuple[str, float], ...] = ()
    """Seconds an image by part: load, one per layer, compress."""
    shard_seconds: float = 0.0
    """Wall seconds a shard besides its images: settings read, files made durable, commit."""
    sample_bytes: float = 0.0
    """Compressed bytes a sample, besides what a shard takes anyway."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """All kinds of work, and what is common to them."""

    kinds: tuple[Measured, ...]
    """In the order of the work."""
    processes: int
    """At once."""
    failed: int
    """Of the images that were computed: the run will quarantine such."""
    start_seconds: float
    """Until a process is warm: interpreter, libraries, manifest, what a first image takes longer."""
    peak_bytes: int
    """Resident memory of the process that took most."""
    largest_pixels: int
    """Of the images that this peak knows."""
    busy: float
    """CPU seconds over wall seconds: well below one, processes waited for files or for a core."""
    image_file_bytes: float
    """Mean size of an image file."""
    stored_sample_bytes: float = 0.0
    """Compressed bytes a sample of the arrays that the store has and the work leaves alone."""

    @property
    def images(self) -> int:
        return sum(len(kind.image_seconds) for kind in self.kinds)


def kinds_of_work(tasks: Sequence[ShardTask]) -> tuple[Work, ...]:
    """Tasks by what they compute, the most common kind first."""
    kinds: dict[tuple[bool, bool, tuple[str, ...]], list[ShardTask]] = {}
    for task in tasks:
        names = tuple(extractor.name for extractor in task.extractors)
        kinds.setdefault((task.with_labels, task.only is None, names), []).append(task)
    return tuple(
        Work(
            extractors=same[0].extractors,
            with_labels=same[0].with_labels,
            shards=tuple(task.shard for task in same),
            only=None if same[0].only is None else tuple(index for task in same for index in task.only or ()),
        )
        for same in sorted(kinds.values(), key=len, reverse=True)
    )


def measure(
    schema: StoreSchema,
    manifest: Manifest,
    work: Sequence[Work],
    store: Storage,
    *,
    processes: int,
    images: int | None = None,
) -> Measurement | None:
    """Compute about ``images`` of the images (default: what ``SECONDS`` allow) in so many processes at once.

    Writes beside ``store``, on its disk, and removes it again. None if none of the images can be computed. Raises
    ExecutorError if a process dies.
    """
    rows = [usable_rows(schema, manifest, kind) for kind in work]
    total = sum(map(len, rows))
    if not total:
        return None
    pixels = image_pixels(manifest)
    rounds = [_rounds(len(part), total, processes, images) for part in rows]
    chosen = [evenly(part, pixels[part], count * processes) for part, count in zip(rows, rounds, strict=True)]
    shuffled = _bring_to_front(manifest, np.concatenate(chosen))
    small = replace(
        schema,
        samples_per_shard=SAMPLES_PER_SHARD,
        manifest_fingerprint=shuffled.fingerprint,
        manifest_sha256=sha256(shuffled.to_bytes()),
    )
    place = _place_near(store)
    trials: list[list[Trial]] = [[] for _ in range(processes)]
    first = 0
    for kind, part in zip(work, chosen, strict=True):
        shards = range(first, first + -(-len(part) // SAMPLES_PER_SHARD))
        seconds = SECONDS * len(part) / sum(map(len, chosen)) if images is None else float("inf")
        for number, trial in enumerate(trials):
            tasks = [_task(place, small, manifest.root, shard, kind) for shard in shards[number::processes]]
            trial.append(Trial(tasks=tuple(tasks), seconds=seconds))
        first = shards.stop
    try:
        create_store(place, small, shuffled)
        outcomes = run_trials(trials)
    finally:
        place.delete_folder("")
    found = merge(outcomes, work, small, shuffled)
    return None if found is None else replace(found, stored_sample_bytes=_stored_sample_bytes(store, schema, work))


def merge(
    outcomes: Sequence[Outcome], work: Sequence[Work], small: StoreSchema, shuffled: Manifest
) -> Measurement | None:
    """What the processes found, together; ``small`` and ``shuffled`` are those of the store that is thrown away."""
    pixels = image_pixels(shuffled)
    every = [shard for outcome in outcomes for trial in outcome.trials for shard in trial]
    indices = [index for shard in every for index in shard.indices]
    failed = sum(shard.failed for shard in every)
    if failed == len(indices):
        return None
    return Measurement(
        kinds=tuple(
            _merge_kind([outcome.trials[number] for outcome in outcomes], small, kind, pixels)
            for number, kind in enumerate(work)
        ),
        processes=len(outcomes),
        failed=failed,
        start_seconds=max(map(_start_seconds, outcomes)),
        peak_bytes=max(outcome.peak_bytes for outcome in outcomes),
        largest_pixels=int(pixels[indices].max()),
        busy=sum(shard.cpu_seconds for shard in every) / sum(shard.wall_seconds for shard in every),
        image_file_bytes=_image_file_bytes(shuffled, indices),
    )


def evenly(rows: npt.NDArray[np.intp], pixels: npt.NDArray[np.int64], shards: int) -> npt.NDArray[np.intp]:
    """Of all ``rows`` those of so many small shards, such that any number of these shards is like all of the rows.

    In order of size, and within one size of their place in the manifest, every n-th row is taken; shard i then has the
    i-th of those, the (i + shards)-th and so on. Fewer shards where there are not so many rows.
    """
    shards = min(shards, -(-len(rows) // SAMPLES_PER_SHARD))
    count = min(len(rows), shards * SAMPLES_PER_SHARD)
    by_size = rows[np.argsort(pixels, kind="stable")]
    picked = by_size[(2 * np.arange(count) + 1) * len(rows) // max(1, 2 * count)]
    return np.concatenate([picked[:0], *(picked[shard::shards] for shard in range(shards))])


def usable_rows(schema: StoreSchema, manifest: Manifest, work: Work) -> npt.NDArray[np.intp]:
    """Rows that are to be computed and carry no problem."""
    if not work.layers:
        return np.zeros(0, np.intp)
    usable = np.asarray(pc.equal(manifest.table.column("problem"), ""))
    rows = (
        np.asarray(work.only, np.intp)
        if work.only is not None
        else np.concatenate([np.arange(*schema.shard_range(shard), dtype=np.intp) for shard in work.shards])
    )
    kept: npt.NDArray[np.intp] = rows[usable[rows]]
    return kept


def image_pixels(manifest: Manifest) -> npt.NDArray[np.int64]:
    """Height times width of every row."""
    height, width = (np.asarray(manifest.table.column(name), np.int64) for name in ("height", "width"))
    return height * width


def _rounds(rows: int, all_rows: int, processes: int, images: int | None) -> int:
    """Small shards for each process: one to get warm, then what was asked for, or up to a quarter of the work."""
    at_least = 4 * processes * SAMPLES_PER_SHARD
    wanted = min(max(all_rows // 4, at_least), max(MAX_IMAGES, at_least)) if images is None else images
    return 1 + max(1, round(wanted * rows / (all_rows * processes * SAMPLES_PER_SHARD)))


def _bring_to_front(manifest: Manifest, rows: npt.NDArray[np.intp]) -> Manifest:
    """The same manifest with these rows first and quarantined ones last: as large to read and to hold as the run's."""
    rank = np.asarray(pc.not_equal(manifest.table.column("problem"), "")).astype(np.intp) + len(rows)
    rank[rows] = np.arange(len(rows))
    order = np.argsort(rank, kind="stable")
    return replace(manifest, samples=SampleTable(manifest.table.table.take(pa.array(order))))


def _task(store: Storage, small: StoreSchema, root: str, shard: int, kind: Work) -> ShardTask:
    return ShardTask(
        store=str(store),
        settings=settings_digest(small),
        root=root,
        shard=shard,
        extractors=kind.extractors,
        with_labels=kind.with_labels,
    )


def _place_near(store: Storage) -> Storage:
    """A folder that does not exist, on the disk or in the bucket that the store is or will be in."""
    name = f".plan-{uuid.uuid4().hex[:12]}"
    if not isinstance(store, LocalStorage):
        return open_storage(f"{store}{name}")
    folder = store.path.absolute().parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return open_storage(folder / f".{store.path.name}{name}")


def _merge_kind(
    trials: Sequence[Sequence[ShardTimes]], small: StoreSchema, work: Work, pixels: npt.NDArray[np.int64]
) -> Measured:
    shards = [shard for trial in trials for shard in trial]
    samples = sum(len(shard.indices) for shard in shards)
    if not samples:
        return Measured()
    warm = [shard for trial in trials for shard in trial[1:]]
    # Where there is so little work that only first shards were computed, their later halves have to do.
    timed = warm or [_later_half(shard) for shard in shards]
    of_parts = warm or shards
    computed = sum(len(shard.indices) for shard in of_parts)
    names = dict.fromkeys(name for shard in of_parts for name in shard.parts)
    compressed = sum(shard.bytes_written - bytes_of_empty_shard(small, work.layers) for shard in shards)
    return Measured(
        image_seconds=tuple(seconds for shard in timed for seconds in shard.image_seconds),
        pixels=tuple(int(pixels[index]) for shard in timed for index in shard.indices),
        parts=tuple((name, sum(shard.parts.get(name, 0.0) for shard in of_parts) / computed) for name in names),
        shard_seconds=float(np.mean([shard.write_seconds + shard.open_seconds for shard in timed])),
        sample_bytes=compressed / samples,
    )


def _later_half(shard: ShardTimes) -> ShardTimes:
    half = len(shard.indices) // 2
    return replace(shard, indices=shard.indices[half:], image_seconds=shard.image_seconds[half:], open_seconds=0.0)


def bytes_of_empty_shard(schema: StoreSchema, layers: Sequence[str]) -> int:
    """What the files of a shard's layers take before any sample: indices, and arrays of a few bytes a sample."""
    return sum(_empty_bytes(schema, spec) for spec in schema.specs if spec.layer in layers)


def _empty_bytes(schema: StoreSchema, spec: ArraySpec) -> int:
    if spec.is_sharded:
        return index_size(schema.samples_per_shard)
    shape = (schema.samples_per_shard, *schema.sample_shape(spec))
    return len(compress(np.full(shape, schema.fill(spec), schema.dtype(spec))))


def _stored_sample_bytes(store: Storage, schema: StoreSchema, work: Sequence[Work]) -> float:
    """From the sizes of files: of shards, nearly all bytes are samples."""
    computed = {layer for kind in work for layer in kind.layers}
    total = 0.0
    for spec in schema.specs:
        if spec.is_sharded and spec.layer not in computed:
            sizes = list(store.list(f"{spec.name}/c").values())
            total += float(np.mean(sizes)) / min(schema.samples_per_shard, schema.num_samples) if sizes else 0.0
    return total


def _start_seconds(outcome: Outcome) -> float:
    """Of one process, until it was warm: its start, its manifest, and what its first image took beyond the usual."""
    shards = next((trial for trial in outcome.trials if trial), ())
    if not shards:  # more processes than shards
        return outcome.start_seconds
    first, *others = shards
    usual = np.median([seconds for shard in (others or [first]) for seconds in shard.image_seconds])
    return outcome.start_seconds + first.open_seconds + max(0.0, first.image_seconds[0] - float(usual))


def _image_file_bytes(manifest: Manifest, indices: Sequence[int]) -> float:
    sizes = []
    for index in indices[:: max(1, len(indices) // FILES_LOOKED_AT)]:
        with suppress(OSError):
            sizes.append(len(read_below(manifest.root, manifest.samples[index].image_path)))
    return float(np.mean(sizes)) if sizes else 0.0
