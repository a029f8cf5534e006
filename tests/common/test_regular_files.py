"""Only regular files are opened: what would wait for ever, or has no end, is named."""

import errno
import os
import socket
from pathlib import Path

import pytest
from physseg.common.regular_files import is_files_fault, open_regular, read_regular
from physseg.common.storage.local import LocalStorage
from physseg.common.storage.location import read_below


def test_a_file_is_read_whole_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("a", "link"):
        assert read_regular(tmp_path / name) == bytes(range(256)) * 9
        assert LocalStorage(tmp_path).get(name) == bytes(range(256)) * 9
        assert read_below(str(tmp_path), name) == bytes(range(256)) * 9
    assert read_regular(tmp_path / "empty") == b""


def special(kind: str, folder: Path) -> Path:
    path = folder / "x"
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_has_no_end_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = special(kind, tmp_path)
    folder = LocalStorage(tmp_path)
    for read in (
        lambda: open_regular(path),
        lambda: read_regular(path),
        lambda: folder.get("x"),
        lambda: folder.open("x"),
        lambda: read_below(str(tmp_path), "x"),
    ):
        with pytest.raises(OSError, match=f"{kind}, not a regular file") as caught:
            read()
        assert caught.value.errno == errno.ENXIO
        assert is_files_fault(caught.value)


def test_folders_and_missing_files_are_what_they_are_elsewhere(tmp_path: Path) -> None:
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "x", FileNotFoundError)):
        with pytest.raises(kind) as caught:
            read_regular(path)
        assert is_files_fault(caught.value)
    assert not is_files_fault(OSError(errno.EIO, "a broken disk"))
    with pytest.raises(OSError, match="too long") as caught:
        read_regular(tmp_path / ("x" * 5000))
    assert is_files_fault(caught.value)


def test_a_file_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 42)  # 4 TiB, of which nothing lies on the disk
    with pytest.raises(OSError, match=r"4\.4 TB, of which 4\.0 GB"):
        read_regular(path)
    path.write_bytes(b"123")
    assert read_regular(path, max_bytes=3) == b"123"
    with pytest.raises(OSError, match="3 B, of which 2 B") as caught:
        read_regular(path, max_bytes=2)
    assert caught.value.errno == errno.EFBIG


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    (tmp_path / "a.png").write_bytes(pointer)
    with pytest.raises(OSError, match="git lfs pull") as caught:
        LocalStorage(tmp_path).get("a.png")
    assert is_files_fault(caught.value)
    (tmp_path / "about.md").write_bytes(pointer[:-1].ljust(1024))  # no pointer is that large
    assert len(read_regular(tmp_path / "about.md")) == 1024
