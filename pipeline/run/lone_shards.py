"""A shard that kept killing its worker, tried alone: which of its samples is it?

The shard is computed in a process of its own that says which sample it is at. The sample at which that process dies
twice in the same way is refused and the rest computed. Twice, because a process may also be killed by what has nothing
to do with it (an operator, a batch system, the kernel on behalf of another program): that strikes anywhere.
"""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

from ...common.processes import children_without_ctrl_c, end_with_parent, environment, memory_of
from ..store.locks import StillOurs
from .errors import ShardFailedError
from .executors.interface import say
from .executors.worker import WORKER_ENVIRONMENT
from .task import OnSample, ShardReport, ShardTask, compute_shard

DEATHS = 2
"""Number of deaths at one sample after which that sample is refused."""
MAX_FATAL_SAMPLES = 4
"""If the first N samples of a shard all kill, the fault is not theirs: every other sample would follow."""
TICK_SECONDS = 1.0


def compute_alone(
    task: ShardTask, *, memory_limit: int, still_ours: StillOurs, on_sample: OnSample = lambda _: None
) -> ShardReport:
    """Compute one shard, refusing exactly the samples that kill, and name them in its quarantine.

    A process over `memory_limit` bytes is killed (watched on Linux only). `still_ours` is called about once a
    second and may raise to stop. Raises ShardFailedError if the shard fails in any other way than by one sample.
    """
    deaths: Counter[_Death] = Counter()
    fatal = 0
    while True:
        end = _attempt(task, memory_limit, still_ours, on_sample)
        if isinstance(end, ShardReport):
            return end
        if isinstance(end, ShardFailedError):
            raise end
        deaths[end] += 1
        if deaths[end] < DEATHS:
            continue
        if end.sample is None or end.sample in task.refused:
            raise _not_a_samples_fault(task, f"its process died {DEATHS} times, and not of a sample: {end.cause}")
        reason = f"computing it killed its process twice: {end.cause}" if not end.by_memory else end.cause
        say(f"shard {task.shard}: sample {end.sample} is put in quarantine: {reason}")
        task = replace(task, refused={**task.refused, end.sample: reason})
        fatal += 1
        if fatal >= MAX_FATAL_SAMPLES and end.begun == 1:  # all before it are refused, or were never tried
            what = f"each of its first {MAX_FATAL_SAMPLES} samples killed its process: {end.cause}"
            raise _not_a_samples_fault(task, what)


@dataclass(frozen=True, slots=True)
class _Death:
    """How a process ended that did not finish its shard."""

    sample: int | None
    """Index in the store of the sample that the process was at; None before the first."""
    cause: str
    by_memory: bool = False
    """Whether it was killed for the memory it held."""
    begun: int = field(default=0, compare=False)
    """Number of samples that the process had begun."""


def _attempt(
    task: ShardTask, memory_limit: int, still_ours: StillOurs, on_sample: OnSample
) -> ShardReport | ShardFailedError | _Death:
    context = multiprocessing.get_context("spawn")
    ours, childs = context.Pipe(duplex=False)
    process = context.Process(target=_compute, args=(task, childs), daemon=True)
    with environment(WORKER_ENVIRONMENT), children_without_ctrl_c():
        process.start()
    childs.close()  # the child has the only other end: when it dies, reading ours ends
    samples: list[int] = []
    by_memory = False
    next_tick = time.monotonic() + TICK_SECONDS
    try:
        while True:
            if time.monotonic() >= next_tick:
                still_ours()
                next_tick = time.monotonic() + TICK_SECONDS
            if not ours.poll(0.02):
                if not by_memory and memory_of(process.pid).now > memory_limit:
                    by_memory = True
                    process.kill()  # what it said until then is still in the pipe
                continue
            try:
                message = ours.recv()
            except (EOFError, OSError):  # OSError: it died in the middle of a message
                break
            if isinstance(message, ShardReport | ShardFailedError):
                return message
            sample, peak = message
            if peak > memory_limit:  # so it was the sample before this one
                by_memory = True
                break
            samples.append(sample)
            on_sample(sample)
    finally:
        process.kill()
        process.join()
        ours.close()
    cause = f"needed more than {memory_limit / 1e9:.1f} GB of memory" if by_memory else _cause(process.exitcode)
    return _Death(samples[-1] if samples else None, cause, by_memory, len(samples))


def _compute(task: ShardTask, parent: Connection) -> None:
    """What the child runs: it sends each sample's index with its peak memory until then, and a report or an error."""
    end_with_parent()
    try:
        parent.send(compute_shard(task, lambda sample: parent.send((sample, memory_of("self").peak))))
    except Exception as error:
        failed = ShardFailedError.of(task, error)
        failed.add_note(traceback.format_exc())
        parent.send(failed)


def _cause(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
        return f"signal {-exit_code}"
    return f"exit code {exit_code}"


def _not_a_samples_fault(task: ShardTask, what: str) -> ShardFailedError:
    return ShardFailedError(
        f"shard {task.shard} of {task.store} failed: {what}",
        hint="usually memory, or a library that does not work on this machine; then run the same command again",
    )
