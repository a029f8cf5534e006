"""Folders by path or URL: the same behaviour from a directory and from an object store."""

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from physseg.common.errors import StorageError
from physseg.common.storage.content_cache import ContentCache
from physseg.common.storage.interface import Storage
from physseg.common.storage.local import LocalStorage
from physseg.common.storage.location import absolute, open_storage, read_below, split
from physseg.common.storage.objects import ObjectStorage


@pytest.fixture(params=["directory", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "directory":
        yield LocalStorage(tmp_path / "a")
        return
    from obstore.store import MemoryStore

    objects = ObjectStorage("s3://bucket/a")
    objects.__dict__["_store"] = MemoryStore()
    yield objects


def test_what_is_written_is_read_listed_and_removed(folder: Storage) -> None:
    folder.put_many({"x": b"12345", "b/c/y": b"6", "b/z": b""})
    assert (folder.get("x"), folder.get("b/c/y"), folder.get("b/z")) == (b"12345", b"6", b"")
    assert folder.list() == {"x": 5, "b/c/y": 1, "b/z": 0}
    assert folder.list("b") == {"b/c/y": 1, "b/z": 0}
    assert folder.exists("b/z") and not folder.exists("b") and not folder.exists("nothing")
    folder.put("x", b"7")
    assert folder.get("x") == b"7"
    folder.delete(["x", "never was"])
    folder.delete_folder("b")
    assert folder.list() == {}
    for missing in (folder.get, folder.open):
        with pytest.raises(FileNotFoundError):
            missing("x")


def test_large_files_come_and_go_in_pieces(folder: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("physseg.common.storage.interface.CHUNK_BYTES", 3)
    folder.put("x", lambda: iter([b"12", b"345", b""]))
    folder.put("y", lambda: iter([bytes(2**20)] * 12))
    assert list(folder.chunks("x")) == [b"123", b"45"] and folder.get("x") == b"12345"
    assert folder.list() == {"x": 5, "y": 12 * 2**20}
    assert ("x" in folder.known(), "z" in folder.known()) == (True, False)

    def broken() -> Iterator[bytes]:
        yield b"6"
        raise KeyError("the source")

    with pytest.raises(Exception, match="the source"):
        folder.put("x", broken)
    assert folder.get("x") == b"12345", "the old one stays"


def test_parts_of_a_file(folder: Storage) -> None:
    folder.put("x", b"0123456789")
    file = folder.open("x")
    assert file.size == 10
    assert (file.read_at(3, 2), file.read_at(99, 8), file.read_at(0, 0)) == (b"234", b"89", b"")
    file.close()


def test_a_new_folder_appears_whole_and_once(folder: Storage) -> None:
    folder.create({"b/y": b"1", "root": b"2"})
    assert folder.list() == {"b/y": 1, "root": 1}
    with pytest.raises(FileExistsError):
        folder.create({"root": b"3"})
    with pytest.raises(FileExistsError):
        folder.create({"b/y": b"other", "root": b"3"})
    assert (folder.get("b/y"), folder.get("root")) == (b"1", b"2")


def test_a_new_file_is_never_written_over(folder: Storage) -> None:
    folder.put_if_absent("x", b"1")
    with pytest.raises(FileExistsError):
        folder.put_if_absent("x", b"2")
    assert (folder.get("x"), folder.list()) == (b"1", {"x": 1})


def test_a_file_that_is_not_there_keeps_none_from_being_removed(folder: Storage) -> None:
    folder.put_many({f"{i}": b"1" for i in range(5)})
    folder.delete(["missing", *map(str, range(5))])
    assert folder.list() == {}


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *args: Any) -> Any:
        if path.name == "root":
            raise OSError(28, "No space left on device")
        return opened(path, *args)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        LocalStorage(tmp_path / "a").create({"b/y": b"1", "root": b"2"})
    assert list(tmp_path.iterdir()) == []


def test_many_questions_are_answered_in_order(folder: Storage) -> None:
    folder.put_many({f"{i:04d}": str(i).encode() for i in range(1500)})
    assert list(folder.each(folder.get, (f"{i:04d}" for i in range(1500)))) == [str(i).encode() for i in range(1500)]


def test_an_error_among_many_questions_is_not_lost(folder: Storage) -> None:
    folder.put("a", b"1")
    with pytest.raises(FileNotFoundError):
        list(folder.each(folder.get, ["a", "b", "a"]))


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/data/x", "/data/x"),
        ("file:///data/a%20b", "/data/a b"),
        ("s3://bucket/x/", "s3://bucket/x"),
        (Path("y"), "y"),
    ],
)
def test_names_of_folders(location: str | Path, url: str) -> None:
    found = open_storage(location)
    assert str(found) == url
    assert open_storage(found) is found
    assert str(pickle.loads(pickle.dumps(found))) == url


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("ftp://host/x", r"expected a path or a URL of s3, .* got ftp://"),
        ("file://data/x", "three slashes"),
        ("file:///data/a#1", "without '#' and '?'"),
        ("s3://bucket/run#2", "without '#' and '?'"),
        ("s3://bucket/run?2", "without '#' and '?'"),
        (Path("s3://bucket/x"), "two slashes"),
        ("s3:", "two slashes"),
    ],
)
def test_locations_that_mean_nothing(location: str | Path, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        open_storage(location)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_what_cannot_be_looked_for_is_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A run computes again what is missing."""
    folder = LocalStorage(tmp_path)
    folder.put("x", b"1")
    assert not folder.exists("x/y") and "x/y" not in folder.known()

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, "it fails")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        for ask in (folder.exists, folder.known().__contains__):
            with pytest.raises(OSError, match="it fails"):
                ask("x")


def test_absolute_and_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x") == str(tmp_path / "x") == absolute(f"file://{tmp_path}/x")
    assert absolute("s3://b/x") == "s3://b/x"
    assert [(str(found), name) for found, name in map(split, ("m", "a/m", "/m", "s3://b/a/m"))] == [
        (".", "m"),
        ("a", "m"),
        ("/", "m"),
        ("s3://b/a", "m"),
    ]
    found, name = split("file:///m.parquet")
    assert (str(found), name) == ("/", "m.parquet")
    with pytest.raises(StorageError, match="a file in a bucket"):
        split("s3://m.parquet")


def test_files_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "x").write_bytes(b"content")
    assert read_below(str(tmp_path), "a b/x") == b"content"
    assert read_below(f"file://{tmp_path}", "a b/x") == b"content"


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StorageError, match="obstore") as caught:
        ObjectStorage("s3://bucket/x").get("y")
    assert "physseg[s3]" in str(caught.value)


def test_a_profile_without_boto3_is_an_error_not_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(StorageError, match=r"profile in ~/.aws cannot be used"):
        ObjectStorage("s3://bucket/x").get("y")


# --- the cache --------------------------------------------------------------------------------------------------------

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_asks_once(tmp_path: Path) -> None:
    asked: list[int] = []
    cache = ContentCache(tmp_path / "cache")
    for _ in range(3):
        path = cache.file(ABC, lambda: (asked.append(1), b"abc")[1], "s3://b/x")
        assert path.read_bytes() == b"abc"
    assert len(asked) == 1


def test_the_cache_keeps_nothing_that_it_was_not_asked_for(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    with pytest.raises(StorageError, match=r"s3://b/x: .*ba7816bf8f01, got 88d4266fd4e6"):
        cache.file(ABC, lambda: b"abcd", "s3://b/x")
    assert not (tmp_path / "cache").exists()


def test_the_cache_takes_no_path_for_a_hash(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a sha256"):
        ContentCache(tmp_path).file("/etc/hostname", lambda: b"abc", "s3://b/x")


def test_an_outage_is_no_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's 404 and a missing bucket are the service's trouble; a sample must not be quarantined for them."""
    import obstore

    for body, missing in (("<Code>NoSuchKey</Code>", True), ("not here!", False), ("<Code>NoSuchBucket</Code>", False)):
        text = f"Object at location a not found: Server returned non-2xx status code: 404 Not Found: {body}"

        def answer(*_: object, text: str = text) -> None:
            raise FileNotFoundError(text)

        monkeypatch.setattr(obstore, "get", answer)
        with pytest.raises(FileNotFoundError if missing else StorageError):
            ObjectStorage("s3://bucket/x").get("a")


@pytest.mark.parametrize("status", [None, 404, 503])
def test_web_servers(status: int | None) -> None:
    """Only what the server says is missing is missing."""
    pytest.importorskip("aiohttp")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 200)
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        if status is None:
            assert read_below(root, "a b/x") == b"content"
        else:
            with pytest.raises(FileNotFoundError if status == 404 else StorageError):
                read_below(root, "x")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(StorageError, match="http://127"):
        read_below(root, "x")


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match="cannot keep s3://b/x here"):
        ContentCache(tmp_path / "cache").file(ABC, lambda: b"abc", "s3://b/x")
