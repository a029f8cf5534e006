"""Encode and decode the Zarr v3 shards of a store: zstd chunks, then an index, then its crc32c.

The format is the Zarr v3 ``sharding_indexed`` codec with the index at the end and inner codecs ``bytes`` and ``zstd``
(with checksum). Any Zarr reader opens these files; this module exists because the trainer's hot path reads them five
times faster than a general reader (benchmarks/RESULTS.md), and because a writer that compresses sample by sample holds
a few megabytes where one that assembles whole arrays holds hundreds. ``tests/pipeline/test_shard_codec.py`` proves both
directions equal to zarr-python.
"""

import struct
from collections.abc import Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import zstd

from .errors import StoreCorruptError

ZSTD_LEVEL = 5
"""Levels above 5 save little and cost milliseconds an array; 3 writes faster for 2-10% more bytes."""

ABSENT = np.uint64(2**64 - 1)
"""Offset and length that mark a chunk as not stored."""


def compress(array: npt.NDArray[np.generic]) -> bytes:
    """One chunk: the array's bytes, little endian, as a zstd frame with a content checksum.

    Plain zstd lets about one in six flipped bits through silently; with the checksum none passes.
    """
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return zstd.compress(np.ascontiguousarray(little), ZSTD_LEVEL, True)  # type: ignore[no-any-return]


def decompress_into(chunk: bytes, out: npt.NDArray[np.generic]) -> None:
    """Decode one chunk into ``out`` (C-contiguous, exactly the chunk's size); raises StoreCorruptError otherwise."""
    try:
        zstd.decompress(chunk, out)
    except (RuntimeError, ValueError) as error:
        raise StoreCorruptError(f"a chunk does not decode: {error}") from error


def encode_shard(chunks: Sequence[bytes], chunks_per_shard: int) -> bytes:
    """The bytes of one shard file; slots beyond ``chunks`` (the last shard of an array) are marked absent."""
    index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
    lengths = np.fromiter((len(chunk) for chunk in chunks), dtype="<u8", count=len(chunks))
    index[: len(chunks), 0] = np.cumsum(lengths) - lengths
    index[: len(chunks), 1] = lengths
    raw = index.tobytes()
    return b"".join([*chunks, raw, struct.pack("<I", google_crc32c.value(raw))])


def index_size(chunks_per_shard: int) -> int:
    """Bytes of the index at the end of a shard file: 16 per chunk and 4 of checksum."""
    return 16 * chunks_per_shard + 4


def decode_index(raw: bytes, chunks_per_shard: int, file_size: int, where: str) -> npt.NDArray[np.uint64]:
    """The index (chunks_per_shard, 2) of offsets and lengths in bytes, from the last bytes of a shard file.

    Raises StoreCorruptError, naming ``where``, if the checksum or any extent does not hold.
    """
    expected = index_size(chunks_per_shard)
    if len(raw) != expected:
        raise StoreCorruptError(
            f"{where}: too short for its index, expected at least {expected} bytes, got {file_size}",
            hint="run `physseg verify STORE --repair`",
        )
    body, stored = raw[:-4], struct.unpack("<I", raw[-4:])[0]
    if google_crc32c.value(body) != stored:
        raise StoreCorruptError(
            f"{where}: the index does not match its checksum", hint="run `physseg verify STORE --repair`"
        )
    index = np.frombuffer(body, dtype="<u8").reshape(chunks_per_shard, 2)
    stored_chunks = index[index[:, 0] != ABSENT]
    if np.any(stored_chunks.sum(axis=1) > file_size - expected):
        raise StoreCorruptError(
            f"{where}: the index points beyond the data", hint="run `physseg verify STORE --repair`"
        )
    return index
