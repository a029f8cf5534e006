"""Tasks one after the other in the calling process. A sample that kills its process kills this one."""

from collections.abc import Iterator, Sequence

from ...store.locks import StillOurs
from ..errors import ShardFailedError
from ..task import OnSample, ShardReport, ShardTask, compute_shard
from .interface import Executor


class SyncExecutor(Executor):
    """The calling process."""

    name = "sync"

    def run(
        self,
        tasks: Sequence[ShardTask],
        *,
        memory_needed: int = 0,
        still_ours: StillOurs = lambda: None,
        on_sample: OnSample = lambda _: None,
    ) -> Iterator[ShardReport]:
        """Run the tasks in their order."""
        for task in tasks:
            still_ours()
            try:
                report = compute_shard(task, on_sample)
            except Exception as error:
                raise ShardFailedError.of(task, error) from error
            yield report
