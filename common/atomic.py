"""Files and folders that appear whole or not at all, and stay after a power cut.

The order is always the same: the bytes reach the disk, then the name appears, then the name reaches the disk. Without
the first flush a crash can leave an empty file under the final name on several file systems. Without the last one the
name itself may be gone.

    atomic_write(path, data)
    with atomic_folder(target) as partial:
        (partial / "weights.bin").write_bytes(data)
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old file or the new one.

    Args:
        path: The file. Missing folders above it are made.
        data: Its whole content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `target` that takes its name, flushed, when the block ends without an error.

    Args:
        target: The folder that appears. Missing folders above it are made.
        replace: Whether a folder of that name gives way, in one step that leaves the old or the new one. Otherwise
            only an empty one does.

    Raises:
        OSError: `target` is a folder with content and `replace` is not set (ENOTEMPTY), or the disk failed. Nothing
            stays behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
        if replace and target.exists():
            remove_folder(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_directory(target.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a crash in between leaves no half of it under its name."""
    trash = _beside(folder)
    folder.rename(trash)
    shutil.rmtree(trash)


def remove_partials(folder: Path) -> int:
    """Delete what killed writers left half-written in `folder`; returns how many entries.

    Call it only while nobody else writes there.
    """
    strays = [entry for entry in folder.glob(".*") if PARTIAL_SUFFIX in entry.name] if folder.is_dir() else []
    for stray in strays:
        shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)
    return len(strays)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    _sync(directory)


# --- helpers --------------------------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")


def _sync_tree(folder: Path) -> None:
    for directory, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(directory, name))
        _sync(Path(directory))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
