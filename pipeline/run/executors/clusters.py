"""Where a Dask client comes from: local processes, a scheduler that runs somewhere else, or jobs of Slurm."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from ....structure_extractors.superpoint.inference import WORKER_NUMBER
from ..errors import ExecutorError

LOCAL = "local"
SLURM = "slurm"

# One thread per process: the parallelism is over shards. The malloc settings keep megabyte buffers on the heap; Dask's
# own default returns them to the system after every image, which halved the rate on two cores.
WORKER_ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that every glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    # For jobs of Slurm, what _OUR_CONFIGURATION says: they do not inherit it.
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
}

_OUR_CONFIGURATION = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # A task that kills its worker must not take its queued neighbours with it.
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-saturation": 1.0,
    # A worker over its limit is killed and its task tried elsewhere; paused, it would wait for ever.
    "distributed.worker.memory.pause": False,
    # Dask's sampling profiler and its 20 ms ticks wake every process of the cluster many times a second: with as many
    # workers as cores that costs 5% of the images/s, and what the profiler keeps grows by 3 MB a minute.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}

_OWN_PORT = "127.0.0.1:0"
"""Of Dask's HTTP server, which also runs without a dashboard: a fixed one may be taken, and others may look at it."""

_STARTS = 3


@contextlib.contextmanager
def connected(
    scheduler: str,
    *,
    workers: int | None,
    memory_limit: int | None = None,
    memory_needed: int = 0,
) -> Iterator[Any]:
    """A client of the cluster, which is started and ended here unless ``scheduler`` is its address.

    ``workers`` processes of one thread for ``local`` and ``slurm``; ``memory_limit`` and ``memory_needed`` are bytes
    per process. Raises ExecutorError where the cluster cannot be had, or would have too little memory.
    """
    import dask
    from distributed import Client

    with dask.config.set(_OUR_CONFIGURATION), contextlib.ExitStack() as stack:
        if scheduler == LOCAL:
            cluster = stack.enter_context(_local_cluster(workers, memory_limit, memory_needed))
        elif scheduler == SLURM:
            from .slurm_jobs import slurm_cluster

            cluster = stack.enter_context(
                slurm_cluster(
                    workers,
                    memory_limit=memory_limit,
                    memory_needed=memory_needed,
                    environment=WORKER_ENVIRONMENT,
                    scheduler_options={"dashboard": False, "dashboard_address": _OWN_PORT},
                )
            )
        else:
            cluster = scheduler
        try:
            client = stack.enter_context(Client(cluster))
        except (
            OSError,
            TypeError,
            ValueError,
        ) as error:  # TypeError: no TLS files; ValueError: no such kind of address
            raise ExecutorError(
                f"scheduler: {scheduler} does not answer: {' '.join(str(error).split())}",
                hint="is it running, and reachable from here? For TLS, give its files in Dask's configuration",
                got=scheduler,
            ) from error
        yield client


def _local_cluster(workers: int | None, memory_limit: int | None, memory_needed: int) -> Any:
    import dask
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    from ....common.processes import available_cpus

    workers = workers or available_cpus()
    limit = MEMORY_LIMIT // workers if memory_limit is None else memory_limit
    if limit < memory_needed:
        raise ExecutorError(
            f"memory: {workers} workers need about {memory_needed / 1e6:.0f} MB each, and get {limit / 1e6:.0f} MB",
            hint="lower --workers, or raise --memory-limit",
            expected=memory_needed,
            got=limit,
        )
    preload = [*dask.config.get("distributed.worker.preload"), __name__]
    for attempt in range(_STARTS):  # a worker that is killed while it starts takes the cluster with it
        try:
            with dask.config.set({"distributed.worker.preload": preload}):
                return LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=limit,
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard_address": _OWN_PORT},
                    silence_logs=logging.ERROR,
                )
        except (OSError, RuntimeError) as error:
            if attempt == _STARTS - 1:
                raise ExecutorError(
                    f"the local worker processes do not start: {' '.join(str(error).split())}",
                    hint="usually memory: lower --workers, or look for the reason with --scheduler sync",
                ) from error
    raise AssertionError("unreachable")


def dask_setup(worker: Any) -> None:
    """What a local worker does first, also one that takes the place of another: Dask calls this by its name.

    Ctrl-C reaches every process of a terminal; this one ends the workers, which need not complain of it as well. A
    local worker's name is its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[WORKER_NUMBER] = str(worker.name)
