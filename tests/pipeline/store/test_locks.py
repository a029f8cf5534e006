"""One writer to a store: by the kernel's locks, and by leases where there are none."""

import errno
import fcntl
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from physseg.common.storage.local import LocalStorage
from physseg.pipeline.store import locks
from physseg.pipeline.store.errors import StoreError
from physseg.pipeline.store.locks import locked, no_task_writes, writing


@pytest.fixture(params=["flock", "lease"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    folder = tmp_path / "s.zarr"
    (folder / "provenance").mkdir(parents=True)
    if request.param == "lease":
        use_leases(monkeypatch)
    return LocalStorage(folder)


class Clock:
    """What `locks` takes for the `time` module: also passes when a test says so."""

    def __init__(self, *, sleeps: bool) -> None:
        self.ahead = 0.0
        self.sleeps = sleeps

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def sleep(self, seconds: float) -> None:
        if self.sleeps:
            time.sleep(seconds)
        else:
            self.ahead += locks.LEASE_SECONDS / 10


def use_leases(monkeypatch: pytest.MonkeyPatch, *, sleeps: bool = True) -> Clock:
    """As on a file system without locks. Holders who live beat often; that one is dead is a matter of the clock."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.05)
    clock = Clock(sleeps=sleeps)
    monkeypatch.setattr(locks, "time", clock)
    return clock


def leases(store: LocalStorage) -> list[str]:
    return sorted(path.name for path in Path(f"{store}.locks").glob("*.json"))


def test_a_second_writer_is_refused(store: LocalStorage) -> None:
    with locked(store), pytest.raises(StoreError, match="is writing this store"), locked(store):
        pytest.fail("both have it")
    with locked(store):
        pass
    assert leases(store) == []


def test_sharers_share_and_nobody_else(store: LocalStorage) -> None:
    with locked(store, shared=True), locked(store, shared=True):
        refused = pytest.raises(StoreError, match="is writing this store")
        with refused, locked(store):
            pytest.fail("both have it")
    with locked(store), pytest.raises(StoreError, match="is writing"), locked(store, shared=True):
        pytest.fail("both have it")


def test_waiting_for_the_other_to_end(store: LocalStorage) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(store):
            held.set()
            release.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(60)
    threading.Timer(0.3, release.set).start()
    with locked(store, wait_seconds=60):
        assert release.is_set()
    other.join()


def test_an_error_inside_lets_go(store: LocalStorage) -> None:
    with pytest.raises(ZeroDivisionError), locked(store):
        raise ZeroDivisionError
    with locked(store):
        pass


def test_the_lease_of_a_dead_process_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = use_leases(monkeypatch, sleeps=False)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    folder = Path(f"{store}.locks")
    folder.mkdir()
    (folder / "dead.json").write_text('{"shared": false, "host": "h", "pid": 1, "user": "u", "beat": 7}')
    (folder / "broken.json").write_text("{")
    started = clock.monotonic()
    with locked(store):
        assert clock.monotonic() - started >= locks.LEASE_SECONDS, "it was watched first"
        assert len(leases(store)) == 1


def test_who_was_taken_for_dead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_leases(monkeypatch)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    with locked(store) as still_ours:
        still_ours()
        (name,) = leases(store)
        Path(f"{store}.locks", name).unlink()
        wait_for(lambda: raises(still_ours))
        with pytest.raises(StoreError, match="lost the lease"):
            still_ours()
    assert leases(store) == []


def test_who_cannot_renew_gives_up_before_others_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = use_leases(monkeypatch)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    stalls, goes_on = threading.Event(), threading.Event()
    with locked(store) as still_ours:
        put = LocalStorage.put

        def stalled(self: LocalStorage, path: str, data: bytes) -> None:
            stalls.set()
            goes_on.wait(60)  # lands after a waiting one may have removed the lease and taken the store
            put(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "put", stalled)
            assert stalls.wait(60)
            still_ours()
            clock.ahead += locks.LEASE_SECONDS
            assert raises(still_ours), "while the request is on its way"
            goes_on.set()
            wait_for(lambda: leases(store) == [])
        assert raises(still_ours), "and after it landed"


def test_all_who_wait_get_their_turn(store: LocalStorage) -> None:
    inside, order = [0], []

    def take(number: int) -> None:
        with locked(store, wait_seconds=60):
            inside[0] += 1
            assert inside[0] == 1
            time.sleep(0.05)
            order.append(number)
            inside[0] -= 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [0, 1, 2, 3]


def test_a_gate_that_was_left_shut_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_leases(monkeypatch, sleeps=False)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    LocalStorage(Path(f"{store}.locks")).put("gate", b"of a process that died")
    with locked(store):
        pass
    assert list(Path(f"{store}.locks").iterdir()) == []


def test_a_clock_that_jumps_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_leases(monkeypatch)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    with locked(store) as still_ours:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(StoreError, match="is writing"), locked(store):
            pytest.fail("both have it")
        still_ours()


def test_the_name_of_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_leases(monkeypatch)
    store = LocalStorage(tmp_path / "s.zarr")
    store.path.mkdir()
    with locked(store), pytest.raises(StoreError, match=r"\w+ on \S+ \(process \d+\)"), locked(store):
        pytest.fail("both have it")


def test_settings_change_when_no_task_writes(tmp_path: Path) -> None:
    """The tasks of a client that died may still be on their way."""
    store = LocalStorage(tmp_path / "s.zarr")
    (store.path / "provenance").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    began, end = context.Event(), context.Event()
    task = context.Process(target=write_until, args=(str(store.path), began, end))
    task.start()
    assert began.wait(60)
    changed = threading.Event()

    def change() -> None:
        with no_task_writes(store):
            changed.set()

    thread = threading.Thread(target=change)
    thread.start()
    assert not changed.wait(0.3)
    end.set()
    assert changed.wait(60)
    thread.join()
    task.join()


def write_until(path: str, began: threading.Event, end: threading.Event) -> None:
    with writing(LocalStorage(Path(path))):
        began.set()
        end.wait(60)


def raises(function: Callable[[], None]) -> bool:
    try:
        function()
    except StoreError:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
