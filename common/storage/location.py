"""Folders and files by path or URL: what a location means, and how to get at it."""

import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec

from ..errors import StorageError
from ..regular_files import read_regular
from .credentials import has_credentials
from .interface import Storage
from .local import LocalStorage
from .objects import ObjectStorage, first_line

OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
_BROKEN_URL = re.compile(r"^(s3|s3a|gs|az|abfs|abfss|file|https?):(/?$|/[^/])", re.IGNORECASE)

Location = Storage | Path | str
"""How callers may name a folder."""


def open_storage(location: Location) -> Storage:
    """The folder of that path or URL; nothing is looked up yet. Raises StorageError for an unknown kind of URL."""
    if isinstance(location, Storage):
        return location
    text = without_credentials(str(location))
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme in OBJECT_SCHEMES:
        if {"#", "?"} & set(rest):
            hint = "they end the path of a URL; choose another name"
            raise StorageError(f"{text}: expected a URL without '#' and '?'", hint=hint)
        return _object_storage(f"{scheme}://{rest.rstrip('/')}", os.getpid())
    if separator and scheme != "file":
        expected = f"a path or a URL of {', '.join(OBJECT_SCHEMES)} or file"
        raise StorageError.mismatch(text, expected, f"{scheme}://", hint="mount it, or copy it to one of these")
    return LocalStorage(local_path(text))


def without_credentials(url: str) -> str:
    """The URL itself. Raises StorageError if it holds a password, a token or a signature: it would be stored."""
    if has_credentials(url):
        hint = "give them by environment variables or the service's own files, such as ~/.aws"
        raise StorageError(f"{url}: expected a URL without credentials", hint=hint)
    return url


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in location


def local_path(location: str) -> Path:
    """The path that a local location means, a `file://` URL included."""
    if not is_url(location):
        if _BROKEN_URL.match(location):
            raise StorageError(f"{location}: expected a URL with two slashes as in s3://bucket/x, or a path")
        return Path(location)
    parts = urlsplit(location)
    if parts.query or parts.fragment:
        raise StorageError(f"{location}: expected a URL without '#' and '?'", hint="give the path instead")
    if parts.netloc not in ("", "localhost"):
        expected, got = "three slashes as in file:///data/coco", f"the host {parts.netloc!r}"
        raise StorageError.mismatch(location, expected, got, hint=f"did you mean file:///{parts.netloc}{parts.path}?")
    return Path(unquote(parts.path))


def absolute(location: str) -> str:
    """A location that means the same from any folder: URLs as they are, paths and `file://` URLs as full paths."""
    if is_url(location) and not location.lower().startswith("file:"):
        return without_credentials(location)
    return str(local_path(location).resolve())


def split(location: str) -> tuple[Storage, str]:
    """The folder of a file, and the file's name in it."""
    if not is_url(location) or location.lower().startswith("file:"):
        path = local_path(location)
        return LocalStorage(path.parent), path.name
    folder, _, name = without_credentials(location).rstrip("/").rpartition("/")
    if folder.endswith("/"):
        raise StorageError(f"{location}: expected a file in a bucket, as in s3://bucket/{name}")
    return open_storage(folder), name


def read_below(root: str, path: str) -> bytes:
    """All bytes of the file at the POSIX `path` below `root`: a path, or a URL of ours or of fsspec."""
    if not is_url(root):
        return read_regular(f"{root}/{path}")
    if root.partition("://")[0].lower() in (*OBJECT_SCHEMES, "file"):
        return open_storage(root).get(path)
    url = f"{root.rstrip('/')}/{path}"
    try:
        system, inside = fsspec.core.url_to_fs(url)
        data: bytes = system.cat_file(inside)  # `open` calls a server that does not answer a missing file
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StorageError(f"{url}: {type(error).__name__}: {first_line(error)}") from error
    return data


@lru_cache(maxsize=64)
def _object_storage(url: str, _process: int) -> ObjectStorage:
    """One client per URL and process: it holds connections, which do not survive a fork."""
    return ObjectStorage(url)
