"""What a worker process of ours begins with: its environment, and what it does first."""

import os
import time
from collections.abc import Mapping
from typing import Any

from ....structure_extractors.superpoint.inference import WORKER_NUMBER
from ..task import ShardReport, ShardTask, compute_shard

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
TOPIC = "physseg-samples"
"""Of Dask's events that tell which client's task is at which sample."""
_next_word = [0.0]
"""Time of the monotonic clock at which this process may tell again where it is, whatever shards it is at."""


def compute_and_tell(task: ShardTask, client: str, seconds: float) -> ShardReport:
    """`compute_shard` on a Dask worker that tells a client which sample it is at, once in `seconds` at most.

    Dask drops a word that cannot be sent.
    """
    from distributed import get_worker

    worker = get_worker()

    def tell(index: int) -> None:
        if (now := time.monotonic()) >= _next_word[0]:
            _next_word[0] = now + seconds
            worker.log_event(TOPIC, (client, index))

    return compute_shard(task, tell)


def dask_setup(worker: Any) -> None:
    """What a local worker does first, also one that takes the place of another: Dask calls this by its name.

    A local worker's name is its number.
    """
    os.environ[WORKER_NUMBER] = str(worker.name)
