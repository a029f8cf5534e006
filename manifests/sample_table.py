"""Rows of a manifest: one image with its label picture each, and the table they stand in.

Rows live in columns (a pyarrow table): 118k of them take 30 MB, read in a third of a second, and travel to worker
processes as a few buffers; a `Sample` is made when somebody asks for one.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..common.documents import parsing
from ..common.text import CONTROL
from .errors import ManifestError

METADATA_KEY = b"physseg.manifest"
MAX_ROWS, MAX_TABLE_BYTES, BATCH_ROWS = 10**7, 10**9, 256
"""COCO's 118,287 rows take 30 MB."""
REBUILD_HINT = "write it again with `physseg manifest`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and its label picture."""

    sample_id: str
    """Name of the sample, unique in the manifest: the stem of its files."""
    image_path: str
    """POSIX path of the image, relative to the manifest's root."""
    label_path: str
    """POSIX path of the label file, relative to the manifest's root."""
    height: int
    """Height in pixels, after the orientation and the manifest's cap; 0 only where the image could not be read."""
    width: int
    """Width in pixels, after the orientation and the manifest's cap; 0 only where the image could not be read."""
    image_sha256: str
    """sha256 (hex) of the image file when the manifest was made."""
    label_sha256: str
    """sha256 (hex) of the label file when the manifest was made."""
    split: str
    """Split it belongs to, such as "train"; "" where the data set has none."""
    orientation: int = 1
    """EXIF orientation to apply when the image is decoded; 1 leaves it as it is stored."""
    problem: str = ""
    """Why the sample is quarantined, with file, expected and got; "" for a usable one."""
    note: str = ""
    """Oddities that are handled, such as "greyscale image, read as three equal channels"."""

    def __post_init__(self) -> None:
        if not self.sample_id or re.search(CONTROL, self.sample_id):
            raise ManifestError(f"expected an id in printable characters, got {self.sample_id!r}", hint=REBUILD_HINT)
        where = f"sample {self.sample_id}"
        for path in (self.image_path, self.label_path):
            if not path or path.startswith("/") or ".." in path.split("/") or re.search(CONTROL, path):
                expected = "a path inside the manifest's root"
                raise ManifestError.mismatch(where, expected, repr(path), hint=REBUILD_HINT)
        if self.orientation not in range(1, 9):
            raise ManifestError.mismatch(where, "orientation 1..8", self.orientation)
        if min(self.height, self.width) < 1 and not self.problem:
            raise ManifestError.mismatch(where, "a size", f"{self.height} x {self.width} pixels (h x w)")


COLUMNS = tuple(field.name for field in fields(Sample))
SCHEMA = pa.schema(
    [pa.field(f.name, pa.int32() if f.type in (int, "int") else pa.string(), nullable=False) for f in fields(Sample)]
)
# What a store's content depends on. Paths, split and notes may change without any pixel changing.
CONTENT_COLUMNS = ("sample_id", "height", "width", "image_sha256", "label_sha256", "orientation", "problem")


class SampleTable(Sequence[Sample]):
    """Rows held in columns; behaves as a tuple of Samples."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        # Looking columns up by name takes half of the time to make a row.
        self._columns = [(name, self._table.column(name)) for name in COLUMNS]

    def __reduce__(self) -> tuple[type["SampleTable"], tuple[pa.Table]]:
        return SampleTable, (self._table,)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "SampleTable":
        if isinstance(samples, SampleTable):
            return samples
        columns = {name: [getattr(sample, name) for sample in samples] for name in COLUMNS}
        return cls(pa.table(columns, schema=SCHEMA))

    def value(self, name: str, index: int) -> Any:
        """One cell, faster than the whole row."""
        return self._table.column(name)[index].as_py()

    def values(self, name: str) -> list[Any]:
        """All cells of a column, in order."""
        return list(self._table.column(name).to_pylist())

    def find(self, sample_id: str) -> int | None:
        """Index of the row with that id."""
        index = pc.index(self._table.column("sample_id"), sample_id).as_py()
        return None if index < 0 else int(index)

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """Height times width of each row's image."""
        height, width = (np.asarray(self._table.column(name), np.int64) for name in ("height", "width"))
        return height * width

    def take(self, indices: Iterable[int]) -> "SampleTable":
        """The rows of these indices, in the given order."""
        return SampleTable(self._table.take(pa.array(indices, pa.int64())))

    @property
    def repeated(self) -> tuple[str, int] | None:
        """A sample id that several rows have, and their number; None where every id stands once."""
        counts = pc.value_counts(self._table.column("sample_id").combine_chunks())
        for entry in counts.filter(pc.greater(counts.field("counts"), 1)).slice(0, 1).to_pylist():
            return entry["values"], entry["counts"]
        return None

    @property
    def quarantined(self) -> "SampleTable":
        """The rows that carry a problem."""
        return SampleTable(self._table.filter(pc.not_equal(self._table.column("problem"), "")))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        return Sample(**{name: column[position].as_py() for name, column in self._columns})

    def image_facts(self, index: int) -> tuple[str, int, tuple[int, int]] | None:
        """Path, orientation and size (height, width) of a row's image, faster than all of it; None if quarantined."""
        paths, numbers = self._image_columns
        orientation, height, width, quarantined = numbers[index].tolist()
        return None if quarantined else (paths[index].as_py(), orientation, (height, width))

    @cached_property
    def _image_columns(self) -> tuple[pa.ChunkedArray, npt.NDArray[np.int32]]:
        numbers = [self._table.column(name).to_numpy() for name in ("orientation", "height", "width")]
        quarantined = pc.not_equal(self._table.column("problem"), "").to_numpy()
        return self._table.column("image_path"), np.stack([*numbers, quarantined.astype(np.int32)], axis=1)

    def __iter__(self) -> Iterator[Sample]:
        for batch in self._table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield Sample(**row)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SampleTable):
            return bool(self._table.equals(other._table))
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"SampleTable of {len(self)} samples"

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all rows, however they lie in memory or on disk."""
        digest = hashlib.sha256()
        for name in COLUMNS:
            digest.update(json.dumps([name, self.values(name)]).encode())
        return digest.hexdigest()

    def row_digests(self, start: int, stop: int, meaning: str) -> tuple[str, ...]:
        """64 bits (hex) for each of rows [start, stop), of `meaning` and what the content of its files depends on."""
        columns = [self._table.column(name).slice(start, stop - start).to_pylist() for name in CONTENT_COLUMNS]
        rows = (json.dumps([meaning, *row]) for row in zip(*columns, strict=True))
        return tuple(hashlib.sha256(row.encode()).hexdigest()[:16] for row in rows)

    def to_parquet(self, metadata: bytes) -> bytes:
        """The bytes of a manifest's file; equal rows and metadata give equal bytes (from one version of pyarrow)."""
        sink = pa.BufferOutputStream()
        pq.write_table(self._table.replace_schema_metadata({METADATA_KEY: metadata}), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())


def read_parquet(data: bytes, path: str) -> tuple[bytes, pa.Table]:
    """Metadata and columns of a manifest's file, for `checked_rows`. Raises ManifestError, which names `path`."""
    # In memory of pyarrow, and by one thread: a process aborts that ends while a thread of pyarrow's pool is still
    # starting, or still letting go of a Python object (1 in 4 commands on a busy machine).
    copy = pa.allocate_buffer(len(data))
    memoryview(copy).cast("B")[:] = data
    with parsing(ManifestError, f"{path}: expected a manifest (Parquet)", REBUILD_HINT):
        try:
            table = _bounded_table(pq.ParquetFile(pa.BufferReader(copy)))
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise ValueError(error) from error
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        lacks = f"no {METADATA_KEY.decode()!r} metadata"
        raise ManifestError(f"{path}: a Parquet file, but not a manifest of physseg ({lacks})", hint=REBUILD_HINT)
    return metadata, table


def _bounded_table(file: pq.ParquetFile) -> pa.Table:
    """All rows, unless they claim or take more than a manifest does: a few KB of Parquet can stand for terabytes."""
    claimed = sum(file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))
    if any(pa.types.is_dictionary(field.type) for field in file.schema_arrow):
        raise ValueError("columns of an enumerated type")
    if file.metadata.num_rows > MAX_ROWS or claimed > MAX_TABLE_BYTES:
        raise ValueError(f"{file.metadata.num_rows} rows of {claimed} bytes; at most {MAX_ROWS} of {MAX_TABLE_BYTES}")
    batches, taken = [], 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
        batch.validate(full=True)  # that text is text, which nothing else looks at
        batches.append(batch)
        taken += batch.nbytes
        if taken > MAX_TABLE_BYTES:
            raise ValueError(f"more than {MAX_TABLE_BYTES} bytes in {len(batches) * BATCH_ROWS} rows")
    return pa.Table.from_batches(batches, file.schema_arrow)


def checked_rows(table: pa.Table, path: str) -> SampleTable:
    """A file's columns as rows, after the checks of `Sample` for all of them at once.

    Samples are made lazily, and must not fail in the middle of a run. Raises ManifestError, which names `path`.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ManifestError(f"{path}: columns {missing} are missing", hint=REBUILD_HINT)
    if any(table.column(name).null_count for name in COLUMNS):
        raise ManifestError.mismatch(path, "a value in every cell", "none", hint=REBUILD_HINT)
    try:
        table = table.select(COLUMNS).replace_schema_metadata(None).cast(SCHEMA)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: a column of another type: {error}", hint=REBUILD_HINT) from error
    column = table.column
    outside = r"^$|^/|(^|/)\.\.(/|$)|" + CONTROL
    suspicious = [
        pc.match_substring_regex(column("sample_id"), "^$|" + CONTROL),
        pc.match_substring_regex(column("image_path"), outside),
        pc.match_substring_regex(column("label_path"), outside),
        pc.less(column("orientation"), 1),
        pc.greater(column("orientation"), 8),
        pc.and_(pc.equal(column("problem"), ""), pc.less(column("height"), 1)),
        pc.and_(pc.equal(column("problem"), ""), pc.less(column("width"), 1)),
    ]
    for row in table.filter(reduce(pc.or_, suspicious)).slice(0, 1).to_pylist():
        try:
            Sample(**row)
        except ManifestError as error:
            raise error.prefixed(path) from error
    return SampleTable(table)
