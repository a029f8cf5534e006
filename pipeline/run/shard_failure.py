"""What to say of a task that failed for another reason than one bad sample."""

from concurrent.futures import CancelledError

from ...common.errors import PhyssegError
from .errors import ShardFailedError
from .task import ShardTask


def shard_failed(task: ShardTask, error: BaseException) -> ShardFailedError:
    """What to raise for a task that ended with this error, which may be of a worker, or of the way to it."""
    cause = f"{type(error).__name__}: {error}"
    hint = "mend the cause and run the same command again; shards that are committed stay"
    if isinstance(error, CancelledError):
        cause = f"the scheduler was lost ({' '.join(str(error).split())})"
    elif isinstance(error, PhyssegError):
        cause, hint = str(error.args[0]), error.hint or hint
    return ShardFailedError(f"shard {task.shard} of {task.store} failed: {cause}", hint=hint, shard=task.shard)
