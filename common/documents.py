"""Documents: JSON that says its format, its digest, text, TOML, and one boundary around what reads and parses them."""

import codecs
import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import PhyssegError
from .regular_files import MAX_BYTES, is_files_fault, read_regular


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
    with parsing(error_class, fault, hint):
        document = json.loads(read_regular(path))
    has = document if isinstance(document, dict) else {}
    if has.get("format", known_format) != known_format:
        raise error_class(f"{path}: format {has['format']}, this physseg reads {known_format}")
    if lacking := [key for key in ("format", *keys) if key not in has]:
        raise error_class(f"{fault} (no {', '.join(lacking)})", hint=hint)
    return has


def read_text(
    path: Path, error_class: type[PhyssegError], expected: str, hint: str | None = None, *, max_bytes: int = MAX_BYTES
) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        PhyssegError: Of `error_class`. There is no file that can be read, or it has another encoding: then the hint is
            what converts it.
    """
    try:
        data = read_regular(path, max_bytes=max_bytes)
    except OSError as error:
        if not is_files_fault(error):
            raise
        raise error_class.mismatch(path, expected, error, hint) from error
    encoding, got = "UTF-16", "UTF-16"
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" not in data[:2]:
        encoding, got = "LATIN1", "other bytes, as of Latin-1"
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig")
    hint = f"iconv -f {encoding} -t UTF-8 {path} > {path.stem}.utf8{path.suffix}"
    raise error_class.mismatch(path, "a UTF-8 text file", got, hint)


def sha256_of(chunks: Iterable[bytes]) -> str:
    """sha256 (hex) of bytes that come piece by piece."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def digest_of_json(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form.

    >>> digest_of_json({"b": 1, "a": [2]}) == digest_of_json({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_toml(text: str, error_class: type[PhyssegError], fault: str, hint: str | None = None) -> dict[str, Any]:
    """What TOML says. Raises `error_class` for no TOML, or one nested deeper or of larger integers than any of ours."""
    with parsing(error_class, fault, hint):
        document = tomllib.loads(text)
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
    """Enclose the reading and parsing of foreign bytes, and nothing else: what it raises becomes the file's own error.

        with parsing(ConfigError, f"{path}: not a list of names"):
            names = json.loads(read_regular(path))["names"]

    Raises:
        PhyssegError: Of `error_class`; its message is `fault` and what was raised. One raised inside passes.
        OSError: Of the machine (no memory, a broken disk), not of the one file.
    """
    try:
        yield
    except error_class:
        raise
    except OSError as error:
        if not is_files_fault(error):
            raise
        raise error_class(f"{fault} ({error.strerror})", hint=hint) from error
    except MALFORMED as error:
        reason = str(error.args[0] if isinstance(error, PhyssegError) else error)
        reason = f"no key {reason}" if isinstance(error, KeyError) else reason
        raise error_class(f"{fault} ({' '.join(reason.split())[:300]})", hint=hint) from error
