"""What runs the tasks of a job: in this process, in workers on this machine, or in workers elsewhere.

Every executor runs the same function on the same tasks and so leaves the same bytes.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from ...store.locks import StillOurs
from ..task import OnSample, ShardReport, ShardTask


def say(text: str) -> None:
    """Tell the user, on a line above the progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


class Executor(ABC):
    """One way to run tasks."""

    name: str
    """The word or address by which a user chose it."""
    elsewhere: ClassVar[bool] = False
    """Whether tasks may run on other machines."""

    @abstractmethod
    def run(
        self,
        tasks: Sequence[ShardTask],
        *,
        memory_needed: int = 0,
        still_ours: StillOurs = lambda: None,
        on_sample: OnSample = lambda _: None,
    ) -> Iterator[ShardReport]:
        """Run tasks and yield their reports as they complete, in no particular order.

        Args:
            tasks: What to run.
            memory_needed: Bytes that one worker needs at its peak.
            still_ours: Called about once a second; raises to stop the run.
            on_sample: Hears now and then which sample is about to be computed, by its index in the store. A shard that
                is tried again begins anew.

        Raises:
            ExecutorError: Workers are not available, or have less memory than `memory_needed`.
            ShardFailedError: The first task that failed; shards committed before that stay.
        """
