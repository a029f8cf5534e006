"""From the words of a command line to an executor."""

from ..errors import ExecutorError
from .address import AddressExecutor
from .interface import Executor
from .local import LocalExecutor
from .slurm import SlurmExecutor
from .sync import SyncExecutor

LOCAL, SYNC, SLURM = LocalExecutor.name, SyncExecutor.name, SlurmExecutor.name


def choose_executor(
    scheduler: str = LOCAL,
    cluster: str | None = None,
    *,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> Executor:
    """The executor that `--scheduler` and `--cluster` mean.

    Args:
        scheduler: `local`, `sync`, `slurm` or the address of a Dask scheduler (`tcp://host:port`).
        cluster: `slurm`, instead of a scheduler.
        workers: Number of processes that `local` and `slurm` start.
        memory_limit: Bytes per worker.

    Raises:
        ExecutorError: There is no such executor.
    """
    if cluster is not None:
        if cluster != SLURM:
            raise ExecutorError(f"--cluster: expected {SLURM}, got {cluster!r}")
        if scheduler != LOCAL:
            raise ExecutorError("--cluster: starts a scheduler of its own: leave --scheduler out")
        scheduler = cluster
    if scheduler == SYNC:
        return SyncExecutor()
    if scheduler == LOCAL:
        return LocalExecutor(workers=workers, memory_limit=memory_limit)
    if scheduler == SLURM:
        return SlurmExecutor(workers=workers, memory_limit=memory_limit)
    if "://" in scheduler:
        return AddressExecutor(address=scheduler, memory_limit=memory_limit)
    raise ExecutorError(f"scheduler: expected {LOCAL}, {SYNC} or an address like tcp://HOST:PORT, got {scheduler!r}")
