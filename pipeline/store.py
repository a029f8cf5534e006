"""Create, open, evolve and lock a store's folder; the bytes of its shards are ``shard_task``'s business."""

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
from .commits import PROVENANCE
from .errors import StoreError
from .schema import STATUS, StoreSchema, digest_of_json, to_json

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
        raise StoreError(f"{store}: exists and is not a physseg store", hint="choose another path for the store")
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.with_name(f".{store.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
    try:
        for path, data in metadata_documents(schema).items():
            write_whole(partial / path, data)
        manifest.write(partial / MANIFEST_FILE)
        partial.rename(store)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(store.parent)


def open_schema(store: Path) -> StoreSchema:
    """The schema of the store at that path; raises StoreError if there is no readable store."""
    return _schema_of(store, "zarr.json")


def open_schema_copy(store: Path) -> StoreSchema:
    """The schema from its second copy, for repairing a damaged root document."""
    return _schema_of(store, SETTINGS_COPY)


def read_manifest(store: Path, schema: StoreSchema, root: str | None = None) -> Manifest:
    """The manifest the store was computed from; ``root`` overrides where its paths start."""
    manifest = Manifest.read(store / MANIFEST_FILE, root=root)
    if manifest.fingerprint != schema.manifest_fingerprint:
        raise StoreError(
            f"{store / MANIFEST_FILE}: not the manifest of this store "
            f"(expected {schema.manifest_fingerprint[:12]}, got {manifest.fingerprint[:12]})",
            hint="run `physseg preprocess MANIFEST STORE` again with the manifest it was made from",
        )
    return manifest


def evolve_store(store: Path, schema: StoreSchema, manifest: Manifest, touched_shards: Iterable[int]) -> None:
    """Bring the metadata to ``schema`` before the touched shards are recomputed.

    Their status goes first: from then on until their new commit nobody reads them, however the run ends.
    """
    for shard in touched_shards:
        (store / schema.shard_file(STATUS, shard)).unlink(missing_ok=True)
    documents = metadata_documents(schema)
    root_documents = {name: documents.pop(name) for name in (SETTINGS_COPY, "zarr.json")}
    manifest.write(store / MANIFEST_FILE)
    for path, data in (documents | root_documents).items():
        target = store / path
        if not target.exists() or target.read_bytes() != data:
            write_whole(target, data)


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


def settings_digest(schema: StoreSchema) -> str:
    """One short value that tells two stores' settings apart."""
    return digest_of_json(schema.to_attributes())
