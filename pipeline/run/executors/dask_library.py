"""Dask as the machine has it: its configuration files, its log, and its errors in one line.

Whatever ends a run is said in one line of ours. Dask's log repeats it in blocks of its own, so it is silent unless
Dask's configuration says something of logging:

    DASK_LOGGING__DISTRIBUTED=info physseg preprocess MANIFEST STORE
"""

import logging

from ....common.documents import parsing
from ....common.errors import of_system
from ..errors import ExecutorError

LOGGERS = ("distributed", "distributed.client", "tornado.application", "asyncio")
"""Those that speak when a worker or a scheduler is lost and have a level of their own."""
LOGGING_KEYS = ("logging", "logging-file-config", "distributed.logging", "distributed.logging-file-config")
USUALLY_MEMORY = "usually memory: lower --workers, or look for the reason with --scheduler sync"


def import_dask() -> None:
    """Import Dask, which reads its configuration. Raises ExecutorError for a file of it that does not parse."""
    hint = "mend or remove the file; Dask reads every *.yaml in ~/.config/dask, /etc/dask and $DASK_CONFIG"
    with parsing(ExecutorError, "Dask's configuration cannot be read", hint):
        import distributed  # noqa: F401
    if log_level():
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def log_level() -> int:
    """What Dask's log shows if nobody configured it; 0 (all that was configured) if somebody did."""
    import dask

    return 0 if any(dask.config.get(key, None) for key in LOGGING_KEYS) else logging.CRITICAL


def one_line(what: str, error: Exception, hint: str | None = None) -> ExecutorError:
    """`what`, and what is at the bottom of a chain of Dask's errors; the hint says where a wrong setting stands.

    `hint` is that of any other error; by default memory is suspected.
    """
    import dask

    cause = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if not isinstance(cause, RuntimeError | OSError) or getattr(cause, "filename", None):
        read = dask.config.collect_yaml(dask.config.paths, return_paths=True)
        settings = [str(path) for path, content in read if content] or ["the variables DASK_..."] * (not hint)
        hint = f"mend Dask's configuration: {', '.join(settings)}" if settings else hint
    if isinstance(cause, OSError):
        hint = of_system(cause).hint or hint
    said = " ".join(str(cause).split())[:200]
    return ExecutorError(f"{what}: {type(cause).__name__}: {said}", hint=hint or USUALLY_MEMORY)
