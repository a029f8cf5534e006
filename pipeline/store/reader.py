"""The trainer's way into a store: one sample's arrays at the cost of decoding them.

Any Zarr reader opens a store; this one exists because it is on the trainer's hot path. In one run of loaders it added
1.5 ms of a core to the JPEG of a sample, zarr-python 10 (benchmarks/RESULTS.md). It reads exactly what `shard_codec`
writes and refuses everything else. It does not lock, does not fork-break (plain file descriptors, opened on first use)
and pickles. What it knows of a store is read once and travels along: a shard that a run has changed since is refused.

Nearly all of its time is zstd's, and much of that is memory: an array of pixels is 590 KB. `planes` hands out one at
a time, so that a caller who cuts a crop and lets go has the next one in the same memory, still in cache.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.documents import parsing
from ...common.settings import differing_keys
from ...common.storage.content_cache import ContentCache
from ...common.storage.interface import RandomAccess
from ...common.storage.local import LocalFile, LocalStorage
from ...common.storage.location import Location, open_storage
from ...common.text import preview
from ...manifests.decoding import decode_image
from ...manifests.errors import DecodeError
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import Vocabulary
from .commits import CommitRecord, commit_path, read_commit
from .errors import REPAIR_HINT, StoreCorruptError, StoreError, StoreIncompleteError
from .layout import open_schema, read_manifest
from .schema import DONE, QUARANTINED, STATUS, StoredArray, StoreSchema
from .shard_codec import ABSENT, decode_index, decompress_into, index_size

CHANGED_HINT = "let the `physseg preprocess` that writes it end, then run this command again"
MAX_OPEN_FILES = 128
"""Shard files kept open per reader, well under the usual limit of 1024 descriptors a process."""


class StoreReader:
    """Reads samples of a store by index.

    `arrays` names what `read` returns; `root` overrides where the manifest's paths start. Raises StoreError where
    there is no store, StoreIncompleteError where it lacks one of the arrays. With a `cache`, shards of a store that
    is not of this machine are brought here whole, once; without, every sample is asked for by itself. `images` says
    that `image` will be asked for.
    """

    def __init__(
        self,
        store: Location,
        arrays: Sequence[str],
        *,
        root: str | None = None,
        cache: ContentCache | None = None,
        images: bool = False,
    ) -> None:
        self.store = open_storage(store)
        self.arrays = tuple(arrays)
        self.root = root
        self.cache = None if isinstance(self.store, LocalStorage) else cache
        self._image_cache = cache
        self.schema: StoreSchema = open_schema(self.store)
        self._specs = {spec.name: spec for spec in self.schema.specs}
        self.picture = self.schema.picture if images and root is None else None
        """The array that images come from; None: from their files, which a `root` asks for."""
        opened = dict.fromkeys((*self.arrays, *((self.picture.name,) if self.picture else ())))
        for name in opened:
            if name not in self._specs:
                message = f"{self.store}: has no array {name}, only {', '.join(self.schema.array_names)}"
                hint = "add it with `physseg preprocess MANIFEST STORE --structures NAME`; `physseg plugins` lists them"
                raise StoreIncompleteError(message, hint=hint)
            self._check_layout(self._specs[name])
        sharded = [self._specs[name] for name in opened if self._specs[name].is_sharded]
        self._sharded = [(spec.name, self.schema.sample_shape(spec), self.schema.dtype(spec)) for spec in sharded]
        self._columns = [name for name in self.arrays if not self._specs[name].is_sharded]
        self._open_shards: OrderedDict[int, _Shard] = OrderedDict()
        self._column_cache: dict[str, npt.NDArray[Any]] = {}
        layers = sorted({self._specs[name].layer for name in opened} - {STATUS.layer})
        self._digests = {layer: self.schema.layer_digest(layer) for layer in layers}
        self._checked: dict[int, int] = {}

    def __len__(self) -> int:
        return self.schema.num_samples

    @cached_property
    def manifest(self) -> Manifest:
        """The table of samples the store was computed from."""
        manifest = read_manifest(self.store, self.schema, self.root)
        return replace(manifest, samples=manifest.table.loaded())  # samples are asked for in any order

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, from the manifest's copy: documents of stores of before do not say what is folded."""
        return self.manifest.vocabulary

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """Status of every sample (N,) uint8: 0 missing, 1 done, 2 quarantined."""
        return self._column("status")

    @property
    def usable(self) -> npt.NDArray[np.int64]:
        """Indices of the samples that may be read, ascending."""
        return np.flatnonzero(self.status == DONE)

    def frame_size(self, index: int) -> tuple[int, int]:
        """Height and width in px of a sample's frame at the canvas's top left."""
        height, width = self._column("frame_size")[index]
        return int(height), int(width)

    def read(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """All arrays of one sample, each a new array of its schema shape.

        Raises StoreIncompleteError unless the sample's status is done, StoreCorruptError where bytes do not hold.
        """
        return dict(self.planes(index))

    def planes(self, index: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The arrays of one sample by name, as `read`, but one after the other."""
        shard = self._shard_of(index)
        for position, (name, _, _) in enumerate(self._sharded):
            if name in self.arrays:
                yield name, self._chunk(shard, index, position)
        for name in self._columns:
            yield name, self._column(name)[index]

    def image(self, index: int, *, verify: bool = True) -> npt.NDArray[np.uint8]:
        """The image of a sample on its frame, (h, w, 3) uint8 RGB: the layer `image`, or else its file, resized.

        Asks for a reader that was made with `images`. `verify` compares a file with the manifest's hash.

        Raises:
            StoreIncompleteError, StoreCorruptError: As `read`, of the layer.
            ContentError: The file is not as the manifest says, or cannot be read.
        """
        if self.picture is None:
            image = self.manifest.load_image(index, verify=verify, cache=self._image_cache)
            return self.schema.frame.resize_image(image)
        position = [name for name, _, _ in self._sharded].index(self.picture.name)
        return self.decode_picture(index, self._chunk(self._shard_of(index), index, position))

    def decode_picture(self, index: int, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The image (h, w, 3) that a sample's array of the layer `image` holds. Raises StoreCorruptError for none."""
        height, width = self.frame_size(index)
        if stored.ndim == 3:
            return stored[:height, :width]
        where = f"{self._shard_file('image', index // self.schema.samples_per_shard)}, sample {index}"
        try:
            image = decode_image(stored.tobytes())
        except DecodeError as error:
            raise StoreCorruptError(f"{where}: {error.args[0]}") from error
        if image.shape[:2] != (height, width):
            raise StoreCorruptError.mismatch(where, f"a JPEG of {height} x {width} pixels (h x w)", image.shape[:2])
        return image

    def _shard_of(self, index: int) -> "_Shard":
        """The open files of a sample that may be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.store}: sample {index} of {len(self)}")
        if self.status[index] != DONE:
            raise self._unreadable(index)
        return self._shard(index // self.schema.samples_per_shard)

    def _chunk(self, shard: "_Shard", index: int, position: int) -> npt.NDArray[Any]:
        """One array of a sample, by its position in `_sharded`."""
        (name, shape, dtype), (number, row) = self._sharded[position], divmod(index, self.schema.samples_per_shard)
        offset, length = shard.tables[position][row]
        if offset == ABSENT:
            raise StoreCorruptError(f"{self._shard_file(name, number)}: sample {index} is not in its shard")
        plane = np.empty(shape, dtype)
        try:
            decompress_into(shard.files[position].read_at(length, offset), plane)
        except StoreCorruptError as error:
            raise error.prefixed(f"{self._shard_file(name, number)}, sample {index}") from error
        return plane

    def _unreadable(self, index: int) -> StoreIncompleteError:
        """Why a sample is not done."""
        sample = f"{self.store}: sample {index} ({self.manifest.table.value('sample_id', index)})"
        if self.status[index] != QUARANTINED:
            return StoreIncompleteError(f"{sample} is not computed")
        record = read_commit(self.store, index // self.schema.samples_per_shard)
        reasons = {entry.index: entry.reason for entry in (record.quarantine if record else ())}
        why = reasons.get(index, "its commit record does not say why")
        hint = "mend the file, then `physseg preprocess MANIFEST STORE --retry-quarantined`; or leave the sample out"
        return StoreIncompleteError(f"{sample} is quarantined: {why}", hint=hint)

    def read_column(self, name: str) -> npt.NDArray[Any]:
        """All samples of an unsharded array; shards that are not there read as fill."""
        spec, schema = self._specs[name], self.schema
        self._check_layout(spec)
        _ = self.manifest  # has as many rows as the store claims samples: shards and memory are bounded by them
        shape = (schema.num_shards * schema.samples_per_shard, *schema.sample_shape(spec))
        rows = np.full(shape, schema.fill(spec), schema.dtype(spec))

        def read(shard: int) -> None:
            start = shard * schema.samples_per_shard
            path = schema.shard_file(spec, shard)
            try:
                decompress_into(self.store.get(path), rows[start : start + schema.samples_per_shard])
            except FileNotFoundError:
                return
            except StoreCorruptError as error:
                raise error.prefixed(self.store.at(path)) from error
            except OSError as error:
                raise StoreCorruptError(f"{self.store.at(path)}: cannot be read: {error.strerror}") from error

        for _ in self.store.each(read, range(schema.num_shards)):
            pass
        self._check_settings()  # a run that changes them does so before it writes a shard
        return rows[: schema.num_samples]

    def close(self) -> None:
        """Close the shard files; reading opens them again."""
        while self._open_shards:
            self._open_shards.popitem()[1].close()

    def __del__(self) -> None:
        if hasattr(self, "_open_shards"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors belong to a process. The columns are small and may travel; COCO's manifest would be 32 MB.
        state = self.__dict__ | {"_open_shards": OrderedDict(), "_checked": {}}  # hashes of bytes are a process's own
        state.pop("manifest", None)
        return state

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name not in self._column_cache:
            self._column_cache[name] = self.read_column(name)
        return self._column_cache[name]

    def _shard_file(self, name: str, shard: int) -> str:
        """In full, for messages."""
        return self.store.at(self.schema.shard_file(self._specs[name], shard))

    def _open_file(self, name: str, number: int, record: CommitRecord | None) -> RandomAccess:
        """A shard file where it is, or with a cache its local copy, which the shard's record names by its hash."""
        path = self.schema.shard_file(self._specs[name], number)
        if self.cache is None:
            return self.store.open(path)
        commit = record.layers.get(self._specs[name].layer) if record else None
        if commit is None or path not in commit.files:
            raise FileNotFoundError(path)
        local = self.cache.file(commit.files[path], lambda: self.store.get(path), self.store.at(path))
        return LocalFile(local)

    def _shard(self, number: int) -> "_Shard":
        """The open files of a shard and their indexes, from a bounded cache."""
        shard = self._open_shards.get(number)
        if shard is not None:
            self._open_shards.move_to_end(number)
            return shard
        shard = _Shard([], [])
        record = self._commit(number) if self.cache else None  # what it names by hash cannot change
        try:
            for name, _, _ in self._sharded:
                where = self._shard_file(name, number)
                try:
                    file = self._open_file(name, number, record)
                except FileNotFoundError:
                    message = f"{where}: shard is missing although its samples count as done"
                    raise StoreIncompleteError(message, hint=REPAIR_HINT) from None
                except OSError as error:
                    raise StoreCorruptError(f"{where}: cannot be read: {error.strerror}") from error
                shard.add(file, self.schema.samples_per_shard, where)
            if not self.cache:
                self._commit(number)  # once the files are open: a run takes layers out of it before it writes them
        except BaseException:
            shard.close()
            raise
        while self._open_shards and (len(self._open_shards) + 1) * len(self._sharded) > MAX_OPEN_FILES:
            self._open_shards.popitem(last=False)[1].close()
        self._open_shards[number] = shard
        return shard

    def _commit(self, number: int) -> CommitRecord | None:
        """A shard's commit record, or with no cache None where it has the bytes that this process has seen before.

        Raises StoreError where it is not a record of the store as this reader found it.
        """
        path = commit_path(number)
        try:
            data = self.store.get(path)
        except OSError:
            data = b""
        if not self.cache and self._checked.get(number) == hash(data):
            return None
        record = CommitRecord.from_bytes(data, self.store.at(path)) if data else None
        if problem := self._difference(number, record):
            self._check_settings()  # says more, if they are what changed
            message = f"{self.store}: changed since it was opened: shard {number} {problem}"
            raise StoreError(message, hint=CHANGED_HINT)
        self._checked[number] = hash(data)
        return record

    def _difference(self, number: int, record: CommitRecord | None) -> str:
        """How a shard's record differs from what this reader knows of the shard; empty if it does not."""
        start, stop = self.schema.shard_range(number)
        if record is None:
            return "has no commit record"
        if stale := [layer for layer, digest in self._digests.items() if not record.has(layer, digest)]:
            return f"has no {stale[0]} of the settings from then"
        if record.inputs != self.manifest.row_digests(start, stop):
            return "was computed from other files"
        status = self.status[start:stop]
        if [entry.index for entry in record.quarantine] != (np.flatnonzero(status == QUARANTINED) + start).tolist():
            return "has other samples in quarantine"
        return ""

    def _check_settings(self) -> None:
        """Raises StoreError where the store has another manifest by now, or other settings of what is read."""
        now = open_schema(self.store)
        known = {layer: now.layer_digest(layer) for layer in now.layers}
        if now.manifest_sha256 != self.schema.manifest_sha256 or not self._digests.items() <= known.items():
            changes = differing_keys(self.schema.to_attributes(), now.to_attributes())
            told = preview((f"{key} was {ours!r}, is {theirs!r}" for key, (ours, theirs) in changes.items()), 3)
            raise StoreError(f"{self.store}: changed since it was opened: {told}", hint=CHANGED_HINT)

    def _check_layout(self, spec: StoredArray) -> None:
        """Refuse an array whose metadata but for its attributes is not, value for value, what this physseg writes."""
        path = f"{spec.name}/zarr.json"
        file = self.store.at(path)
        try:
            data = self.store.get(path)
        except OSError as error:
            raise StoreCorruptError(f"{file}: cannot be read: {error.strerror or 'no such file'}") from error
        expected = self.schema.array_metadata(spec)
        with parsing(StoreCorruptError, f"{file}: not the metadata of an array", REPAIR_HINT):
            found = json.loads(data)
            keys = (expected.keys() | found.keys()) - {"attributes"}  # what they say is for people
            differing = sorted(key for key in keys if expected.get(key) != found.get(key))
        if differing:
            message = f"{file}: not the layout this physseg reads (differs in {', '.join(differing)})"
            hint = "run `physseg verify STORE`; if it was converted by another tool, read it with zarr instead"
            raise StoreError(message, hint=hint)


@dataclass(frozen=True, slots=True)
class _Shard:
    """Open files of one shard, and for each the offset and length in bytes of every sample."""

    files: list[RandomAccess]
    tables: list[list[list[int]]]

    def add(self, file: RandomAccess, samples_per_shard: int, where: str) -> None:
        self.files.append(file)
        tail = min(file.size, index_size(samples_per_shard))
        index = decode_index(file.read_at(tail, file.size - tail), samples_per_shard, file.size, where)
        self.tables.append(index.tolist())

    def close(self) -> None:
        while self.files:
            self.files.pop().close()
