"""Where tasks run: in this process, on a Dask cluster of local processes, or on a Dask scheduler somewhere else.

All three run the same function on the same tasks and so leave the same bytes.
"""

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from typing import Any

from .. import PhyssegError
from ..manifests.checking import available_cpus
from .errors import ExecutorError, ShardFailedError
from .shard_task import ShardReport, ShardTask, compute_shard

SYNC = "sync"
LOCAL = "local"
TASKS_IN_FLIGHT_PER_WORKER = 2
"""One running, one waiting: keeps workers busy without a scheduler that holds every shard of a large data set."""

# One thread per process: the parallelism is over shards. The malloc settings keep megabyte buffers on the heap; Dask's
# own default returns them to the system after every image, which halved the rate on two cores.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that every glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    # Dask's sampling profiler and its 20 ms ticks wake every process of the cluster many times a second: with as many
    # workers as cores that costs 5% of the images/s.
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
}


def run_tasks(
    tasks: Sequence[ShardTask],
    *,
    scheduler: str,
    workers: int | None = None,
    memory_limit: int | None = None,
    memory_needed: int = 0,
) -> Iterator[ShardReport]:
    """Run tasks and yield their reports as they complete, in no particular order.

    ``scheduler`` is ``sync``, ``local`` or the address of a Dask scheduler (``tcp://host:port``); ``workers`` and
    ``memory_limit`` (bytes per worker) go with ``local``. Raises ExecutorError for another scheduler and for a limit
    below ``memory_needed``, ShardFailedError for the first task that fails; shards committed before that stay.
    """
    if scheduler not in (SYNC, LOCAL) and "://" not in scheduler:
        raise ExecutorError(
            f"scheduler: expected {LOCAL}, {SYNC} or an address like tcp://HOST:PORT, got {scheduler!r}"
        )
    if scheduler == SYNC:
        for task in tasks:
            try:
                report = compute_shard(task)
            except Exception as error:
                raise _failed(task, error) from error
            yield report
        return
    if not tasks:
        return  # a cluster takes seconds to start
    with _client(scheduler, workers or available_cpus(), memory_limit, memory_needed) as client:
        yield from _windowed(client, tasks)


def _client(scheduler: str, workers: int, memory_limit: int | None, memory_needed: int) -> Any:
    import dask
    from distributed import Client, LocalCluster
    from distributed.system import MEMORY_LIMIT

    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
            # A task that kills its worker must not take its queued neighbours with it.
            "distributed.scheduler.allowed-failures": 3,
            "distributed.scheduler.worker-saturation": 1.0,
            # A worker over its limit is killed and its task tried elsewhere; paused, it would wait for ever.
            "distributed.worker.memory.pause": False,
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.system-monitor.interval": "5s",
        }
    )
    if scheduler != LOCAL:
        return Client(scheduler)
    limit = MEMORY_LIMIT // workers if memory_limit is None else memory_limit
    if limit < memory_needed:
        raise ExecutorError(
            f"memory: {workers} workers need about {memory_needed / 1e6:.0f} MB each, and get {limit / 1e6:.0f} MB",
            hint="lower --workers, or raise --memory-limit",
            expected=memory_needed,
            got=limit,
        )
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=limit,
        dashboard_address=None,
        silence_logs=logging.ERROR,
    )
    client = Client(cluster)
    client.run(_ignore_interrupts)
    return _ClientWithCluster(client, cluster)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; this one ends the workers, which need not complain of it as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _ClientWithCluster:
    """Closes the client, then its cluster."""

    def __init__(self, client: Any, cluster: Any) -> None:
        self.client, self.cluster = client, cluster

    def __enter__(self) -> Any:
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.cluster.close()


def _windowed(client: Any, tasks: Iterable[ShardTask]) -> Iterator[ShardReport]:
    from distributed import as_completed

    remaining = iter(tasks)
    running: dict[str, ShardTask] = {}
    futures = as_completed()

    def top_up() -> None:
        window = max(1, sum(client.nthreads().values())) * TASKS_IN_FLIGHT_PER_WORKER  # workers come and go
        for task in islice(remaining, max(0, window - len(running))):
            future = client.submit(compute_shard, task, pure=False, key=f"shard-{task.shard}-{os.urandom(4).hex()}")
            running[future.key] = task
            futures.add(future)

    top_up()
    for future in futures:
        task = running.pop(future.key)
        try:
            report: ShardReport = future.result()
        except Exception as error:
            raise _failed(task, error) from error
        top_up()
        yield report


def _failed(task: ShardTask, error: BaseException) -> ShardFailedError:
    cause = f"{type(error).__name__}: {error}"
    hint = "mend the cause and run the same command again; shards that are committed stay"
    if type(error).__name__ == "KilledWorker":
        cause = "its worker was killed again and again"
        hint = "usually memory: lower --workers, or raise --memory-limit; then run the same command again to resume"
    elif isinstance(error, CancelledError):
        cause = f"the scheduler was lost ({' '.join(str(error).split())})"
    elif isinstance(error, PhyssegError):
        cause, hint = str(error.args[0]), error.hint or hint
    return ShardFailedError(f"shard {task.shard} of {task.store} failed: {cause}", hint=hint, shard=task.shard)
