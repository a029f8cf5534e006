"""From the word of a command line to an executor."""

from ..errors import ExecutorError
from .address import AddressExecutor
from .interface import Executor
from .local import LocalExecutor
from .slurm import SlurmExecutor
from .sync import SyncExecutor

LOCAL, SYNC, SLURM = LocalExecutor.name, SyncExecutor.name, SlurmExecutor.name


def choose_executor(scheduler: str = LOCAL, *, workers: int | None = None, memory_limit: int | None = None) -> Executor:
    """The executor of that name, or of a Dask scheduler at that address; raises ExecutorError if there is none.

    `workers` is the number of processes that `local` and `slurm` start, `memory_limit` is in bytes per worker.
    """
    if scheduler == SYNC:
        return SyncExecutor()
    if scheduler == LOCAL:
        return LocalExecutor(workers=workers, memory_limit=memory_limit)
    if scheduler == SLURM:
        return SlurmExecutor(workers=workers, memory_limit=memory_limit)
    if "://" in scheduler:
        return AddressExecutor(name=scheduler, memory_limit=memory_limit)
    raise ExecutorError(f"scheduler: expected {LOCAL}, {SYNC} or an address like tcp://HOST:PORT, got {scheduler!r}")
