"""Dask workers as jobs of Slurm, by dask-jobqueue; every option comes from Dask's configuration, `jobqueue.slurm`."""

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ....common.errors import ConfigError
from ....common.text import parse_bytes
from ..errors import ExecutorError
from .dask_cluster import OWN_PORT, DaskExecutor
from .worker import WORKER_ENVIRONMENT

FIRST_PAUSES = (1.0, 3.0)
"""Seconds between attempts to submit the first job: what is refused then is mostly a wrong option."""
LATER_PAUSES = (1.0, 5.0, 15.0, 45.0)
"""Once a job was accepted, a refusal is mostly a controller that is busy, or a limit that others' jobs have reached."""


@dataclass(frozen=True, kw_only=True)
class SlurmExecutor(DaskExecutor):
    """Jobs of Slurm."""

    workers: int | None = None
    """Number of processes; one has to be given."""

    name = "slurm"
    elsewhere = True

    @contextlib.contextmanager
    def cluster(self, memory_needed: int) -> Iterator[Any]:
        """Submit jobs and, once one was accepted, hold them at `workers` processes.

        Raises ExecutorError where jobs cannot be submitted, or are refused.
        """
        if self.workers is None:
            hint = "say how many you want with --workers N"
            raise ExecutorError.mismatch("slurm", "a number of workers", "none", hint)
        if shutil.which("sbatch") is None:
            hint = "run this on a machine that may submit jobs, or use --scheduler tcp://HOST:PORT"
            raise ExecutorError("slurm: there is no sbatch on this machine", hint=hint)
        try:
            from dask_jobqueue import SLURMCluster
        except ImportError:
            hint = "install it with: pip install 'physseg[slurm]'"
            raise ExecutorError("slurm: dask-jobqueue is not installed", hint=hint) from None
        options = job_options(self.memory_limit, memory_needed, self.dashboard)
        accepted: Future[None] = Future()
        try:
            cluster = SLURMCluster(job_cls=patient_job(), accepted=accepted, **options)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise _refused(error) from error
        with cluster:
            # Not scale(): that does not replace a job which was cancelled, or ended at its time limit.
            cluster.adapt(minimum=self.workers, maximum=self.workers)
            try:
                accepted.result(120.0)
            except TimeoutError:
                pass  # sbatch itself waits for a busy controller
            except (OSError, RuntimeError, ValueError) as error:
                raise _refused(error) from error
            yield cluster


def job_options(memory_limit: int | None, memory_needed: int, dashboard: bool = False) -> dict[str, Any]:
    """What has to be said besides Dask's configuration; `memory_limit` and `memory_needed` in bytes per process.

    One process of one thread per job, or `cores` processes of one thread, unless the configuration says otherwise.
    Raises ExecutorError where the configuration gives a process less memory than it needs.
    """
    import dask

    configured = dask.config.get("jobqueue.slurm", {})
    cores = configured.get("cores") or 1
    processes = configured.get("processes") or cores
    if memory_limit is not None:
        memory = memory_limit * processes
    elif configured.get("memory") is not None:
        try:
            memory = parse_bytes(str(configured["memory"]))
        except ConfigError as error:
            raise error.prefixed("jobqueue.slurm.memory") from None
    else:
        memory = max(2 * 10**9, 2 * memory_needed) * processes  # twice what most data needs
    if memory // processes < memory_needed:
        raise ExecutorError(
            f"memory: a worker needs about {memory_needed / 1e6:.0f} MB, and gets {memory / processes / 1e6:.0f} MB",
            hint="raise --memory-limit, or jobqueue.slurm.memory in Dask's configuration",
        )
    exports = [f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items()]
    return {
        "cores": cores,
        "processes": processes,
        "memory": f"{memory}B",
        # What the user configured comes last and so may say otherwise.
        "scheduler_options": {
            "dashboard": dashboard,
            "dashboard_address": OWN_PORT,
            **(configured.get("scheduler-options") or {}),
        },
        "job_script_prologue": [*exports, *(configured.get("job-script-prologue") or [])],
    }


def patient_job() -> type:
    """The class of a job that is submitted again where Slurm refuses it; made here as dask-jobqueue is optional.

    dask-jobqueue takes a job that was refused once for one that is waiting in the queue, and so for ever.
    """
    from dask_jobqueue.slurm import SLURMJob
    from distributed.core import Status

    class PatientJob(SLURMJob):  # type: ignore[misc]
        def __init__(self, *words: Any, accepted: "Future[None]", **options: Any) -> None:
            super().__init__(*words, **options)
            self._accepted = accepted

        async def start(self) -> None:
            for pause in (*(LATER_PAUSES if self._accepted.done() else FIRST_PAUSES), None):
                try:
                    await super().start()
                except (OSError, RuntimeError, ValueError) as error:
                    if pause is not None:
                        await asyncio.sleep(pause)
                        continue
                    self.status = Status.failed  # or closing the cluster would trip over it
                    if not self._accepted.done():
                        self._accepted.set_exception(error)
                    raise
                if not self._accepted.done():
                    self._accepted.set_result(None)
                return

    return PatientJob


def _refused(error: Exception) -> ExecutorError:
    """The last lines are sbatch's own."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ExecutorError(f"slurm: {' '.join(lines[-2:])}", hint="see jobqueue.slurm in Dask's configuration")
