"""Workers of a Dask cluster that somebody else started."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from .dask_cluster import DaskExecutor


@dataclass(frozen=True, kw_only=True)
class AddressExecutor(DaskExecutor):
    """The cluster of a Dask scheduler."""

    name: str
    """Address of the scheduler, such as `tcp://head:8786`."""

    elsewhere = True

    def cluster(self, memory_needed: int) -> AbstractContextManager[str]:
        """Nothing to start: the address is what a client connects to."""
        return nullcontext(self.name)
