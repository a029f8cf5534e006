"""A disk that fills up, and one that may not be written to: a real file system in memory, where one may be mounted."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .commands import SETTINGS, Shapes, assert_same_tree, physseg, tree

pytestmark = pytest.mark.cluster
SYNC = ("--scheduler", "sync", *SETTINGS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder))
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"file systems cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *words], check=False, capture_output=True, text=True)


def test_a_full_disk_ends_the_run_and_more_room_resumes_it(disk: Path, shapes: Shapes) -> None:
    store = disk / "s.zarr"
    said = physseg("preprocess", shapes.manifest, store, *SYNC, code=1)
    assert "shard" in said and "No space left on device" in said, said
    assert "Traceback" not in said, said
    assert not list(store.rglob("*.partial")), "nothing half-written stays"
    committed = len(list((store / "provenance/commits").glob("*.json")))
    assert 0 < committed < 6
    assert not mount("-o", "remount,size=50m", str(disk)).returncode
    physseg("preprocess", shapes.manifest, store, *SYNC)
    assert_same_tree(tree(store), shapes.files)


def test_a_store_that_may_not_be_written_can_be_read(disk: Path, shapes: Shapes) -> None:
    assert not mount("-o", "remount,size=50m", str(disk)).returncode
    store = disk / "s.zarr"
    physseg("preprocess", shapes.manifest, store, *SYNC)
    assert not mount("-o", "remount,ro", str(disk)).returncode
    assert "no fault" in physseg("verify", store)
    assert '"done": ' in physseg("inspect", store, "--json", "-")
    for part, count in (((), 352), (("--part", "1/2"), 192)):
        said = physseg("preprocess", shapes.manifest, store, *SYNC, *part)
        assert "nothing: every shard" in said and f"{count} of {count} samples done" in said, said
    for words in (
        [store, "--set", "canny.low=50"],
        [store, "--retry-quarantined", "--part", "2/2", "--set", "sift.sigma=2"],
    ):
        said = physseg("preprocess", shapes.manifest, *words, *SYNC, code=1)
        assert f"error: {store}: expected a store to write to" in said and "mount it for writing" in said, said
    said = physseg("preprocess", shapes.manifest, disk / "new.zarr", *SYNC, code=1)
    assert "Read-only file system" in said and "Traceback" not in said, said
    assert_same_tree(tree(store), shapes.files)
    assert not mount("-o", "remount,rw", str(disk)).returncode
    next(store.glob("canny/c/0/0/0")).write_bytes(b"")
    assert not mount("-o", "remount,ro", str(disk)).returncode
    said = physseg("verify", store, "--repair", code=1)
    assert "canny/c/0/0/0" in said and f"error: {store}: expected a store to write to" in said, said
