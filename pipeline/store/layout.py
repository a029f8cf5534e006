"""Create, open and migrate a store's folder; the bytes of its shards are the business of `run/task.py`."""

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...common.documents import digest_of_json, parsing, sha256_of
from ...common.storage.interface import Data, Storage
from ...common.storage.local import LocalStorage
from ...common.storage.location import Location, open_storage
from ...manifests.manifest import Manifest
from ...manifests.row_groups import ParquetRows
from .commits import PROVENANCE
from .errors import REPAIR_HINT, StoreError
from .locks import RUN_LOCK, TASKS_LOCK
from .schema import STATUS, StoreSchema, compression, to_json
from .shard_codec import compress

MANIFEST_FILE = f"{PROVENANCE}/manifest.parquet"
ROOT = "zarr.json"
SETTINGS_COPY = f"{PROVENANCE}/store.json"
"""Second copy of the root attributes: a damaged root document is restored from it."""

ID_ARRAYS: Final = ("sample", "sample_id")
"""The samples' ids, twice: as the index of the dimension, by which xarray selects, and as a coordinate by its name."""
IDS_PER_CHUNK: Final = 2**16


def metadata_documents(schema: StoreSchema) -> dict[str, bytes]:
    """Every metadata file of a store (path inside the store -> bytes), as a function of the schema alone."""
    root = to_json(schema.group_metadata())
    documents = {RUN_LOCK: b"", TASKS_LOCK: b"", ROOT: root, SETTINGS_COPY: root}
    for spec in schema.specs:
        documents[f"{spec.name}/zarr.json"] = to_json(schema.array_metadata(spec))
    if schema.version == 1:
        documents[f"{PROVENANCE}/zarr.json"] = to_json({"attributes": {}, "zarr_format": 3, "node_type": "group"})
        return documents
    # An array of no values, as CF's grid mappings are: of a group, Zarr readers warn of every file they do not know.
    told = "the folder of this document holds the manifest and the commit records"
    nothing = _column_metadata(schema, [], "uint8", 0, [{"name": "bytes"}], told)
    documents[f"{PROVENANCE}/zarr.json"] = to_json(nothing)
    codecs = [{"name": "vlen-utf8", "configuration": {}}, *compression()]
    for name in ID_ARRAYS:
        meaning = "id of the sample, as in the manifest"
        ids = _column_metadata(schema, [schema.num_samples], "string", "", codecs, meaning)
        documents[f"{name}/zarr.json"] = to_json(ids)
    return documents


def id_paths(schema: StoreSchema) -> list[list[str]]:
    """Paths inside the store of the files of sample ids, those of each chunk together."""
    chunks = -(-schema.num_samples // IDS_PER_CHUNK) if schema.version > 1 else 0
    return [[f"{name}/c/{chunk}" for name in ID_ARRAYS] for chunk in range(chunks)]


def id_files(schema: StoreSchema, manifest: Manifest) -> dict[str, bytes]:
    """The files of the arrays of sample ids: path inside the store -> bytes."""
    files: dict[str, bytes] = {}
    size = min(IDS_PER_CHUNK, schema.num_samples)
    for chunk, paths in enumerate(id_paths(schema)):
        texts = [text.encode() for text in manifest.table.values("sample_id", chunk * size, (chunk + 1) * size)]
        texts += [b""] * (size - len(texts))  # Zarr stores chunks whole
        body = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        files |= dict.fromkeys(paths, compress(np.frombuffer(struct.pack("<I", size) + body, np.uint8)))
    return files


def _column_metadata(
    schema: StoreSchema, shape: list[int], dtype: str, fill: int | str, codecs: list[Any], meaning: str
) -> dict[str, Any]:
    chunks = {"chunk_shape": [min(size, IDS_PER_CHUNK) for size in shape]}
    return schema.array_metadata(STATUS) | {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": chunks},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {"long_name": meaning},
        "dimension_names": ["sample"] * len(shape),
    }


def create_store(store: Storage, schema: StoreSchema, manifest: Manifest) -> None:
    """Make an empty store: complete under its name, or not there at all."""
    documents = metadata_documents(schema)
    root = documents.pop(ROOT)
    try:
        # The root last: it is the store.
        store.create({MANIFEST_FILE: manifest.chunks, **id_files(schema, manifest), **documents, ROOT: root})
    except FileExistsError as error:
        raise StoreError(f"{store}: appeared since this run was planned", hint="run the same command again") from error


def is_store(store: Storage) -> bool:
    """Whether there is a store; False if nothing is there. Raises StoreError where something else is."""
    hint = "choose another path for the store"
    if store.exists(ROOT):
        return True
    if isinstance(store, LocalStorage):
        path = store.path
        if path.exists():
            raise StoreError(f"{path}: exists and is not a store", hint=hint)
        if path.parent.exists() and not path.parent.is_dir():
            raise StoreError(f"{path}: {path.parent} is a file", hint=hint)
        return False
    if "/" not in store.url.split("://", 1)[1]:
        raise StoreError(f"{store}: expected a folder in a bucket, as in {store}/coco.zarr")
    ours = {MANIFEST_FILE, SETTINGS_COPY, RUN_LOCK, TASKS_LOCK, f"{PROVENANCE}/zarr.json"}
    found = store.list().keys()
    if ROOT in found:  # it appeared between the two looks
        return True
    others = sorted(path for path in found - ours if not re.fullmatch(r"[a-z][a-z0-9_]*/(zarr\.json|c/\d+)", path))
    if others:  # documents alone are what a creation leaves that never came to its end
        raise StoreError(f"{store}: exists and is not a store (has {others[0]})", hint=hint)
    return False


def beside(store: Storage, suffix: str) -> Path:
    """The local file that is named after a store: next to it (however its path is written), or in this folder."""
    if isinstance(store, LocalStorage):
        path = store.path.resolve()
        return path.with_name(path.name + suffix)
    return Path(store.url.rsplit("/", 1)[-1] + suffix)


def open_schema(store: Location, document: str = ROOT) -> StoreSchema:
    """The schema from a store's root document, or from its copy; raises StoreError if there is no readable store."""
    store = open_storage(store)
    where = store.at(document)
    try:
        data = store.get(document)
    except (FileNotFoundError, NotADirectoryError):
        hint = "make one with `physseg preprocess MANIFEST STORE`"
        raise StoreError(f"{store}: no store here (expected {where})", hint=hint) from None
    except OSError as error:
        raise StoreError(f"{where}: cannot be read: {error.strerror}", hint=REPAIR_HINT) from error
    with parsing(StoreError, f"{where}: not a Zarr group", REPAIR_HINT):
        return StoreSchema.from_attributes(json.loads(data)["attributes"], str(store))


def read_manifest(store: Location, schema: StoreSchema, root: str | None = None, *, whole: bool = False) -> Manifest:
    """The manifest the store was computed from; `root` overrides where its paths start.

    Of a large one the header is read and compared; groups of rows are when somebody asks for them, or now (`whole`).
    """
    store = open_storage(store)
    where = store.at(MANIFEST_FILE)
    try:
        file = ParquetRows.find(store, MANIFEST_FILE, where)
    except OSError as error:
        hint = "run `physseg preprocess MANIFEST STORE` again with the manifest it was made from"
        raise StoreError(f"{where}: cannot be read: {error.strerror or 'no such file'}", hint=hint) from error
    manifest = Manifest.parse(file, root=root, hashed=True)
    found, expected = manifest.fingerprint, schema.manifest_fingerprint
    if whole or isinstance(file.source, bytes):
        manifest.table.check()
        found, expected = sha256_of(file.chunks()), schema.manifest_sha256
    if found != expected:
        hashes = f"expected sha256 {expected[:12]}, got {found[:12]}"
        hint = "run `physseg preprocess MANIFEST STORE` again with the manifest it was made from"
        raise StoreError(f"{where}: not the manifest of this store ({hashes})", hint=hint)
    if len(manifest) != schema.num_samples:  # before anybody loops over what a store from elsewhere claims to have
        raise StoreError.mismatch(where, f"the {schema.num_samples} samples of the store's settings", len(manifest))
    return manifest


def migrate_store(store: Storage, schema: StoreSchema, manifest: Manifest, touched_shards: Iterable[int]) -> None:
    """Bring the metadata to `schema` before the touched shards are recomputed.

    Their status goes first: from then on until their new commit nobody reads them, however the run ends.
    """
    touched = list(touched_shards)
    unpublish_shards(store, schema, touched)
    before, dims = open_schema(store), {spec.name: spec.dims for spec in schema.arrays}
    for spec in before.arrays:
        if dims.get(spec.name) != spec.dims:  # all of its layer is computed again, into files of other names
            store.delete_folder(spec.name)
    documents: dict[str, Data] = {**metadata_documents(schema)}
    root_documents = {name: documents.pop(name) for name in (SETTINGS_COPY, ROOT)}
    same = before.manifest_sha256 == schema.manifest_sha256
    if not same or before.version != schema.version or not has_manifest(store, schema):
        # Wherever a run ends on its way from one to another: root and manifest agree only if the ids are theirs.
        ids = id_files(schema, manifest)
        first, then = ({}, ids)[:: -1 if same else 1]
        documents = {**first, MANIFEST_FILE: manifest.chunks, **then, **documents}
    for path, data in (documents | root_documents).items():
        if not isinstance(data, bytes) or not has_content(store, path, data):
            store.put(path, data)
    if not same:  # a task that had looked at the settings just before they changed has written its status since
        unpublish_shards(store, schema, touched)


def unpublish_shards(store: Storage, schema: StoreSchema, shards: Iterable[int]) -> None:
    """Remove the status of shards: from here on nobody reads them until they are committed again."""
    store.delete(schema.shard_file(STATUS, shard) for shard in shards)


def shard_of(path: str) -> int | None:
    """The shard that a file of a store belongs to, a half-written one included.

    >>> [shard_of(path) for path in ("canny/c/12/0/.0.ab.partial", "status/c/.3.ab.partial", "zarr.json")]
    [12, 3, None]
    >>> shard_of("provenance/commits/.000007.json.ab.partial")
    7
    """
    found = re.search(r"/(?:c|commits)/\.?(\d+)", path)
    return int(found[1]) if found else None


def has_content(store: Storage, path: str, data: bytes) -> bool:
    """Whether a file is there with exactly these bytes."""
    try:
        return store.get(path) == data
    except OSError:
        return False


def has_manifest(store: Storage, schema: StoreSchema) -> bool:
    """Whether the store's copy of the manifest is the one of its settings, byte for byte."""
    try:
        return sha256_of(store.chunks(MANIFEST_FILE)) == schema.manifest_sha256
    except OSError:
        return False


def settings_digest(schema: StoreSchema) -> str:
    """One value that tells a store's settings and manifest from those it had before, or will have."""
    return digest_of_json(schema.to_attributes())
