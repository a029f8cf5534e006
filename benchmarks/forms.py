"""The ways of keeping computed samples that the benchmarks compare: our store, other readers of it, other formats.

A form knows how to write itself into a folder and how to read samples back; all hold the same values. What their user
could do at best: formats whose samples may differ in size get the arrays at frame size (they need no canvas), those
that pack samples into shards get the JPEG's bytes beside them (one file less to open), and where they compress, it is
zstd at our level, without a checksum, by the fastest binding known.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import zstandard
from data import ARRAYS
from physseg.manifests.decoding import decode_image
from physseg.pipeline.store.frame import CELL_PX
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import SAMPLES_PER_SHARD
from physseg.pipeline.store.shard_codec import ZSTD_LEVEL

Planes = dict[str, npt.NDArray[Any]]
Sample = tuple[npt.NDArray[np.uint8] | None, Iterable[tuple[str, npt.NDArray[Any]]]]
"""Image (H, W, 3) uint8 RGB as decoded, or None where only arrays were asked for, and the arrays, one after the other:
what was cut from one is kept, the rest gives its memory to the next."""

SLOTS = 8


@dataclass
class Form:
    """A data set in one form; opens its files where it first reads, so that it pickles and survives forkserver."""

    folder: Path
    with_image: bool = True

    name: ClassVar[str]
    how: ClassVar[str]
    """How it is kept and read, for the reader of the table."""
    random_access: ClassVar[bool] = True

    def __len__(self) -> int:
        raise NotImplementedError

    def prepare(self, indices: Sequence[int], bottom: Callable[[int, tuple[int, int]], int]) -> None:
        """Told of a batch before its samples are read. `bottom(place in the batch, frame size)` is one past the last
        row wanted of the sample's pixel arrays."""

    def read(self, index: int) -> Sample:
        raise NotImplementedError

    def stream(self) -> Iterator[Sample]:
        """All samples in the form's own random order; for forms without random access."""
        raise NotImplementedError

    def image(self, jpeg: bytes) -> npt.NDArray[np.uint8] | None:
        return decode_image(jpeg) if self.with_image else None


# --- the store, and other readers of it -----------------------------------------------------------------------------


@dataclass
class OurStore(Form):
    name = "physseg"
    how = "the store, by the trainer's own calls"
    reader: StoreReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = StoreReader(self.folder, ARRAYS)

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> Sample:
        return self.photograph(index), self.reader.planes(index)

    def photograph(self, index: int) -> npt.NDArray[np.uint8] | None:
        return self.reader.manifest.load_image(index) if self.with_image else None


@dataclass
class JpegAlone(OurStore):
    name = "JPEG alone"
    how = "no arrays at all: what any reader can reach at best"

    def read(self, index: int) -> Sample:
        return self.photograph(index), ()


@dataclass
class ZarrPython(OurStore):
    name = "zarr-python"
    how = "the store"
    _arrays: Any = None

    def read(self, index: int) -> Sample:
        if self._arrays is None:
            import zarr

            group = zarr.open_group(self.folder, mode="r")
            self._arrays = {name: group[name] for name in ARRAYS}
        return self.photograph(index), ((name, array[index]) for name, array in self._arrays.items())


@dataclass
class TensorStore(OurStore):
    name = "TensorStore"
    how = "the store, a batch at a time as an index array, only the rows wanted"
    _arrays: Any = None
    _batch: dict[int, Planes] = field(default_factory=dict)

    def prepare(self, indices: Sequence[int], bottom: Callable[[int, tuple[int, int]], int]) -> None:
        self._fetch(indices, max(bottom(place, self.reader.frame_size(index)) for place, index in enumerate(indices)))

    def _fetch(self, indices: Sequence[int], rows: int | None) -> None:
        if self._arrays is None:
            self._arrays = self._open()
        which = np.array(indices)
        reads = {
            name: (array[which, :rows] if self.reader.schema.spec(name).dims == ("y", "x") else array[which]).read()
            for name, array in self._arrays.items()
        }
        arrays = {name: read.result() for name, read in reads.items()}
        self._batch = {index: {name: array[row] for name, array in arrays.items()} for row, index in enumerate(indices)}

    def read(self, index: int) -> Sample:
        if index not in self._batch:
            self._fetch([index], None)
        return self.photograph(index), self._batch.pop(index).items()

    def _open(self) -> dict[str, Any]:
        import tensorstore

        folders = {name: {"driver": "file", "path": f"{self.folder.resolve()}/{name}/"} for name in ARRAYS}
        specs = {name: {"driver": "zarr3", "kvstore": folder} for name, folder in folders.items()}
        return {name: tensorstore.open(spec, read=True).result() for name, spec in specs.items()}


# --- other formats --------------------------------------------------------------------------------------------------


@dataclass
class MdsRaw(Form):
    name = "MosaicML MDS, raw"
    how = "arrays uncompressed, random access"

    def __post_init__(self) -> None:
        from streaming import StreamingDataset

        # Its workers attach to shared memory that the main process makes, so it must be opened there.
        self.dataset = StreamingDataset(local=str(self.folder), batch_size=1)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        sample = self.dataset[index]
        return self.image(sample["jpeg"]), ((name, sample[name]) for name in ARRAYS)

    @classmethod
    def write(cls, folder: Path, samples: Iterable[tuple[bytes, Planes]]) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns=cls.columns()) as writer:
            for jpeg, planes in samples:
                writer.write({"jpeg": jpeg, **cls.encode(planes)})

    @staticmethod
    def columns() -> dict[str, str]:
        return {"jpeg": "bytes", **dict.fromkeys(ARRAYS, "ndarray:uint8")}

    @staticmethod
    def encode(planes: Planes) -> dict[str, Any]:
        return dict(planes)


@dataclass
class MdsZstd(MdsRaw):
    name = "MosaicML MDS, zstd"
    how = "arrays as zstd bytes, random access"

    def read(self, index: int) -> Sample:
        sample = self.dataset[index]
        return self.image(sample["jpeg"]), unpack(sample)

    @staticmethod
    def columns() -> dict[str, str]:
        return {"jpeg": "bytes", **dict.fromkeys((*ARRAYS, "size"), "bytes")}

    @staticmethod
    def encode(planes: Planes) -> dict[str, Any]:
        return pack(planes)


@dataclass
class LitData(Form):
    """Its random access opens a chunk anew whenever the chunk changes, so it streams, as it is meant to be used."""

    name = "LitData, zstd"
    how = "arrays as zstd bytes, streamed with its own shuffling"
    random_access = False
    _dataset: Any = None

    def stream(self) -> Iterator[Sample]:
        if self._dataset is None:
            from litdata import StreamingDataset

            self._dataset = StreamingDataset(str(self.folder), shuffle=True)
        for sample in self._dataset:
            yield self.image(sample["jpeg"]), unpack(sample)

    @staticmethod
    def write(folder: Path, samples: Iterable[tuple[bytes, Planes]]) -> None:
        from litdata.streaming.cache import Cache

        cache = Cache(str(folder), chunk_size=SAMPLES_PER_SHARD)
        for index, (jpeg, planes) in enumerate(samples):
            cache._add_item(index, {"jpeg": jpeg, **pack(planes)})
        cache.done()
        cache.merge()


@dataclass
class WebDataset(Form):
    name = "WebDataset, zstd"
    how = "arrays as zstd bytes in tar files, streamed through a shuffle buffer of 100"
    random_access = False

    def stream(self) -> Iterator[Sample]:
        import webdataset

        shards = sorted(map(str, self.folder.glob("*.tar")))
        for sample in webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(100):
            yield self.image(sample["jpg"]), unpack(sample)

    @staticmethod
    def write(folder: Path, samples: Iterable[tuple[bytes, Planes]]) -> None:
        import webdataset

        folder.mkdir(parents=True)
        with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=SAMPLES_PER_SHARD // 2, verbose=0) as writer:
            for index, (jpeg, planes) in enumerate(samples):
                writer.write({"__key__": f"{index:06d}", "jpg": jpeg, **pack(planes)})


@dataclass
class PngFiles(Form):
    """A folder per array, a PNG per sample; the slots of cell arrays one below the other."""

    name = "PNG files"
    how = "one file per array by OpenCV, random access"
    _stems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._stems = tuple(sorted(path.stem for path in (self.folder / "jpeg").glob("*.jpg")))

    def __len__(self) -> int:
        return len(self._stems)

    def read(self, index: int) -> Sample:
        return self.image((self.folder / "jpeg" / f"{self._stems[index]}.jpg").read_bytes()), self.planes(index)

    def planes(self, index: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in ARRAYS:
            plane = cv2.imread(str(self.folder / name / f"{self._stems[index]}.png"), cv2.IMREAD_UNCHANGED)
            yield name, np.asarray(plane.reshape(SLOTS, -1, plane.shape[1]) if "cell" in name else plane)

    @staticmethod
    def write(folder: Path, samples: Iterable[tuple[bytes, Planes]]) -> None:
        for name in ("jpeg", *ARRAYS):
            (folder / name).mkdir(parents=True)
        for index, (jpeg, planes) in enumerate(samples):
            for name, plane in planes.items():
                cv2.imwrite(str(folder / name / f"{index:06d}.png"), plane.reshape(-1, plane.shape[-1]))
            (folder / "jpeg" / f"{index:06d}.jpg").write_bytes(jpeg)


STORE_FORMS: tuple[type[OurStore], ...] = (OurStore, JpegAlone, TensorStore, ZarrPython)
OTHER_FORMS: tuple[type[Any], ...] = (MdsZstd, MdsRaw, LitData, WebDataset, PngFiles)


def write_forms(store: Path, folder: Path) -> dict[str, Path]:
    """Write all other formats from a store; their folders by class name."""
    samples = list(samples_of(store))
    folders = {form.__name__: folder / form.__name__ for form in OTHER_FORMS}
    for form in OTHER_FORMS:
        form.write(folders[form.__name__], samples)
    return folders


# --- the payload of formats without arrays of their own -------------------------------------------------------------


_DECOMPRESSOR = zstandard.ZstdDecompressor()


def pack(planes: Planes) -> dict[str, bytes]:
    """Each array as zstd bytes, and the frame's size."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    packed = {name: compressor.compress(plane.tobytes()) for name, plane in planes.items()}
    return packed | {"size": struct.pack("<HH", *planes["labels"].shape)}


def unpack(sample: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    height, width = struct.unpack("<HH", sample["size"])
    cells = SLOTS, -(-height // CELL_PX), -(-width // CELL_PX)
    for name in ARRAYS:
        flat = np.frombuffer(_DECOMPRESSOR.decompress(sample[name]), np.uint8)
        yield name, flat.reshape(cells if "cell" in name else (height, width))


def samples_of(store: Path) -> Iterator[tuple[bytes, Planes]]:
    """JPEG bytes and arrays at frame size of every sample of a store."""
    reader = StoreReader(store, ARRAYS)
    for index in reader.usable.tolist():
        height, width = reader.frame_size(index)
        sizes = {"y": height, "x": width, "cell_y": -(-height // CELL_PX), "cell_x": -(-width // CELL_PX)}
        planes = {}
        for name, plane in reader.read(index).items():
            rows, columns = (sizes[dim] for dim in reader.schema.spec(name).dims[-2:])
            planes[name] = np.ascontiguousarray(plane[..., :rows, :columns])
        sample = reader.manifest.samples[index]
        yield (Path(reader.manifest.root) / sample.image_path).read_bytes(), planes
