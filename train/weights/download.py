"""Download one file: whole or not at all, resumed where the server allows it, and proven by its hash."""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ... import __version__
from ...common.atomic import sync_directory
from ..errors import WeightsError

_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloaded:
    """A file that arrived whole."""

    path: Path
    num_bytes: int
    sha256: str
    resumed_at: int
    """Bytes that an earlier, interrupted call had left; 0 for a download in one piece."""


def download(url: str, target: Path, *, sha256: str = "", progress: bool = True) -> Downloaded:
    """Fetch `url` into the file `target`; `sha256` (or its first digits) is what it must be, if that is known.

    Until it is whole the file is called `.NAME.partial`; a later call goes on from there if the server says, by its
    ETag, that it still has the same file, and begins anew otherwise. Raises WeightsError: no such file (fields
    `status` 404), no connection, an end before the end, another hash than expected.
    """
    partial, etag_file = (target.with_name(f".{target.name}.{end}") for end in ("partial", "etag"))
    target.parent.mkdir(parents=True, exist_ok=True)
    etag = etag_file.read_text(encoding="utf-8") if partial.exists() and etag_file.exists() else ""
    response, announced = _open(url, start=partial.stat().st_size if etag else 0, etag=etag)
    with response:
        resumed_at = partial.stat().st_size if response.status == 206 else 0
        etag_file.write_text(_strong(response.headers.get("ETag", "")), encoding="utf-8")
        rest = response.headers.get("Content-Length")
        total = None if rest is None else resumed_at + int(rest)
        _copy(response, partial, resumed_at, total, shown_as=target.name if progress else None)
    received = partial.stat().st_size
    if total is not None and received < total:
        raise WeightsError(
            f"{url}: the connection ended after {received} of {total} bytes",
            hint="the same command goes on from there",
            expected=total,
            got=received,
        )
    etag_file.unlink()
    found, expected = file_sha256(partial), sha256 or announced
    if not found.startswith(expected):
        partial.unlink()
        raise WeightsError(
            f"{url}: expected sha256 {expected}, got {found} ({received} bytes); nothing was kept",
            hint="try again; if it stays so, something between here and there changes the file",
            expected=expected,
            got=found,
        )
    partial.replace(target)
    sync_directory(target.parent)
    return Downloaded(path=target, num_bytes=received, sha256=found, resumed_at=resumed_at)


def file_sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- helpers --------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections to the web only, and remembers the sha256 that Hugging Face sends along with its own."""

    announced = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        linked = headers.get("X-Linked-Etag", "").strip('"')
        if len(linked) == 64:  # a sha256; files outside its large-file storage have a shorter git hash
            self.announced = linked
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, *, start: int, etag: str) -> tuple[HTTPResponse, str]:
    """The answer to a request for the bytes from `start` on, and the sha256 announced on the way to it, or ""."""
    _check_scheme(url)
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    headers = {"User-Agent": f"physseg/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": etag}
    try:
        response: HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # nothing after `start`: what is there was whole, or of another file
            return _open(url, start=0, etag="")
        raise WeightsError(f"{url}: the server answered {error.code} {error.reason}", status=error.code) from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise WeightsError(
            f"{url}: cannot be reached ({reason})",
            hint="on a machine without a network, fetch it elsewhere and name the file as `clip_weights`",
        ) from error
    return response, redirects.announced


def _copy(response: HTTPResponse, path: Path, start: int, total: int | None, *, shown_as: str | None) -> None:
    """Append the answer to the first `start` bytes of `path`."""
    with (
        path.open("r+b" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=shown_as, disable=shown_as is None) as bar,
    ):
        file.seek(start)
        try:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
        except (HTTPException, TimeoutError, ConnectionError) as error:
            raise WeightsError(
                f"{response.url}: the connection broke after {file.tell()} bytes ({error})",
                hint="the same command goes on from there",
                expected=total,
                got=file.tell(),
            ) from error
        finally:
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def _check_scheme(url: str) -> None:
    if not url.startswith(("https://", "http://")):
        raise WeightsError(f"{url}: expected an address that begins with https:// or http://")


def _strong(etag: str) -> str:
    """An ETag that promises the same bytes; weak ones promise less and are as good as none."""
    return "" if etag.startswith("W/") else etag
