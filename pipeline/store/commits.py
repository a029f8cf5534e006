"""Commit records: one JSON file per shard, written last, that says what the shard holds and how it hashes.

A shard's layer counts as done when its record names it with the digests of today's inputs and settings. The record is
a pure function of inputs and settings (no times, no host names), so an interrupted and resumed run leaves the same
bytes as an uninterrupted one; timings go to the run's log.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from ...common.documents import digest_of_json, parsing
from ...common.storage.interface import Storage
from .errors import REPAIR_HINT, StoreCorruptError
from .schema import to_json

PROVENANCE = "provenance"
"""Zarr group (with no arrays) that holds the manifest and the commit records, so that a store explains itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineEntry:
    """One sample that could not be computed, and why."""

    index: int
    sample_id: str
    reason: str
    """What the extractors or the decoder said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCommit:
    """One layer of one shard."""

    settings: str
    """`StoreSchema.layer_digest` at the time of computing."""
    files: Mapping[str, str]
    """Path of each file inside the store -> its sha256 (hex)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What is known of one shard."""

    shard: int
    samples: tuple[int, int]
    """First and one past the last sample."""
    inputs: tuple[str, ...]
    """`Manifest.row_digests` of those samples."""
    layers: Mapping[str, LayerCommit]
    """Name of each layer that is committed -> its settings and files."""
    quarantine: tuple[QuarantineEntry, ...] = ()
    dropped_pixels: int = 0
    """Labelled pixels that found no slot in their cell."""

    def has(self, layer: str, settings: str) -> bool:
        """Whether the layer was computed with these settings."""
        commit = self.layers.get(layer)
        return commit is not None and commit.settings == settings

    def without(self, layers: Iterable[str]) -> "CommitRecord | None":
        """The record of the other layers; None if there are none."""
        left = {name: commit for name, commit in self.layers.items() if name not in set(layers)}
        return replace(self, layers=left) if left else None

    def to_report(self) -> "CommitRecord":
        """The record without inputs and files: of all the shards of a large store it stays in memory."""
        return replace(self, inputs=(), layers={})

    def to_bytes(self) -> bytes:
        """The record as JSON, with a checksum of its own."""
        content = asdict(self)
        return to_json({"commit": content, "digest": digest_of_json(content)})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "CommitRecord":
        """Inverse of `to_bytes`; raises StoreCorruptError if anything of the content differs (white space is none)."""
        with parsing(StoreCorruptError, f"{where}: not a whole commit record", REPAIR_HINT):
            document = json.loads(data)
            content = document["commit"]
            if document["digest"] != digest_of_json(content):
                raise ValueError("the bytes are not those that were written")
            record = cls(
                shard=content["shard"],
                samples=(content["samples"][0], content["samples"][1]),
                inputs=tuple(content["inputs"]),
                layers={name: LayerCommit(**layer) for name, layer in content["layers"].items()},
                quarantine=tuple(QuarantineEntry(**entry) for entry in content["quarantine"]),
                dropped_pixels=content["dropped_pixels"],
            )
            record._check_values()
        return record

    def _check_values(self) -> None:
        """Refuse what no run writes: records come from other people, and say how much memory their status takes."""
        (start, stop), indices = self.samples, [entry.index for entry in self.quarantine]
        counts = [self.shard, start, stop, *indices, self.dropped_pixels]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError("expected numbers of shards, samples and pixels")
        if stop - start != len(self.inputs) or not all(start <= index < stop for index in indices):
            raise ValueError(f"expected {len(self.inputs)} samples as it has inputs, got {start}..{stop}, {indices}")
        texts = [*self.inputs, *(text for entry in self.quarantine for text in (entry.sample_id, entry.reason))]
        for layer in self.layers.values():
            texts += [layer.settings, *layer.files.values()]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("expected text as hashes, ids and reasons")


def commit_path(shard: int) -> str:
    return f"{PROVENANCE}/commits/{shard:06d}.json"


def read_commit(store: Storage, shard: int, *, exact: bool = False) -> CommitRecord | None:
    """The shard's record, or None if there is none; raises StoreCorruptError for a damaged or unreadable one.

    With `exact` every byte has to be as a run writes it, white space too, which takes several times as long.
    """
    path = commit_path(shard)
    try:
        data = store.get(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreCorruptError(f"{store.at(path)}: cannot be read: {error.strerror}") from error
    record = CommitRecord.from_bytes(data, store.at(path))
    if record.shard != shard:
        expected, got = f"the record of shard {shard}", f"that of shard {record.shard}"
        raise StoreCorruptError.mismatch(store.at(path), expected, got)
    if exact and record.to_bytes() != data:
        raise StoreCorruptError(f"{store.at(path)}: not the bytes that were written", hint=REPAIR_HINT)
    return record


def read_commits(store: Storage, shards: Iterable[int]) -> Iterator[CommitRecord | StoreCorruptError | None]:
    """What `read_commit` returns, or raises, for each of the shards in turn."""

    def read(shard: int) -> CommitRecord | StoreCorruptError | None:
        try:
            return read_commit(store, shard)
        except StoreCorruptError as error:
            return error

    return store.each(read, shards)


def write_commit(store: Storage, record: CommitRecord) -> None:
    """Write a shard's record: from here on the shard counts as done."""
    store.put(commit_path(record.shard), record.to_bytes())


def replace_commit(
    store: Storage, shard: int, found: CommitRecord | StoreCorruptError | None, kept: CommitRecord | None
) -> None:
    """Bring a shard's record from what was found to what is true of it; None means no record."""
    if kept == found:
        return
    if kept is None:
        store.delete([commit_path(shard)])
    else:
        write_commit(store, kept)


def invalidate_layers(store: Storage, shard: int, layers: Iterable[str]) -> None:
    """Take layers out of a shard's record: whatever happens then, they count as missing."""
    (found,) = read_commits(store, [shard])
    replace_commit(store, shard, found, found.without(layers) if isinstance(found, CommitRecord) else None)


def sha256(data: bytes) -> str:
    """The hash by which records name files, in hex."""
    return hashlib.sha256(data).hexdigest()
