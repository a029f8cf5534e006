"""Named errors of a store."""

from ...common.errors import PhyssegError

REPAIR_HINT = "run `physseg verify STORE --repair`"


class FrameError(PhyssegError, ValueError):
    """An image or a frame setting does not fit the canonical frame or its canvas."""


class StoreError(PhyssegError, ValueError):
    """A store is not what was asked for: no store, another schema, other settings, another vocabulary."""


class UnknownSampleError(StoreError, KeyError):
    """No sample of the store has that id; carries close matches."""


class StoreBusyError(StoreError):
    """Another process is writing the store."""

    default_hint = "wait for it to end, or stop it, then run again"


class StoreIncompleteError(PhyssegError, RuntimeError):
    """Samples or whole shards that were asked for have not been computed."""

    default_hint = "run `physseg preprocess MANIFEST STORE` again; it resumes"


class StoreCorruptError(PhyssegError, RuntimeError):
    """Bytes on disk are not those that were written: a checksum, a length or an index does not hold."""

    default_hint = REPAIR_HINT
