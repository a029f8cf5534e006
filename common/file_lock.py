"""The kernel's advisory locks on files (flock), which go with their process however that ends.

with file_lock(path) as held:
    ...
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_POLL_SECONDS = 0.1


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait_seconds: float | None = 0) -> Iterator[bool]:
    """Hold a lock on a file or folder against every other process; yields whether the file system has such locks.

    Args:
        path: A folder that exists, or a file, which is made if it is missing. NFS keeps locks on folders to the
            machine that takes them, so a lock between machines needs a file.
        shared: Hold it together with other sharers.
        wait_seconds: How long to wait for the others to end; None waits for ever.

    Raises:
        BlockingIOError: Somebody else still holds it.
    """
    # A file is opened for writing: NFS wants that for a lock against all others.
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    give_up = None if wait_seconds is None else time.monotonic() + wait_seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, operation if give_up is None else operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if give_up is not None and time.monotonic() >= give_up:
                    raise
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                yield False
                return
            else:
                break
        yield True
    finally:
        os.close(descriptor)
