"""Small shards computed and timed in processes of their own, all at once, as the workers of a run are."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from ...common.errors import PhyssegError
from ...common.processes import environment, peak_bytes
from ..run.errors import ExecutorError
from ..run.executors.clusters import WORKER_ENVIRONMENT
from ..run.task import ShardTask, compute_shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Tasks of one kind for one process: as many of them, in order, as fit into the time, the first two in any case."""

    tasks: tuple[ShardTask, ...]
    seconds: float
    """From the end of the first task on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTimes:
    """One task, timed. Wall seconds, save for ``cpu_seconds``."""

    indices: tuple[int, ...]
    """The samples, by their place in the store."""
    image_seconds: tuple[float, ...]
    """Of each of them: load, extract, compress."""
    open_seconds: float
    """Before the first: the store's settings; in a process's first task also its manifest."""
    write_seconds: float
    """After the last: files, checksums, commit."""
    parts: Mapping[str, float]
    """Of all images together, by part."""
    cpu_seconds: float
    wall_seconds: float
    bytes_written: int
    failed: int
    """Samples that went to quarantine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one process found."""

    trials: tuple[tuple[ShardTimes, ...], ...]
    """For each trial the tasks that were done."""
    start_seconds: float
    """From its parent's decision to start it until it could begin."""
    peak_bytes: int
    """Resident memory at its most."""


def run_trials(trials: Sequence[Sequence[Trial]]) -> list[Outcome]:
    """Each sequence in a process of its own; all begin together, when the last is ready.

    Raises ExecutorError if a process dies, and the error itself if a task raises one of ours.
    """
    context = get_context("spawn")
    processes = []
    connections: list[Connection] = []
    try:
        with environment(WORKER_ENVIRONMENT):
            for one in trials:
                ours, theirs = context.Pipe()
                process = context.Process(target=_process, args=(theirs, tuple(one), time.time()), daemon=True)
                process.start()
                theirs.close()  # or its end would never be seen
                processes.append(process)
                connections.append(ours)
        for connection in connections:
            _receive(connection)
        for connection in connections:
            connection.send("begin")
        return [_receive(connection) for connection in connections]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def time_shard(task: ShardTask) -> ShardTimes:
    """Compute one shard, in this process."""
    begun: list[tuple[int, float]] = []
    wall, cpu = time.perf_counter(), time.process_time()
    report = compute_shard(task, on_sample=lambda index: begun.append((index, time.perf_counter())))
    end = time.perf_counter()
    write_seconds = report.seconds["write"]
    stamps = [*(stamp for _, stamp in begun), end - write_seconds]
    return ShardTimes(
        indices=tuple(index for index, _ in begun),
        image_seconds=tuple(after - before for before, after in pairwise(stamps)),
        open_seconds=stamps[0] - wall,
        write_seconds=write_seconds,
        parts={name: seconds for name, seconds in report.seconds.items() if name != "write"},
        cpu_seconds=time.process_time() - cpu,
        wall_seconds=end - wall,
        bytes_written=report.bytes_written,
        failed=len(report.quarantine),
    )


def _process(connection: Connection, trials: Sequence[Trial], started: float) -> None:
    """The body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    try:
        import distributed.worker  # noqa: F401  (a worker of a run has it in memory, and has waited for it)

        start_seconds = time.time() - started  # the one clock that two processes share
        connection.send("ready")
        connection.recv()
        done = tuple(tuple(_run(trial)) for trial in trials)
        connection.send(Outcome(trials=done, start_seconds=start_seconds, peak_bytes=peak_bytes()))
    except PhyssegError as error:
        connection.send(error)
    except Exception as error:
        connection.send(ExecutorError(f"computing a few images failed: {type(error).__name__}: {error}"))


def _run(trial: Trial) -> Iterator[ShardTimes]:
    deadline = float("inf")
    for number, task in enumerate(trial.tasks):
        yield time_shard(task)
        if number == 0:
            deadline = time.perf_counter() + trial.seconds
        elif time.perf_counter() > deadline:
            return


def _receive(connection: Connection) -> Any:
    try:
        received = connection.recv()
    except EOFError:
        raise ExecutorError(
            "a process that computed a few images, to measure their cost, was killed",
            hint="usually memory: try with fewer --workers",
        ) from None
    if isinstance(received, BaseException):
        raise received
    return received
