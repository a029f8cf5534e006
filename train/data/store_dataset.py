"""Training samples for anybody's loop: a map-style PyTorch Dataset over a store; what `physseg.StoreDataset` is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import Dataset, get_worker_info

from ...common.errors import ConfigError
from ...common.settings import build
from ...pipeline.store.open_store import Store
from .dataset import DataConfig, TrainSamples


class StoreDataset(Dataset[dict[str, Any]]):
    """Random crops of a store's samples and their images: what `physseg train` sees of the same seed and position.

    Item `i` of epoch `e` is the trainer's position `e * len(dataset) + i`: each epoch is a permutation of its own with
    crops of its own, so a DataLoader need not shuffle. Call `set_epoch(e)` before the loader is iterated; it reaches
    workers that are running, too (`persistent_workers`).

    An item is a dict with the keys of `Batch`, for one sample of side S = `crop`, with C = S / 8 cells and K slots:

    * `images` (3, S, S) uint8 RGB, 128 outside the image; `valid` (S, S) bool, inside the image.
    * `labels` (S, S) uint8, or int32 where the store has uint16: PyTorch indexes by `labels.long()`.
    * `structures` (number of maps, S, S) uint8, 0..255, in the given order.
    * `structure_classes` (number of others, planes, S, S) like labels, only where a structure is one of classes.
    * `cell_classes` (K, C, C) like labels, `cell_counts` (K, C, C) uint8: for `patch_weights`.
    * `jitter` (5,) float32, `color_jitter`'s numbers; `positions` () int64; `sample_ids`, the id.
    """

    def __init__(
        self,
        store: str | Path | Store,
        crop: int = 384,
        structures: str | Sequence[str] = ("canny",),
        flip: float = 0.5,
        seed: int = 0,
        *,
        images: str | None = None,
    ) -> None:
        """Open the usable samples of a store that is computed to the end.

        Args:
            store: Its folder or URL, or what `physseg.open_store` gave.
            crop: Side of the crop in px of the store's frame; a multiple of 8.
            structures: Names of the structure maps; one may stand alone.
            flip: Probability of mirroring a sample.
            seed: Seed of order, crops, flips and jitter.
            images: Root folder or URL of the images, where they have moved since the manifest was made, or where their
                files are to be read although the store has the layer `image`.

        Raises:
            ConfigError: A value is out of its range.
            TrainDataError: The store lacks a structure, is smaller than the crop or has no usable sample.
            StoreIncompleteError: Not all samples have been computed.
        """
        path = store.path if isinstance(store, Store) else str(store)
        values = {"store": path, "images": images, "crop": crop, "flip": flip}
        config = build(DataConfig, values, base=Path.cwd(), where="StoreDataset")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2^63), got {seed}")
        names = (structures,) if isinstance(structures, str) else structures
        self._samples = TrainSamples(config, names, cells=True, seed=seed)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and crops the items have; in every process that has this dataset."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._samples.usable)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if get_worker_info() is not None:
            cv2.setNumThreads(1)  # the loader's processes share the cores
        position = int(self._epoch) * len(self) + range(len(self))[index]
        return {key: values[0] for key, values in self._samples.batch([position]).items()}  # type: ignore[index]
