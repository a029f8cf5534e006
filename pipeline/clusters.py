"""Where a Dask client comes from: local processes, a scheduler that runs somewhere else, or jobs of Slurm."""

import contextlib
import logging
import shutil
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ExecutorError

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
    # Dask's sampling profiler and its 20 ms ticks wake every process of the cluster many times a second: with as many
    # workers as cores that costs 5% of the images/s.
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    # A worker over its limit is killed and its task tried elsewhere; paused, it would wait for ever.
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
}

_OUR_CONFIGURATION = {
    "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    # A task that kills its worker must not take its queued neighbours with it.
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.memory.pause": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}

_OWN_PORT = "127.0.0.1:0"
"""Of Dask's HTTP server, which also runs without a dashboard: a fixed one may be taken, and others may look at it."""

_STARTS = 3

_SLURM_MEMORY = 2 * 10**9
"""Bytes per process of a Slurm job where neither the user nor Dask's configuration says: twice what most data needs."""


@contextlib.contextmanager
def connected(
    scheduler: str, *, workers: int | None, memory_limit: int | None = None, memory_needed: int = 0
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
            cluster = stack.enter_context(_slurm_cluster(workers, memory_limit, memory_needed))
        else:
            cluster = scheduler
        try:
            client = stack.enter_context(Client(cluster))
        except OSError as error:
            raise ExecutorError(
                f"scheduler: {scheduler} does not answer: {' '.join(str(error).split())}",
                hint="is it running, and reachable from here? For TLS, give its files in Dask's configuration",
                got=scheduler,
            ) from error
        if scheduler == LOCAL:
            client.run(_ignore_interrupts)
        yield client


def _local_cluster(workers: int | None, memory_limit: int | None, memory_needed: int) -> Any:
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    from ..manifests.checking import available_cpus

    workers = workers or available_cpus()
    limit = MEMORY_LIMIT // workers if memory_limit is None else memory_limit
    _check_memory(limit, memory_needed, workers, hint="lower --workers, or raise --memory-limit")
    for attempt in range(_STARTS):  # a worker that is killed while it starts takes the cluster with it
        try:
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


def _slurm_cluster(workers: int | None, memory_limit: int | None, memory_needed: int) -> Any:
    """Jobs of Slurm by dask-jobqueue, all options from Dask's configuration (``jobqueue.slurm``)."""
    if workers is None:
        raise ExecutorError(
            "slurm: expected a number of workers, got none", hint="say how many you want with --workers N"
        )
    if shutil.which("sbatch") is None:
        raise ExecutorError(
            "slurm: there is no sbatch on this machine",
            hint="run this on a machine that may submit jobs, or use --scheduler tcp://HOST:PORT",
        )
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ExecutorError(
            "slurm: dask-jobqueue is not installed", hint="install it with: pip install 'physseg[slurm]'"
        ) from None
    options = _slurm_options(memory_limit, memory_needed)
    limit = int(options.pop("memory_per_process"))
    _check_memory(limit, memory_needed, workers, hint="raise jobqueue.slurm.memory in Dask's configuration")
    try:
        cluster = SLURMCluster(**options)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ExecutorError(
            f"slurm: {' '.join(str(error).split())}", hint="see jobqueue.slurm in Dask's configuration"
        ) from error
    # Not scale(): that does not replace a job which was cancelled, or ended at its time limit.
    cluster.adapt(minimum=workers, maximum=workers)
    return cluster


def _slurm_options(memory_limit: int | None, memory_needed: int) -> dict[str, Any]:
    """What is to be said besides Dask's configuration, and ``memory_per_process`` in bytes.

    One process of one thread per job, or ``cores`` processes of one thread, unless the configuration says otherwise.
    """
    import dask
    from dask.utils import parse_bytes

    configured: Mapping[str, Any] = dask.config.get("jobqueue.slurm", {})
    cores = configured.get("cores") or 1
    processes = configured.get("processes") or cores
    if memory_limit is not None:
        memory = memory_limit * processes
    elif configured.get("memory") is not None:
        memory = parse_bytes(configured["memory"])
    else:
        memory = max(_SLURM_MEMORY, 2 * memory_needed) * processes
    exports = [f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items()]
    return {
        "cores": cores,
        "processes": processes,
        "memory": f"{memory}B",
        # The user's lines come last and so may say otherwise.
        "job_script_prologue": [*exports, *(configured.get("job-script-prologue") or [])],
        "scheduler_options": {
            "dashboard": False,
            "dashboard_address": _OWN_PORT,
            **(configured.get("scheduler-options") or {}),
        },
        "memory_per_process": memory // processes,
    }


def _check_memory(limit: int, needed: int, workers: int, *, hint: str) -> None:
    if limit < needed:
        raise ExecutorError(
            f"memory: {workers} workers need about {needed / 1e6:.0f} MB each, and get {limit / 1e6:.0f} MB",
            hint=hint,
            expected=needed,
            got=limit,
        )


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; this one ends the workers, which need not complain of it as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
