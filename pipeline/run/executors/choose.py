"""From the word of a command line to an executor."""

import importlib.util

from ..errors import ExecutorError
from .address import AddressExecutor
from .interface import Executor
from .local import LocalExecutor
from .slurm import SlurmExecutor
from .sync import SyncExecutor

LOCAL, SYNC, SLURM = LocalExecutor.name, SyncExecutor.name, SlurmExecutor.name


def choose_executor(
    scheduler: str = LOCAL, *, workers: int | None = None, memory_limit: int | None = None, dashboard: bool = False
) -> Executor:
    """The executor of that name, or of a Dask scheduler at that address; raises ExecutorError if there is none.

    `workers` is the number of processes that `local` and `slurm` start, `memory_limit` is in bytes per worker. These
    two have a `dashboard`, Dask's.
    """
    if dashboard and scheduler not in (LOCAL, SLURM):
        hint = "leave --dashboard out; a Dask scheduler of yours serves its own: its log has the address"
        raise ExecutorError(f"--dashboard: no scheduler is started for {scheduler!r}", hint=hint)
    if dashboard and importlib.util.find_spec("bokeh") is None:
        hint = "install it with: pip install 'physseg[dashboard]'"
        raise ExecutorError("--dashboard: bokeh, which draws it, is not installed", hint=hint)
    if scheduler == SYNC:
        return SyncExecutor()
    if scheduler == LOCAL:
        return LocalExecutor(workers=workers, memory_limit=memory_limit, dashboard=dashboard)
    if scheduler == SLURM:
        return SlurmExecutor(workers=workers, memory_limit=memory_limit, dashboard=dashboard)
    if "://" in scheduler:
        return AddressExecutor(name=scheduler, memory_limit=memory_limit)
    raise ExecutorError(f"scheduler: expected {LOCAL}, {SYNC} or an address like tcp://HOST:PORT, got {scheduler!r}")
