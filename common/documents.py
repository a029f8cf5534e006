"""JSON documents that say which format they have."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import PhyssegError
from .regular_files import read_regular


def read_document(
    path: Path,
    known_format: int,
    error_class: type[PhyssegError],
    fault: str,
    hint: str | None = None,
    keys: Iterable[str] = (),
) -> dict[str, Any]:
    """The JSON object in a file whose `format` is the known one and which has these keys.

    Raises:
        PhyssegError: Of `error_class`. The file does not hold that, and the message begins with `fault`; or the format
            is another one.
    """
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_class(f"{fault} ({reason})", hint=hint) from error
    has = document if isinstance(document, dict) else {}
    if has.get("format", known_format) != known_format:
        raise error_class(f"{path}: format {has['format']}, this physseg reads {known_format}")
    if lacking := [key for key in ("format", *keys) if key not in has]:
        raise error_class(f"{fault} (no {', '.join(lacking)})", hint=hint)
    return has
