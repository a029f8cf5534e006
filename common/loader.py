"""A PyTorch DataLoader in the order of its sampler, whose errors are ours: what a worker met, or that one died."""

import multiprocessing.queues
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import OPEN_FILES, PhyssegError
from .processes import end_with_parent, ignore_stop_signals
from .text import format_bytes

if TYPE_CHECKING:
    from torch.utils.data import Dataset, Sampler

T = TypeVar("T")

_SHARED_MEMORY = "/dev/shm"


def load_batches(
    dataset: "Dataset[T | PhyssegError]",
    sampler: "Sampler[Any] | None" = None,
    *,
    num_workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    start_worker: Callable[[], None],
    death: PhyssegError,
) -> Iterator[T]:
    """The items of a dataset, in order; the same ones with any number of workers.

    Workers end with this process, however it ends, and leave signals to it.

    Args:
        dataset: Gives whole batches. It returns its PhyssegErrors, which are raised here: DataLoader would wrap what a
            worker raises in its traceback's text.
        sampler: What to index it by; None goes from 0 to its length.
        num_workers: Number of processes that load; 0 loads in this process.
        prefetch: Number of batches that each worker keeps ready.
        pin_memory: Whether tensors come in page-locked memory.
        start_worker: What each worker calls first; a function of a module.
        death: The error of a worker that died. What PyTorch says of it is added to the message.

    Raises:
        PhyssegError: What the dataset returned, or one like `death`.
    """
    import torch
    from torch.utils.data import DataLoader

    workers: dict[str, Any] = {"collate_fn": lambda batch: batch}
    if num_workers:
        # Copies of a process that has read or computed can hang; copies of one that has only imported this cannot.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(dataset).__module__])
        workers = {
            "multiprocessing_context": context,
            "prefetch_factor": prefetch,
            "worker_init_fn": partial(_start, start_worker),
            "collate_fn": partial(_share, death),
        }
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
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


def _share(death: PhyssegError, batch: Any) -> Any:
    """The batch with its tensors in shared memory, or what says that they do not fit."""
    from torch import Tensor

    found = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple) else ()
    tensors = [part for part in found if isinstance(part, Tensor)]
    try:
        for part in tensors:
            part.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        needed, free = sum(part.nbytes for part in tensors), shutil.disk_usage(_SHARED_MEMORY).free
        room = f"{format_bytes(needed)} for a batch, {format_bytes(free)} free"
        return type(death)(f"shared memory ({_SHARED_MEMORY}) is full: {room}: {error}", hint=death.hint)
    return batch
