"""Deep check of a store: every byte against its commit record, every metadata file against the schema.

A fault is anything that differs from what an uninterrupted run would have left. Repair rewrites metadata from the
schema, strikes faulty layers from the records of their shards, and computes exactly those again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from ...common.atomic import PARTIAL_SUFFIX
from ...common.processes import available_cpus
from ...common.progress import ProgressBar
from ...common.regular_files import is_files_fault
from ...common.storage.interface import Storage
from ...common.storage.location import Location, open_storage, read_below
from ...common.text import counted
from ...manifests.errors import ManifestError
from ...manifests.manifest import Manifest
from ..store.commits import PROVENANCE, CommitRecord, commit_path, invalidate_layers, read_commit, sha256
from ..store.errors import StoreCorruptError, StoreError
from ..store.layout import (
    ID_ARRAYS,
    MANIFEST_FILE,
    has_content,
    id_files,
    id_paths,
    metadata_documents,
    read_manifest,
    shard_of,
    unpublish_shards,
)
from ..store.locks import locked, no_task_writes
from ..store.schema import STATUS, StoreSchema
from ..store.shard_files import encode_status
from .witnesses import certain_schema, settle_schema, shards_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong with a store."""

    path: str
    problem: str
    """What was expected and what was found."""
    shard: int | None = None
    """The shard to mend; None for metadata."""
    layers: tuple[str, ...] = ()
    """Layers of the shard that its record may not vouch for any longer."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """Everything that was checked and found."""

    faults: tuple[Fault, ...]
    num_shards: int
    files_checked: int
    bytes_checked: int
    pictures_checked: int = 0
    """Number of images and label files that were read."""

    @property
    def faulty_shards(self) -> tuple[int, ...]:
        return tuple(sorted({fault.shard for fault in self.faults if fault.shard is not None}))


def verify(store: Location, *, images: bool = False, root: str | None = None, progress: bool = True) -> VerifyReport:
    """Check every file of a store, and with `images` the files it was computed from, by the manifest's hashes.

    `root` overrides where the manifest's paths start. Raises StoreError only where there is no store at all.
    """
    store = open_storage(store)
    schema, doubts, _ = settle_schema(store)
    faults = [Fault(path=path, problem=problem) for path, problem in doubts.items()]
    manifest = None
    try:
        manifest = read_manifest(store, schema, root, whole=True)
    except (ManifestError, StoreError, OSError) as error:
        faults.append(Fault(path=MANIFEST_FILE, problem=f"damaged: {error.args[0]}"))
    faults += _check_metadata(store, schema, manifest)
    present = store.list()
    faults += _check_strays(store, present, schema)
    # Without the manifest, nothing says whether a store has as many shards as it claims.
    shards = range(schema.num_shards) if manifest else sorted(shards_of(present, schema))
    files = size = pictures = 0
    with ThreadPoolExecutor(available_cpus()) as pool:
        checks = pool.map(partial(_check_shard, store, schema, manifest), shards)
        for found, checked, nbytes in ProgressBar(checks, total=len(shards), unit="shard", disable=not progress):
            faults += found
            files += checked
            size += nbytes
        if images and manifest:
            usable = manifest.usable
            changes = pool.map(partial(_check_pictures, manifest), usable)
            for found in ProgressBar(changes, total=len(usable), unit="img", disable=not progress):
                faults += found
                pictures += 2
    return VerifyReport(
        faults=tuple(faults),
        num_shards=schema.num_shards,
        files_checked=files,
        bytes_checked=size,
        pictures_checked=pictures,
    )


def repair(
    store: Location, report: VerifyReport, recompute: Callable[[Manifest], Any], *, root: str | None = None
) -> None:
    """Mend what `report` names: rewrite metadata, forget faulty layers, then let `recompute` compute them.

    `recompute` is given the store's manifest and runs the pipeline on the store with its own settings. Raises
    StoreError where the manifest itself is damaged, which cannot be derived from the store, or where the commit records
    do not say whose settings are the store's; StorageError where a link leads out of the store.
    """
    store = open_storage(store)
    with locked(store), no_task_writes(store):
        schema, _ = certain_schema(store)
        for path, data in metadata_documents(schema).items():
            if not has_content(store, path, data):
                store.put(path, data)
        manifest = read_manifest(store, schema, root, whole=True)
        for path, data in id_files(schema, manifest).items():
            if not has_content(store, path, data):
                store.put(path, data)
        strays = [fault.path for fault in _check_strays(store, store.list(), schema) if fault.problem == STRAY]
        store.delete([*strays, *store.leftovers()])
        unpublish_shards(store, schema, report.faulty_shards)
        for shard in report.faulty_shards:
            faulty = [layer for fault in report.faults if fault.shard == shard for layer in fault.layers]
            invalidate_layers(store, shard, faulty)
    if report.faulty_shards:
        recompute(manifest)


STRAY = "does not belong to the store"


def _check_metadata(store: Storage, schema: StoreSchema, manifest: Manifest | None) -> Iterator[Fault]:
    for path, data in (metadata_documents(schema) | (id_files(schema, manifest) if manifest else {})).items():
        if not store.exists(path):
            yield Fault(path=path, problem="metadata file is missing")
        elif not has_content(store, path, data):
            yield Fault(path=path, problem="metadata differs from the schema's")


def _check_strays(store: Storage, present: Iterable[str], schema: StoreSchema) -> Iterator[Fault]:
    """What no run would have left: a Zarr reader would take a shard beyond the array's end for data."""
    ours = {PROVENANCE, *ID_ARRAYS, *(spec.name for spec in schema.specs)}
    documents = {MANIFEST_FILE, *metadata_documents(schema), *chain.from_iterable(id_paths(schema))}

    def known(path: str) -> set[str]:
        """The documents, and the files of the shard that a path is about."""
        shard = min(shard_of(path) or 0, schema.num_shards - 1)
        return documents | {commit_path(shard), *(schema.shard_file(spec, shard) for spec in schema.specs)}

    for path in present:
        if path.endswith(PARTIAL_SUFFIX):
            yield Fault(path=path, problem="half-written by a run that was killed, or is being written now")
        elif path not in known(path):
            foreign = "" if path.split("/")[0] in ours else "; --repair leaves it to you, as it may be yours"
            yield Fault(path=path, problem=STRAY + foreign)
    for path, what in store.oddities().items():
        is_ours = any(file == path or file.startswith(f"{path}/") for file in known(path))
        if what.startswith("a link") or not is_ours:
            yield Fault(path=path, problem=f"{what}; --repair leaves it to you")


def _check_pictures(manifest: Manifest, index: int) -> list[Fault]:
    """What differs between the files of a sample and the hashes of the manifest."""
    sample = manifest.samples[index]
    faults = []
    for path, expected in ((sample.image_path, sample.image_sha256), (sample.label_path, sample.label_sha256)):
        try:
            found = sha256(read_below(manifest.root, path))
            got = found[:18]
        except OSError as error:
            if not is_files_fault(error):
                raise
            found, got = "", error.strerror or "no such file"
        if found != expected:
            problem = f"sample {sample.sample_id}: expected sha256 {expected[:18]}, got {got}"
            hint = "restore it, or make the manifest again and preprocess again"
            faults.append(Fault(path=f"{manifest.root}/{path}", problem=f"{problem}; {hint}"))
    return faults


def _check_shard(
    store: Storage, schema: StoreSchema, manifest: Manifest | None, shard: int
) -> tuple[list[Fault], int, int]:
    """Faults of one shard, and how many files and bytes were read."""
    record_path = commit_path(shard)
    try:
        record = read_commit(store, shard, exact=True)
    except StoreCorruptError as error:
        return [Fault(path=record_path, problem=error.args[0], shard=shard, layers=tuple(schema.layers))], 1, 0
    if record is None:
        return [Fault(path=record_path, problem="shard is not committed", shard=shard)], 0, 0
    faults = [Fault(path=record_path, problem=problem, shard=shard) for problem in _stale(schema, manifest, record)]
    expected = _expected_files(schema, record)
    size = 0
    for path, digest in expected.items():
        problem = ""
        try:
            data = store.get(path)
        except FileNotFoundError:
            problem = "shard file is missing"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        else:
            size += len(data)
            found = sha256(data)
            if found != digest:
                problem = f"expected sha256 {digest[:18]}, got {found[:18]} ({len(data)} bytes)"
        if problem:
            faults.append(Fault(path=path, problem=problem, shard=shard, layers=(schema.layer_of(path),)))
    return faults, len(expected) + 1, size


def _stale(schema: StoreSchema, manifest: Manifest | None, record: CommitRecord) -> Iterator[str]:
    start, stop = schema.shard_range(record.shard)
    if record.samples != (start, stop):
        yield f"expected samples {start}..{stop}, got {record.samples[0]}..{record.samples[1]}"
    if manifest is not None and record.inputs != manifest.row_digests(start, stop):
        yield "was computed from other inputs than the store's manifest names"
    for layer in schema.layers:
        commit = record.layers.get(layer)
        if commit is None:
            yield f"layer {layer} is not computed"
        elif commit.settings != schema.layer_digest(layer):
            yield f"layer {layer} was computed with other settings than the store's"


def _expected_files(schema: StoreSchema, record: CommitRecord) -> Mapping[str, str]:
    """Path -> sha256 of every file of the layers in the record; the status follows from the record alone."""
    files: dict[str, str] = {}
    for spec in schema.specs:
        path = schema.shard_file(spec, record.shard)
        if spec.layer in record.layers:
            files[path] = record.layers[spec.layer].files.get(path, "none in the record")
    if record.samples == schema.shard_range(record.shard):
        files[schema.shard_file(STATUS, record.shard)] = sha256(encode_status(record, schema))
    return files


def summary(report: VerifyReport, limit: int = 20) -> Sequence[str]:
    """Lines for a person: what was checked, then each fault up to `limit`."""
    shards, files = counted(report.num_shards, "shard"), counted(report.files_checked, "file")
    checked = f"{shards}, {files}, {report.bytes_checked / 1e6:.1f} MB checked"
    checked += f", and {report.pictures_checked} images and label files" if report.pictures_checked else ""
    faults = f"faults: {len(report.faults)}, shards to mend: {len(report.faulty_shards)}"
    lines = [f"{checked}: {faults if report.faults else 'no fault'}"]
    lines += [f"  {fault}" for fault in report.faults[:limit]]
    if len(report.faults) > limit:
        lines.append(f"  ... and {len(report.faults) - limit} more")
    return lines
