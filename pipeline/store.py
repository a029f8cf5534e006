"""Create, open, evolve and lock a store's folder; the bytes of its shards are ``shard_task``'s business."""

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..manifests.table import Manifest
from ..manifests.whole_file import PARTIAL_SUFFIX, sync_directory, write_whole
from .commits import PROVENANCE, sha256
from .errors import StoreError
from .schema import SPECS, STATUS, StoreSchema, digest_of_json, to_json

MANIFEST_FILE = f"{PROVENANCE}/manifest.parquet"
SETTINGS_COPY = f"{PROVENANCE}/store.json"
"""Second copy of the root attributes: a damaged root document is restored from it."""


def metadata_documents(schema: StoreSchema) -> dict[str, bytes]:
    """Every metadata file of a store (path inside the store -> bytes), as a function of the schema alone."""
    root = to_json(schema.group_metadata())
    group = to_json({"attributes": {}, "zarr_format": 3, "node_type": "group"})
    documents = {"zarr.json": root, SETTINGS_COPY: root, f"{PROVENANCE}/zarr.json": group}
    for spec in schema.specs:
        documents[f"{spec.name}/zarr.json"] = to_json(schema.array_metadata(spec))
    return documents


def create_store(store: Path, schema: StoreSchema, manifest: Manifest) -> None:
    """Make an empty store: complete under its name, or not there at all."""
    if store.exists():
        raise _appeared(store)
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.with_name(f".{store.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
    try:
        for path, data in {MANIFEST_FILE: manifest.to_bytes(), **metadata_documents(schema)}.items():
            write_whole(partial / path, data)
        partial.rename(store)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _appeared(store) from error
        raise
    sync_directory(store.parent)


def beside(store: Path, suffix: str) -> Path:
    """The file next to a store that is named after it, however the store's path is written ("." included)."""
    store = store.resolve()
    return store.with_name(store.name + suffix)


def open_schema(store: Path) -> StoreSchema:
    """The schema of the store at that path; raises StoreError if there is no readable store."""
    return _schema_of(store, "zarr.json")


def open_schema_copy(store: Path) -> StoreSchema:
    """The schema from its second copy, for repairing a damaged root document."""
    return _schema_of(store, SETTINGS_COPY)


def read_manifest(store: Path, schema: StoreSchema, root: str | None = None) -> Manifest:
    """The manifest the store was computed from; ``root`` overrides where its paths start."""
    manifest = Manifest.read(store / MANIFEST_FILE, root=root)
    found = sha256((store / MANIFEST_FILE).read_bytes())
    if found != schema.manifest_sha256:
        raise StoreError(
            f"{store / MANIFEST_FILE}: not the manifest of this store "
            f"(expected sha256 {schema.manifest_sha256[:12]}, got {found[:12]})",
            hint="run `physseg preprocess MANIFEST STORE` again with the manifest it was made from",
        )
    return manifest


def evolve_store(store: Path, schema: StoreSchema, manifest: Manifest, touched_shards: Iterable[int]) -> None:
    """Bring the metadata to ``schema`` before the touched shards are recomputed.

    Their status goes first: from then on until their new commit nobody reads them, however the run ends.
    """
    withdraw_shards(store, schema, touched_shards)
    documents = {MANIFEST_FILE: manifest.to_bytes(), **metadata_documents(schema)}
    root_documents = {name: documents.pop(name) for name in (SETTINGS_COPY, "zarr.json")}
    for path, data in (documents | root_documents).items():
        target = store / path
        if not target.exists() or target.read_bytes() != data:
            write_whole(target, data)
    for name in SPECS.keys() - {spec.name for spec in schema.specs}:  # now that no document speaks of them any more
        shutil.rmtree(store / name, ignore_errors=True)


def withdraw_shards(store: Path, schema: StoreSchema, shards: Iterable[int]) -> None:
    """Remove the status of shards: from here on nobody reads them until they are committed again."""
    for shard in shards:
        (store / schema.shard_file(STATUS, shard)).unlink(missing_ok=True)
    folder = (store / schema.shard_file(STATUS, 0)).parent
    if folder.exists():
        sync_directory(folder)  # before anything else changes: a removal may get lost in a power cut, too


def settings_digest(schema: StoreSchema) -> str:
    """One value that tells a store's settings and manifest from those it had before, or will have."""
    return digest_of_json(schema.to_attributes())


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store for one writer; a second one is refused. The lock goes with the process, however it ends."""
    descriptor = os.open(store, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{store}: another process is writing this store", hint="wait for it to end, or stop it, then run again"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _appeared(store: Path) -> StoreError:
    return StoreError(f"{store}: appeared since this run was planned", hint="run the same command again")


def _schema_of(store: Path, document: str) -> StoreSchema:
    path = store / document
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{store}: no store here (expected {path})", hint="make one with `physseg preprocess MANIFEST STORE`"
        ) from None
    try:
        attributes = json.loads(data)["attributes"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not a Zarr group: {error}", hint="run `physseg verify STORE --repair`") from error
    return StoreSchema.from_attributes(attributes, str(store))
