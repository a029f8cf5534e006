"""The trainer's reader: parts of samples, its cache of open files, and pickling."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from physseg.manifests.table import Manifest
from physseg.pipeline import reader as reader_module
from physseg.pipeline import run
from physseg.pipeline.errors import StoreCorruptError
from physseg.pipeline.frame import Frame
from physseg.pipeline.reader import StoreReader

ARRAYS = ("labels", "canny", "sift", "cell_classes", "cell_counts", "cell_dropped")
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def store(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    frame = Frame(short_edge=32, max_long_edge=64, canvas=64)
    run.preprocess(make_manifest(200), tmp_path / "s.zarr", scheduler="sync", frame=frame, progress=False)
    return tmp_path / "s.zarr"


@pytest.mark.parametrize("rows", [1, 32, 40, 64, 100])
def test_rows_are_the_first_of_the_whole_arrays(store: Path, rows: int) -> None:
    reader = StoreReader(store, ARRAYS)
    for index in (0, 65, 199):
        whole, part = reader.read(index), reader.read(index, rows=rows)
        for name in ("labels", "canny", "sift"):
            assert part[name].shape == (min(rows, 64), 64)
            np.testing.assert_array_equal(part[name], whole[name][:rows])
        for name in ("cell_classes", "cell_counts", "cell_dropped"):
            np.testing.assert_array_equal(part[name], whole[name])


def test_damage_below_the_rows_that_are_wanted_is_noticed(store: Path) -> None:
    file = store / "canny/c/0/0/0"
    reader = StoreReader(store, ("canny",))
    reader.read(0, rows=1)
    offset, length = reader._open_shards[0].tables[0][0]
    data = bytearray(file.read_bytes())
    data[offset + length - 6] ^= 1  # before the checksum, behind row 0
    file.write_bytes(data)
    with pytest.raises(StoreCorruptError, match=r"canny/c/0/0/0, sample 0: .*checksum"):
        StoreReader(store, ("canny",)).read(0, rows=1)


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
    there = pickle.loads(pickle.dumps(reader)).read(130)
    for name, plane in here.items():
        np.testing.assert_array_equal(there[name], plane)
