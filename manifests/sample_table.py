"""Rows of a manifest: one image with its label picture each, and the table they stand in.

Rows live in columns (a pyarrow table): 118k of them take 30 MB, read in a third of a second, and travel to worker
processes as a few buffers; a `Sample` is made when somebody asks for one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ManifestError

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no file of a data set has in its name, and that do things to a terminal."""
REBUILD_HINT = "write it again with `physseg manifest`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image and its label picture."""

    sample_id: str  # unique in the manifest; the file stem
    image_path: str  # POSIX path relative to the manifest's root
    label_path: str  # likewise
    height: int  # pixels, after orientation and the manifest's cap were applied; 0 only where nothing could be read
    width: int  # pixels, likewise
    image_sha256: str  # of the file's bytes when the manifest was made, hex
    label_sha256: str  # likewise
    split: str  # "train", "val", ...; "" where the data set has none
    orientation: int = 1  # EXIF orientation to apply on decoding the image, 1 = none
    problem: str = ""  # non-empty: quarantined, and why (named file, expected, got)
    note: str = ""  # oddities that are handled, e.g. "greyscale, read as three equal channels"

    def __post_init__(self) -> None:
        if not self.sample_id or CONTROL.search(self.sample_id):
            raise ManifestError(f"expected an id in printable characters, got {self.sample_id!r}", hint=REBUILD_HINT)
        for path in (self.image_path, self.label_path):
            if not path or path.startswith("/") or ".." in path.split("/") or CONTROL.search(path):
                raise ManifestError(
                    f"sample {self.sample_id!r}: expected a path inside the manifest's root, got {path!r}",
                    hint=REBUILD_HINT,
                    sample_id=self.sample_id,
                    path=path,
                )
        if self.orientation not in range(1, 9):
            raise ManifestError(f"sample {self.sample_id}: expected orientation 1..8, got {self.orientation}")
        if (self.height < 1 or self.width < 1) and not self.problem:
            raise ManifestError(
                f"sample {self.sample_id}: expected a size, got {self.height} x {self.width} pixels (h x w)"
            )


COLUMNS = tuple(field.name for field in fields(Sample))
SCHEMA = pa.schema(
    [pa.field(f.name, pa.int32() if f.type in (int, "int") else pa.string(), nullable=False) for f in fields(Sample)]
)
# What a store's content depends on. Paths, split and notes may change without any pixel changing.
CONTENT_COLUMNS = ("sample_id", "height", "width", "image_sha256", "label_sha256", "orientation", "problem")


class SampleTable(Sequence[Sample]):
    """Rows held in columns; behaves as a tuple of Samples."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        # Looking columns up by name takes half of the time to make a row.
        self._columns = [(name, self.table.column(name)) for name in COLUMNS]

    def __reduce__(self) -> tuple[type["SampleTable"], tuple[pa.Table]]:
        return SampleTable, (self.table,)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "SampleTable":
        if isinstance(samples, SampleTable):
            return samples
        columns = {name: [getattr(sample, name) for sample in samples] for name in COLUMNS}
        return cls(pa.table(columns, schema=SCHEMA))

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name)

    def __len__(self) -> int:
        return int(self.table.num_rows)

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
        numbers = [self.column(name).to_numpy() for name in ("orientation", "height", "width")]
        quarantined = pc.not_equal(self.column("problem"), "").to_numpy()
        return self.column("image_path"), np.stack([*numbers, quarantined.astype(np.int32)], axis=1)

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield Sample(**row)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SampleTable):
            return bool(self.table.equals(other.table))
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self.digest(0, len(self), COLUMNS))

    def __repr__(self) -> str:
        return f"SampleTable of {len(self)} samples"

    def digest(self, start: int, stop: int, columns: Sequence[str]) -> str:
        """sha256 (hex) of the named columns of rows [start, stop), however they lie in memory or on disk."""
        digest = hashlib.sha256()
        for name in columns:
            values = self.table.column(name).slice(start, stop - start).to_pylist()
            digest.update(json.dumps([name, values]).encode())
        return digest.hexdigest()


def checked_rows(path: Path | str, table: pa.Table) -> SampleTable:
    """A file's columns as rows, after the checks of Sample for all of them at once.

    Samples are made lazily, and must not fail in the middle of a run. Raises ManifestError, which names `path`.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ManifestError(f"{path}: columns {missing} are missing", hint=REBUILD_HINT, path=str(path))
    if any(table.column(name).null_count for name in COLUMNS):
        raise ManifestError(f"{path}: expected a value in every cell, got none", hint=REBUILD_HINT, path=str(path))
    try:
        table = table.select(COLUMNS).replace_schema_metadata(None).cast(SCHEMA)
    except pa.ArrowException as error:
        raise ManifestError(f"{path}: a column of another type: {error}", hint=REBUILD_HINT, path=str(path)) from error
    column = table.column
    outside = r"^$|^/|(^|/)\.\.(/|$)|[\x00-\x1f\x7f]"
    suspicious = [
        pc.match_substring_regex(column("sample_id"), r"^$|[\x00-\x1f\x7f]"),
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
            raise ManifestError(f"{path}: {error.args[0]}", hint=error.hint, **error.fields) from error
    return SampleTable(table)
