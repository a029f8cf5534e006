"""Documents: JSON that says which format it has, its digest, TOML, and one boundary around whatever parses bytes."""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    data = read_bytes(path, error_class, fault, hint)
    with parsing(error_class, fault, hint):
        document = json.loads(data)
    has = document if isinstance(document, dict) else {}
    if has.get("format", known_format) != known_format:
        raise error_class(f"{path}: format {has['format']}, this physseg reads {known_format}")
    if lacking := [key for key in ("format", *keys) if key not in has]:
        raise error_class(f"{fault} (no {', '.join(lacking)})", hint=hint)
    return has


def read_bytes(path: Path, error_class: type[PhyssegError], fault: str, hint: str | None = None) -> bytes:
    """All bytes of a regular file. Raises `error_class`, whose message begins with `fault`, if it cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise error_class(f"{fault} ({error.strerror})", hint=hint) from error


def digest_of_json(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form.

    >>> digest_of_json({"b": 1, "a": [2]}) == digest_of_json({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_toml(
    text: str | bytes, error_class: type[PhyssegError], fault: str, hint: str | None = None
) -> dict[str, Any]:
    """What TOML says.

    Raises:
        PhyssegError: Of `error_class`. The text is no TOML, or nested deeper or of larger integers than any of ours.
    """
    with parsing(error_class, fault, hint):
        document = tomllib.loads(text if isinstance(text, str) else text.decode())
        _check_extent(document)
    return document


def _check_extent(value: Any, depth: int = 0) -> None:
    """Raises ValueError for what could not be copied (RecursionError), or not be shown in a message (huge integers)."""
    if depth > 50 or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError("nested more than 50 deep" if depth > 50 else "an integer of more than 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_extent(item, depth + 1)


MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What bytes of another form make a parser raise. Whatever else it raises is a bug of ours, and shows as one."""


@contextmanager
def parsing(error_class: type[PhyssegError], fault: str, hint: str | None = None) -> Iterator[None]:
    """Enclose the parsing of foreign bytes, and nothing else: what they make it raise becomes their file's own error.

        with parsing(ConfigError, f"{path}: not a list of names"):
            names = json.loads(data)["names"]

    Raises:
        PhyssegError: Of `error_class`; its message is `fault` and what was raised. One raised inside passes.
    """
    try:
        yield
    except error_class:
        raise
    except MALFORMED as error:
        reason = str(error.args[0] if isinstance(error, PhyssegError) else error)
        reason = f"no key {reason}" if isinstance(error, KeyError) else reason
        raise error_class(f"{fault} ({' '.join(reason.split())[:300]})", hint=hint) from error
