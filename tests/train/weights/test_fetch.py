"""Fetching against a server of the test's own, as a plain site and as a hub: whole, torn, changed, refused."""

import errno
import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from physseg.train.errors import WeightsError
from physseg.train.weights.cache import read_record, weights_folder
from physseg.train.weights.fetch import PretrainedTag, Source, _sources, fetch

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """A web site of one file, and how it behaves."""

    url: str = ""
    content: bytes = CONTENT
    stop_after: int | None = None
    """Bytes after which an answer breaks off."""
    linked_etag: str = SHA256
    """What the hub announces under this file."""
    linked_size: int | None = None
    """Size that the hub announces, if it is not the file's."""
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path / "cache"))
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def _answer(self, *, with_content: bool) -> None:
            site.requests.append(f"{self.command} {self.path}")
            if self.path in ("/lab/clip/resolve/main/file.bin", "/redirect", "/redirect2"):
                self.send_response(302)
                # Of another host, as a hub's storage is: its client keeps what the hub says about the file.
                storage = f"http://localhost:{server.server_port}"
                self.send_header(
                    "Location", f"{'ftp://127.0.0.1:9' if self.path == '/redirect2' else storage}/file.bin"
                )
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("X-Linked-Etag", f'"{site.linked_etag}"')
                self.send_header("X-Linked-Size", str(site.linked_size or len(site.content)))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path != "/file.bin":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(site.content)))
            self.send_header("ETag", '"v1"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if with_content:
                self.wfile.write(site.content[: site.stop_after])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    yield site
    server.shutdown()
    server.server_close()


def tag(*sources: Source) -> PretrainedTag:
    return PretrainedTag(clip="ViT-B-16", tag="openai", quick_gelu=True, sources=sources)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- plain addresses ------------------------------------------------------------------------------------------------


def test_whole(site: Site, tmp_path: Path) -> None:
    record, fetched = fetch(tag(Source(url=f"{site.url}/file.bin", sha256=SHA256[:8])))
    assert fetched
    assert (record.num_bytes, record.sha256, record.url) == (len(CONTENT), SHA256, f"{site.url}/file.bin")
    folder = weights_folder("ViT-B-16", "openai")
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin", "weights.json"]
    assert read_record("ViT-B-16", "openai") == record


def test_a_torn_download_leaves_nothing_and_begins_anew(site: Site, tmp_path: Path) -> None:
    one = tag(Source(url=f"{site.url}/file.bin"), Source(url=f"{site.url}/redirect"))
    site.stop_after = 1_500_000
    with pytest.raises(WeightsError, match="ended after 1500000 of 5120000 bytes"):
        fetch(one)
    assert names(tmp_path) == []
    assert site.requests == ["GET /file.bin"]
    site.stop_after = None
    assert fetch(one)[0].sha256 == SHA256


def test_what_a_killed_fetch_left_is_removed(site: Site, tmp_path: Path) -> None:
    left = weights_folder("ViT-B-16", "openai").parent / ".openai.0123456789ab.partial/file.bin"
    left.parent.mkdir(parents=True)
    left.write_bytes(CONTENT[:100])
    fetch(tag(Source(url=f"{site.url}/file.bin")))
    assert names(tmp_path) == ["file.bin", "weights.json"]


def test_a_full_disk_is_no_missing_place(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(tag(Source(url=f"{site.url}/file.bin"), Source(url=f"{site.url}/redirect")))
    assert site.requests == ["GET /file.bin"]
    assert names(tmp_path) == []


def test_another_hash_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"expected sha256 0123, got {SHA256} \(5120000 bytes\)"):
        fetch(tag(Source(url=f"{site.url}/file.bin", sha256="0123")))
    assert names(tmp_path) == []


def test_another_hash_keeps_what_was_there(site: Site) -> None:
    one = tag(Source(url=f"{site.url}/file.bin"))
    fetch(one)
    (weights_folder("ViT-B-16", "openai") / "file.bin").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="0123"):
        fetch(tag(Source(url=f"{site.url}/file.bin", sha256="0123")))
    assert names(weights_folder("ViT-B-16", "openai")) == ["file.bin", "weights.json"]
    assert fetch(one)[1]


def test_refusals_name_every_place(site: Site, tmp_path: Path) -> None:
    places = [f"{site.url}/none.bin", "http://127.0.0.1:9/file.bin", f"{site.url}/redirect2"]
    with pytest.raises(WeightsError, match="ViT-B-16 openai: could not be fetched") as caught:
        fetch(tag(*(Source(url=url) for url in places)))
    assert all(f"{url}: " in str(caught.value) for url in places)
    assert "404" in str(caught.value)
    with pytest.raises(WeightsError, match="begins with https://"):
        fetch(tag(Source(url=places[0])), url="file:///etc/hostname")
    assert names(tmp_path) == []


# --- Hugging Face ---------------------------------------------------------------------------------------------------


def test_the_hub_has_it_and_its_hash_counts(site: Site, tmp_path: Path) -> None:
    (source,) = _sources("", "lab/clip/file.bin")
    assert source.url == f"{site.url}/lab/clip/resolve/main/file.bin"
    record, _ = fetch(tag(source))
    assert (record.sha256, record.url) == (SHA256, source.url)
    assert names(tmp_path / "cache") == ["file.bin", "weights.json"]
    site.linked_etag = "f" * 64
    with pytest.raises(WeightsError, match="expected sha256 ffff"):
        fetch(PretrainedTag(clip="ViT-B-16", tag="other", quick_gelu=True, sources=(source,)))


def test_a_repository_without_a_file_name_is_asked_for_both(site: Site) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(tag(*_sources("", "lab/clip/")))
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        assert re.search(rf"/lab/clip/resolve/main/{name}: [^;]*404", str(caught.value))


def test_nothing_of_a_place_that_broke_off_is_kept(site: Site) -> None:
    """The client of the hub keeps what it has of a file; the next place's folder is a new one."""
    (source,) = _sources("", "lab/clip/file.bin")
    site.content, announced = CONTENT[:1_000_000], len(CONTENT)
    site.linked_size = announced
    record, _ = fetch(tag(source, Source(url=f"{site.url}/file.bin")))
    assert record.url == f"{site.url}/file.bin"
    assert names(weights_folder("ViT-B-16", "openai")) == ["file.bin", "weights.json"]


def test_what_the_hub_lacks_comes_from_the_address(site: Site) -> None:
    record, _ = fetch(tag(*_sources(f"{site.url}/file.bin", "lab/gone/file.bin")))
    assert record.url == f"{site.url}/file.bin"
