"""Rows of a manifest: one image with its label picture each, and the table they stand in.

Rows live in columns (a pyarrow table): 118k of them take 30 MB, read in a third of a second, and travel to worker
processes as a few buffers; a `Sample` is made when somebody asks for one. Of millions only the group of rows that was
asked for last is in memory; the others are in their file.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial, reduce
from itertools import chain, islice, takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..common.documents import digest_of_json
from ..common.storage.local import LocalStorage
from ..common.text import CONTROL
from .errors import ManifestError
from .row_groups import METADATA_KEY, REBUILD_HINT, ROWS_PER_GROUP, ParquetRows, column_digest, encode


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
    """Rows held in columns, or in a file; behaves as a tuple of Samples."""

    def __init__(
        self,
        rows: pa.Table | ParquetRows,
        *,
        rows_per_group: int | None = None,
        digests: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Rows of a file need its `digests`: of each group, one for each of `COLUMNS`."""
        self.rows_per_group = rows_per_group or ROWS_PER_GROUP
        self.file = None if isinstance(rows, pa.Table) else rows
        """The file that the rows are read from; None where they are in memory."""
        self._digests = digests
        self._length = rows.num_rows if isinstance(rows, pa.Table) else sum(rows.group_sizes)
        self._group = _Group(0, rows.combine_chunks() if isinstance(rows, pa.Table) else SCHEMA.empty_table())
        self._reads = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        rows = self.file or self._group.table
        return partial(SampleTable, rows_per_group=self.rows_per_group, digests=self._digests), (rows,)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "SampleTable":
        return samples if isinstance(samples, SampleTable) else cls(_columns_of(samples))

    @classmethod
    def spooled(cls, samples: Iterable[Sample]) -> "SampleTable":
        """The rows of an iterator; more than a group of them are in a temporary file, gone with the table."""
        remaining, digests, at_once = iter(samples), list[list[str]](), min(1024, ROWS_PER_GROUP)

        def next_group() -> pa.Table:
            batches = (list(islice(remaining, at_once)) for _ in range(ROWS_PER_GROUP // at_once))
            return pa.concat_tables([_columns_of(batch) for batch in batches])

        def groups() -> Iterator[pa.Table]:
            for table in chain([first, second], takewhile(len, iter(next_group, None))):
                digests.append(_digests_of(table))
                yield table

        first, second = next_group(), next_group()
        if not second.num_rows:
            return cls(first)
        folder = TemporaryDirectory(prefix="physseg-")
        with Path(folder.name, "rows.parquet").open("xb") as file:
            file.writelines(encode(groups(), SCHEMA.with_metadata({METADATA_KEY: b'{"groups": []}'})))
        found = cls.of_file(ParquetRows.find(LocalStorage(Path(folder.name)), "rows.parquet", file.name), digests)
        found._folder = folder  # type: ignore[attr-defined]
        return found

    @classmethod
    def of_file(cls, file: ParquetRows, digests: Sequence[Sequence[str]]) -> "SampleTable":
        """The rows of a file that is read group by group; raises ManifestError where it has other groups."""
        sizes = file.group_sizes
        equal = len({*sizes[:-1], max(sizes, default=0)}) == 1
        if not equal or len(digests) != len(sizes) or any(len(group) != len(COLUMNS) for group in digests):
            raise ManifestError.mismatch(file.path, f"{len(digests)} groups of equal size", sizes[:9], REBUILD_HINT)
        return cls(file, rows_per_group=sizes[0], digests=digests)

    def loaded(self) -> "SampleTable":
        """The same rows, all in memory."""
        if self.file is None:
            return self
        return SampleTable(pa.concat_tables(self._tables()), rows_per_group=self.rows_per_group)

    def check(self) -> None:
        """Read all rows once: raises ManifestError where a file does not hold what was written."""
        for _ in self._tables() if self.file else ():
            pass

    def value(self, name: str, index: int) -> Any:
        """One cell, faster than the whole row."""
        group, row = self._at(index)
        return group.table.column(name)[row].as_py()

    def each(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """The cells of a column, in order; those of rows [start, stop), if given. One group of rows is in memory."""
        return (value for table in self._tables((name,), start, stop) for value in table.column(0).to_pylist())

    def values(self, name: str, start: int = 0, stop: int | None = None) -> list[Any]:
        """What `each` gives, as a list."""
        return list(self.each(name, start, stop))

    def find(self, sample_id: str) -> int | None:
        """Index of the row with that id."""
        start = 0
        for table in self._tables(("sample_id",)):
            if (index := pc.index(table.column(0), sample_id).as_py()) >= 0:
                return start + int(index)
            start += table.num_rows
        return None

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """Height times width of each row's image."""
        sides = [[np.asarray(of, np.int64) for of in table.columns] for table in self._tables(("height", "width"))]
        return np.concatenate([np.zeros(0, np.int64), *(height * width for height, width in sides)])

    @property
    def usable(self) -> npt.NDArray[np.int64]:
        """Indices of the rows that carry no problem, ascending."""
        good = [pc.equal(table.column(0), "").to_numpy() for table in self._tables(("problem",))]
        return np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *good]))

    def take(self, indices: Iterable[int]) -> "SampleTable":
        """The rows of these indices, in the given order."""
        wanted = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), np.int64)
        order = np.argsort(wanted, kind="stable")
        ascending, pieces = wanted[order], [SCHEMA.empty_table()]
        while ascending.size:
            group, _ = self._at(ascending[0])
            here = np.searchsorted(ascending, group.start + group.table.num_rows)
            pieces.append(group.table.take(pa.array(ascending[:here] - group.start)))
            ascending = ascending[here:]
        return SampleTable(pa.concat_tables(pieces).take(pa.array(np.argsort(order, kind="stable"))))

    @cached_property
    def repeated(self) -> tuple[str, int] | None:
        """A sample id that several rows have, and their number; None where every id stands once."""
        hashes = np.sort(np.fromiter(map(hash, self.each("sample_id")), np.int64, len(self)))
        suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not suspects:
            return None
        counts = Counter(id_ for id_ in self.each("sample_id") if hash(id_) in suspects)
        return next(((id_, count) for id_, count in counts.items() if count > 1), None)

    @property
    def quarantined(self) -> "SampleTable":
        """The rows that carry a problem."""
        return self.take(np.delete(np.arange(len(self)), self.usable))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        group, row = self._at(index)
        return Sample(**{name: column[row].as_py() for name, column in group.columns})

    def image_facts(self, index: int) -> tuple[str, int, tuple[int, int]] | None:
        """Path, orientation and size (height, width) of a row's image, faster than all of it; None if quarantined."""
        group, row = self._at(index)
        paths, numbers = group.image_columns
        orientation, height, width, quarantined = numbers[row].tolist()
        return None if quarantined else (paths[row].as_py(), orientation, (height, width))

    def __iter__(self) -> Iterator[Sample]:
        for table in self._tables():
            for batch in table.to_batches(max_chunksize=1024):
                for row in batch.to_pylist():
                    yield Sample(**row)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SampleTable):
            if len(self) != len(other):
                return False
            step = self.rows_per_group
            parts = ((start, start + step) for start in range(0, len(self), step))
            return all(self._slice(*part).equals(other._slice(*part)) for part in parts)
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"SampleTable of {len(self)} samples"

    @property
    def is_grouped(self) -> bool:
        """Whether there are several groups of rows, of which each column has a digest."""
        return len(self) > self.rows_per_group

    @cached_property
    def digests(self) -> list[list[str]]:
        """Of each group, the sha256 (hex) of each of `COLUMNS`."""
        if self._digests is not None:
            return [list(group) for group in self._digests]
        return [_digests_of(table) for table in self._groups()]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of all rows, whether they lie in memory or on disk."""
        if self.is_grouped:
            return digest_of_json(self.digests)
        digest = hashlib.sha256()
        for name in COLUMNS:
            digest.update(json.dumps([name, self.values(name)]).encode())
        return digest.hexdigest()

    def row_digests(self, start: int, stop: int, meaning: str) -> tuple[str, ...]:
        """64 bits (hex) for each of rows [start, stop), of `meaning` and what the content of its files depends on."""
        table = self._slice(start, stop)
        rows = zip(*(table.column(name).to_pylist() for name in CONTENT_COLUMNS), strict=True)
        return tuple(hashlib.sha256(json.dumps([meaning, *row]).encode()).hexdigest()[:16] for row in rows)

    def to_parquet(self, metadata: bytes) -> Iterator[bytes]:
        """The bytes of a manifest's file, piece by piece.

        Equal rows and metadata give equal bytes (from one version of pyarrow).
        """
        return encode(self._groups(), SCHEMA.with_metadata({METADATA_KEY: metadata}))

    def _groups(self) -> Iterator[pa.Table]:
        """The rows as a file has them, group after group."""
        if self.file is not None:
            yield from self._tables()
        else:  # an empty table is a group, too
            for start in range(0, max(1, len(self)), self.rows_per_group):
                yield self._group.table.slice(start, self.rows_per_group)

    def _at(self, index: int) -> tuple["_Group", int]:
        """The group that a row is in, and the row's number there."""
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"sample {int(index)} of {len(self)}")
        group = self._group
        if not group.holds(position):
            with self._reads:  # of the threads that want this group one reads it
                group = self._group
                if not group.holds(position):
                    number = position // self.rows_per_group
                    self._group = group = _Group(number * self.rows_per_group, self._read(number, COLUMNS))
        return group, position - group.start

    def _slice(self, start: int, stop: int) -> pa.Table:
        """Rows [start, stop)."""
        if start < len(self):
            self._at(start)
        return pa.concat_tables([*self._tables(COLUMNS, start, stop)] or [SCHEMA.empty_table()])

    def _tables(self, names: Sequence[str] = COLUMNS, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Columns of rows [start, stop), by default of all, as they lie together; of a file only these are read."""
        stop = len(self) if stop is None else min(stop, len(self))
        while start < stop:
            group = self._group  # which another thread may change meanwhile
            first, table = group.start, group.table.select(names)
            if not group.holds(start):
                number = start // self.rows_per_group
                first, table = number * self.rows_per_group, self._read(number, names)
            part = table.slice(start - first, stop - start)
            start += part.num_rows
            yield part

    def _read(self, number: int, names: Sequence[str]) -> pa.Table:
        """Columns of a file's group; raises ManifestError if they are not what was written."""
        assert self.file is not None and self._digests is not None
        start = number * self.rows_per_group
        where = f"{self.file.path}: rows {start} to {min(start + self.rows_per_group, len(self))}"
        table = checked_columns(self.file.read(names, [number]), where, names)
        for name in names:
            if column_digest(table.column(name)) != self._digests[number][COLUMNS.index(name)]:
                damaged = f"{where}: damaged or changed since they were written: the digest of {name} differs"
                raise ManifestError(damaged, hint=f"copy it again, or {REBUILD_HINT}")
        return table


class _Group:
    """Rows that are in memory, the first of which is number `start` of its table."""

    def __init__(self, start: int, table: pa.Table) -> None:
        self.start, self.table = start, table
        # Looking columns up by name takes half of the time to make a row.
        self.columns = list(zip(COLUMNS, table.columns, strict=True))

    def holds(self, position: int) -> bool:
        return self.start <= position < self.start + len(self.table)

    @cached_property
    def image_columns(self) -> tuple[pa.ChunkedArray, npt.NDArray[np.int32]]:
        """Paths; orientation, height, width and whether a row is quarantined, (N, 4)."""
        numbers = [self.table.column(name).to_numpy() for name in ("orientation", "height", "width")]
        quarantined = pc.not_equal(self.table.column("problem"), "").to_numpy()
        return self.table.column("image_path"), np.stack([*numbers, quarantined.astype(np.int32)], axis=1)


def _columns_of(samples: Sequence[Sample]) -> pa.Table:
    return pa.table({name: [getattr(sample, name) for sample in samples] for name in COLUMNS}, schema=SCHEMA)


def _digests_of(table: pa.Table) -> list[str]:
    return [column_digest(table.column(name)) for name in COLUMNS]


def checked_columns(table: pa.Table, path: str, names: Sequence[str] = COLUMNS) -> pa.Table:
    """A file's columns, after the checks of `Sample` for all rows at once, as far as they can be made of these columns.

    Samples are made lazily, and must not fail in the middle of a run. Raises ManifestError, which names `path`.
    """
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ManifestError(f"{path}: columns {missing} are missing", hint=REBUILD_HINT)
    if any(table.column(name).null_count for name in names):
        raise ManifestError.mismatch(path, "a value in every cell", "none", hint=REBUILD_HINT)
    try:
        schema = pa.schema([SCHEMA.field(name) for name in names])
        table = table.select(names).replace_schema_metadata(None).cast(schema).combine_chunks()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: a column of another type: {error}", hint=REBUILD_HINT) from error
    column = table.column
    suspicious = [pc.match_substring_regex(column(name), _REFUSED[name]) for name in names if name in _REFUSED]
    if "orientation" in names:
        suspicious.append(pc.invert(pc.is_in(column("orientation"), pa.array(range(1, 9), pa.int32()))))
    if {"problem", "height", "width"} <= set(names):
        empty = pc.less(pc.min_element_wise(column("height"), column("width")), 1)
        suspicious.append(pc.and_(pc.equal(column("problem"), ""), empty))
    for row in table.filter(reduce(pc.or_, suspicious)).slice(0, 1).to_pylist() if suspicious else ():
        try:
            Sample(**(_HARMLESS | row))
        except ManifestError as error:
            raise error.prefixed(path) from error
    return table


_OUTSIDE = r"^$|^/|(^|/)\.\.(/|$)|" + CONTROL
_REFUSED = {"sample_id": "^$|" + CONTROL, "image_path": _OUTSIDE, "label_path": _OUTSIDE}
_HARMLESS: dict[str, Any] = dict.fromkeys(COLUMNS, "x") | {"orientation": 1, "height": 1, "width": 1}
