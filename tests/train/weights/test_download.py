"""Downloads against a server of the test's own: whole, interrupted, resumed, changed, refused."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from physseg.train.errors import WeightsError
from physseg.train.weights.download import download

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A web site of one file, and how it behaves."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    stop_after: int | None = None
    """Bytes after which an answer breaks off."""
    linked_etag: str = ""
    """What /redirect announces, as Hugging Face does."""
    requests: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers))
            if self.path.startswith("/redirect"):
                self.send_response(302)
                self.send_header("Location", "/file.bin" if self.path == "/redirect" else "ftp://elsewhere/file.bin")
                self.send_header("X-Linked-Etag", f'"{site.linked_etag}"')
                self.end_headers()
                return
            if self.path != "/file.bin":
                self.send_error(404)
                return
            start = 0
            if site.ranges and "Range" in self.headers and self.headers.get("If-Range") == site.etag:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(site.content):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(site.content) - start))
            if site.etag is not None:
                self.send_header("ETag", site.etag)
            self.end_headers()
            self.wfile.write(site.content[start : None if site.stop_after is None else start + site.stop_after])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}/file.bin"
    yield site
    server.shutdown()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(site: Site, target: Path, after: int = 1_500_000) -> None:
    """Leave the first bytes of a download behind."""
    site.stop_after = after
    with pytest.raises(WeightsError, match=r"(ended|broke) after \d+ .*\n  hint: the same command goes on"):
        download(site.url, target, progress=False)
    site.stop_after = None
    assert not target.exists()


def test_whole(site: Site, tmp_path: Path) -> None:
    done = download(site.url, tmp_path / "new/file.bin", sha256=SHA256[:8], progress=False)
    assert done.path.read_bytes() == CONTENT
    assert (done.num_bytes, done.sha256, done.resumed_at) == (len(CONTENT), SHA256, 0)
    assert names(tmp_path / "new") == ["file.bin"]


def test_resumed(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    interrupted(site, target)
    done = download(site.url, target, sha256=SHA256, progress=False)
    assert done.resumed_at == 1_500_000
    assert site.requests[-1]["Range"] == "bytes=1500000-"
    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]


def test_a_file_that_changed_in_between_is_begun_anew(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    interrupted(site, target)
    site.content, site.etag = CONTENT[::-1] + b"more", '"v2"'
    assert download(site.url, target, progress=False).resumed_at == 0
    assert target.read_bytes() == site.content


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": None}, {"etag": 'W/"v1"'}])
def test_a_server_that_cannot_resume_begins_anew(site: Site, tmp_path: Path, change: dict[str, object]) -> None:
    for name, value in change.items():
        setattr(site, name, value)
    interrupted(site, tmp_path / "file.bin")
    done = download(site.url, tmp_path / "file.bin", progress=False)
    assert (done.resumed_at, done.sha256) == (0, SHA256)


def test_a_whole_partial_file_is_fetched_again(site: Site, tmp_path: Path) -> None:
    """Killed between the last byte and the renaming: the server has nothing more to send."""
    (tmp_path / ".file.bin.partial").write_bytes(CONTENT)
    (tmp_path / ".file.bin.etag").write_text('"v1"')
    assert download(site.url, tmp_path / "file.bin", progress=False).sha256 == SHA256


def test_another_hash_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"expected sha256 0123, got {SHA256} \(5120000 bytes\); nothing was kept"):
        download(site.url, tmp_path / "file.bin", sha256="0123", progress=False)
    assert names(tmp_path) == []


def test_the_hash_that_a_redirection_announces_counts(site: Site, tmp_path: Path) -> None:
    site.linked_etag = SHA256
    assert download(site.url.replace("file.bin", "redirect"), tmp_path / "a", progress=False).sha256 == SHA256
    site.linked_etag = "f" * 64
    with pytest.raises(WeightsError, match="expected sha256 ffff"):
        download(site.url.replace("file.bin", "redirect"), tmp_path / "b", progress=False)


def test_refusals(site: Site, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the server answered 404") as caught:
        download(site.url + "x", tmp_path / "a", progress=False)
    assert caught.value.fields["status"] == 404
    with pytest.raises(WeightsError, match="cannot be reached"):
        download("http://127.0.0.1:9/file", tmp_path / "a", progress=False)
    for url in ("file:///etc/hostname", site.url.replace("file.bin", "redirect2")):
        with pytest.raises(WeightsError, match="begins with https://"):
            download(url, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
