"""What a worker process of ours begins with: its environment, and what it does first."""

import os
import signal
from collections.abc import Mapping
from typing import Any

from ....common.documents import parsing
from ....structure_extractors.superpoint.inference import WORKER_NUMBER
from ..errors import ExecutorError

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


def import_dask() -> None:
    """Import Dask, which reads its configuration. Raises ExecutorError for a file of it that does not parse."""
    hint = "mend or remove the file; Dask reads every *.yaml in ~/.config/dask, /etc/dask and $DASK_CONFIG"
    with parsing(ExecutorError, "Dask's configuration cannot be read", hint):
        import distributed  # noqa: F401


def dask_setup(worker: Any) -> None:
    """What a local worker does first, also one that takes the place of another: Dask calls this by its name.

    Ctrl-C reaches every process of a terminal; this one ends the workers, which need not complain of it as well. A
    local worker's name is its number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ[WORKER_NUMBER] = str(worker.name)
