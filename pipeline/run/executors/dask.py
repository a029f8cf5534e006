"""Where tasks run: in this process, or on a Dask cluster of local processes, of Slurm jobs, or started by others.

All run the same function on the same tasks and so leave the same bytes.
"""

import itertools
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

from ....common.text import format_duration
from ..errors import ExecutorError
from ..lone_shards import compute_alone
from ..shard_failure import shard_failed
from ..task import ShardReport, ShardTask, compute_shard
from .clusters import LOCAL, SLURM, connected

__all__ = ["LOCAL", "SLURM", "SYNC", "run_tasks", "say_on_stderr"]

SYNC = "sync"
TASKS_IN_FLIGHT_PER_WORKER = 2
"""One running, one waiting: keeps workers busy without a scheduler that holds every shard of a large data set."""
TICK_SECONDS = 1.0
"""How often the loop looks up from waiting for results."""
SAY_AFTER_SECONDS = 30.0
SAY_AGAIN_SECONDS = 300.0
LOCAL_PATIENCE_SECONDS = 60.0
"""So long a local cluster may be without a worker; a dead one is replaced in about two seconds, or never."""
LONE_SHARE_OF_MEMORY = 0.8
"""Of this machine's memory, for a shard tried alone when nobody has set a limit: the rest keeps the machine alive."""


def say_on_stderr(text: str) -> None:
    """A line above the progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def run_tasks(
    tasks: Sequence[ShardTask],
    *,
    scheduler: str,
    workers: int | None = None,
    memory_limit: int | None = None,
    memory_needed: int = 0,
    say: Callable[[str], None] = say_on_stderr,
    still_ours: Callable[[], None] = lambda: None,
) -> Iterator[ShardReport]:
    """Run tasks and yield their reports as they complete, in no particular order.

    ``scheduler`` is ``sync``, ``local``, ``slurm`` or the address of a Dask scheduler (``tcp://host:port``);
    ``workers`` and ``memory_limit`` (bytes per worker) go with ``local`` and ``slurm``. ``say`` hears what a user
    should know while waiting; ``still_ours`` is called about once a second and raises to stop the run.

    Tasks whose workers are killed again and again are tried alone, in a process beside this one, after all others:
    samples that kill it end in quarantine. With ``sync``, such a sample kills this process.

    Raises ExecutorError for another scheduler, a cluster that cannot be had and a limit below ``memory_needed``,
    ShardFailedError for the first task that fails; shards committed before that stay.
    """
    if scheduler not in (SYNC, LOCAL, SLURM) and "://" not in scheduler:
        raise ExecutorError(
            f"scheduler: expected {LOCAL}, {SYNC} or an address like tcp://HOST:PORT, got {scheduler!r}"
        )
    if scheduler == SYNC:
        for task in tasks:
            still_ours()
            try:
                report = compute_shard(task)
            except Exception as error:
                raise shard_failed(task, error) from error
            yield report
        return
    if not tasks:
        return  # a cluster takes seconds to start
    killers: list[ShardTask] = []
    with connected(scheduler, workers=workers, memory_limit=memory_limit, memory_needed=memory_needed) as client:
        watch = _Watch(client, is_local=scheduler == LOCAL, say=say, still_ours=still_ours)
        yield from _windowed(client, tasks, watch, killers)
    for task in killers:  # after the cluster, so that they have the machine for themselves
        say(f"shard {task.shard}: its worker was killed again and again; trying it alone")
        limit = memory_limit or int(_machine_memory() * LONE_SHARE_OF_MEMORY)
        yield compute_alone(task, memory_limit=limit, say=say, still_ours=still_ours)


def _windowed(
    client: Any, tasks: Iterable[ShardTask], watch: "_Watch", killers: list[ShardTask]
) -> Iterator[ShardReport]:
    """Keep a few tasks per worker on the cluster; those that kill their workers go to ``killers`` instead.

    A queue, not ``as_completed``: waiting for it can time out, and neither its length nor that of the window costs.
    """
    from distributed.scheduler import KilledWorker

    remaining = iter(tasks)
    running: dict[str, ShardTask] = {}
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def top_up() -> None:
        watch.look()
        window = max(1, watch.threads) * TASKS_IN_FLIGHT_PER_WORKER
        for task in itertools.islice(remaining, max(0, window - len(running))):
            key = f"shard-{task.shard}-{os.urandom(4).hex()}"
            try:
                future = client.submit(compute_shard, task, pure=False, key=key)
            except Exception as error:  # nothing can be sent, and the task cannot be the reason
                raise shard_failed(task, CancelledError(str(error))) from error
            running[key] = task
            future.add_done_callback(ended.put)

    top_up()
    while running:
        try:
            future = ended.get(timeout=TICK_SECONDS)
        except queue.Empty:
            top_up()
            continue
        task = running.pop(future.key)
        report = _report(future, task)
        if isinstance(report, KilledWorker):
            killers.append(task)
        elif report is None:
            running[future.key] = task
            ended.put(future)
        top_up()
        if isinstance(report, ShardReport):
            watch.saw_work()
            yield report


def _report(future: Any, task: ShardTask) -> Any:
    """The report of a task that ended, or how its workers were killed; None if it has to be fetched once more.

    The last when the worker died before it had handed over the report: then the scheduler computes the task again.
    """
    from distributed.scheduler import KilledWorker

    try:
        return future.result(timeout=TICK_SECONDS)
    except KilledWorker as killed:
        return killed
    except Exception as error:
        if future.status == "error":
            raise shard_failed(task, error) from error
        if isinstance(error, TimeoutError):
            return None
        raise shard_failed(task, CancelledError(str(error))) from error  # the way to the result is gone


class _Watch:
    """What the loop looks at between results, at most once in ``TICK_SECONDS``."""

    def __init__(
        self, client: Any, *, is_local: bool, say: Callable[[str], None], still_ours: Callable[[], None]
    ) -> None:
        self.client, self.is_local, self.say, self.still_ours = client, is_local, say, still_ours
        self.threads = 0
        """Of all workers, when last looked at; workers come and go."""
        self._next_look = self._alone_since = time.monotonic()
        self._say_at = self._alone_since + SAY_AFTER_SECONDS

    def look(self) -> None:
        """Count the workers; say so if there are none. Raises ExecutorError if there will be none any more."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self.still_ours()
        try:
            self.threads = sum(self.client.nthreads().values())
        except OSError:  # the connection to the scheduler: if it is lost, the futures say so
            self.threads = 0
        now = time.monotonic()
        self._next_look = now + TICK_SECONDS
        if self.threads:
            self.saw_work()
            return
        waited = now - self._alone_since
        if self.is_local and waited >= LOCAL_PATIENCE_SECONDS:
            raise ExecutorError(
                f"no worker process stays alive: there has been none for {waited:.0f} s",
                hint="usually memory: lower --workers, or look for the reason with --scheduler sync",
            )
        if now >= self._say_at:
            self.say(f"waiting: no worker is connected to {self.client.scheduler.address} ({format_duration(waited)})")
            self._say_at = now + SAY_AGAIN_SECONDS

    def saw_work(self) -> None:
        self._alone_since = time.monotonic()
        self._say_at = self._alone_since + SAY_AFTER_SECONDS


def _machine_memory() -> int:
    """Bytes, of the container or job if it has less than the machine."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)
