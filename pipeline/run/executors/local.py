"""Worker processes on this machine, which start and end with the run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ....common.processes import allow_open_files, available_cpus, children_without_ctrl_c
from ..errors import ExecutorError
from . import worker
from .dask_cluster import OWN_PORT, DaskExecutor
from .dask_library import log_level, one_line

OPEN_FILES, OPEN_FILES_PER_WORKER = 32, 10
"""Files and sockets that this process holds open, measured with Dask 2026: 21 and ten more for each worker."""


@dataclass(frozen=True, kw_only=True)
class LocalExecutor(DaskExecutor):
    """Processes of one thread on this machine."""

    workers: int | None = None
    """Number of processes; None: the cores that this one may use."""

    name = "local"
    patience = 60.0  # a dead worker is replaced in about two seconds, or never

    @contextlib.contextmanager
    def cluster(self, memory_needed: int) -> Iterator[Any]:
        """Start the processes. Raises ExecutorError where they get too little memory, or do not start."""
        from distributed.system import MEMORY_LIMIT

        workers = self.workers or available_cpus()
        files = OPEN_FILES + OPEN_FILES_PER_WORKER * workers
        if not allow_open_files(files):
            hint = f"lower --workers, or raise the limit: `ulimit -n {files}`"
            raise ExecutorError(f"{workers} workers need {files} open files, more than `ulimit -n` allows", hint=hint)
        limit = MEMORY_LIMIT // workers if self.memory_limit is None else self.memory_limit
        if limit < memory_needed:
            raise ExecutorError(
                f"memory: {workers} workers need about {memory_needed / 1e6:.0f} MB each, and get {limit / 1e6:.0f} MB",
                hint="lower --workers, or raise --memory-limit",
            )
        _check_terminate(limit, memory_needed)
        with contextlib.ExitStack() as stack:
            with children_without_ctrl_c():
                cluster = stack.enter_context(_start(workers, limit, self.dashboard))
            yield cluster


def _check_terminate(limit: int, memory_needed: int) -> None:
    """Dask kills a worker over this share of its limit; where the share is too small, all of them, for ever."""
    import dask

    key = "distributed.worker.memory.terminate"
    share = dask.config.get(key)
    if share is False:
        return
    if not isinstance(share, (int, float)) or share * limit < memory_needed:
        expected = f"false, or a share of {limit / 1e6:.0f} MB that leaves {memory_needed / 1e6:.0f} MB"
        hint = "remove it from Dask's configuration; its own is 0.95"
        raise ExecutorError.mismatch(key, expected, repr(share), hint)


def _start(workers: int, memory_limit: int, dashboard: bool) -> Any:
    import dask
    from distributed import LocalCluster

    for _ in range(3):  # a worker that is killed while it starts takes the cluster with it
        try:
            preload = [*dask.config.get("distributed.worker.preload"), worker.__name__]
            with dask.config.set({"distributed.worker.preload": preload}):
                return LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=memory_limit,
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard": dashboard, "dashboard_address": OWN_PORT},
                    silence_logs=log_level(),
                )
        except Exception as error:  # raised by Dask: a worker died, or its configuration holds what it cannot use
            failure = error
    raise one_line("the local worker processes do not start", failure) from failure
