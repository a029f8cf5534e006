"""Folders by path or URL: a local directory, or a prefix of an object store (``s3://``, ``gs://``, ``az://``).

What this package and the pipeline need of either, and no more: whole files, written so that a reader sees the old or
the new one, read whole or in part, listed, and removed. Nothing is renamed and nothing is appended to, so both kinds
give the same guarantees. Credentials come from where each service's own tools look for them, never from us.
"""

import errno
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec

from .errors import StorageError
from .whole_file import PARTIAL_SUFFIX, remove_partials, sync_directory, write_whole

S = TypeVar("S")
T = TypeVar("T")

OBJECT_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
PARALLEL_REQUESTS = 16
"""Requests in flight to an object store where many files are asked for: each takes tens of milliseconds of waiting."""
# Patient: an outage of a minute must not end a run of hours; under the five minutes that credentials live at least.
_RETRIES: dict[str, Any] = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"max_backoff": timedelta(seconds=5)},
}
_REQUEST_TIMEOUT = timedelta(seconds=30)


class Storage(ABC):
    """A folder of files named by POSIX paths relative to it. Cheap to make, safe to share between threads, pickles.

    Missing files raise FileNotFoundError; a place that cannot be reached, or refuses us, StorageError.
    """

    url: str
    """Absolute path, or URL, without a slash at its end."""

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[Callable[[str], "Storage"], tuple[str]]:
        return open_storage, (self.url,)

    def at(self, path: str) -> str:
        """The path inside this folder in full, for messages."""
        return f"{self.url}/{path}" if path else self.url

    @abstractmethod
    def read(self, path: str) -> bytes:
        """All bytes of a file."""

    @abstractmethod
    def open(self, path: str) -> "RandomAccess":
        """A file to read parts of."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write a file whole: a reader, or a crash at any moment, sees the old one or the new one."""

    @abstractmethod
    def write_new(self, path: str, data: bytes) -> None:
        """The same for a file that is not there; FileExistsError, and nothing written, where it is."""

    @abstractmethod
    def create(self, files: Mapping[str, bytes]) -> None:
        """Write the files of a new folder, which appears with the last one; FileExistsError where that is there."""

    @abstractmethod
    def remove(self, paths: Iterable[str]) -> None:
        """Remove files for good, where they are there."""

    @abstractmethod
    def remove_folder(self, path: str) -> None:
        """Remove a folder and all below it."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def sizes(self, under: str = "") -> dict[str, int]:
        """Path -> bytes of every file below the folder ``under``, at any depth."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Remove what killed writers left half-written; only for who holds the folder alone."""

    def each(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """The function of each item, in order; where a file takes long to arrive, of many items at a time."""
        return map(function, items)

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write several files, each whole, in no particular order."""
        for _ in self.each(lambda path: self.write(path, files[path]), files):
            pass


class RandomAccess(ABC):
    """An open file."""

    size: int
    """Bytes."""

    @abstractmethod
    def read_at(self, length: int, offset: int) -> bytes:
        """That many bytes from ``offset`` on; fewer only where the file ends."""

    def close(self) -> None:  # noqa: B027 (nothing to close where nothing is held)
        """Let go of what is held."""


Location = Storage | Path | str
"""How callers may name a folder."""


def open_storage(location: Location) -> Storage:
    """The folder of that path or URL; nothing is looked up yet. Raises StorageError for an unknown kind of URL."""
    if isinstance(location, Storage):
        return location
    text = str(location)
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme in OBJECT_SCHEMES:
        if {"#", "?"} & set(rest):
            raise StorageError(
                f"{text}: expected a URL without '#' and '?'",
                hint="they end the path of a URL; choose another name",
            )
        return _object_storage(f"{scheme}://{rest.rstrip('/')}", os.getpid())
    if separator and scheme != "file":
        raise StorageError(
            f"{text}: expected a path or a URL of {', '.join(OBJECT_SCHEMES)} or file, got {scheme}://",
            hint="mount it, or copy it to one of these",
        )
    return LocalStorage(local_path(text))


def is_url(location: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in location


def local_path(location: str) -> Path:
    """The path that a local location means, a ``file://`` URL included."""
    if not is_url(location):
        if _BROKEN_URL.match(location):
            raise StorageError(f"{location}: expected a URL with two slashes as in s3://bucket/x, or a path")
        return Path(location)
    parts = urlsplit(location)
    if parts.query or parts.fragment:
        raise StorageError(f"{location}: expected a URL without '#' and '?'", hint="give the path instead")
    if parts.netloc not in ("", "localhost"):
        raise StorageError(
            f"{location}: expected three slashes as in file:///data/coco, got the host {parts.netloc!r}",
            hint=f"did you mean file:///{parts.netloc}{parts.path}?",
        )
    return Path(unquote(parts.path))


def absolute(location: str) -> str:
    """A location that means the same from any folder: URLs as they are, paths and ``file://`` URLs as full paths."""
    if is_url(location) and not location.lower().startswith("file:"):
        return location
    return str(local_path(location).resolve())


def split(location: str) -> tuple[Storage, str]:
    """The folder of a file, and the file's name in it."""
    if not is_url(location) or location.lower().startswith("file:"):
        path = local_path(location)
        return LocalStorage(path.parent), path.name
    folder, _, name = location.rstrip("/").rpartition("/")
    if folder.endswith("/"):
        raise StorageError(f"{location}: expected a file in a bucket, as in s3://bucket/{name}")
    return open_storage(folder), name


def read_below(root: str, path: str) -> bytes:
    """All bytes of the file at the POSIX ``path`` below ``root``: a path, or a URL of ours or of fsspec."""
    if not is_url(root):
        with open(f"{root}/{path}", "rb", buffering=0) as local:  # noqa: PTH123 (half the time of Path.read_bytes)
            return local.readall()
    if root.partition("://")[0].lower() in (*OBJECT_SCHEMES, "file"):
        return open_storage(root).read(path)
    url = f"{root.rstrip('/')}/{path}"
    try:
        system, inside = fsspec.core.url_to_fs(url)
        data: bytes = system.cat_file(inside)  # `open` calls a server that does not answer a missing file
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StorageError(f"{url}: {type(error).__name__}: {_first_line(error)}") from error
    return data


# --- local ----------------------------------------------------------------------------------------------------------


class LocalStorage(Storage):
    """A directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def read(self, path: str) -> bytes:
        return (self.path / path).read_bytes()

    def open(self, path: str) -> "LocalFile":
        return LocalFile(self.path / path)

    def write(self, path: str, data: bytes) -> None:
        write_whole(self.path / path, data)

    def write_new(self, path: str, data: bytes) -> None:
        beside = f"{path}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}"
        self.write(beside, data)
        try:
            (self.path / path).hardlink_to(self.path / beside)  # unlike a rename, this fails where the name is taken
        finally:
            (self.path / beside).unlink()

    def create(self, files: Mapping[str, bytes]) -> None:
        if self.path.exists():
            raise FileExistsError(self.url)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}{PARTIAL_SUFFIX}")
        try:
            for path, data in files.items():
                write_whole(partial / path, data)
            partial.rename(self.path)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise FileExistsError(self.url) from error
            raise
        sync_directory(self.path.parent)

    def remove(self, paths: Iterable[str]) -> None:
        files = [self.path / path for path in paths]
        for file in files:
            file.unlink(missing_ok=True)
        for folder in {file.parent for file in files}:
            with suppress(FileNotFoundError):
                sync_directory(folder)  # a removal may get lost in a power cut, too

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self.path / path, ignore_errors=True)

    def exists(self, path: str) -> bool:
        return (self.path / path).is_file()

    def sizes(self, under: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.path / under, onerror=_raise_unless_gone):
            inside = os.path.relpath(folder, self.path)
            for name in names:
                with suppress(FileNotFoundError):  # a running writer's
                    path = name if inside == "." else f"{inside}/{name}"
                    found[path] = Path(folder, name).stat().st_size
        return found

    def remove_leftovers(self) -> None:
        remove_partials(self.path)


class LocalFile(RandomAccess):
    """A file of this machine. ``read_at`` is os.pread itself: it is on the trainer's hot path."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size

    def read_at(self, length: int, offset: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def close(self) -> None:
        os.close(self.descriptor)


# --- object stores --------------------------------------------------------------------------------------------------


class ObjectStorage(Storage):
    """A prefix of a bucket. Every file is one object, written by one request: whole, or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self, path: str) -> bytes:
        with self._named(path):
            data: bytes = self._again(lambda: self._api.get(self._store, path).bytes().to_bytes())
        return data

    def open(self, path: str) -> "ObjectFile":
        return ObjectFile(self, path)

    def read_range(self, path: str, length: int, offset: int) -> bytes:
        with self._named(path):
            return self._again(lambda: bytes(self._api.get_range(self._store, path, start=offset, length=length)))

    def size(self, path: str) -> int:
        try:
            with self._named(path):
                return int(self._api.head(self._store, path)["size"])
        except StorageError:
            self.read(path)  # says whether it is missing, as the answer to HEAD cannot
            raise

    def write(self, path: str, data: bytes) -> None:
        self._put(path, data, mode="overwrite")

    def write_new(self, path: str, data: bytes) -> None:
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self.read(path) == data:  # ours: a request that seemed to fail may have landed
                    return
            raise

    def create(self, files: Mapping[str, bytes]) -> None:
        *before, last = files
        if self.exists(last):
            raise FileExistsError(self.at(last))
        self.write_many({path: files[path] for path in before})
        self.write_new(last, files[last])

    def remove(self, paths: Iterable[str]) -> None:
        # One by one: a bulk request is not tried again, and on some services ends at the first file that is missing.
        for _ in self.each(self._remove, paths):
            pass

    def remove_folder(self, path: str) -> None:
        self.remove(self.sizes(path))

    def exists(self, path: str) -> bool:
        try:
            # HEAD would do, but has no body that tells a missing file from a missing service.
            with self._named(path):
                self._again(lambda: self._api.get(self._impatient_store, path).bytes())
        except FileNotFoundError:
            return False
        return True

    def sizes(self, under: str = "") -> dict[str, int]:
        def found() -> dict[str, int]:
            listing = self._api.list(self._store, under or None)
            return {entry["path"]: int(entry["size"]) for batch in listing for entry in batch}

        with self._named(under):
            return self._again(found)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError), self._named(path):
            self._again(lambda: self._api.delete(self._store, path))

    def _again(self, request: Callable[[], T]) -> T:
        """What obstore does not try again by itself: answers that break off, new files, removals."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except self._api.exceptions.GenericError as error:
                patience_is_over = "max_retries" in _first_line(error)  # obstore's own words
                if attempt == _ATTEMPTS - 1 or patience_is_over or _status(error) in range(400, 500):
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def remove_leftovers(self) -> None:
        """Nothing to do: an unfinished request leaves no object."""

    def each(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            for batch in _batches(list(items), 64 * PARALLEL_REQUESTS):  # not all of a large store's files at once
                yield from pool.map(function, batch)

    def _put(self, path: str, data: bytes, *, mode: str) -> None:
        with self._named(path):
            try:
                self._again(lambda: self._api.put(self._store, path, data, mode=mode, use_multipart=False))
            except FileNotFoundError as error:
                raise self._refused(path, error) from error  # there is nothing to find in writing: no such bucket

    @cached_property
    def _api(self) -> Any:
        """obstore, an optional dependency; raises StorageError without it."""
        try:
            import obstore
        except ImportError as error:
            raise StorageError(
                f"{self.url}: object stores need obstore, which is not installed",
                hint="pip install 'physseg[s3]'",
            ) from error
        return obstore

    @cached_property
    def _store(self) -> Any:
        return self._connect(_RETRIES)

    @cached_property
    def _impatient_store(self) -> Any:
        """For the first questions of a command: a wrong address is to be an error, not three minutes of silence."""
        return self.__dict__.get("_store") or self._connect(_RETRIES | {"retry_timeout": timedelta(seconds=15)})

    def _connect(self, retries: dict[str, Any]) -> Any:
        from_url = self._api.store.from_url
        options: dict[str, Any] = {}
        if _endpoint().startswith("http://"):
            options["allow_http"] = True  # an endpoint that is written like this is meant like this
        client = {"timeout": _REQUEST_TIMEOUT, **options}
        credentials = {"credential_provider": provider} if (provider := self._credential_provider()) else {}
        try:
            return from_url(self.url, retry_config=retries, client_options=client, **credentials)
        except Exception as error:
            raise StorageError(f"{self.url}: {_first_line(error)}", hint=_CREDENTIALS_HINT) from error

    def _credential_provider(self) -> Any:
        """AWS's profiles, which obstore does not read by itself; None where the environment or the machine says it."""
        if not self.url.startswith(("s3:", "s3a:")) or any(name in os.environ for name in _AWS_KEYS):
            return None
        files = [Path(os.environ.get(name, default)).expanduser() for name, default in _AWS_FILES.items()]
        if "AWS_PROFILE" not in os.environ and not any(file.exists() for file in files):
            return None
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider

            return Boto3CredentialProvider()
        except Exception as error:
            raise StorageError(
                f"{self.url}: the profile in ~/.aws cannot be used: {_first_line(error)}",
                hint="pip install 'physseg[s3]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from error

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Errors of the service with their place and a repair."""
        exceptions = self._api.exceptions  # also the first to notice that obstore is missing
        try:
            yield
        except exceptions.AlreadyExistsError as error:
            raise FileExistsError(self.at(path)) from error
        except FileNotFoundError as error:
            if _status(error) and not any(code in str(error) for code in _MISSING):
                raise self._refused(path, error) from error  # 404 of a proxy, or of no bucket
            raise FileNotFoundError(self.at(path)) from error
        except exceptions.BaseError as error:
            raise self._refused(path, error) from error
        except ValueError as error:  # no object can have this name
            raise FileNotFoundError(self.at(path)) from error

    def _refused(self, path: str, error: Exception) -> StorageError:
        text = str(error)
        refusals = (self._api.exceptions.PermissionDeniedError, self._api.exceptions.UnauthenticatedError)
        hint = "the service may be down or slow; what is committed stays: run the same command again"
        if "NoSuchBucket" in text:
            text, hint = "no such bucket", "check the URL; buckets are not made by physseg"
        elif isinstance(error, refusals) or "169.254.169.254" in text or "credential" in text.lower():
            hint = _CREDENTIALS_HINT
        return StorageError(f"{self.at(path)}: {_first_line(text)}", hint=hint, path=self.at(path))


class ObjectFile(RandomAccess):
    """An object; every read is a request."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self.storage, self.path = storage, path
        self.size = storage.size(path)

    def read_at(self, length: int, offset: int) -> bytes:
        return self.storage.read_range(self.path, length, offset) if length else b""


_BROKEN_URL = re.compile(r"^(s3|s3a|gs|az|abfs|abfss|file|https?):(/?$|/[^/])", re.IGNORECASE)
_MISSING = ("NoSuchKey", "BlobNotFound")
"""How services say that it is the file that is missing: S3 and Google, Azure."""
_ATTEMPTS = 6
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_CREDENTIALS_HINT = (
    "credentials are taken from the service's standard places: for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "~/.aws, or the machine's role; the region from AWS_REGION, another server from AWS_ENDPOINT_URL"
)


@lru_cache(maxsize=64)
def _object_storage(url: str, _process: int) -> ObjectStorage:
    """One client per URL and process: it holds connections, which do not survive a fork."""
    return ObjectStorage(url)


def _endpoint() -> str:
    return next(
        (
            os.environ[name]
            for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
            if name in os.environ
        ),
        "",
    )


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _status(error: Exception) -> int | None:
    """The service's HTTP status in an error's text."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__


def _batches(items: list[S], size: int) -> Iterator[list[S]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
