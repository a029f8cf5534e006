"""Named errors of the pipeline; each carries where, expected and got."""

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from .. import PhyssegError

if TYPE_CHECKING:
    from .shard_task import ShardTask


class FrameError(PhyssegError, ValueError):
    """An image or a frame setting does not fit the canonical frame or its canvas."""


class StoreError(PhyssegError, ValueError):
    """A store is not what was asked for: no store, another schema, other settings, another vocabulary."""


class StoreBusyError(StoreError):
    """Another process is writing the store."""


class StoreIncompleteError(PhyssegError, RuntimeError):
    """Samples or whole shards that were asked for have not been computed."""


class StoreCorruptError(PhyssegError, RuntimeError):
    """Bytes on disk are not those that were written: a checksum, a length or an index does not hold."""


class ExecutorError(PhyssegError, ValueError):
    """Tasks cannot be run like this: no such scheduler, no workers, or less memory than a worker needs."""


class ShardFailedError(PhyssegError, RuntimeError):
    """A task failed for a reason that is not one bad sample (disk full, permission, a bug); names the shard."""


def shard_failed(task: "ShardTask", error: BaseException) -> ShardFailedError:
    """What to raise for a task that ended with this error, which may be of a worker, or of the way to it."""
    cause = f"{type(error).__name__}: {error}"
    hint = "mend the cause and run the same command again; shards that are committed stay"
    if isinstance(error, CancelledError):
        cause = f"the scheduler was lost ({' '.join(str(error).split())})"
    elif isinstance(error, PhyssegError):
        cause, hint = str(error.args[0]), error.hint or hint
    return ShardFailedError(f"shard {task.shard} of {task.store} failed: {cause}", hint=hint, shard=task.shard)


class DrawError(PhyssegError, ValueError):
    """Arrays that are to be drawn do not fit each other, or there is no such way to draw them."""


class InspectError(PhyssegError, ValueError):
    """What is to be looked at is not there: no such sample, class or picture; carries close matches."""
