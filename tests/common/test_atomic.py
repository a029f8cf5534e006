"""Files and folders are the old or the new after a power cut at any moment, by a disk that forgets what it may.

`Disk` records each write, flush and rename under a folder. After every one it makes all states that a crash may leave:
of each file that is not flushed the old content, half or all of the new one, of each folder that is not flushed any
choice of the changes to its names. A rename inside one folder happens or does not.
"""

import errno
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from physseg.common import atomic
from physseg.common.atomic import (
    atomic_create,
    atomic_folder,
    atomic_write,
    check_target,
    remove_folder,
    remove_partials,
)
from physseg.common.storage.local import LocalStorage

Tree = bytes | dict[str, Any] | None
"""A file's content, a folder's entries, or nothing."""


class File:
    def __init__(self) -> None:
        self.durable, self.now = b"", b""

    def states(self) -> list[Tree]:
        return [self.now] if self.now == self.durable else [self.durable, self.now[: len(self.now) // 2], self.now]

    def flush(self) -> None:
        self.durable = self.now


class Folder:
    def __init__(self) -> None:
        self.durable: dict[str, Node] = {}
        self.now: dict[str, Node] = {}
        self.pending: list[dict[str, Node | None]] = []

    def change(self, **names: "Node | None") -> None:
        """Names that change in one step."""
        self.pending.append(names)
        self.now = applied(self.now, [names])

    def states(self) -> Iterator[Tree]:
        for kept in itertools.product([False, True], repeat=len(self.pending)):
            entries = applied(self.durable, itertools.compress(self.pending, kept))
            for chosen in itertools.product(*(list(node.states()) for node in entries.values())):
                yield dict(zip(entries, chosen, strict=True))

    def flush(self) -> None:
        self.durable, self.pending = dict(self.now), []


Node = File | Folder


def applied(entries: dict[str, Node], changes: Any) -> dict[str, Node]:
    for names in changes:
        entries = {name: node for name, node in (entries | names).items() if node is not None}
    return entries


class Disk:
    """What is below `path`, as the kernel sees it and as the platters have it.

    Args:
        path: A folder whose content is durable.
        expected: Says whether a state after a crash is right; AssertionError otherwise.
        forgotten: The number of the flush that is left out, to see that it was needed.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, path: Path, expected: Callable[[Tree], bool], forgotten: int | None
    ) -> None:
        self.path, self.expected, self.forgotten, self.flushes, self.crashes = path, expected, forgotten, 0, 0
        self.root, self.one_at_a_time = Folder(), threading.Lock()
        self.look()
        self.flush_all(self.root)
        for module, name in ((os, "rename"), (os, "replace"), (os, "link"), (os, "fsync"), (atomic, "_exchange")):
            patch.setattr(module, name, self.recorded(name.strip("_"), getattr(module, name)))

    def recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self.one_at_a_time:
                return recorded(*arguments)

        def recorded(*arguments: Any) -> Any:
            self.look()
            self.crash()
            before = [self.node(argument) for argument in arguments]
            if name == "fsync":
                real(*arguments)
                self.flushes += 1
                if self.flushes - 1 != self.forgotten:
                    before[0].flush()
                return None
            result = real(*arguments)
            one, other = (Path(os.fspath(argument)) for argument in arguments)
            folder = self.node(one.parent)
            assert one.parent == other.parent, "only a rename inside a folder is one step"
            left = {"link": before[0], "exchange": before[1]}.get(name)
            folder.change(**{one.name: left, other.name: before[0]})
            self.crash()
            return result

        return call

    def node(self, place: Any) -> Any:
        path = Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else Path(place)
        node: Node | None = self.root
        for part in path.relative_to(self.path).parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node

    def look(self, folder: Folder | None = None, path: Path | None = None) -> None:
        """Notice what was written, made and removed since."""
        folder, path = folder or self.root, path or self.path
        there = {entry.name: entry for entry in path.iterdir()}
        for gone in set(folder.now) - set(there):
            folder.change(**{gone: None})
        for name, entry in sorted(there.items()):
            if name not in folder.now:
                folder.change(**{name: Folder() if entry.is_dir() else File()})
            node = folder.now[name]
            if isinstance(node, Folder):
                self.look(node, entry)
            else:
                node.now = entry.read_bytes()

    def crash(self) -> None:
        for state in self.root.states():
            self.crashes += 1
            assert self.expected(state), state

    def flush_all(self, node: Node) -> None:
        node.flush()
        for inner in node.now.values() if isinstance(node, Folder) else ():
            self.flush_all(inner)

    def end(self, expected: Callable[[Tree], bool]) -> None:
        """The work is done: from now on a crash may change nothing."""
        self.look()
        self.crash()
        self.expected = expected
        self.crash()


def visible(state: Tree) -> Tree:
    """Without the hidden strays that a crash may leave, and without folders that hold nothing yet."""
    if not isinstance(state, dict):
        return state
    inner = {name: visible(entry) for name, entry in state.items() if not name.startswith(".")}
    return {name: entry for name, entry in inner.items() if entry is not None} or None


def write_folder(target: Path, *, replace: bool = False) -> None:
    with atomic_folder(target, replace=replace) as partial:
        (partial / "x").write_bytes(b"new")
        (partial / "in").mkdir()
        (partial / "in/y").write_bytes(b"2")


OLD = {"x": b"old", "in": {"z": b"1"}}
NEW = {"x": b"new", "in": {"y": b"2"}}
CASES: dict[str, tuple[Callable[[Path], Any], Tree, Tree]] = {
    "new file": (lambda path: atomic_write(path, b"new"), None, b"new"),
    "file": (lambda path: atomic_write(path, b"new"), b"old", b"new"),
    "created file": (lambda path: atomic_create(path, b"new"), None, b"new"),
    "file in new folders": (lambda path: atomic_write(path / "a/x", b"new"), None, {"a": {"x": b"new"}}),
    "new folder": (write_folder, None, NEW),
    "new folder in a new one": (lambda path: write_folder(path / "a"), None, {"a": NEW}),
    "folder": (lambda path: write_folder(path, replace=True), OLD, NEW),
    "no folder": (remove_folder, OLD, None),
    "storage create": (lambda path: LocalStorage(path).create({"x": b"new", "in/y": b"2"}), None, NEW),
}


def make(path: Path, tree: Tree) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
    elif tree is not None:
        path.mkdir()
        for name, inner in tree.items():
            make(path / name, inner)


def run(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, forgotten: int | None = None) -> Disk:
    work, old, new = CASES[case]
    folder.mkdir()
    make(folder / "target", old)

    def among(*trees: Tree) -> Callable[[Tree], bool]:
        return lambda state: visible(state) in [tree and {"target": tree} for tree in trees]

    with monkeypatch.context() as patch:
        disk = Disk(patch, folder, among(old, new), forgotten)
        work(folder / "target")
        disk.end(among(new))
    return disk


@pytest.mark.parametrize("case", CASES)
def test_a_crash_leaves_the_old_or_the_new(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = run(case, tmp_path / "disk", monkeypatch)
    assert disk.crashes > 5
    assert not list((tmp_path / "disk").glob(".*")), "nothing half-written stays"


@pytest.mark.parametrize("case", CASES)
def test_every_flush_is_needed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = run(case, tmp_path / "disk", monkeypatch).flushes
    assert flushes
    for number in range(flushes):
        with pytest.raises(AssertionError):
            run(case, tmp_path / f"without {number}", monkeypatch, forgotten=number)


def test_where_names_cannot_be_exchanged_a_folder_gives_way_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", OLD)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    write_folder(tmp_path / "a", replace=True)
    assert content(tmp_path) == {"a": NEW}


def test_a_folder_whose_successor_cannot_take_its_name_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", OLD)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    with pytest.raises(OSError, match="No such file"), atomic_folder(tmp_path / "a", replace=True) as partial:
        (partial / "x").write_bytes(b"new")
        monkeypatch.setattr(atomic, "_sync_tree", lambda folder: folder.rename(tmp_path / "b"))
    assert content(tmp_path / "a") == OLD
    assert sorted(content(tmp_path)) == ["a", "b"]


def test_a_folder_with_content_gives_way_only_where_that_is_asked_for(tmp_path: Path) -> None:
    make(tmp_path / "a", OLD)
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "a")
    assert content(tmp_path) == {"a": OLD}


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "x", b"old")
    make(tmp_path / "a", OLD)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a", replace=True) as partial:
        (partial / "y").write_bytes(b"1")
        raise RuntimeError
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        for work in (atomic_write, atomic_create):
            with pytest.raises(OSError, match="full"):
                work(tmp_path / "x", b"new")
    with pytest.raises(FileExistsError):
        atomic_create(tmp_path / "x", b"new")
    assert content(tmp_path) == {"x": b"old", "a": OLD}


def test_strays_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    strays = {".x.0a1b.partial": b"1", ".step_1.partial-0a1b2c3d": {"y": b"2"}, ".a.12.partial": {}}
    kept = {"x.partial": b"3", ".hidden": b"4", "a": OLD}
    make(tmp_path / "run", strays | kept)
    assert remove_partials(tmp_path / "run") == 3
    assert content(tmp_path) == {"run": kept}
    assert remove_partials(tmp_path / "nowhere") == 0


def fail(descriptor: int) -> None:
    raise OSError("the disk is full")


def content(path: Path) -> Tree:
    return {entry.name: content(entry) for entry in path.iterdir()} if path.is_dir() else path.read_bytes()


def test_a_target_is_looked_at_before_it_is_written(tmp_path: Path) -> None:
    """Renames put a file in the place of a FIFO, and for root in that of /dev/null."""
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for good in ("file", "new", "a/b/new"):
        check_target(tmp_path / good)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "pipe", "null"}
    assert (tmp_path / "file").read_text() == "old"
    for bad, number in (("", errno.EISDIR), ("file/x", errno.ENOTDIR), ("pipe", errno.ENXIO), ("null", errno.ENXIO)):
        with pytest.raises(OSError, match=re.escape(str(tmp_path / bad))) as caught:
            check_target(tmp_path / bad)
        assert caught.value.errno == number
    with pytest.raises(OSError, match="/proc/new/x"):
        check_target(Path("/proc/new/x"))
