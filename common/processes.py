"""Processes: how many may run, what they start with, how much memory they hold and keep, and when they end."""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from .errors import PhyssegError

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a child that is started meanwhile, and restore them.

    Some libraries read their settings once, when they are loaded.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process, now and at most so far."""

    now: int = 0
    peak: int = 0


def memory_of(process: int | str | None) -> Memory:
    """Memory of a process by its id, or of "self"; zeros where there is no /proc or no such process.

    `getrusage` would not do for the peak: a new process inherits it from the one that started it.
    """
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return Memory(found.get("VmRSS", 0), found.get("VmHWM", 0))


def peak_bytes() -> int:
    """The most memory that this process has had resident; where there is no /proc, its parent's may be included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return memory_of("self").peak or (peak if sys.platform == "darwin" else peak * 1024)


def available_cpus() -> int:
    """How many CPUs this process may use (a batch system often grants fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allow_open_files(needed: int) -> bool:
    """Raise the limit of open files of this process to `needed`, if it is lower; False where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        return False
    return True


# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Let freed memory stay in the process, to be used again; True where the C library understood.

    glibc maps every large buffer anew and hands it back when it is freed, and the system clears each of its pages
    again. Measured on one core of a virtual machine: SIFT of an image 48 ms, with this 32 ms; a ViT-B/16 training step
    with 171 classes 35 s, with this 19 s. The process stays as large as it has ever been. Call it once, early; other C
    libraries (macOS, musl) are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def end_with_parent() -> None:
    """In a child of multiprocessing: end when the process that started it is gone, killed or out of memory.

    Otherwise a child waits for work for ever. Its parent in the system's eyes may be a fork server, which lives as long
    as its children do.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def children_without_ctrl_c() -> Iterator[None]:
    """Start processes in this block that Ctrl-C never reaches; here it is acted on when the block ends.

    A terminal sends it to every process of a job. One that is still importing answers with a traceback. The mask goes
    to threads that are started meanwhile, and to what they start. For the main thread.
    """
    resource_tracker.ensure_running()  # which would let it through in this thread
    held: list[int] = []  # threads from before have no mask, and what one of them gets is acted on in this one
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if held:
            signal.raise_signal(signal.SIGINT)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""What asks a process to stop: Slurm sends the first two before it takes a node back; Ctrl-C and a lost terminal."""


def ignore_stop_signals() -> None:
    """For workers: signals reach every process of a job, and the process that started the workers acts on them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def in_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int, death: PhyssegError
) -> Iterator[Result]:
    """What `function` makes of each task, in the order in which they are done, by that many new processes.

    The function is sent once, a task when a process is about to be free. Ctrl-C reaches this process only. The others
    end when it does, however it ends. Where the caller leaves the iterator, or a task fails, they get a SIGTERM.

    Args:
        function: Can be pickled. Its first call in a process follows the imports that it needs. The main module is
            imported only where it belongs to that: a script needs no `if __name__ == "__main__"`.
        tasks: Taken from as needed, in this thread.
        workers: Number of processes. Where there are fewer tasks, as many as those.
        death: The error that is raised if a process dies.
    """
    context, left = multiprocessing.get_context("spawn"), iter(tasks)
    with environment({"PYTHONWARNINGS": "ignore"}):  # of the semaphores of a killed process, which it clears away
        resource_tracker.ensure_running()
    with ProcessPoolExecutor(workers, context, _begin, (function,)) as pool:
        try:
            with children_without_ctrl_c(), _without_main(function):
                waiting = {pool.submit(_apply, task) for task in islice(left, workers)}
            while waiting := waiting | {pool.submit(_apply, t) for t in islice(left, 2 * workers - len(waiting))}:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise death from None
        except BaseException:  # Ctrl-C, or an error: leaving the block would wait for all that is left to do
            for process in [*(pool._processes or {}).values()]:
                process.terminate()
            raise


@contextlib.contextmanager
def _without_main(function: Callable[..., Any]) -> Iterator[None]:
    """Start processes that do not run the main script once more, unless what they are given stands in it."""
    main = vars(sys.modules["__main__"])
    known: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    if b"__main__" not in pickle.dumps(function):
        main.update(dict.fromkeys(known))  # where multiprocessing looks for it
    try:
        yield
    finally:
        main.update(known)


_given: list[Callable[[Any], Any]] = []
"""In a process of `in_processes`, its function."""


def _begin(function: Callable[[Any], Any]) -> None:
    _given.append(function)
    end_with_parent()


def _apply(task: Any) -> Any:
    return _given[0](task)
