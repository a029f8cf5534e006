"""Files and folders that appear atomically, and stay after a power cut; and the kernel's locks on them.

The order is always the same: the bytes reach the disk, then the name appears, then the name reaches the disk. Without
the first flush a crash can leave an empty file under the final name on several file systems. Without the last one the
name itself may be gone.

    atomic_write(path, data)
    with atomic_folder(target) as partial:
        (partial / "weights.bin").write_bytes(data)
"""

import ctypes
import errno
import fcntl
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from .regular_files import regular_status

PARTIAL_SUFFIX = ".partial"


def atomic_write(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file, of bytes or of pieces of them, and missing folders above it.

    A reader, or a crash at any moment, sees the old file or the new one.
    """
    with _flushed_beside(path, data) as partial:
        partial.replace(path)


def check_target(path: Path) -> None:
    """Raise the OSError that writing this file will end with, as far as it is known before the work for it begins.

    Nothing is left there. A FIFO or a device counts as one: a rename would put the file in its place.
    """
    with suppress(FileNotFoundError):
        regular_status(path)
    try:
        with TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def atomic_json(path: Path, document: object) -> None:
    """Write a document as indented JSON, as `atomic_write` does."""
    atomic_write(path, (json.dumps(document, indent=1) + "\n").encode())


def atomic_create(path: Path, data: bytes) -> None:
    """Write a new file, as `atomic_write` does. Raises FileExistsError where there is one, which stays as it is."""
    with _flushed_beside(path, data) as partial:
        path.hardlink_to(partial)  # unlike a rename, this fails where the name is taken


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `target` that takes its name, flushed, when the block ends without an error.

    Args:
        target: The folder that appears. Missing folders above it are made.
        replace: Whether a folder of that name gives way. Otherwise only an empty one does. On Linux's own file systems
            the two change places in one step. Where none can exchange names (NFS, macOS), a crash between two renames
            leaves both under hidden names and none under this one.

    Raises:
        OSError: `target` is a folder with content and `replace` is not set (ENOTEMPTY), or the disk failed. Nothing
            stays behind.
    """
    _make_folder(target.parent)
    partial = _beside(target)
    partial.mkdir()
    old = None
    try:
        yield partial
        _sync_tree(partial)
        if replace and target.exists():
            old = partial  # where the old folder is once they have changed places
            if not _exchange(partial, target):
                old = _beside(target)
                target.rename(old)
                try:
                    partial.rename(target)
                except BaseException:
                    old.rename(target)
                    raise
        else:
            partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(target.parent)
    if old:
        shutil.rmtree(old)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash in between leaves no half of it under its name."""
    trash = _beside(folder)
    folder.rename(trash)
    sync(folder.parent)
    shutil.rmtree(trash)


def remove_partials(folder: Path) -> int:
    """Delete what killed writers left half-written in `folder`; returns how many entries.

    Call it only while nobody else writes there.
    """
    strays = [entry for entry in folder.glob(".*") if PARTIAL_SUFFIX in entry.name] if folder.is_dir() else []
    for stray in strays:
        shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)
    return len(strays)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")


@contextmanager
def _flushed_beside(path: Path, data: bytes | Iterable[bytes]) -> Iterator[Path]:
    _make_folder(path.parent)
    partial = _beside(path)
    try:
        with partial.open("xb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def _make_folder(folder: Path) -> None:
    missing = list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    at_working_directory, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, from Linux's headers
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if not renameat2(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange):
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync_tree(folder: Path) -> None:
    found = list(os.walk(folder))
    # Flushes that wait together share a commit of the journal: 3,000 small files on ext4 take 0.5 s, in a row 15 s.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(sync, (Path(directory, name) for directory, _, files in found for name in files)))
    for directory, _, _ in found:
        sync(Path(directory))


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait_seconds: float | None = 0) -> Iterator[bool]:
    """Hold a lock on a file or folder against every other process; yields whether the file system has such locks.

    It is flock's: it goes with its process, however that ends.

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
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise
                yield False
                return
            else:
                break
        yield True
    finally:
        os.close(descriptor)
