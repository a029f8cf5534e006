"""Named errors of the pipeline; each carries where, expected and got."""

from .. import PhyssegError


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


class DrawError(PhyssegError, ValueError):
    """Arrays that are to be drawn do not fit each other, or there is no such way to draw them."""


class InspectError(PhyssegError, ValueError):
    """What is to be looked at is not there: no such sample, class or picture; carries close matches."""
