"""Workers of a Dask cluster that somebody else started."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .dask_cluster import DaskExecutor


@dataclass(frozen=True, kw_only=True)
class AddressExecutor(DaskExecutor):
    """The cluster of a Dask scheduler."""

    address: str
    """Address of the scheduler, such as `tcp://head:8786`."""

    elsewhere = True

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    @contextlib.contextmanager
    def cluster(self, memory_needed: int) -> Iterator[Any]:
        """Nothing to start: the address is what a client connects to."""
        yield self.address
