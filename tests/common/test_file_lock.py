"""Locks between processes, which end with the process that holds them."""

import errno
import fcntl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from physseg.common.atomic import file_lock

HOLDER = """
import sys
from pathlib import Path
from physseg.common.atomic import file_lock

with file_lock(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path, kind: str = "alone") -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(path), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "lock" if request.param == "file" else tmp_path


def test_one_process_at_a_time_until_it_dies(path: Path) -> None:
    with another_process(path) as holder:
        with pytest.raises(BlockingIOError), file_lock(path):
            pass
        with pytest.raises(BlockingIOError), file_lock(path, shared=True, wait_seconds=0.2):
            pass
        holder.kill()
        with file_lock(path, wait_seconds=None) as held:
            assert held


def test_sharers_share(path: Path) -> None:
    with another_process(path, "shared"):
        with file_lock(path, shared=True) as held:
            assert held
        with pytest.raises(BlockingIOError), file_lock(path):
            pass


def test_who_waits_gets_it_when_the_other_ends(path: Path) -> None:
    with another_process(path) as holder:
        threading.Timer(0.3, holder.kill).start()
        with file_lock(path, wait_seconds=60) as held:
            assert held


def test_an_error_inside_lets_go(path: Path) -> None:
    with pytest.raises(RuntimeError), file_lock(path):
        raise RuntimeError
    with file_lock(path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(path) as held:
        assert not held
