"""A lock where there are no locks: a file beside the store that its holder changes every few seconds.

    with Lease(store, shared=False, wait_seconds=0) as lease:
        lease.check()

Each file has one writer. Who wants the store looks, writes a file of its own, and looks again: of two who come at the
same moment, one at least sees the other. It has the store once it has looked and seen no rival since it wrote. Of
several who want it, the first by name stays and the others withdraw, so that somebody gets it.

Nobody reads a clock that could jump. A lease is dead when whoever waits for it has seen it unchanged for
`LEASE_SECONDS` of its own time, and its holder gives up before that.
"""

import getpass
import json
import os
import platform
import random
import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import Self

from ...common.errors import StorageError
from ...common.storage.interface import Storage
from ...common.storage.location import open_storage
from .errors import StoreBusyError, StoreError
from .schema import to_json

LEASE_SECONDS = 120.0
"""A lease that does not change for this long belongs to nobody: longer than most outages of a service."""
HEARTBEAT_SECONDS = 5.0
"""How often a holder changes its lease."""
SHARED_PREFIX = "shared-"
"""Begins the names of leases that are held together with others of their kind."""

clock = time.monotonic


class Lease:
    """Holds a store from `__enter__`, which waits for rivals or raises StoreBusyError, to `__exit__`."""

    def __init__(self, store: Storage, *, shared: bool, wait_seconds: float) -> None:
        self.store, self.shared, self.wait_seconds = store, shared, wait_seconds
        self.folder = open_storage(store.url + ".locks")
        self.name = f"{SHARED_PREFIX if shared else ''}{uuid.uuid4().hex}.json"
        self._beat = 0
        self._renewed = 0.0
        """When the last change that arrived was begun."""
        self._seen: dict[str, tuple[bytes, float]] = {}
        """Content of each rival's lease, and since when it is unchanged."""
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, daemon=True, name="lease")

    def __enter__(self) -> Self:
        try:
            self._acquire()
        except BaseException:
            self._withdraw()
            raise
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join(2 * HEARTBEAT_SECONDS)
        self._withdraw()

    def check(self) -> None:
        """Raises StoreError if the lease was lost, or could not be renewed for so long that it may be soon."""
        if self._lost.is_set() or clock() - self._renewed > LEASE_SECONDS - 2 * HEARTBEAT_SECONDS:
            self._lost.set()
            raise StoreError(
                f"{self.store}: lost the lease on this store: it could not be renewed for a while, or was taken over",
                hint="was this process stopped, or the service away? run the same command again; it resumes",
            )

    def _acquire(self) -> None:
        began, told, claimed = clock(), False, False
        while True:
            living, beating = self._look()
            waited = clock() - began
            if beating and waited >= self.wait_seconds:
                raise StoreBusyError(f"{self.store}: {_holder(living[min(beating)])} is writing this store")
            if not living and not claimed:
                self._write()
                claimed = True
                continue
            if claimed and (clock() - self._renewed > LEASE_SECONDS / 2 or min(living, default=self.name) < self.name):
                self._withdraw()
                claimed = False
            elif not living:
                return
            if living and not told and waited > max(self.wait_seconds, 2 * HEARTBEAT_SECONDS):
                who = _holder(living[min(living)])
                sys.stderr.write(f"{self.store}: waiting {LEASE_SECONDS:.0f} s to see whether {who} still writes it\n")
                told = True
            time.sleep(random.uniform(0.5, 1) * HEARTBEAT_SECONDS / 5)

    def _look(self) -> tuple[dict[str, bytes], set[str]]:
        """The leases of rivals, and which of them have changed since the last look; dead ones are removed."""
        before = clock()
        rivals = self._rivals()
        after = clock()
        beating = {name for name, data in rivals.items() if name in self._seen and self._seen[name][0] != data}
        unchanged = self._seen.keys() - beating
        self._seen = {name: self._seen[name] if name in unchanged else (data, after) for name, data in rivals.items()}
        dead = {name for name, (_, since) in self._seen.items() if before - since >= LEASE_SECONDS}
        self.folder.delete(dead)
        return {name: data for name, data in rivals.items() if name not in dead}, beating

    def _rivals(self) -> dict[str, bytes]:
        """Leases that may not be held together with ours."""
        found = {}
        for name in self.folder.list():
            if name != self.name and name.endswith(".json") and not (self.shared and name.startswith(SHARED_PREFIX)):
                with suppress(FileNotFoundError):
                    found[name] = self.folder.get(name)
        return found

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            renewed = self._renewed
            try:
                self.folder.get(self.name)
                self._write()
            except FileNotFoundError:
                self._lost.set()
                return
            except (StorageError, OSError):
                continue  # an outage: `check` says when it was too long
            if clock() - renewed > LEASE_SECONDS - 2 * HEARTBEAT_SECONDS:
                self._lost.set()  # the file may have been taken away meanwhile, and be back by this write
                self._withdraw()
                return

    def _write(self) -> None:
        began = clock()
        about = {"shared": self.shared, "host": platform.node(), "pid": os.getpid(), "user": _user()}
        self.folder.put(self.name, to_json({**about, "beat": self._beat}))
        self._beat, self._renewed = self._beat + 1, began

    def _withdraw(self) -> None:
        with suppress(StorageError, OSError):  # then it is left to die by itself; the run is what counts
            self.folder.delete([self.name])


def _holder(lease: bytes) -> str:
    try:
        about = json.loads(lease)
        return f"{about['user']} on {about['host']} (process {about['pid']})"
    except (ValueError, KeyError, TypeError):
        return "somebody"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
