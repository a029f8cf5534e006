"""Named errors of a run."""

from typing import TYPE_CHECKING

from ...common.errors import PhyssegError, of_system

if TYPE_CHECKING:
    from .task import ShardTask


class ExecutorError(PhyssegError, ValueError):
    """Tasks cannot be run like this: no such scheduler, no workers, or less memory than a worker needs."""


class ShardFailedError(PhyssegError, RuntimeError):
    """A task failed for a reason that is not one bad sample (disk full, permission, a bug); names the shard."""

    default_hint = "mend the cause and run the same command again; shards that are committed stay"

    @classmethod
    def of(cls, task: "ShardTask", error: BaseException) -> "ShardFailedError":
        """What to raise for a task that ended with this error, which may be of a worker."""
        cause, hint = " ".join(f"{type(error).__name__}: {error}".split()), None
        if isinstance(error, (PhyssegError, OSError)):
            known = of_system(error) if isinstance(error, OSError) else error
            cause, hint = str(known.args[0]), known.hint
        return cls(f"shard {task.shard} of {task.store} failed: {cause}", hint=hint)
