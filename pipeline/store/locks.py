"""One writer to a store: who else comes is refused, unless all of them compute parts of the same thing.

On a file system the lock is the kernel's (flock on a file in the store, which NFS passes on to its server): it goes
with its process, however that ends. Object stores, and file systems without such locks, have leases instead: a file
beside the store that its writer changes every few seconds. Nobody reads a clock that could jump: a lease is dead when
whoever waits for it has seen it unchanged for `LEASE_SECONDS` of his own time, and its holder gives up before that.
"""

import errno
import fcntl
import getpass
import json
import os
import platform
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...common.errors import StorageError
from ...common.storage.interface import Storage
from ...common.storage.local import LocalStorage
from ...common.storage.location import open_storage
from .commits import PROVENANCE
from .errors import StoreBusyError, StoreError
from .schema import to_json

LEASE_SECONDS = 120.0
"""A lease that does not change for this long belongs to nobody: longer than most outages of a service."""
HEARTBEAT_SECONDS = 5.0
LEASES_SUFFIX = ".locks"
GATE = "gate"
RUN_LOCK, TASKS_LOCK = f"{PROVENANCE}/run.lock", f"{PROVENANCE}/tasks.lock"
"""Empty files of every store. Files, not its folder: NFS keeps locks on folders to the machine that takes them."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

StillOurs = Callable[[], None]
"""Raises StoreError once the lock was lost; cheap."""


@contextmanager
def locked(
    store: Storage, *, shared: bool = False, make: Callable[[], None] | None = None, wait_seconds: float = 0
) -> Iterator[StillOurs]:
    """Hold the store against every other writer, or with `shared` together with other sharers, or raise StoreError.

    `make` creates the store first, at the moment when no two can do so at once. `wait_seconds`: how long to wait
    for others to end.
    """
    if isinstance(store, LocalStorage):
        if make is not None:
            make()  # atomic by itself, and there is no folder to lock before
        with _flocked(store, shared, wait_seconds) as supported:
            if supported:
                yield lambda: None
                return
    lease = _Lease(store, shared)
    lease.acquire(wait_seconds)
    try:
        if make is not None and not isinstance(store, LocalStorage):
            make()
        yield lease.check
    finally:
        lease.release()


@contextmanager
def writing(store: Storage) -> Iterator[None]:
    """A task holds this while it writes: who changes the store's settings waits for it, see `no_task_writes`.

    Tasks of a client that died may go on for a while on a cluster of their own. On object stores nothing holds them;
    there the check of the settings just before the writing is all there is.
    """
    with _tasks_locked(store, fcntl.LOCK_SH):
        yield


@contextmanager
def no_task_writes(store: Storage) -> Iterator[None]:
    """Hold this while the store's settings change: no task is in the middle of writing."""
    with _tasks_locked(store, fcntl.LOCK_EX):
        yield


# --- the kernel's locks ---------------------------------------------------------------------------------------------


@contextmanager
def _flocked(store: LocalStorage, shared: bool, wait_seconds: float) -> Iterator[bool]:
    """Yields whether the file system has such locks at all."""
    give_up = time.monotonic() + wait_seconds
    with _lock_file(store, RUN_LOCK) as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise _busy(store) from None
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                yield False
                return
            else:
                break
        yield True


@contextmanager
def _tasks_locked(store: Storage, operation: int) -> Iterator[None]:
    if not isinstance(store, LocalStorage):
        yield
        return
    with _lock_file(store, TASKS_LOCK) as descriptor:
        try:
            fcntl.flock(descriptor, operation)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield


@contextmanager
def _lock_file(store: LocalStorage, path: str) -> Iterator[int]:
    # Opened for writing: NFS wants that for a lock against all others.
    (store.path / PROVENANCE).mkdir(exist_ok=True)
    descriptor = os.open(store.path / path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _busy(store: Storage, who: str = "another process") -> StoreBusyError:
    return StoreBusyError(
        f"{store}: {who} is writing this store", hint="wait for it to end, or stop it, then run again"
    )


# --- leases ---------------------------------------------------------------------------------------------------------


class _Lease:
    """One file beside the store, ours alone.

    Who takes one passes a gate, a file that only one can create at a time, and looks around behind it: so of those who
    come at the same moment one is first.
    """

    def __init__(self, store: Storage, shared: bool) -> None:
        self.store = store
        self.folder = open_storage(store.url + LEASES_SUFFIX)
        self.name = f"{uuid.uuid4().hex}.json"
        self.document: dict[str, Any] = {
            "shared": shared,
            "host": platform.node(),
            "pid": os.getpid(),
            "user": _user(),
            "beat": 0,
        }
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._seen_alive = time.monotonic()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="lease")

    def acquire(self, wait_seconds: float) -> None:
        give_up = time.monotonic() + wait_seconds
        while True:
            with self._gate():
                in_the_way = self._others()
                if not in_the_way:
                    self._seen_alive = time.monotonic()
                    self._write()
                    break
            alive = self._watch(in_the_way)
            if alive and time.monotonic() >= give_up:
                raise _busy(self.store, _holder(next(iter(alive.values()))))
        self._heart.start()

    def check(self) -> None:
        if self._lost.is_set() or time.monotonic() - self._seen_alive > LEASE_SECONDS - 2 * HEARTBEAT_SECONDS:
            self._lost.set()
            raise StoreError(
                f"{self.store}: lost the lease on this store: it could not be renewed for a while, or was taken over",
                hint="was this process stopped, or the service away? run the same command again; it resumes",
            )

    def release(self) -> None:
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join(2 * HEARTBEAT_SECONDS)
        with suppress(StorageError, OSError):  # then it is left to die by itself; the run is what counts
            self.folder.delete([self.name])

    @contextmanager
    def _gate(self) -> Iterator[None]:
        """Held for two or three requests; one whose holder died is removed when it was seen for long enough."""
        ours = self.name.encode()
        seen, since = b"", time.monotonic()
        while True:
            try:
                self.folder.put_if_absent(GATE, ours)
                break
            except FileExistsError:
                found = self._read(GATE)
                if found != seen:
                    seen, since = found, time.monotonic()
                elif found and time.monotonic() - since > LEASE_SECONDS:
                    self.folder.delete([GATE])
                time.sleep(random.uniform(0.5, 1) * HEARTBEAT_SECONDS / 10)
        try:
            yield
        finally:
            self.folder.delete([GATE])

    def _read(self, name: str) -> bytes:
        try:
            return self.folder.get(name)
        except FileNotFoundError:
            return b""

    def _others(self) -> dict[str, dict[str, Any]]:
        """Leases that may not be held together with ours."""
        others = {}
        for name in self.folder.list():
            if name == self.name or not name.endswith(".json"):
                continue
            data = self._read(name)
            try:
                document = json.loads(data) if data else None
            except ValueError:
                document = {}
            if document is not None and not (document.get("shared") and self.document["shared"]):
                others[name] = document
        return others

    def _watch(self, leases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of the leases that are seen to change; once they are known dead, they are removed."""
        started = time.monotonic()
        told = False
        while time.monotonic() - started < LEASE_SECONDS:
            if not told and time.monotonic() - started > 2 * HEARTBEAT_SECONDS:
                who = _holder(next(iter(leases.values())))
                sys.stderr.write(f"{self.store}: waiting {LEASE_SECONDS:.0f} s to see whether {who} still writes it\n")
                told = True
            time.sleep(HEARTBEAT_SECONDS / 5)
            now = self._others()
            alive = {name: document for name, document in now.items() if document != leases.get(name)}
            if alive or not now:
                return alive
        self.folder.delete(leases)
        return {}

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            began = time.monotonic()
            try:
                if not self._read(self.name):
                    self._lost.set()
                    return
                self._write()
            except (StorageError, OSError):
                continue  # an outage: `check` says when it was too long
            if time.monotonic() - began > LEASE_SECONDS / 2:  # so late that the file may have been taken away meanwhile
                self._lost.set()
                with suppress(StorageError, OSError):
                    self.folder.delete([self.name])
                return
            self._seen_alive = began

    def _write(self) -> None:
        self.document["beat"] += 1
        self.folder.put(self.name, to_json(self.document))


def _holder(document: dict[str, Any]) -> str:
    return f"{document.get('user')} on {document.get('host')} (process {document.get('pid')})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
