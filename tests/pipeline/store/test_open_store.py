"""`physseg.open_store`: samples by index and id, cut to their frames, and errors that say what to do."""

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import physseg
import pytest
import zarr
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.errors import StoreError, StoreIncompleteError, UnknownSampleError
from physseg.pipeline.store.frame import Frame

from ...conftest import write_shapes

FRAMES = [(48, 65), (64, 48), (48, 48)]
"""Height and width of the frames of images of these sizes, worked out by hand: 70 * 48 / 52 = 64.6."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples, the last of which is quarantined: its image is another one than the manifest's."""
    folder = tmp_path_factory.mktemp("open")
    manifest = write_shapes(folder / "data", 5, ((52, 70), (64, 48), (96, 96)))
    (folder / "data/images/004.jpg").write_bytes((folder / "data/images/000.jpg").read_bytes())
    frame = Frame(short_edge=48, max_long_edge=96, canvas=96)
    preprocess(manifest, folder / "store.zarr", structures=["canny"], frame=frame, scheduler="sync", progress=False)
    return folder / "store.zarr"


OF_THE_STORE = {"status", "sample", "sample_id", "provenance"}


def test_arrays_are_the_stores_cut_to_the_frame(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    store = physseg.open_store(path)
    for index in range(4):
        sample = store[index]
        height, width = FRAMES[index % 3]
        assert (sample.id, sample.size) == (f"{index:03d}", (height, width))
        assert set(sample.arrays) == set(store.arrays) == set(group.array_keys()) - OF_THE_STORE
        for name in ("labels", "canny"):
            assert np.array_equal(sample.arrays[name], group[name][index, :height, :width])
            assert sample.arrays[name].flags.owndata
        rows, columns = (height + 7) // 8, (width + 7) // 8
        for name in ("cell_classes", "cell_counts"):
            assert np.array_equal(sample.arrays[name], group[name][index, :, :rows, :columns])


def test_cells_of_the_frame_count_every_labelled_pixel(path: Path) -> None:
    store = physseg.open_store(path)
    assert store[0].size[1] % 8 == 1  # a last column of cells of which one pixel lies on the frame
    for sample in store[:4]:
        labels, classes, counts = (sample.arrays[name] for name in ("labels", "cell_classes", "cell_counts"))
        for class_id in range(len(store.classes)):
            assert counts[classes == class_id].sum() == (labels == class_id).sum()


def test_it_is_a_sequence(path: Path) -> None:
    store = physseg.open_store(str(path))
    assert isinstance(store, Sequence)
    assert len(store) == len(store.ids) == 5
    assert store.ids == ("000", "001", "002", "003", "004")
    assert store["002"].id == store[2].id == store[-3].id == store[np.int64(2)].id == "002"
    assert [sample.id for sample in store[1:4:2]] == ["001", "003"]
    assert ("003" in store, "3" in store, 3 in store) == (True, False, False)
    assert store.status.tolist() == [1, 1, 1, 1, 2]
    assert store.usable.tolist() == [0, 1, 2, 3]
    assert [sample.id for _, sample in zip(range(4), store, strict=False)] == ["000", "001", "002", "003"]
    assert store.classes == ("ground", "box", "disc", "square", "ball")
    assert store.vocabulary.ignore_index == 255
    assert "5 samples of labels, " in repr(store)
    assert repr(store[1]) == "StoredSample(id='001', size=(64, 48))"  # without the values of its arrays
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again[0].arrays["canny"], store[0].arrays["canny"])


def test_samples_do_not_share_memory_with_the_store(path: Path) -> None:
    store = physseg.open_store(path)
    for array in store[0].arrays.values():
        array[...] = 7
    assert store[0].size == FRAMES[0]
    assert not (store[0].arrays["labels"] == 7).any()


@pytest.mark.parametrize(("sample_id", "close"), [("03", "'003'"), ("0002", "'002'"), ("3", "'003'"), ("x", "'000'")])
def test_an_unknown_id_has_close_matches(path: Path, sample_id: str, close: str) -> None:
    with pytest.raises(KeyError, match=f"no sample '{sample_id}'") as caught:
        physseg.open_store(path)[sample_id]
    assert isinstance(caught.value, UnknownSampleError)
    assert close in (caught.value.hint or "")
    assert str(caught.value).startswith(f"{path}: no sample")


@pytest.mark.parametrize("index", [5, -6, 10**9])
def test_an_index_beyond_the_end(path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"sample {index} of 5"):
        physseg.open_store(path)[index]


@pytest.mark.parametrize("key", [4, -1, "004"])
def test_a_quarantined_sample_says_why(path: Path, key: int | str) -> None:
    with pytest.raises(StoreIncompleteError, match=r"sample 4 \(004\) is quarantined: .*sha256") as caught:
        physseg.open_store(path)[key]
    assert "--retry-quarantined" in (caught.value.hint or "")


def test_a_missing_sample_says_how_to_compute_it(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "begun.zarr")
    shutil.rmtree(tmp_path / "begun.zarr/status/c")
    store = physseg.open_store(tmp_path / "begun.zarr")
    assert (len(store), store.usable.size) == (5, 0)
    with pytest.raises(StoreIncompleteError, match=r"sample 0 \(000\) is not computed") as caught:
        store[0]
    assert "physseg preprocess" in (caught.value.hint or "")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here"):
        physseg.open_store(tmp_path / "nothing.zarr")
