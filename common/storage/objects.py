"""A prefix of a bucket (S3, Google, Azure) as a Storage, by obstore.

Credentials come from where each service's own tools look for them, never from us.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import StorageError
from .interface import Data, RandomAccess, S, Storage, T, pieces

PARALLEL_REQUESTS = 16
"""Requests in flight to an object store where many files are asked for: each takes tens of milliseconds of waiting."""
# Patient: an outage of a minute must not end a run of hours; under the five minutes that credentials live at least.
_RETRIES: dict[str, Any] = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"max_backoff": timedelta(seconds=5)},
}
_MISSING = ("NoSuchKey", "BlobNotFound")
"""How services say that it is the file that is missing: S3 and Google, Azure."""
_ATTEMPTS = 6
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_AWS_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_AWS_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_CREDENTIALS_HINT = (
    "credentials are taken from the service's standard places: for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "~/.aws, or the machine's role; the region from AWS_REGION, another server from AWS_ENDPOINT_URL"
)


class ObjectStorage(Storage):
    """A prefix of a bucket. Every file is one object, written atomically by one request."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __reduce__(self) -> tuple[type["ObjectStorage"], tuple[str]]:
        return ObjectStorage, (self.url,)  # connections do not travel

    def get(self, path: str) -> bytes:
        with self._named(path):
            data: bytes = self._again(lambda: self._api.get(self._store, path).bytes().to_bytes())
        return data

    def open(self, path: str) -> "ObjectFile":
        return ObjectFile(self, path)

    def get_range(self, path: str, length: int, offset: int) -> bytes:
        with self._named(path):
            return self._again(lambda: bytes(self._api.get_range(self._store, path, start=offset, length=length)))

    def size(self, path: str) -> int:
        try:
            with self._named(path):
                return int(self._api.head(self._store, path)["size"])
        except StorageError:
            self.get(path)  # says whether it is missing, as the answer to HEAD cannot
            raise

    def put(self, path: str, data: Data) -> None:
        self._put(path, data, mode="overwrite")

    def put_if_absent(self, path: str, data: bytes) -> None:
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self.get(path) == data:  # ours: a request that seemed to fail may have landed
                    return
            raise

    def create(self, files: Mapping[str, Data]) -> None:
        *before, last = files
        if self.exists(last):
            raise FileExistsError(self.at(last))
        self.put_many({path: files[path] for path in before})
        self.put_if_absent(last, b"".join(pieces(files[last])))

    def delete(self, paths: Iterable[str]) -> None:
        # One by one: a bulk request is not tried again, and on some services ends at the first file that is missing.
        for _ in self.each(self._remove, paths):
            pass

    def delete_folder(self, path: str) -> None:
        self.delete(self.list(path))

    def exists(self, path: str) -> bool:
        try:
            # HEAD would do, but has no body that tells a missing file from a missing service.
            with self._named(path):
                self._again(lambda: self._api.get(self._impatient_store, path).bytes())
        except FileNotFoundError:
            return False
        return True

    def list(self, under: str = "") -> dict[str, int]:
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
                patience_is_over = "max_retries" in first_line(error)  # obstore's own words
                if attempt == _ATTEMPTS - 1 or patience_is_over or _status(error) in range(400, 500):
                    raise
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def each(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        wanted, size = list(items), 64 * PARALLEL_REQUESTS  # not all of a large store's files at once
        with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
            for start in range(0, len(wanted), size):
                yield from pool.map(function, wanted[start : start + size])

    def _put(self, path: str, data: Data, *, mode: str) -> None:
        with ExitStack() as stack:
            body: Any = data
            if not isinstance(data, bytes):  # by way of a file: the pieces may come from obstore, which waits for them
                body = stack.enter_context(TemporaryFile())
                body.writelines(data())

            def request() -> None:
                if body is not data:
                    body.seek(0)
                self._api.put(self._store, path, body, mode=mode, use_multipart=body is not data)

            stack.enter_context(self._named(path))
            try:
                self._again(request)
            except FileNotFoundError as error:
                raise self._refused(path, error) from error  # there is nothing to find in writing: no such bucket

    @cached_property
    def _api(self) -> Any:
        """obstore, an optional dependency; raises StorageError without it."""
        try:
            import obstore
        except ImportError as error:
            hint = "pip install 'physseg[s3]'"
            raise StorageError(f"{self.url}: object stores need obstore, which is not installed", hint=hint) from error
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
        endpoint = next((os.environ[name] for name in _AWS_ENDPOINTS if name in os.environ), "")
        # An endpoint that is written with http is meant so.
        client = {"timeout": timedelta(seconds=30)} | ({"allow_http": True} if endpoint.startswith("http://") else {})
        credentials = {"credential_provider": provider} if (provider := self._credential_provider()) else {}
        try:
            return from_url(self.url, retry_config=retries, client_options=client, **credentials)
        except Exception as error:
            raise StorageError(f"{self.url}: {first_line(error)}", hint=_CREDENTIALS_HINT) from error

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
            unusable = f"{self.url}: the profile in ~/.aws cannot be used: {first_line(error)}"
            hint = "pip install 'physseg[s3]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise StorageError(unusable, hint=hint) from error

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
        return StorageError(f"{self.at(path)}: {first_line(text)}", hint=hint)


class ObjectFile(RandomAccess):
    """An object; every read is a request."""

    def __init__(self, storage: ObjectStorage, path: str) -> None:
        self.storage, self.path = storage, path
        self.size = storage.size(path)

    def read_at(self, length: int, offset: int) -> bytes:
        return self.storage.get_range(self.path, length, offset) if length else b""


def _status(error: Exception) -> int | None:
    """The service's HTTP status in an error's text."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def first_line(error: object) -> str:
    """What an error says first, for messages."""
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
