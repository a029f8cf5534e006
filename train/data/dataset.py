"""Training data: positions of a run to batches, from the store's arrays and the images' files.

The dataset is indexed by *lists of positions* (see order.py), one list per batch, and returns a collated batch: each
sample is cropped straight into its place, so nothing larger than the crop leaves a worker.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...common.errors import ConfigError
from ...common.loader import load_batches
from ...common.processes import keep_freed_memory
from ...common.settings import PathText, check_ranges
from ...common.storage.content_cache import ContentCache
from ...common.text import preview
from ...pipeline.store.errors import StoreIncompleteError
from ...pipeline.store.frame import CELL_PX
from ...pipeline.store.reader import StoreReader
from ...pipeline.store.schema import DONE, MISSING, QUARANTINED, StoreSchema
from ..errors import TrainDataError
from .augment import NEUTRAL, draw_jitter
from .crop import CropWindow
from .order import PositionBatches, Purpose, SampleOrder, random_bits, uniforms


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where training samples come from and how they are cut. Raises ConfigError for values out of their range."""

    store: PathText
    """The store that `physseg preprocess` wrote: a folder or a URL."""
    images: PathText | None = None
    """Root folder or URL of the images, where they have moved since the manifest was made, or where their files are to
    be read although the store has the layer `image`."""
    cache: Path | None = None
    """Local folder that keeps what is read of a store or images by URL; without it, every epoch reads them again."""
    verify: bool = True
    """Whether a loader process compares each image with the manifest's hash when it first reads it (0.1 ms)."""
    crop: int = 0
    """Side of the square training crop in pixels of the store's frame; a multiple of 8. 0 takes 16 px for each patch of
    the model: 384 for 24x24."""
    flip: float = 0.5
    """Probability of mirroring a sample."""
    jitter: bool = True
    """Whether images get the colour jitter of SSD (augment.py)."""
    num_workers: int = 2
    """Number of loader processes; 0 loads in the training process. Batches do not depend on it."""
    prefetch: int = 4
    """Number of batches that each loader process keeps ready."""

    def __post_init__(self) -> None:
        if self.crop < 0 or self.crop % CELL_PX:
            raise ConfigError(f"crop must be a positive multiple of {CELL_PX} px, got {self.crop}")
        check_ranges(self, flip="[0, 1]", num_workers="[0, 1024]", prefetch="[1, 1024]")


CELL_ARRAYS = ("cell_classes", "cell_counts")


class Batch(TypedDict):
    """One rank's share of a step. B samples of side S = crop; K slots; C = S / 8 cells."""

    images: Tensor  # (B, 3, S, S) uint8 RGB; 128 outside the image
    labels: Tensor  # (B, S, S) uint8 or int32 (int64 on the device) class ids; ignore index outside
    structures: Tensor  # (B, num_maps, S, S) uint8, those of the model's structures that are maps, in its order
    structure_classes: NotRequired[Tensor]  # (B, num_others, P, S, S) like labels: those of classes, P planes; if any
    valid: Tensor  # (B, S, S) bool, inside the image
    cell_classes: Tensor  # (B, K, C, C) like labels; K = 0 where the alignment loss is off
    cell_counts: Tensor  # (B, K, C, C) uint8
    jitter: Tensor  # (B, J) float32, parameters of the colour jitter
    positions: Tensor  # (B,) int64
    sample_ids: list[str]


class TrainSamples:
    """Batches by list of positions. Cheap to pickle; store and images are opened where they are read."""

    def __init__(self, config: DataConfig, structures: Sequence[str], cells: bool, seed: int) -> None:
        """Open the training samples of a store; a batch holds `structures`, and with `cells` class counts.

        Raises:
            TrainDataError: The store has not what the configuration wants, or no usable sample.
            StoreIncompleteError: Not all samples have been computed.
        """
        self.config, self.cells, self.seed = config, cells, seed
        self.arrays = ("labels", *structures, *(CELL_ARRAYS if cells else ()))
        schema = StoreReader(config.store, ()).schema
        targets = {spec.name: spec.target for spec in schema.arrays}
        self.of_classes = tuple(name for name in structures if targets.get(name) == "classes")
        self.structures = tuple(sorted(structures, key=self.of_classes.__contains__))
        self._check_arrays(schema)
        self.cache = ContentCache(config.cache) if config.cache else None
        self.reader = StoreReader(config.store, self.arrays, root=config.images, cache=self.cache, images=True)
        self._check_classes()
        self._check_status()
        self.usable = self.reader.usable
        self._unverified = np.full(len(self.reader), config.verify)
        self.order = SampleOrder(seed, len(self.usable))

    @property
    def quarantined(self) -> list[str]:
        """Ids of the samples that training leaves out."""
        status, samples = self.reader.status, self.reader.manifest.samples
        return [samples[int(index)].sample_id for index in np.flatnonzero(status == QUARANTINED)]

    @property
    def structure_classes(self) -> tuple[int, ...] | None:
        """Number of classes of each of `structures`, whose maps come first; see SegmenterConfig.structure_classes."""
        number = len(self.reader.vocabulary.classes)
        return tuple(number * (name in self.of_classes) for name in self.structures) if self.of_classes else None

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to resume: the same samples, in the same classes, with the same arrays."""
        schema, picture = self.reader.schema, self.reader.picture
        # The pixels of lossless images are those of the files, JPEGs of frames have others.
        read = (*self.arrays, picture.name) if picture and picture.dims == ("byte",) else self.arrays
        return {
            "dataset": schema.dataset,
            "manifest": schema.manifest_fingerprint,
            "vocabulary": schema.vocabulary.fingerprint,
            "num_usable": len(self.usable),
            "layers": {layer: schema.layer_digest(layer) for layer in sorted(map(schema.layer_of, read))},
        }

    def batch(self, positions: Sequence[int]) -> Batch:
        """The batch of these positions: a function of store, images, settings, seed and positions alone."""
        batch: Any = self.empty(len(positions))
        rows = {name: part.numpy() for name, part in batch.items() if isinstance(part, Tensor)}
        rows["positions"][:] = positions
        for row, position in enumerate(positions):
            out = {name: array[row] for name, array in rows.items()}
            batch["sample_ids"][row] = self._sample(position, out)
        return batch  # type: ignore[no-any-return]

    def empty(self, number: int) -> Batch:
        """A batch of that many samples whose shapes and dtypes alone mean something; nothing is read."""
        schema, side = self.reader.schema, self.config.crop
        cells, ids = side // CELL_PX, torch.uint8 if schema.vocabulary.label_dtype == "uint8" else torch.int32
        slots = {name: schema.sample_shape(schema.spec(name))[0] for name in self.arrays if name != "labels"}
        cell_shape = (slots.get("cell_classes", 0), cells, cells)
        planes = max((slots[name] for name in self.of_classes), default=0)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "images": ((3, side, side), torch.uint8),
            "labels": ((side, side), ids),
            "structures": ((len(self.structures) - len(self.of_classes), side, side), torch.uint8),
            "valid": ((side, side), torch.bool),
            "cell_classes": (cell_shape, ids if self.cells else torch.uint8),
            "cell_counts": (cell_shape, torch.uint8),
            "jitter": ((len(NEUTRAL),), torch.float32),
            "positions": ((), torch.int64),
        }
        if self.of_classes:
            shapes["structure_classes"] = ((len(self.of_classes), planes, side, side), ids)
        tensors: Any = {name: torch.empty(number, *shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        return tensors | {"sample_ids": [""] * number}  # type: ignore[no-any-return]

    def _sample(self, position: int, out: Mapping[str, npt.NDArray[Any]]) -> str:
        """Cut a sample into its place in a batch; its id."""
        index = int(self.usable[self.order(position)])
        image = self.reader.image(index, verify=bool(self._unverified[index]))
        self._unverified[index] = False
        size = self.reader.frame_size(index)
        sample_id: str = self.reader.manifest.table.value("sample_id", index)
        if image.shape[:2] != size:
            ours, theirs = f"{image.shape[0]}x{image.shape[1]}", f"{size[0]}x{size[1]} (height x width)"
            hint = "The image was replaced after `physseg preprocess`: make the manifest again and re-run it."
            raise TrainDataError(f"sample {sample_id}: the image's frame is {ours} px, the store's {theirs}", hint=hint)
        draws = uniforms(self.seed, Purpose.CROP, position, 3)
        window = CropWindow.draw(draws, size, size=self.config.crop, flip_probability=self.config.flip)
        window.cut_image(image, out["images"])
        del image  # the next array then lies in the same memory, still in cache
        maps = [name for name in self.structures if name not in self.of_classes]
        parts = {**out, **dict(zip(maps, out["structures"], strict=True))}
        if self.of_classes:
            out["structure_classes"][:] = self.reader.vocabulary.ignore_index  # in planes that only others have
            parts |= dict(zip(self.of_classes, out["structure_classes"], strict=True))
        for name, plane in self.reader.planes(index):
            if name in CELL_ARRAYS:
                window.cut_cells(plane, out[name])
            else:
                window.cut(plane, parts[name][: len(plane)] if name in self.of_classes else parts[name])
            del plane
        out["valid"][:] = window.inside(size)
        out["jitter"][:] = draw_jitter(np.random.Generator(random_bits(self.seed, Purpose.JITTER, position)))
        return sample_id

    def _check_arrays(self, schema: StoreSchema) -> None:
        """Refuse a store without the arrays or the size that the configuration wants."""
        store, crop, frame = self.config.store, self.config.crop, schema.frame
        if missing := [name for name in self.arrays if name not in schema.array_names]:
            raise TrainDataError(
                f"{store}: the configuration wants {', '.join(missing)}, the store has {', '.join(schema.array_names)}",
                hint=f"Run `physseg preprocess MANIFEST {store} --structures {','.join(missing)}`, or name other "
                "structures (`model.structures`).",
            )
        targets = [spec.name for spec in schema.arrays if spec.is_target]
        if unfit := [name for name in self.structures if name not in targets]:
            message = f"{store}: {', '.join(unfit)} cannot be predicted, only {', '.join(targets)}"
            raise TrainDataError(message, hint="Change model.structures.")
        if crop > frame.short_edge:
            limit = f"canvas is {frame.canvas} px" if crop > frame.canvas else f"short edge is {frame.short_edge} px"
            padded = f"{store}: data.crop is {crop} px, but the store's {limit}: every crop would be padded"
            largest = frame.short_edge // CELL_PX * CELL_PX
            hint = f"Set data.crop to at most {largest}, or preprocess into a new store with --short-edge {crop}."
            raise TrainDataError(padded, hint=hint)

    def _check_status(self) -> None:
        """Refuse a store that is not computed to the end, or has nothing to train on."""
        store, status = self.config.store, self.reader.status
        if missing := int((status == MISSING).sum()):
            hint = f"Run `physseg preprocess MANIFEST {store}` to the end; it resumes where it stopped."
            counts = f"{missing} of {len(self.reader)} samples"
            raise StoreIncompleteError(f"{store}: {counts} have not been computed", hint=hint)
        if not (status == DONE).any():
            hint, count = f"`physseg inspect {store}` tells why.", int((status == QUARANTINED).sum())
            raise TrainDataError(f"{store}: no usable sample: all {count} are quarantined", hint=hint)

    def _check_classes(self) -> None:
        """Refuse labels whose background has no text of its own: the losses would teach it the first word for it."""
        vocabulary = self.reader.vocabulary
        if vocabulary.fold_from is not None:
            words = vocabulary.prompt_names[vocabulary.fold_from :]
            expected = "one text for each class to train on"
            got = f"{vocabulary.name}, whose background has {len(words)} ({preview(words, 2)})"
            hint = (
                f"Evaluate on {vocabulary.name} and train on a store of another vocabulary, such as `pascal-voc-20` "
                "(background ignored) or `pascal-voc-21` (background prompted as such)."
            )
            raise TrainDataError.mismatch(self.config.store, expected, got, hint=hint)


def batches(samples: TrainSamples, sampler: PositionBatches, *, pin_memory: bool = False) -> Iterator[Batch]:
    """The batches of a sampler, in order. Raises what a worker met; TrainDataError if one died."""
    hint = "usually memory: lower data.num_workers or data.prefetch"
    return load_batches(
        samples.batch,
        sampler,
        num_workers=samples.config.num_workers,
        prefetch=samples.config.prefetch,
        pin_memory=pin_memory,
        start_worker=_start_worker,
        death=TrainDataError("a data worker died", hint=hint),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, with class ids as int64; they travel as small integers."""
    moved: dict[str, Any] = dict(batch)
    for key, value in batch.items():
        if isinstance(value, Tensor):
            moved[key] = value.to(device, non_blocking=True)
    moved |= {key: moved[key].long() for key in ("labels", "cell_classes")}
    return moved  # type: ignore[return-value]


def _start_worker() -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
