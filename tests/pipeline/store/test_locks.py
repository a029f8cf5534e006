"""One writer to a store: by the kernel's locks, and by leases where there are none."""

import errno
import fcntl
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from physseg.common.storage.local import LocalStorage
from physseg.pipeline.store import leases
from physseg.pipeline.store.errors import StoreBusyError, StoreError
from physseg.pipeline.store.locks import locked, no_task_writes, writing

PATIENCE = 60.0
"""Seconds; nothing waits for so long that works."""


class FakeClock:
    """Stands still until it is told to go on, or goes on by `step` whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture(params=["flock", "lease"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    folder = tmp_path / "s.zarr"
    (folder / "provenance").mkdir(parents=True)
    if request.param == "lease":
        use_leases(monkeypatch)
    return LocalStorage(folder)


def use_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks, with quick hearts; a lease of a minute dies of no busy machine."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(leases, "LEASE_SECONDS", PATIENCE)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)


@pytest.fixture
def leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStorage:
    """A store on a file system without locks."""
    use_leases(monkeypatch)
    (tmp_path / "s.zarr").mkdir()
    return LocalStorage(tmp_path / "s.zarr")


def lease_files(store: LocalStorage) -> list[str]:
    return sorted(path.name for path in Path(f"{store}.locks").glob("*.json"))


def test_a_second_writer_is_refused(store: LocalStorage) -> None:
    with locked(store), pytest.raises(StoreError, match="is writing this store"), locked(store):
        pytest.fail("both have it")
    with locked(store):
        pass
    assert lease_files(store) == []


def test_sharers_share_and_nobody_else(store: LocalStorage) -> None:
    with locked(store, shared=True), locked(store, shared=True):
        refused = pytest.raises(StoreError, match="is writing this store")
        with refused, locked(store):
            pytest.fail("both have it")
    with locked(store), pytest.raises(StoreError, match="is writing"), locked(store, shared=True):
        pytest.fail("both have it")


def test_waiting_for_the_other_to_end(store: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(store):
            held.set()
            release.wait(PATIENCE)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(PATIENCE)
    sleep = time.sleep

    def sleep_and_release(seconds: float) -> None:
        release.set()  # so the second one has looked, and waits
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep_and_release)
    with locked(store, wait_seconds=PATIENCE):
        assert release.is_set()
    other.join()


def test_an_error_inside_lets_go(store: LocalStorage) -> None:
    with pytest.raises(ZeroDivisionError), locked(store):
        raise ZeroDivisionError
    with locked(store):
        pass


def test_the_lease_of_a_dead_process_is_taken_over(leased: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"{leased}.locks")
    folder.mkdir()
    (folder / "dead.json").write_text('{"shared": false, "host": "h", "pid": 1, "user": "u", "beat": 7}')
    (folder / "broken.json").write_text("{")
    fast = FakeClock(step=PATIENCE / 20)
    monkeypatch.setattr(leases, "clock", fast)
    with locked(leased):
        assert fast.now >= PATIENCE, "it was watched first"
        assert len(lease_files(leased)) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_a_claim_whose_process_died_is_taken_over(
    shared: bool, leased: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before ours by name, so that ours withdraws until it is known dead."""
    folder = Path(f"{leased}.locks")
    folder.mkdir()
    (folder / "0.json").write_text('{"beat": 0}')
    monkeypatch.setattr(leases, "clock", FakeClock(step=PATIENCE / 20))
    with locked(leased, shared=shared):
        assert "0.json" not in lease_files(leased)


def test_who_was_taken_for_dead_is_told(leased: LocalStorage) -> None:
    with locked(leased) as still_ours:
        still_ours()
        (name,) = lease_files(leased)
        Path(f"{leased}.locks", name).unlink()
        wait_for(lambda: raises(still_ours))
        with pytest.raises(StoreError, match="lost the lease"):
            still_ours()
    wait_for(lambda: lease_files(leased) == [])


def test_who_was_paused_gives_up_before_others_take_over(leased: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its change is on the way when it is stopped, and lands after a rival may have taken the lease away."""
    clock = FakeClock()
    monkeypatch.setattr(leases, "clock", clock)
    with locked(leased) as still_ours:
        stopped, go_on = threading.Event(), threading.Event()
        put = LocalStorage.put

        def stalled(self: LocalStorage, path: str, data: bytes) -> None:
            stopped.set()
            assert go_on.wait(PATIENCE)
            put(self, path, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "put", stalled)
            assert stopped.wait(PATIENCE)
            clock.now += PATIENCE - 3 * leases.HEARTBEAT_SECONDS
            still_ours()
            clock.now += 2 * leases.HEARTBEAT_SECONDS  # and still before the lease is dead to others
            assert raises(still_ours), "while the request is on its way"
            go_on.set()
            wait_for(lambda: lease_files(leased) == [])
        assert raises(still_ours), "and after it landed"


def test_an_outage_that_is_over_in_time_loses_nothing(leased: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(leases, "clock", clock)
    with locked(leased) as still_ours:
        failed, put = threading.Event(), LocalStorage.put

        def fail(*_: object) -> None:
            failed.set()
            raise OSError("the service is away")

        with monkeypatch.context() as patch:
            patch.setattr(LocalStorage, "put", fail)
            assert failed.wait(PATIENCE)
            clock.now += PATIENCE / 2
        wait_for(lambda: beats(leased) > 3)
        clock.now += PATIENCE / 2
        still_ours()
        assert LocalStorage.put is put


def test_of_many_who_come_at_once_one_has_it_at_a_time(leased: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """All look before anybody writes, and all write before anybody looks again."""
    together = threading.Barrier(4)
    met: set[tuple[str, str]] = set()

    def with_all(name: str) -> None:
        real = getattr(leases.Lease, name)

        def step(lease: leases.Lease) -> object:
            result = real(lease)
            if (lease.name, name) not in met:
                met.add((lease.name, name))
                together.wait(PATIENCE)
            return result

        monkeypatch.setattr(leases.Lease, name, step)

    with_all("_look")
    with_all("_write")
    inside, order = [0], []

    def take(number: int) -> None:
        with locked(leased, wait_seconds=PATIENCE) as still_ours:
            inside[0] += 1
            assert inside[0] == 1
            still_ours()
            order.append(number)
            inside[0] -= 1

    run_in_threads(take, 4)
    assert sorted(order) == [0, 1, 2, 3]
    assert lease_files(leased) == []


def test_all_who_wait_get_their_turn(store: LocalStorage) -> None:
    inside, order = [0], []

    def take(number: int) -> None:
        with locked(store, wait_seconds=PATIENCE):
            inside[0] += 1
            assert inside[0] == 1
            time.sleep(0.05)
            order.append(number)
            inside[0] -= 1

    run_in_threads(take, 4)
    assert sorted(order) == [0, 1, 2, 3]


def test_a_clock_that_jumps_kills_nobody(leased: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(leased) as still_ours:
        monkeypatch.setattr(time, "time", lambda: 4e9)
        with pytest.raises(StoreBusyError), locked(leased):
            pytest.fail("both have it")
        still_ours()


def test_the_name_of_the_holder(leased: LocalStorage) -> None:
    with locked(leased), pytest.raises(StoreBusyError, match=r"\w+ on \S+ \(process \d+\)"), locked(leased):
        pytest.fail("both have it")


def test_settings_change_when_no_task_writes(tmp_path: Path) -> None:
    """The tasks of a client that died may still be on their way."""
    store = LocalStorage(tmp_path / "s.zarr")
    (store.path / "provenance").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    began, end = context.Event(), context.Event()
    task = context.Process(target=write_until, args=(str(store.path), began, end))
    task.start()
    assert began.wait(PATIENCE)
    changed = threading.Event()

    def change() -> None:
        with no_task_writes(store):
            changed.set()

    thread = threading.Thread(target=change)
    thread.start()
    assert not changed.wait(0.3)
    end.set()
    assert changed.wait(PATIENCE)
    thread.join()
    task.join()


def write_until(path: str, began: threading.Event, end: threading.Event) -> None:
    with writing(LocalStorage(Path(path))):
        began.set()
        end.wait(PATIENCE)


def raises(function: Callable[[], None]) -> bool:
    try:
        function()
    except StoreError:
        return True
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def beats(store: LocalStorage) -> int:
    """Of the one lease there is."""
    (name,) = lease_files(store)
    return int(json.loads(Path(f"{store}.locks", name).read_bytes())["beat"])


def run_in_threads(function: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
