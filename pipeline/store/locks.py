"""One writer to a store: who else comes is refused, unless all of them compute parts of the same thing.

On a file system the lock is the kernel's (flock on a file in the store, which NFS passes on to its server): it goes
with its process, however that ends. Object stores, and file systems without such locks, have leases instead.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from ...common.atomic import file_lock
from ...common.errors import READ_ONLY
from ...common.storage.interface import Storage
from ...common.storage.local import LocalStorage
from .commits import PROVENANCE
from .errors import StoreBusyError, StoreError
from .leases import Lease

RUN_LOCK, TASKS_LOCK = f"{PROVENANCE}/run.lock", f"{PROVENANCE}/tasks.lock"
"""Empty files of every store. Files, not its folder: NFS keeps locks on folders to the machine that takes them."""


StillOurs = Callable[[], None]
"""Raises StoreError once the lock was lost; cheap."""


@contextmanager
def locked(
    store: Storage, *, shared: bool = False, make: Callable[[], None] | None = None, wait_seconds: float = 0
) -> Iterator[StillOurs]:
    """Hold the store against every other writer, or with `shared` together with other sharers.

    `make` creates the store first, at the moment when no two can do so at once. Raises StoreBusyError where somebody
    else still holds it after `wait_seconds`, StoreError where it can only be read.
    """
    with ExitStack() as stack:
        if isinstance(store, LocalStorage):
            if make is not None:
                make()  # atomic by itself, and there is no folder to lock before
            try:
                supported = stack.enter_context(_file_lock(store, RUN_LOCK, shared, wait_seconds))
            except BlockingIOError:
                raise StoreBusyError(f"{store}: another process is writing this store") from None
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                message = f"{store}: expected a store to write to, as there is work left, got: {error.strerror}"
                raise StoreError(message, hint=READ_ONLY) from error
            if supported:
                yield lambda: None
                return
        lease = stack.enter_context(Lease(store, shared=shared, wait_seconds=wait_seconds))
        if make is not None and not isinstance(store, LocalStorage):
            make()
        yield lease.check


def writing(store: Storage) -> AbstractContextManager[object]:
    """A task holds this while it writes: who changes the store's settings waits for it, see `no_task_writes`.

    Tasks of a client that died may go on for a while on a cluster of their own. On object stores nothing holds them;
    there the check of the settings just before the writing is all there is.
    """
    return _file_lock(store, TASKS_LOCK, True, None) if isinstance(store, LocalStorage) else nullcontext()


def no_task_writes(store: Storage) -> AbstractContextManager[object]:
    """Hold this while the store's settings change: no task is in the middle of writing."""
    return _file_lock(store, TASKS_LOCK, False, None) if isinstance(store, LocalStorage) else nullcontext()


def _file_lock(
    store: LocalStorage, path: str, shared: bool, wait_seconds: float | None
) -> AbstractContextManager[bool]:
    (store.path / PROVENANCE).mkdir(exist_ok=True)
    return file_lock(store.path / path, shared=shared, wait_seconds=wait_seconds)
