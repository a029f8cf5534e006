"""Rows that are checked, kept in a file until their manifest is written: an interrupted run resumes from it.

One line a sample, in the order in which they were done: a CRC-32, then JSON. A kill leaves at most half a line, a power
cut a few lines of other bytes; what follows the first of those is checked again. Memory holds one number a sample.
"""

import json
import mmap
import os
import sys
import time
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..common.atomic import file_lock
from ..common.regular_files import regular_status
from ..common.storage.location import is_url, local_path
from ..common.text import counted
from .errors import ManifestError
from .pairing import Pair
from .sample_table import COLUMNS, Sample

FORMAT_VERSION = 1
SYNC_SECONDS = 5.0
"""Work that a power cut may cost; a killed process costs the samples that it has in hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of a sample that was checked."""

    state: list[Any]
    """What the row depends on besides the settings; see `state_of`."""
    sample: Sample
    pixels: list[tuple[int, int]]
    """Class and number of pixels of those that occur, the number of classes standing for no class. None where it is
    quarantined."""
    raw_ids: list[int]
    """Every raw id in the label."""

    def to_line(self) -> bytes:
        return _line([self.state, [getattr(self.sample, name) for name in COLUMNS], self.pixels, self.raw_ids])

    @classmethod
    def of(cls, line: bytes) -> "Record":
        state, sample, pixels, raw_ids = json.loads(line[9:])
        sample = Sample(**dict(zip(COLUMNS, sample, strict=True)))
        return cls(state=state, sample=sample, pixels=pixels, raw_ids=raw_ids)


def state_of(pair: Pair) -> list[Any]:
    """What a sample's row depends on besides the settings: id, paths, of each file bytes and last change, and note.

    Raises OSError where a file is missing.
    """
    image, label = regular_status(pair.image), regular_status(pair.label)
    sizes = (image.st_size, image.st_mtime_ns, label.st_size, label.st_mtime_ns)
    return [pair.sample_id, str(pair.image), str(pair.label), *sizes, pair.note]


class Journal:
    """The records of one manifest's samples: in a file beside it, or in one without a name that ends with the process.

    A context: the file is open, and locked against other runs, from `begin` to its end. It stays unless `remove` was
    called, or all samples together were refused.
    """

    def __init__(self, out: str | None = None) -> None:
        """Of the manifest `out`. One by URL has no file that stays: nothing can be resumed."""
        local = out is not None and (not is_url(out) or out.lower().startswith("file:"))
        path = local_path(str(out)) if local else None
        self.path = path and path.with_name(f"{path.name}.journal")
        self._open = ExitStack()
        self._offsets: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._end = 0

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.path and len(self._offsets) and self.path.exists():
            refused = kind is not None and issubclass(kind, ManifestError) and not len(self.pending)
            if refused or not self.num_done:  # all were read and the arguments are wrong, or nothing was
                self.remove()
            else:
                done = f"{self.num_done} of {counted(len(self._offsets), 'sample')} are checked"
                tqdm.write(f"kept: {self.path}: {done}, the same command resumes", file=sys.stderr)
        self._open.close()

    def begin(self, settings: str, pairs: Sequence[Pair]) -> None:
        """Open the file, and take the records of these pairs, sorted by id, by the same settings and of the same files.

        Raises:
            ManifestError: Another run has it open.
        """
        file: IO[bytes]
        if self.path is None:
            file = self._open.enter_context(TemporaryFile(prefix="physseg.", buffering=0))  # noqa: SIM115
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open.enter_context(file_lock(self.path))
            except BlockingIOError:
                hint = "wait for it to end, or give another --out"
                raise ManifestError(f"{self.path}: another `physseg manifest` writes it", hint=hint) from None
            regular_status(self.path)
            file = self._open.enter_context(self.path.open("r+b", buffering=0))
        self._descriptor, self._synced = file.fileno(), time.monotonic()
        self._offsets = np.full(len(pairs), -1, np.int64)
        header = _line([FORMAT_VERSION, settings])
        if (found := os.pread(self._descriptor, len(header), 0)) == header:
            self._take(pairs, len(header))
        elif found:
            other = "by other settings or another physseg, or damaged: all samples are checked again"
            tqdm.write(f"note: {self.path}: {other}", file=sys.stderr)
        os.ftruncate(self._descriptor, self._end)
        if not self._end:
            self._write(header)
        if self.num_done:
            tqdm.write(f"resuming: {self.num_done} of {len(pairs)} samples were checked before", file=sys.stderr)

    @property
    def pending(self) -> npt.NDArray[np.intp]:
        """Indices of the pairs that have no record."""
        return np.flatnonzero(self._offsets < 0)

    @property
    def num_done(self) -> int:
        return len(self._offsets) - len(self.pending)

    def add(self, indices: Sequence[int], lines: Sequence[bytes]) -> None:
        """Append the records of some pairs, as `Record.to_line` gives them. Raises OSError, as where a disk is full."""
        start = self._end
        self._write(b"".join(lines))
        for index, line in zip(indices, lines, strict=True):
            self._offsets[index] = start
            start += len(line)
        if self.path and time.monotonic() > self._synced + SYNC_SECONDS:
            os.fsync(self._descriptor)
            self._synced = time.monotonic()

    def __iter__(self) -> Iterator[Record]:
        """The records that there are, in the order of their pairs."""
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as memory:
            for offset in self._offsets[self._offsets >= 0].tolist():
                memory.seek(offset)
                yield Record.of(memory.readline())

    def remove(self) -> None:
        """For when the manifest is written."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _take(self, pairs: Sequence[Pair], start: int) -> None:
        self._end = start
        with mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ) as memory:
            memory.seek(start)
            while (line := memory.readline()) and line == _framed(line[9:-1]):
                state = json.loads(line[9:])[0]
                index = bisect_left(pairs, state[0], key=lambda pair: pair.sample_id)
                with suppress(OSError):
                    if index < len(pairs) and state_of(pairs[index]) == state:
                        self._offsets[index] = self._end
                self._end += len(line)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._end + written)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path or gettempdir())) from error
        self._end += written


def _line(content: object) -> bytes:
    return _framed(json.dumps(content, separators=(",", ":")).encode())


def _framed(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)
