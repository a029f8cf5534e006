"""Named errors of a run."""

from ...common.errors import PhyssegError


class ExecutorError(PhyssegError, ValueError):
    """Tasks cannot be run like this: no such scheduler, no workers, or less memory than a worker needs."""


class ShardFailedError(PhyssegError, RuntimeError):
    """A task failed for a reason that is not one bad sample (disk full, permission, a bug); names the shard."""
