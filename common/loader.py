"""A PyTorch DataLoader in the order of its sampler, whose errors are ours: what a worker met, or that one died."""

import fcntl
import io
import mmap
import multiprocessing.queues
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import DupFd
from typing import Any, Generic, TypeVar

from .errors import OPEN_FILES, PhyssegError
from .processes import end_with_parent, ignore_stop_signals

T = TypeVar("T")
Index = TypeVar("Index")

_ALIGNMENT = 64  # bytes


def load_batches(
    draw: Callable[[Index], T],
    order: Iterable[Index],
    *,
    num_workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    start_worker: Callable[[], None],
    death: PhyssegError,
) -> Iterator[T]:
    """What `draw` gives for each of `order`; the same with any number of workers.

    Workers end with this process, however it ends, and leave signals to it.

    Args:
        draw: Gives whole batches; is pickled, so a function of a module, a method of a small object, or partial.
        order: What to call it with.
        num_workers: Number of processes that load; 0 loads in this process.
        prefetch: Number of batches that each worker keeps ready.
        pin_memory: Whether tensors come in page-locked memory.
        start_worker: What each worker calls first; a function of the module that draws.
        death: The error of a worker that died. What PyTorch says of it is added to the message.

    Raises:
        PhyssegError: What `draw` raised, or one like `death`.
    """
    import torch
    from torch.utils.data import DataLoader

    workers: dict[str, Any] = {"collate_fn": _as_it_is}
    if num_workers:
        # Copies of a process that has read or computed can hang; copies of one that has only imported this cannot.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([start_worker.__module__])
        workers = {
            "multiprocessing_context": context,
            "prefetch_factor": prefetch,
            "worker_init_fn": partial(_start, start_worker),
            "collate_fn": _Packed if hasattr(os, "memfd_create") else _as_it_is,
        }
    loader: DataLoader[T | PhyssegError] = DataLoader(
        _Drawn(draw),  # type: ignore[arg-type]
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Of its own: the loader draws a seed from it, which would otherwise move the process's generator.
        generator=torch.Generator().manual_seed(0),
        **workers,
    )
    try:
        for batch in loader:
            if isinstance(batch, PhyssegError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError) as error:
        if "Too many open files" in str(error):
            raise type(death)("too many open files", hint=f"{OPEN_FILES}, or take fewer workers") from error
        if not num_workers or not _tells_of_a_death(error):
            raise
        raise type(death)(f"{death.args[0]}: {type(error).__name__} {error}", hint=death.hint) from error


class _Drawn(Generic[Index, T]):
    """A dataset whose items may be errors: DataLoader would wrap what a worker raises in its traceback's text."""

    def __init__(self, draw: Callable[[Index], T]) -> None:
        self.draw = draw

    def __getitem__(self, index: Index) -> T | PhyssegError:
        try:
            return self.draw(index)
        except PhyssegError as error:
            return error


def _tells_of_a_death(error: Exception) -> bool:
    """By what PyTorch raises: a RuntimeError of its own, or the broken connection over which a batch was coming.

    What a worker raised itself says "in DataLoader worker process".
    """
    own = not isinstance(error, RuntimeError) or "DataLoader worker (pid" in str(error)
    return own and "in DataLoader worker process" not in str(error)


def _start(start_worker: Callable[[], None], _: int) -> None:
    ignore_stop_signals()
    end_with_parent()
    # The queue's own answer is to print a traceback and to go on without the batch, for which the training waits.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_die)  # type: ignore[attr-defined]
    start_worker()


def _die(error: Exception, _: Any) -> None:
    sys.stderr.write(f"a loader process could not send a batch: {type(error).__name__} {error}\n")
    sys.stderr.flush()
    os._exit(1)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Packed:
    """A batch on its way, its tensors one after the other in a nameless file in memory; it arrives as the batch.

    PyTorch's way has a file for each tensor, under /dev/shm, of which containers grant 64 MB, and fills it through a
    mapping, page by page: 0.8 ms of a core for 1.4 MB, where writing takes 0.3, and 0.1 into a file of a batch before.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        rest, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        pickler = pickle.Pickler(rest, protocol=5, buffer_callback=buffers.append)
        pickler.dispatch_table = {torch.Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
        pickler.dump(self.batch)
        extents = []
        with os.fdopen(_free_file(), "wb") as file:
            for raw in map(pickle.PickleBuffer.raw, buffers):
                start = file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
                extents.append((start, start + file.write(raw)))
            file.truncate(file.tell() + 1)  # nobody can map an empty file
            return _unpacked, (DupFd(file.fileno()), rest.getvalue(), extents)


_FILES: list[int] = []
"""Nameless files in memory that this process has made."""


def _free_file() -> int:
    """A nameless file in memory, opened, that no batch uses: one of a batch that is gone, or a new one.

    What is returned holds a lock, and so do its copies in other processes and the mappings of these, up to the last.
    """
    for kept in _FILES:
        with suppress(BlockingIOError):
            fcntl.flock(kept, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
    else:
        _FILES.append(kept := os.memfd_create("batch"))
    fcntl.flock(kept, fcntl.LOCK_UN)
    opened = os.open(f"/proc/self/fd/{kept}", os.O_RDWR)  # a lock of its own; a duplicate would share that of `kept`
    fcntl.flock(opened, fcntl.LOCK_SH)
    return opened


def _unpacked(sent: Any, rest: bytes, extents: list[tuple[int, int]]) -> Any:
    """The batch, whose tensors are the file's memory."""
    with os.fdopen(sent.detach(), "rb+") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    return pickle.loads(rest, buffers=[memory[start:stop] for start, stop in extents])
