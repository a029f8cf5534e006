"""`physseg.StoreDataset`: the trainer's samples in PyTorch's own DataLoader."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import physseg
import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.train.data.dataset import Batch, DataConfig, TrainSamples
from physseg.train.errors import TrainDataError
from torch.utils.data import DataLoader, DistributedSampler

TENSORS = set(Batch.__required_keys__) - {"sample_ids"}


def dataset(store: Path, **options: Any) -> "physseg.StoreDataset":
    return physseg.StoreDataset(store, **{"crop": 96, "structures": ("canny", "sift"), "seed": 3, **options})


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys() == set(Batch.__required_keys__)
    assert ours["sample_ids"] == theirs["sample_ids"]
    for key in TENSORS:
        assert ours[key].dtype == theirs[key].dtype
        assert torch.equal(ours[key], theirs[key])


def test_collated_items_are_the_trainers_batch_of_the_same_seed_and_positions(store: Path) -> None:
    trainer = TrainSamples(DataConfig(store=str(store), crop=96), ("canny", "sift"), cells=True, seed=3)
    ours = dataset(store)
    assert len(ours) == 7
    for epoch in (0, 2):
        ours.set_epoch(epoch)
        batches = list(DataLoader(ours, batch_size=3))
        for first, batch in zip((0, 3, 6), batches, strict=True):
            positions = [7 * epoch + index for index in range(first, min(first + 3, 7))]
            assert_equal(batch, trainer.batch(positions))


def test_one_item(store: Path) -> None:
    item = dataset(store)[0]
    shapes = {key: (item[key].dtype, tuple(item[key].shape)) for key in TENSORS}
    assert shapes == {
        "images": (torch.uint8, (3, 96, 96)),
        "labels": (torch.uint8, (96, 96)),
        "structures": (torch.uint8, (2, 96, 96)),
        "valid": (torch.bool, (96, 96)),
        "cell_classes": (torch.uint8, (8, 12, 12)),
        "cell_counts": (torch.uint8, (8, 12, 12)),
        "jitter": (torch.float32, (5,)),
        "positions": (torch.int64, ()),
    }
    assert isinstance(item["sample_ids"], str)


def test_defaults_are_the_trainers(store: Path) -> None:
    with pytest.raises(TrainDataError, match="crop is 384 px"):
        physseg.StoreDataset(store)
    ours = physseg.StoreDataset(physseg.open_store(store), crop=96)
    trainer = TrainSamples(DataConfig(store=str(store), crop=96), ("canny",), cells=True, seed=0)
    assert_equal(DataLoader(ours, batch_size=7).__iter__().__next__(), trainer.batch(range(7)))


def test_ids_of_more_than_255_classes_are_int32(train_manifest: Manifest, tmp_path: Path) -> None:
    words = Vocabulary(name="many", classes=tuple(f"class {index}" for index in range(300)))
    manifest = replace(train_manifest, vocabulary=words, raw_to_class={raw: 295 + raw for raw in range(5)})
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(manifest, tmp_path / "many.zarr", structures=["canny"], frame=frame, scheduler="sync", progress=False)
    batch = next(iter(DataLoader(physseg.StoreDataset(tmp_path / "many.zarr", crop=96), batch_size=7)))
    assert batch["labels"].dtype == batch["cell_classes"].dtype == torch.int32
    assert set(batch["labels"].unique().tolist()) <= {*range(295, 300), 65535}
    assert 65535 in batch["labels"]


def test_a_structure_of_classes_comes_beside_the_maps(train_manifest: Manifest, store: Path) -> None:
    names = ("semantic_edges", "sift", "canny")
    preprocess(train_manifest, store, structures=["canny", "sift", "semantic_edges"], scheduler="sync", progress=False)
    ours, planes = dataset(store, structures=names, flip=0), physseg.open_store(store)
    batch = next(iter(DataLoader(ours, batch_size=7)))
    assert torch.equal(batch["structures"], next(iter(DataLoader(dataset(store, flip=0), 7)))["structures"].flip(1))
    square = batch["sample_ids"].index("002")  # 96 x 96 px: the crop is all of it
    stored = planes["002"].arrays["semantic_edges"]
    assert batch["structure_classes"].shape == (7, 1, *stored.shape)
    assert torch.equal(batch["structure_classes"][square, 0], torch.from_numpy(stored))


def test_it_ends_and_counts_from_the_end(store: Path) -> None:
    ours = dataset(store)
    assert sorted(item["sample_ids"] for item in ours) == [f"{index:03d}" for index in range(7)]
    assert ours[-1]["positions"] == 6
    with pytest.raises(IndexError):
        ours[7]


def test_an_epoch_reaches_workers_that_are_running(store: Path) -> None:
    ours, alone = dataset(store), dataset(store)
    _ = ours[0]  # read here before workers are forked
    loader = DataLoader(ours, batch_size=3, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (0, 1, 0):
        ours.set_epoch(epoch)
        alone.set_epoch(epoch)
        for batch, expected in zip(loader, DataLoader(alone, batch_size=3), strict=True):
            assert_equal(batch, expected)


def test_every_epoch_crops_anew(store: Path) -> None:
    ours = dataset(store)
    seen: dict[str, set[bytes]] = {}
    for epoch in range(4):
        ours.set_epoch(epoch)
        items = list(ours)
        assert {item["sample_ids"] for item in items} == {f"{index:03d}" for index in range(7)}
        for item in items:
            seen.setdefault(item["sample_ids"], set()).add(item["images"].numpy().tobytes())
    assert max(len(images) for images in seen.values()) == 4


def test_ranks_share_the_trainers_positions(store: Path) -> None:
    ours = dataset(store)
    ours.set_epoch(1)
    shares = [DistributedSampler(ours, num_replicas=2, rank=rank, shuffle=False) for rank in range(2)]
    positions = [int(batch["positions"]) for share in shares for batch in DataLoader(ours, None, sampler=share)]
    assert set(positions) == set(range(7, 14))


def test_a_copy_keeps_the_epoch_and_has_its_own(store: Path) -> None:
    ours = dataset(store)
    ours.set_epoch(2)
    copy = pickle.loads(pickle.dumps(ours))
    assert_equal(copy[1], ours[1])
    copy.set_epoch(0)
    assert (int(copy[1]["positions"]), int(ours[1]["positions"])) == (1, 15)


def test_what_does_not_fit_is_one_line(store: Path) -> None:
    with pytest.raises(TrainDataError, match="superpoint"):
        dataset(store, structures=["superpoint"])
    with pytest.raises(ConfigError, match="multiple of 8"):
        dataset(store, crop=100)
    with pytest.raises(ConfigError, match="flip"):
        dataset(store, flip=2)
    with pytest.raises(ConfigError, match=r"StoreDataset\.crop"):
        dataset(store, crop=96.0)
    with pytest.raises(ConfigError, match="seed"):
        dataset(store, seed=-1)


def test_a_relative_path_and_a_structure_by_itself(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    ours = dataset(Path(store.name), structures="sift")
    monkeypatch.chdir("/")
    assert torch.equal(ours[0]["structures"], dataset(store)[0]["structures"][1:])
