"""Files of other people: only regular ones are opened, and only what fits is read.

To open a FIFO waits for a writer, for ever; a device such as /dev/zero has no end; a sparse file of 1 TB fits a disk.
"""

import errno
import os
import stat
import zipfile
from pathlib import Path

from .text import format_bytes

MAX_BYTES = 4 * 10**9
"""Size of the largest file that is read whole: annotations of a large data set take 1 GB."""
KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
FAULTS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
FAULT_NUMBERS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EFBIG, errno.ENODATA)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def is_files_fault(error: OSError) -> bool:
    """Whether an error is that of one file's; all others are the machine's (no memory, a broken disk, ...)."""
    return isinstance(error, FAULTS) or error.errno in FAULT_NUMBERS


def regular_status(path: Path | str) -> os.stat_result:
    """Status of the regular file at `path`, links followed. Raises OSError, as `open_regular` does, for others."""
    status = os.stat(path)  # noqa: PTH116 (on the trainer's hot path, which has a str)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        got = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.ENXIO, f"{got}, not a regular file", str(path))
    return status


def open_regular(path: Path | str) -> int:
    """A descriptor of the regular file at `path`, links followed, for reading.

    Raises:
        OSError: As by `os.open`; IsADirectoryError for a folder, of number ENXIO for anything else that is no file, and
            of number ENODATA for what git-LFS leaves in a file's place until it is pulled.
    """
    status = regular_status(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if status.st_size < 1024 and os.pread(descriptor, len(LFS_POINTER), 0) == LFS_POINTER:
        os.close(descriptor)
        raise OSError(errno.ENODATA, "a git-LFS pointer in place of the file; run `git lfs pull` there", str(path))
    return descriptor


def read_regular(path: Path | str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of the regular file at `path`. Raises OSError, as `open_regular`; EFBIG, unread, beyond `max_bytes`."""
    with open(open_regular(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            too_large = f"{format_bytes(size)}, of which {format_bytes(max_bytes)} would be read at most"
            raise OSError(errno.EFBIG, too_large, str(path))
        return file.readall()


def check_parts(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError unless the parts of one of PyTorch's files, stored as they are, fit into its `size` bytes."""
    parts = [part for part in archive.infolist() if "/code/" not in part.filename]
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError(f"its parts claim more than its {size} bytes")
