"""One writer to a store: who else comes is refused, unless all of them compute parts of the same thing.

On a file system the lock is the kernel's (flock on the store's folder): it goes with its process, however that ends.
Object stores, and file systems without such locks, have leases instead: a file beside the store that its writer changes
every few seconds. Nobody reads a clock that could jump: a lease is dead when whoever waits for it has seen it unchanged
for ``LEASE_SECONDS`` of his own time.
"""

import errno
import fcntl
import getpass
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..manifests.errors import StorageError
from ..manifests.storage import LocalStorage, Storage, open_storage
from .commits import PROVENANCE
from .errors import StoreError
from .schema import to_json

LEASE_SECONDS = 30.0
"""A lease that does not change for this long belongs to nobody."""
HEARTBEAT_SECONDS = 5.0
LOCK_SUFFIX = ".locks"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)

StillOurs = Callable[[], None]
"""Raises StoreError once the lock was lost; cheap."""


@contextmanager
def locked(
    store: Storage, *, shared: bool = False, make: Callable[[], None] | None = None, wait_seconds: float = 0
) -> Iterator[StillOurs]:
    """Hold the store against every other writer, or with ``shared`` together with other sharers, or raise StoreError.

    ``make`` creates the store first, at the moment when no two can do so at once. ``wait_seconds``: how long to wait
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
    with _folder_lock(store, fcntl.LOCK_SH):
        yield


@contextmanager
def no_task_writes(store: Storage) -> Iterator[None]:
    """Hold this while the store's settings change: no task is in the middle of writing."""
    with _folder_lock(store, fcntl.LOCK_EX):
        yield


# --- the kernel's locks ---------------------------------------------------------------------------------------------


@contextmanager
def _flocked(store: LocalStorage, shared: bool, wait_seconds: float) -> Iterator[bool]:
    """Yields whether the file system has such locks at all."""
    descriptor = os.open(store.path, os.O_RDONLY)
    give_up = time.monotonic() + wait_seconds
    try:
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
    finally:
        os.close(descriptor)


@contextmanager
def _folder_lock(store: Storage, operation: int) -> Iterator[None]:
    if not isinstance(store, LocalStorage):
        yield
        return
    descriptor = os.open(store.path / PROVENANCE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def _busy(store: Storage, who: str = "another process") -> StoreError:
    return StoreError(f"{store}: {who} is writing this store", hint="wait for it to end, or stop it, then run again")


# --- leases ---------------------------------------------------------------------------------------------------------


class _Lease:
    """One file beside the store, ours alone. Two that come at the same moment see each other, and both are refused."""

    def __init__(self, store: Storage, shared: bool) -> None:
        self.store = store
        self.folder = open_storage(store.url + LOCK_SUFFIX)
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
        self._heart = threading.Thread(target=self._beat, daemon=True, name="lease")

    def acquire(self, wait_seconds: float) -> None:
        give_up = time.monotonic() + wait_seconds
        self._write()  # before looking around: whoever comes now sees us
        try:
            self._heart.start()
            while in_the_way := self._others():
                alive = self._watch(in_the_way)
                if alive and time.monotonic() >= give_up:
                    document = next(iter(alive.values()))
                    raise _busy(self.store, _holder(document))
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        if self._lost.is_set():
            raise StoreError(
                f"{self.store}: lost the lease on this store: another process took this one for dead",
                hint="was it stopped for a while? run the same command again; shards that are committed stay",
            )

    def release(self) -> None:
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join()
        self.folder.remove([self.name])

    def _others(self) -> dict[str, dict[str, Any]]:
        """Leases that may not be held together with ours."""
        others = {}
        for name in self.folder.sizes():
            if name == self.name or not name.endswith(".json"):
                continue
            try:
                document = json.loads(self.folder.read(name))
            except FileNotFoundError:
                continue
            except ValueError:
                document = {}
            if not (document.get("shared") and self.document["shared"]):
                others[name] = document
        return others

    def _watch(self, leases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Those of the leases that are seen to change; the others, once they are known dead, are removed."""
        started = time.monotonic()
        while time.monotonic() - started < LEASE_SECONDS:
            time.sleep(HEARTBEAT_SECONDS / 5)
            now = self._others()
            alive = {name: document for name, document in now.items() if document != leases.get(name)}
            if alive or not now:
                return alive
        self.folder.remove(leases)
        return {}

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self.folder.read(self.name)
                self._write()
            except FileNotFoundError:
                self._lost.set()
                return
            except StorageError:
                continue  # an outage: the others cannot reach the place either
            except OSError:
                continue

    def _write(self) -> None:
        self.document["beat"] += 1
        self.folder.write(self.name, to_json(self.document))


def _holder(document: dict[str, Any]) -> str:
    return f"{document.get('user')} on {document.get('host')} (process {document.get('pid')})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
