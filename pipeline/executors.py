"""Where tasks run: in this process, on a Dask cluster of local processes, or on a Dask scheduler somewhere else.

All three run the same function on the same tasks and so leave the same bytes.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from .errors import ShardFailedError
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
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}


def run_tasks(
    tasks: Sequence[ShardTask], *, scheduler: str, workers: int | None = None, memory_limit: int | None = None
) -> Iterator[ShardReport]:
    """Run tasks and yield their reports as they complete, in no particular order.

    ``scheduler`` is ``sync``, ``local`` or the address of a Dask scheduler (``tcp://host:port``); ``workers`` and
    ``memory_limit`` (bytes per worker) go with ``local``. Raises ShardFailedError for the first task that fails;
    shards committed before that stay.
    """
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
    with _client(scheduler, workers, memory_limit) as client:
        yield from _windowed(client, tasks)


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _client(scheduler: str, workers: int | None, memory_limit: int | None) -> Any:
    import dask
    from distributed import Client, LocalCluster

    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
            # A task that kills its worker must not take its queued neighbours with it.
            "distributed.scheduler.allowed-failures": 3,
            "distributed.scheduler.worker-saturation": 1.0,
        }
    )
    if scheduler != LOCAL:
        return Client(scheduler)
    cluster = LocalCluster(
        n_workers=workers or default_workers(),
        threads_per_worker=1,
        processes=True,
        memory_limit=memory_limit or "auto",
        dashboard_address=None,
        silence_logs=logging.ERROR,
    )
    return _ClientWithCluster(Client(cluster), cluster)


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
    by_key: dict[str, ShardTask] = {}

    def submit(task: ShardTask) -> Any:
        future = client.submit(compute_shard, task, pure=False, key=f"shard-{task.shard}-{os.urandom(4).hex()}")
        by_key[future.key] = task
        return future

    window = max(1, sum(client.nthreads().values())) * TASKS_IN_FLIGHT_PER_WORKER
    futures = as_completed([submit(task) for task in islice(remaining, window)])
    for future in futures:
        task = by_key.pop(future.key)
        error = future.exception() if future.status == "error" else None
        if error is not None:
            raise _failed(task, error) from error
        report: ShardReport = future.result()
        for next_task in islice(remaining, 1):
            futures.add(submit(next_task))
        yield report


def _failed(task: ShardTask, error: BaseException) -> ShardFailedError:
    cause = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "KilledWorker":
        cause = "its worker was killed again and again"
        hint = "usually memory: lower --workers, or raise --memory-limit; then run the same command again to resume"
    else:
        hint = "mend the cause and run the same command again; shards that are committed stay"
    return ShardFailedError(f"shard {task.shard} of {task.store} failed: {cause}", hint=hint, shard=task.shard)
