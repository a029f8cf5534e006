"""The base of every error that a user can cause or meet, and the two ways in which most of them are made."""

import errno
from typing import Any, ClassVar, Self

from .storage.credentials import masked


class PhyssegError(Exception):
    """Base of every error a user can cause or meet; each package derives named errors from it and a builtin.

    The message says where, what was expected and what was found. The hint says what to do next: it is given with the
    error, or it is the same for the whole class.

    Attributes:
        hint: What to do next, or None.
        fields: Facts for programs that read errors (`step`, `sample_ids`, ...); only those that something reads.
        exit_code: What the command line exits with.
    """

    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(masked(message))  # here, so that no message of any place tells a password
        self.hint = hint or self.default_hint
        self.fields = fields

    def __str__(self) -> str:
        message = str(self.args[0])  # `super()` may be KeyError's, which quotes it
        return f"{message}\n  hint: {self.hint}" if self.hint else message

    @classmethod
    def mismatch(cls, where: object, expected: object, got: object, hint: str | None = None, **fields: Any) -> Self:
        """The error of a place where one thing was expected and another found, such as an OSError of the file's.

        >>> print(PhyssegError.mismatch("a.png", "8 bits", "12", hint="convert it"))
        a.png: expected 8 bits, got 12
          hint: convert it
        """
        if isinstance(got, OSError) and got.strerror:
            got = got.strerror[0].lower() + got.strerror[1:]
        return cls(f"{where}: expected {expected}, got {got}", hint=hint, **fields)

    def prefixed(self, where: object) -> Self:
        """The same error with the place it happened at in front, known to the caller alone.

        >>> print(PhyssegError("no such key", hint="see --help").prefixed("config.toml"))
        config.toml: no such key
          hint: see --help
        """
        return type(self)(f"{where}: {self.args[0]}", hint=self.hint, **self.fields)


OPEN_FILES = "more open files than this shell allows: raise `ulimit -n` (with 4096, say)"
READ_ONLY = "nothing can be written here, only read: mount it for writing, or name a place elsewhere"
IN_THE_WAY = "a file is where a folder is needed: name another place, or move the file"
FULL = "make room (or raise `ulimit -f`), then run the same command again; what is complete stays"
OS_HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EMFILE: OPEN_FILES,
    errno.EROFS: READ_ONLY,
    errno.EEXIST: IN_THE_WAY,
    errno.EISDIR: "a folder is where a file is needed: name a file",
    errno.ENOTDIR: IN_THE_WAY,
    errno.ENXIO: "a FIFO that nobody reads, a device or a socket: name a regular file",
}
"""What to do about an error of the system's, by its number."""


def of_system(error: OSError) -> PhyssegError:
    """An error of the system's in one line: the file, what is wrong, and what to do where we know it.

    >>> print(of_system(NotADirectoryError(20, "Not a directory", "a/b")))
    a/b: Not a directory
      hint: a file is where a folder is needed: name another place, or move the file
    """
    text = " ".join(str(error.strerror or error).split())
    return PhyssegError(f"{error.filename}: {text}" if error.filename else text, hint=OS_HINTS.get(error.errno or 0))


class StorageError(PhyssegError, RuntimeError):
    """A place for files cannot be reached or used: no such bucket, no permission, an outage. Never one file's fault."""


class ConfigError(PhyssegError, ValueError):
    """Settings have an unknown key, a value of the wrong type or a value outside its range."""
