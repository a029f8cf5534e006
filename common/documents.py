"""JSON documents that say which format they have."""

import json
from pathlib import Path
from typing import Any

from .errors import PhyssegError


def read_document(
    path: Path, known_format: int, error_class: type[PhyssegError], fault: str, hint: str | None = None
) -> dict[str, Any]:
    """The JSON object in a file whose `format` is the known one.

    Raises:
        PhyssegError: Of `error_class`. There is no such object, and the message begins with `fault`; or the format is
            another one.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise error_class(f"{fault} ({reason})", hint=hint) from error
    if found != known_format:
        raise error_class(f"{path}: format {found}, this physseg reads {known_format}")
    return document
