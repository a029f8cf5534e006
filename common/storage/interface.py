"""What the pipeline needs of a folder of files, be it a directory or a prefix of an object store, and no more.

Files are put atomically, got whole or in part, listed and deleted. Nothing is renamed and nothing is appended to, so
both kinds give the same guarantees.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")
Data = bytes | Callable[[], Iterable[bytes]]
"""What is put: bytes, or a function that yields them piece by piece, from the first on at each call."""
CHUNK_BYTES = 2**23
"""Size of the pieces in which a large file is read."""


class Storage(ABC):
    """A folder of files named by POSIX paths relative to it. Cheap to make, safe to share between threads, pickles.

    Missing files raise FileNotFoundError; a place that cannot be reached, or refuses us, StorageError.
    """

    url: str
    """Absolute path, or URL, without a slash at its end."""

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def at(self, path: str) -> str:
        """The path inside this folder in full, for messages."""
        return f"{self.url}/{path}" if path else self.url

    @abstractmethod
    def get(self, path: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def open(self, path: str) -> "RandomAccess":
        """A file to read parts of."""

    @abstractmethod
    def put(self, path: str, data: Data) -> None:
        """Write a file atomically: a reader, or a crash at any moment, sees the old one or the new one."""

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> None:
        """Write a file that is not there yet; FileExistsError, and nothing written, where it is."""

    @abstractmethod
    def create(self, files: Mapping[str, Data]) -> None:
        """Write the files of a new folder, which appears with the last one; FileExistsError where that is there."""

    @abstractmethod
    def delete(self, paths: Iterable[str]) -> None:
        """Remove files for good, where they are there."""

    @abstractmethod
    def delete_folder(self, path: str) -> None:
        """Remove a folder and all below it."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def list(self, under: str = "") -> dict[str, int]:
        """Path -> bytes of every file below the folder `under`, at any depth."""

    def known(self) -> Container[str]:
        """The paths of all files, for questions about most of them."""
        return self.list()

    def chunks(self, path: str) -> Iterator[bytes]:
        """All bytes of a file, piece by piece."""
        with closing(self.open(path)) as file:
            for offset in range(0, file.size, CHUNK_BYTES):
                yield file.read_at(CHUNK_BYTES, offset)

    def oddities(self) -> Mapping[str, str]:
        """Path -> what it is, of all below that is neither a file nor a folder of some: links to folders, say."""
        return {}  # where there are only files

    def leftovers(self) -> Sequence[str]:
        """Files that are half-written: by a writer that was killed, or by one that is at it."""
        return []  # where each file is written by one request

    def each(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """The function of each item, in order; where a file takes long to arrive, of many items at a time."""
        return map(function, items)

    def put_many(self, files: Mapping[str, Data]) -> None:
        """Write several files, each atomically, in no particular order."""
        for _ in self.each(lambda path: self.put(path, files[path]), files):
            pass


class RandomAccess(ABC):
    """An open file."""

    size: int
    """Bytes."""

    @abstractmethod
    def read_at(self, length: int, offset: int) -> bytes:
        """That many bytes from `offset` on; fewer only where the file ends."""

    def close(self) -> None:  # noqa: B027 (nothing to close where nothing is held)
        """Let go of what is held."""


def pieces(data: Data) -> Iterable[bytes]:
    """What is to be put, piece by piece."""
    return [data] if isinstance(data, bytes) else data()
