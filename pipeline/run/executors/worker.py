"""What a worker process of ours begins with: its environment, and what it does first."""

import os
from collections.abc import Mapping
from typing import Any

from ....structure_extractors.superpoint.inference import WORKER_NUMBER

# One thread per process: the parallelism is over shards. What malloc does with freed memory, each task says itself.
WORKER_ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # For jobs of Slurm, what `dask_cluster.CONFIGURATION` says: they do not inherit it.
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
}


def dask_setup(worker: Any) -> None:
    """What a local worker does first, also one that takes the place of another: Dask calls this by its name.

    A local worker's name is its number.
    """
    os.environ[WORKER_NUMBER] = str(worker.name)
