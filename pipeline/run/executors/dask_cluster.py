"""What executors on Dask have in common: a client, its configuration, and the loop that feeds tasks to workers."""

import contextlib
import itertools
import os
import queue
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ....common.text import format_duration
from ...store.locks import StillOurs
from ..errors import ExecutorError, ShardFailedError
from ..lone_shards import compute_alone
from ..task import OnSample, ShardReport, ShardTask
from .dask_library import USUALLY_MEMORY, import_dask, one_line
from .interface import Executor, say
from .worker import TOPIC, WORKER_ENVIRONMENT, compute_and_tell

TASKS_IN_FLIGHT_PER_WORKER = 2
"""One running, one waiting: keeps workers busy without a scheduler that holds every shard of a large data set."""
TICK_SECONDS = 1.0
"""How often the loop looks up from waiting for results."""
WORD_SECONDS, WORDS_PER_SECOND = 0.5, 20
"""How often a worker tells at which sample it is, and how many such words may reach the scheduler, however many workers
it has. One costs 0.6 ms of the worker's core and 0.8 ms of client and scheduler."""
SAY_AFTER_SECONDS = 30.0
"""How long there may be no worker before that is said."""
OWN_PORT = "127.0.0.1:0"
"""Address of Dask's HTTP server, which also runs without a dashboard: a fixed port may be taken, or looked at."""
CONFIGURATION = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # A task that kills its worker must not take its queued neighbours with it.
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-saturation": 1.0,
    # A worker over its limit is killed and its task tried elsewhere; paused, it would wait for ever.
    "distributed.worker.memory.pause": False,
    # Each look costs 0.3 ms of the worker's core and 0.3 ms of its nanny's: ten a second took 0.6 % of the images/s.
    "distributed.worker.memory.monitor-interval": "500ms",
    # Dask's sampling profiler and its 20 ms ticks wake every process of the cluster many times a second: with as many
    # workers as cores that costs 5% of the images/s, and what the profiler keeps grows by 3 MB a minute.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}


@dataclass(frozen=True, kw_only=True)
class DaskExecutor(Executor):
    """Workers of a Dask cluster.

    Tasks whose workers are killed again and again are tried alone, in a process beside this one, after all others:
    samples that kill it end in quarantine.
    """

    memory_limit: int | None = None
    """Bytes that a worker may hold; None: what the cluster gives it."""
    dashboard: bool = False
    """Whether Dask's dashboard is served, to this machine alone, and its address told."""

    patience: ClassVar[float | None] = None
    """Seconds without any worker after which none will come; None waits for ever."""

    @abstractmethod
    def cluster(self, memory_needed: int) -> contextlib.AbstractContextManager[Any]:
        """What a Dask client connects to, for the length of the block; `memory_needed` is in bytes per worker."""

    @contextlib.contextmanager
    def connected(self, memory_needed: int = 0) -> Iterator[Any]:
        """A client of the cluster. Raises ExecutorError where that is not available, or has too little memory."""
        import_dask()
        import dask
        from distributed import Client

        with dask.config.set(CONFIGURATION), self.cluster(memory_needed) as cluster, contextlib.ExitStack() as stack:
            try:
                client = stack.enter_context(Client(cluster))
            except Exception as error:  # also: no TLS files; no such kind of address; a wrong setting of Dask's
                hint = "is it running, and reachable from here? For TLS, give its files in Dask's configuration"
                raise one_line(f"scheduler: {self.name} does not answer", error, hint) from error
            if self.dashboard:
                say(f"dashboard: http://127.0.0.1:{client.scheduler_info()['services']['dashboard']}/status")
            yield client

    def run(
        self,
        tasks: Sequence[ShardTask],
        *,
        memory_needed: int = 0,
        still_ours: StillOurs = lambda: None,
        on_sample: OnSample = lambda _: None,
    ) -> Iterator[ShardReport]:
        """Run the tasks on the workers, a few for each at a time."""
        if not tasks:
            return  # a cluster takes seconds to start
        killers: list[ShardTask] = []
        with self.connected(memory_needed) as client:
            yield from run_windowed(client, tasks, Watch(client, self.patience, still_ours), killers, on_sample)
        for task in killers:  # after the cluster, so that they have the machine for themselves
            from distributed.system import MEMORY_LIMIT

            say(f"shard {task.shard}: its worker was killed again and again; trying it alone")
            limit = self.memory_limit or int(0.8 * MEMORY_LIMIT)  # the rest keeps the machine alive
            yield compute_alone(task, memory_limit=limit, still_ours=still_ours, on_sample=on_sample)


def run_windowed(
    client: Any, tasks: Iterable[ShardTask], watch: "Watch", killers: list[ShardTask], on_sample: OnSample
) -> Iterator[ShardReport]:
    """Keep a few tasks per worker on the cluster; those that kill their workers go to `killers` instead.

    A queue, not `as_completed`: waiting for it can time out, and neither its length nor that of the window costs.
    """
    from distributed.scheduler import KilledWorker

    remaining = iter(tasks)
    running: dict[str, ShardTask] = {}
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def hear(event: tuple[float, Any]) -> None:
        of, index = event[1]
        if of == client.id:  # one topic for all clients: the scheduler keeps a topic for ever
            ended.put(index)

    def top_up() -> None:
        watch.look()
        window = max(1, watch.threads) * TASKS_IN_FLIGHT_PER_WORKER
        seconds = max(WORD_SECONDS, watch.threads / WORDS_PER_SECOND)
        for task in itertools.islice(remaining, max(0, window - len(running))):
            key = f"shard-{task.shard}-{os.urandom(4).hex()}"
            try:
                future = client.submit(compute_and_tell, task, client.id, seconds, pure=False, key=key)
            except Exception as error:  # nothing can be sent, and the task cannot be the reason
                raise _lost(task, watch.address) from error
            running[key] = task
            future.add_done_callback(ended.put)

    with contextlib.suppress(Exception):  # of a client that was closed meanwhile: submitting says so
        client.subscribe_topic(TOPIC, hear)
    top_up()
    while running:
        future = None
        with contextlib.suppress(queue.Empty):
            future = ended.get(timeout=TICK_SECONDS)
        if future is None or isinstance(future, int):
            if future is not None:
                on_sample(future)
            top_up()
            continue
        task = running.pop(future.key)
        report = _report(future, task, watch.address)
        if isinstance(report, KilledWorker):
            killers.append(task)
        elif report is None:
            running[future.key] = task
            ended.put(future)
        top_up()
        if isinstance(report, ShardReport):
            watch.saw_work()
            yield report


def _report(future: Any, task: ShardTask, address: str) -> Any:
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
            raise ShardFailedError.of(task, error) from error
        if isinstance(error, TimeoutError):
            return None
        raise _lost(task, address) from error


def _lost(task: ShardTask, address: str) -> ShardFailedError:
    message = f"shard {task.shard} of {task.store} failed: the scheduler at {address} was lost"
    hint = "see its own log, start it again, and run the same command again; shards that are committed stay"
    return ShardFailedError(message, hint=hint)


class Watch:
    """What the loop looks at between results, at most once in `TICK_SECONDS` of its clock."""

    def __init__(
        self, client: Any, patience: float | None, still_ours: StillOurs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client, self.patience, self.still_ours, self.clock = client, patience, still_ours, clock
        self.address = client.scheduler.address  # a lost one has none
        self.threads = 0
        """Number of threads of all workers, when last looked at; workers come and go."""
        self._next_look = self._alone_since = clock()
        self._say_at = self._alone_since + SAY_AFTER_SECONDS

    def look(self) -> None:
        """Count the workers; say so if there are none. Raises ExecutorError if there will be none any more."""
        now = self.clock()
        if now < self._next_look:
            return
        self.still_ours()
        try:
            self.threads = sum(self.client.nthreads().values())
        except OSError:  # the connection to the scheduler: if it is lost, the futures say so
            self.threads = 0
        now = self.clock()
        self._next_look = now + TICK_SECONDS
        if self.threads:
            self.saw_work()
            return
        waited = now - self._alone_since
        if self.patience is not None and waited >= self.patience:
            message = f"no worker process stays alive: there has been none for {waited:.0f} s"
            raise ExecutorError(message, hint=USUALLY_MEMORY)
        if now >= self._say_at:
            say(f"waiting: no worker is connected to {self.address} ({format_duration(waited)})")
            self._say_at = now + 10 * SAY_AFTER_SECONDS

    def saw_work(self) -> None:
        """There is a worker, or a result that one has sent."""
        self._alone_since = self.clock()
        self._say_at = self._alone_since + SAY_AFTER_SECONDS
