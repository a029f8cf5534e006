"""The Parquet file of a manifest: rows in groups, of which any can be read alone, and no more memory than they take.

Files of up to `ROWS_PER_GROUP` rows have one group and are read whole. Larger ones are read group by group.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..common.documents import parsing
from ..common.storage.interface import RandomAccess, Storage
from ..common.storage.location import open_storage
from .errors import ManifestError

METADATA_KEY = b"physseg.manifest"
ROWS_PER_GROUP = 2**17
"""More than COCO's 118,287 rows, which take 30 MB; a multiple of any number of samples in a shard."""
MAX_ROWS, MAX_GROUP_BYTES, BATCH_ROWS = 10**8, 10**9, 256
REBUILD_HINT = "write it again with `physseg manifest`"


class ParquetRows:
    """A manifest's file, opened for each read: it pickles, and nothing is held when a process forks.

    Raises ManifestError, which names `path`, for what is no manifest's file. A missing file is a FileNotFoundError.
    """

    def __init__(self, source: bytes | tuple[Storage, str], path: str) -> None:
        self.path = path
        self.source = source if isinstance(source, bytes) else (str(source[0]), source[1])
        with _reading(self.source, path) as file:
            self._metadata, schema = file.metadata, file.schema_arrow
            if any(pa.types.is_dictionary(field.type) for field in schema):
                raise ValueError("columns of an enumerated type")
            if self._metadata.num_rows > MAX_ROWS:
                raise ValueError(f"{self._metadata.num_rows} rows, at most {MAX_ROWS}")
        metadata = (schema.metadata or {}).get(METADATA_KEY)
        if metadata is None:
            lacks = f"no {METADATA_KEY.decode()!r} metadata"
            raise ManifestError(f"{path}: a Parquet file, but not a manifest of physseg ({lacks})", hint=REBUILD_HINT)
        self.metadata: bytes = metadata

    @classmethod
    def find(cls, folder: Storage, name: str, path: str) -> "ParquetRows":
        """The file of that name: its bytes if it is to be read whole, otherwise the place to read its groups from."""
        found = cls((folder, name), path)
        return found if b'"groups"' in found.metadata else cls(folder.get(name), path)

    @property
    def group_sizes(self) -> list[int]:
        """Number of rows of each group."""
        return [self._metadata.row_group(number).num_rows for number in range(self._metadata.num_row_groups)]

    def read(self, columns: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
        """Columns of some groups, by default of all, as far as there are such columns; their text is text.

        Raises ManifestError, too, if they claim or take more than a manifest's do: a few KB of Parquet can stand for
        terabytes.
        """
        groups = range(self._metadata.num_row_groups) if groups is None else groups
        claimed = sum(self._metadata.row_group(number).total_byte_size for number in groups)
        batches, taken = [], 0
        with _reading(self.source, self.path, self._metadata) as file:
            if claimed > MAX_GROUP_BYTES:
                raise ValueError(f"rows of {claimed} bytes, at most {MAX_GROUP_BYTES}")
            # By one thread: see `_reading`.
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                batch.validate(full=True)  # that text is text, which nothing else looks at
                batches.append(batch)
                taken += batch.nbytes
                if taken > MAX_GROUP_BYTES:
                    raise ValueError(f"more than {MAX_GROUP_BYTES} bytes in {len(batches) * BATCH_ROWS} rows")
            schema = pa.schema([field for field in file.schema_arrow if field.name in columns])
        return pa.Table.from_batches(batches, schema)

    def chunks(self) -> Iterator[bytes]:
        """All bytes of the file, piece by piece."""
        if isinstance(self.source, bytes):
            yield self.source
        else:
            yield from open_storage(self.source[0]).chunks(self.source[1])


@contextmanager
def _reading(source: bytes | tuple[str, str], path: str, metadata: Any = None) -> Iterator[pq.ParquetFile]:
    """A manifest's file while it is read; what is wrong with it becomes a ManifestError that names it.

    Bytes are copied to memory of pyarrow, and all is read by one thread: a process aborts that ends while a thread of
    pyarrow's pool is still starting, or still letting go of a Python object (1 in 4 commands on a busy machine).
    """
    with ExitStack() as stack:
        if isinstance(source, bytes):
            copy = pa.allocate_buffer(len(source))
            memoryview(copy).cast("B")[:] = source
            stream = pa.BufferReader(copy)
        else:
            file = open_storage(source[0]).open(source[1])
            stack.callback(file.close)
            stream = pa.PythonFile(_Stream(file), "r")
        with parsing(ManifestError, f"{path}: expected a manifest (Parquet)", REBUILD_HINT):
            try:
                yield pq.ParquetFile(stream, metadata=metadata, pre_buffer=False)
            except (pa.ArrowException, OSError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno:  # of the machine, not of what was read
                    raise
                raise ValueError(error) from error


class _Stream(io.RawIOBase):
    """A file of a Storage as pyarrow reads files."""

    readable = seekable = lambda _: True

    def __init__(self, file: RandomAccess) -> None:
        super().__init__()
        self.file, self.position = file, 0

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.file.size}[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.file.size - self.position)
        data = self.file.read_at(left if size < 0 else min(size, left), self.position)
        self.position += len(data)
        return data


def encode(tables: Iterator[pa.Table], schema: pa.Schema) -> Iterator[bytes]:
    """The bytes of a Parquet file with one row group for each of the tables, piece by piece."""
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, "w"), schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that hands over what was written to it."""

    writable = lambda _: True  # noqa: E731

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.position = 0

    def tell(self) -> int:
        return self.position

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        self.position += len(self.pieces[-1])
        return len(self.pieces[-1])

    def taken(self) -> bytes:
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)


def column_digest(column: pa.ChunkedArray) -> str:
    """sha256 (hex) of a column's values (int32 or text), however they lie in memory."""
    values = pa.concat_arrays([pa.array([], column.type), *column.chunks])
    if pa.types.is_integer(column.type):
        return hashlib.sha256(np.asarray(values, "<i4").tobytes()).hexdigest()
    offsets, text = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1), values.buffers()[2] or b""
    return hashlib.sha256(np.diff(offsets).astype("<i4").tobytes() + memoryview(text)[: offsets[-1]]).hexdigest()
