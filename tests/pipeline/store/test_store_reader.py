"""The trainer's reader: parts of samples, its cache of open files, and pickling."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from physseg.common.storage.location import open_storage
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.store import reader as reader_module
from physseg.pipeline.store.commits import QuarantineEntry, commit_path, read_commit, write_commit
from physseg.pipeline.store.errors import StoreCorruptError, StoreError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import open_schema, read_manifest
from physseg.pipeline.store.reader import StoreReader

ARRAYS = ("labels", "canny", "sift", "cell_classes", "cell_counts", "cell_dropped")
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def store(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    frame = Frame(short_edge=32, max_long_edge=64, canvas=64)
    run.preprocess(make_manifest(200), tmp_path / "s.zarr", scheduler="sync", frame=frame, progress=False)
    return tmp_path / "s.zarr"


def test_planes_one_by_one_are_those_of_the_whole_sample(store: Path) -> None:
    reader = StoreReader(store, ARRAYS)
    for index in (0, 65, 199):
        whole = reader.read(index)
        assert tuple(whole) == ARRAYS
        for name, plane in reader.planes(index):
            np.testing.assert_array_equal(plane, whole[name])


def test_damage_is_noticed_when_its_plane_comes(store: Path) -> None:
    file = store / "canny/c/0/0/0"
    reader = StoreReader(store, ("labels", "canny"))
    reader.read(0)
    offset, length = reader._open_shards[0].tables[1][0]
    data = bytearray(file.read_bytes())
    data[offset + length // 2] ^= 1
    file.write_bytes(data)
    planes = reader.planes(0)
    assert next(planes)[0] == "labels"
    with pytest.raises(StoreCorruptError, match=r"canny/c/0/0/0, sample 0: .*checksum"):
        next(planes)


def num_open_files() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="the system does not list open files in /proc")
def test_open_files_are_bounded_and_closed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_FILES", 11)  # two shards of the five sharded arrays, and one over
    before = num_open_files()
    reader = StoreReader(store, ARRAYS)
    expected = {index: reader.read(index)["labels"] for index in (0, 64, 128, 192)}
    assert num_open_files() == before + 10
    for index in (192, 0, 128, 64, 0):
        np.testing.assert_array_equal(reader.read(index)["labels"], expected[index])
    reader.close()
    assert num_open_files() == before


def test_a_reader_travels_without_its_files(store: Path) -> None:
    reader = StoreReader(store, ARRAYS)
    here = reader.read(130)
    assert reader.manifest is reader.manifest
    copy = pickle.loads(pickle.dumps(reader))
    assert "manifest" not in vars(copy), "it is read where it is needed"
    assert copy.manifest == reader.manifest
    there = copy.read(130)
    for name, plane in here.items():
        np.testing.assert_array_equal(there[name], plane)


def again(store: Path, **options: object) -> None:
    manifest = read_manifest(store, open_schema(store))
    run.preprocess(manifest, store, scheduler="sync", progress=False, **options)  # type: ignore[arg-type]


def test_no_sample_of_another_store_is_read_by_one_that_is_open(store: Path) -> None:
    """A run changes a setting while a training reads: shards that are open stay as they were, others are refused."""
    reader = StoreReader(store, ("labels", "canny"))
    before = reader.read(0)
    worker, late = pickle.loads(pickle.dumps(reader)), StoreReader(store, ("labels", "canny"))
    again(store, settings={"canny": {"low": 20, "high": 40}})
    np.testing.assert_array_equal(reader.read(0)["canny"], before["canny"])
    assert (StoreReader(store, ("canny",)).read(0)["canny"] != before["canny"]).any()
    for index, one in ((64, reader), (0, worker)):
        with pytest.raises(
            StoreError,
            match=r"changed since it was opened: layers.canny.high was 200.0, is 40.0",
        ):
            one.read(index)
    with pytest.raises(StoreError, match=r"layers.canny.high was"):  # status, too
        _ = late.usable


def test_a_reader_of_other_layers_and_of_more_goes_on(store: Path) -> None:
    labels, canny = StoreReader(store, ("labels",)), StoreReader(store, ("canny",))
    _ = labels.status, canny.status
    again(store, settings={"sift": {"max_keypoints": 5}})
    assert labels.read(0)["labels"].any() and canny.read(199)["canny"].any()


@pytest.mark.parametrize("change", ["record gone", "record of other files", "another quarantine"])
def test_a_shard_that_was_computed_again_is_refused(
    change: str, store: Path, make_manifest: Callable[..., Manifest]
) -> None:
    reader = StoreReader(store, ("labels",))
    _ = reader.status
    record = read_commit(open_storage(store), 1)
    assert record is not None
    if change == "record gone":
        (store / commit_path(1)).unlink()
    elif change == "record of other files":
        write_commit(open_storage(store), replace(record, inputs=("0" * 16, *record.inputs[1:])))
    else:
        entry = QuarantineEntry(index=70, sample_id="070", reason="torn")
        write_commit(open_storage(store), replace(record, quarantine=(entry,)))
    reader.read(0)
    told = {"record gone": "no commit record", "record of other files": "other files"}.get(change, "in quarantine")
    with pytest.raises(StoreError, match=f"changed since it was opened: shard 1 .*{told}"):
        reader.read(64)
