"""Training batches: what a sample is, against the whole arrays; the same with any workers, ranks and start."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from physseg.common.errors import ConfigError, PhyssegError
from physseg.manifests.errors import ContentError
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.errors import StoreIncompleteError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.reader import StoreReader
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import Batch, DataConfig, TrainSamples, batches, to_device
from physseg.train.data.order import PositionBatches
from physseg.train.errors import TrainDataError
from physseg.train.losses.alignment import patch_weights

from ...conftest import forget_fold
from ...forked import Forked

STRUCTURES = ("canny", "sift")
ARRAYS = ("labels", "canny", "sift", "cell_classes", "cell_counts")


def open_store(store: Path, **changes: object) -> TrainSamples:
    config = replace(DataConfig(store=store, crop=96, num_workers=0), **changes)
    return TrainSamples(config, STRUCTURES, True, seed=3)


def walk(samples: TrainSamples, *, start: int = 0, stop: int = 3, size: int = 4, **ranks: int) -> list[Batch]:
    return list(batches(samples, PositionBatches(start=start, stop=stop, batch_size=size, **ranks)))


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert ours["sample_ids"] == theirs["sample_ids"]
    for key in ours:
        if key != "sample_ids":
            assert torch.equal(ours[key], theirs[key]), key


def test_batch_has_the_promised_shapes(store: Path) -> None:
    (batch,) = walk(open_store(store), stop=1)
    assert {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "images": (4, 3, 96, 96),
        "labels": (4, 96, 96),
        "structures": (4, 2, 96, 96),
        "valid": (4, 96, 96),
        "cell_classes": (4, 8, 12, 12),
        "cell_counts": (4, 8, 12, 12),
        "jitter": (4, 5),
        "positions": (4,),
    }
    moved = to_device(batch, torch.device("cpu"))
    assert moved["labels"].dtype == moved["cell_classes"].dtype == torch.int64
    assert batch["images"].dtype == batch["structures"].dtype == torch.uint8
    assert batch["jitter"].dtype == torch.float32


@pytest.mark.parametrize("document", ["says so", "of before"])
def test_convention_labels_with_a_folded_background_are_no_training_set(
    document: str, train_manifest: Manifest, tmp_path: Path
) -> None:
    folded = replace(train_manifest, vocabulary=replace(train_manifest.vocabulary, fold_from=3))
    path, frame = tmp_path / "folded.zarr", Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(folded, path, structures=["canny", "sift"], frame=frame, scheduler="sync", progress=False)
    if document == "of before":
        forget_fold(path)
    with pytest.raises(TrainDataError, match=r"shapes, whose background has 2 \(square, ball\)") as caught:
        open_store(path)
    assert "`pascal-voc-21`" in str(caught.value.hint)


def test_samples_are_windows_of_the_whole_arrays(store: Path) -> None:
    """Guards that image, labels and structures are cut alike: each crop must be found, whole, in its canvas."""
    samples = open_store(store, jitter=False)
    reader = StoreReader(store, ARRAYS)
    for batch in walk(samples, stop=7, size=3):
        for row, position in enumerate(batch["positions"].tolist()):
            index = int(reader.usable[samples.order(position)])
            whole = reader.read(index)
            image = reader.schema.frame.resize_image(reader.manifest.load_image(index))
            assert batch["sample_ids"][row] == reader.manifest.samples[index].sample_id
            assert any(
                _equals_window(batch, row, image, whole, top, left, flip)
                for top in range(0, 97, 8)
                for left in range(0, 97, 8)
                for flip in (False, True)
            )


def _equals_window(batch: Batch, row: int, image: np.ndarray, whole: dict, top: int, left: int, flip: bool) -> bool:
    window = slice(top, top + 96), slice(left, left + 96)
    cut = [whole["labels"][window], whole["canny"][window], whole["sift"][window]]
    padded = np.full((192, 192, 3), 128, np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    inside = np.zeros((192, 192), bool)
    inside[: image.shape[0], : image.shape[1]] = True
    planes = [*cut, inside[window], *padded[window].transpose(2, 0, 1)]
    found = [batch["labels"][row], *batch["structures"][row], batch["valid"][row], *batch["images"][row]]
    return all(np.array_equal(b.numpy(), a[:, ::-1] if flip else a) for a, b in zip(planes, found, strict=True))


def test_planes_of_classes_are_windows_of_the_whole_arrays_and_come_after_the_maps(
    store: Path, train_manifest: Manifest
) -> None:
    """Cropped and mirrored edges are those of the whole map: where the crop cuts a border off, they still mark it."""
    preprocess(train_manifest, store, structures=["canny", "sift", "semantic_edges"], scheduler="sync", progress=False)
    samples = TrainSamples(DataConfig(store=str(store), crop=96), ("semantic_edges", "sift"), False, seed=3)
    assert samples.structures == ("sift", "semantic_edges")
    assert samples.structure_classes == (0, 5)
    flips = set()
    for batch in walk(samples, stop=2, size=3):
        planes = batch["structure_classes"]
        assert (planes.shape, planes.dtype) == ((3, 1, 2, 96, 96), torch.uint8)
        assert batch["structures"].shape == (3, 1, 96, 96)
        for row, position in enumerate(batch["positions"].tolist()):
            whole = samples.reader.read(int(samples.usable[samples.order(position)]))
            cut = [
                flip
                for top in range(0, 97, 8)
                for left in range(0, 97, 8)
                for flip in (False, True)
                if all(
                    np.array_equal(ours, theirs[..., ::-1] if flip else theirs)
                    for ours, theirs in (
                        (planes[row, 0].numpy(), whole["semantic_edges"][:, top : top + 96, left : left + 96]),
                        (batch["labels"][row].numpy(), whole["labels"][top : top + 96, left : left + 96]),
                    )
                )
            ]
            assert cut
            flips |= set(cut)
    assert flips == {False, True}
    wide = samples.empty(1) | {"structure_classes": torch.zeros((1, 1, 3, 96, 96), dtype=torch.uint8)}
    with patch.object(samples, "empty", return_value=wide):  # as if another structure had three planes
        unused = samples.batch([0])["structure_classes"]
    assert (unused[0, 0, 2] == samples.reader.vocabulary.ignore_index).all() and (unused[0, 0, :2] < 5).any()


def test_patch_weights_equal_counting_the_crop(store: Path) -> None:
    """The cached cells, cropped and mirrored with the image, give the shares that counting its labels gives."""
    for batch in walk(open_store(store), stop=4):
        moved = to_device(batch, torch.device("cpu"))
        weights = patch_weights(moved["cell_classes"], moved["cell_counts"], 5, 2, cell_px=8, ignore_index=255)
        one_hot = torch.stack([moved["labels"] == index for index in range(5)], dim=-1).double()
        patches = one_hot.unflatten(1, (6, 16)).unflatten(3, (6, 16)).mean(dim=(2, 4)).flatten(1, 2)
        torch.testing.assert_close(weights.double(), patches, atol=0, rtol=0)


def test_same_batches_with_workers(store: Path) -> None:
    """Worker processes change nothing: not the order, not a pixel, not a draw. Also from a later start."""
    alone = walk(open_store(store), stop=5)
    shared = walk(open_store(store, num_workers=2), start=2, stop=5)
    for ours, theirs in zip(alone[2:], shared, strict=True):
        assert_equal(ours, theirs)


def test_an_image_exchanged_after_the_store_stops_the_first_batch_that_reads_it(
    store: Path, train_manifest: Manifest
) -> None:
    """Of the same size, so that nothing but its hash tells."""
    root = Path(train_manifest.root)
    first, fifth = (root / train_manifest.samples[index].image_path for index in (0, 4))
    before = walk(open_store(store), size=7, stop=1)
    content = first.read_bytes(), fifth.read_bytes()
    first.write_bytes(content[1])
    fifth.write_bytes(content[0])
    for workers in (0, 1):
        with pytest.raises(ContentError, match=r"images/00[04].jpg: expected sha256 [0-9a-f]{12} as in the manifest"):
            walk(open_store(store, num_workers=workers), size=7, stop=1)
    assert len(walk(open_store(store, verify=False), size=7, stop=1)) == 1
    first.write_bytes(content[0])
    fifth.write_bytes(content[1])
    assert_equal(walk(open_store(store, verify=False), size=7, stop=1)[0], before[0])


def test_an_image_is_hashed_once_a_process_and_then_only_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    load_image = Manifest.load_image

    def count(self: Manifest, index: int, *, verify: bool, **options: object) -> np.ndarray:
        asked.append(verify)
        return load_image(self, index, verify=verify, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Manifest, "load_image", count)
    samples = open_store(store)
    walk(samples, size=7, stop=1)  # an epoch
    walk(samples, size=7, start=1, stop=3)
    assert asked == [True] * 7 + [False] * 14


def test_same_global_batches_with_ranks(store: Path) -> None:
    samples = open_store(store)
    for step, whole in enumerate(walk(samples)):
        parts = [walk(samples, start=step, stop=step + 1, rank=rank, num_ranks=2)[0] for rank in range(2)]
        assert parts[0]["sample_ids"] + parts[1]["sample_ids"] == whole["sample_ids"]
        for key in ("images", "labels", "structures", "cell_counts", "jitter"):
            assert torch.equal(torch.cat([parts[0][key], parts[1][key]]), whole[key])


def test_seed_and_position_change_the_draws(store: Path) -> None:
    config = DataConfig(store=store, crop=96, num_workers=0)
    one, two = (TrainSamples(config, (), False, seed=seed) for seed in (0, 1))
    assert [one.order(p) for p in range(7)] != [two.order(p) for p in range(7)]
    epochs = [next(p for p in range(7 * epoch, 7 * epoch + 7) if one.order(p) == 4) for epoch in range(8)]
    batch = one.batch(epochs)
    assert len(set(batch["sample_ids"])) == 1  # one sample, eight times
    assert len({tuple(row) for row in batch["jitter"].tolist()}) == 8
    assert len({image.tobytes() for image in batch["images"].numpy()}) > 1
    assert one.batch([0])["cell_counts"].shape == (1, 0, 12, 12)
    assert one.batch([0])["structures"].shape == (1, 0, 96, 96)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_a_structure_that_is_not_cached_names_the_repair(store: Path) -> None:
    with pytest.raises(TrainDataError, match="wants superpoint, the store has labels") as caught:
        TrainSamples(DataConfig(store=store, crop=96), ("superpoint",), True, seed=0)
    assert "--structures superpoint" in (caught.value.hint or "")


def test_an_array_that_is_no_structure_to_learn_is_refused(store: Path) -> None:
    with pytest.raises(TrainDataError, match="cell_classes cannot be predicted, only canny, sift"):
        TrainSamples(DataConfig(store=store, crop=96), ("canny", "cell_classes"), False, seed=0)


def test_crop_larger_than_the_frame_or_the_canvas(store: Path) -> None:
    with pytest.raises(TrainDataError, match="crop is 104 px, but the store's short edge is 96 px"):
        open_store(store, crop=104)
    with pytest.raises(TrainDataError, match="crop is 384 px, but the store's canvas is 192 px") as caught:
        open_store(store, crop=384)
    assert "Set data.crop to at most 96" in (caught.value.hint or "")


def test_missing_samples_are_counted(store: Path) -> None:
    shutil.rmtree(store / "status/c")
    with pytest.raises(StoreIncompleteError, match="7 of 7 samples have not been computed") as caught:
        open_store(store)
    assert "physseg preprocess" in (caught.value.hint or "")


def test_quarantined_samples_are_left_out_and_zero_usable_is_refused(
    make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = make_manifest(3, sizes=((96, 96),))
    (Path(manifest.root) / "images/001.jpg").write_bytes(b"not a picture")
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(manifest, tmp_path / "one.zarr", frame=frame, scheduler="sync", progress=False)
    samples = TrainSamples(DataConfig(store=tmp_path / "one.zarr", crop=96, num_workers=0), (), False, seed=0)
    assert {name for batch in walk(samples, stop=4) for name in batch["sample_ids"]} == {"000", "002"}
    for name in ("000", "002"):
        (Path(manifest.root) / f"images/{name}.jpg").unlink()
    preprocess(manifest, tmp_path / "none.zarr", frame=frame, scheduler="sync", progress=False)
    with pytest.raises(TrainDataError, match="no usable sample: all 3 are quarantined"):
        TrainSamples(DataConfig(store=tmp_path / "none.zarr", crop=96), (), False, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanished_stops_with_one_line(store: Path, train_manifest: Manifest, workers: int) -> None:
    """An error in a worker arrives as itself, not as its traceback's text."""
    (Path(train_manifest.root) / "images/002.jpg").unlink()
    with pytest.raises(ContentError) as caught:
        walk(open_store(store, num_workers=workers), stop=7, size=1)
    assert isinstance(caught.value, PhyssegError)
    assert str(caught.value).startswith("sample 002: images/002.jpg: expected a readable file")
    assert "Traceback" not in str(caught.value)


READS_FOR_EVER = """
import time
from pathlib import Path
from physseg.train.data.dataset import DataConfig, batches, TrainSamples
from physseg.train.data.order import PositionBatches
samples = TrainSamples(DataConfig(store=Path({store!r}), crop=96, num_workers=2), (), False, seed=0)
for batch in batches(samples, PositionBatches(start=0, stop=1000, batch_size=1)):
    print("a batch")
    time.sleep(0.1)
"""


def test_workers_end_with_a_training_that_is_killed(store: Path, tmp_path: Path) -> None:
    with Forked(READS_FOR_EVER.format(store=str(store)), tmp_path / "output.txt") as training:
        training.wait_for_text("a batch")
        assert len(training.group()) > 2
        training.kill()
        training.wait_until_gone()


def test_a_worker_that_is_killed_is_an_error_of_one_line(store: Path) -> None:
    walked = batches(open_store(store, num_workers=1), PositionBatches(start=0, stop=100, batch_size=1))
    next(walked)
    (worker,) = (child for child in multiprocessing.active_children() if child.is_alive())
    worker.kill()
    with pytest.raises(TrainDataError, match=r"^a data worker died: \w+Error"):
        list(walked)


def test_moved_images_are_found_under_another_root(store: Path, train_manifest: Manifest) -> None:
    root = Path(train_manifest.root)
    moved = root.rename(root.with_name("elsewhere"))
    assert len(walk(open_store(store, images=str(moved)), stop=1)) == 1


def test_an_image_of_another_size_is_named(store: Path, train_manifest: Manifest) -> None:
    samples = open_store(store)
    samples.reader._column_cache["frame_size"] = np.full((7, 2), 96, np.uint16)
    with pytest.raises(TrainDataError, match=r"sample 00\d: the image's frame is .* px, the store's 96x96"):
        walk(samples, stop=7, size=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop": 100}, "[data] crop must be a positive multiple of 8 px, got 100"),
        ({"flip": 1.5}, "[data] flip: expected a number in [0, 1]"),
        ({"num_workers": -1}, "[data] num_workers: expected a number in [0, 1024]"),
        ({"crop": 80}, "losses.lambda_sac with the 6x6 patches of tinier needs a multiple of 48"),
    ],
)
def test_bad_settings(make_config: Callable[..., TrainConfig], data: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(data=data)
    assert message in str(caught.value)
