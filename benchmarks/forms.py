"""The ways of keeping computed samples that the benchmarks compare: our store, other readers of it, other formats.

A form knows how to write itself into a folder and how to read samples back; all hold the same values. What their user
could do at best: formats whose samples may differ in size get the arrays at frame size (they need no canvas), those
that pack samples into shards get the image's bytes beside them (one file less to open), and where they compress, it is
zstd at our levels, without a checksum, by the fastest binding known. Each is there twice: with the original JPEG, which
is decoded and resized, and with the frame's pixels, as our layer `image` has them.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import zstandard
from data import ARRAYS
from physseg.manifests.decoding import decode_image
from physseg.pipeline.store.frame import CELL_PX, Frame
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import SAMPLES_PER_SHARD
from physseg.pipeline.store.shard_codec import PICTURE_LEVEL, ZSTD_LEVEL, decode_index, index_size

UInt8 = npt.NDArray[np.uint8]
Planes = dict[str, npt.NDArray[Any]]
Sample = tuple[UInt8, Iterable[tuple[str, npt.NDArray[Any]]]]
"""Image (H, W, 3) uint8 RGB, as decoded or on the frame, and the arrays, one after the other: what was cut from one is
kept, the rest gives its memory to the next."""

SLOTS = 8


class Content(NamedTuple):
    """What every form holds of a sample."""

    jpeg: bytes
    frame: UInt8
    planes: Planes


@dataclass
class Form:
    """A data set in one form; opens its files where it first reads, so that it pickles and survives forkserver."""

    folder: Path
    frames: bool = False
    """Whether it holds the frame's pixels, instead of the original JPEG."""

    name: ClassVar[str]
    package: ClassVar[str]
    """Of Python, that reads it."""
    how: ClassVar[str]
    """How it is kept and read, for the reader of the table."""
    opened_by: ClassVar[str]
    """What else opens it."""
    random_access: ClassVar[bool] = True

    @property
    def title(self) -> str:
        return f"{self.name}, {'frames' if self.frames else 'originals'}"

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

    def write(self, samples: Iterable[Content]) -> None:
        raise NotImplementedError


# --- the store, and other readers of it -----------------------------------------------------------------------------


@dataclass
class OurStore(Form):
    name = "physseg"
    package = "zstandard"
    how = "the store, by the trainer's reader"
    opened_by = "zarr-python, xarray, TensorStore"
    reader: StoreReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = StoreReader(self.folder, ARRAYS, images=self.frames)

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> Sample:
        return self.photograph(index), self.reader.planes(index)

    def photograph(self, index: int) -> UInt8:
        return self.reader.image(index, verify=False) if self.frames else self.reader.manifest.load_image(index)

    @property
    def names(self) -> tuple[str, ...]:
        """Arrays that it reads."""
        return (*ARRAYS, "image") if self.frames else ARRAYS


@dataclass
class JpegAlone(OurStore):
    name = "JPEG alone"
    how = "no arrays at all: what any reader of originals can reach at best"

    def read(self, index: int) -> Sample:
        return self.photograph(index), ()


@dataclass
class BareLoop(OurStore):
    """What reading cannot do without: a system call and zstd for each array. Nothing is checked."""

    name = "bare loop"
    how = "the store's bytes: os.pread, zstd, nothing checked"
    _files: dict[tuple[str, int], tuple[int, list[list[int]]]] = field(default_factory=dict)
    _arrays: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    _sizes: list[tuple[int, int]] = field(default_factory=list)

    def read(self, index: int) -> Sample:
        if not self._files:
            self._open()
        height, width = self._sizes[index]
        planes = self._planes(*divmod(index, SAMPLES_PER_SHARD))
        return next(planes)[1][:height, :width], planes

    def _planes(self, shard: int, row: int) -> Iterator[tuple[str, UInt8]]:
        for name, shape in self._arrays:
            descriptor, extents = self._files[name, shard]
            offset, length = extents[row]
            plane = np.empty(shape, np.uint8)
            _DECOMPRESSOR.stream_reader(os.pread(descriptor, length - 4, offset)).readinto(plane)
            yield name, plane
            del plane

    def _open(self) -> None:
        schema = self.reader.schema
        self._sizes = [self.reader.frame_size(index) for index in range(len(self))]
        self._arrays = [(name, schema.sample_shape(schema.spec(name))) for name in ("image", *ARRAYS)]
        for name, _ in self._arrays:
            for shard in range(schema.num_shards):
                path = self.folder / schema.shard_file(schema.spec(name), shard)
                tail = path.read_bytes()[-index_size(SAMPLES_PER_SHARD) :]
                extents = decode_index(tail, SAMPLES_PER_SHARD, path.stat().st_size, name).tolist()
                self._files[name, shard] = os.open(path, os.O_RDONLY), extents


@dataclass
class ZarrPython(OurStore):
    name = "zarr-python"
    package = "zarr"
    how = "the store"
    _arrays: Any = None

    def read(self, index: int) -> Sample:
        if self._arrays is None:
            import zarr

            group = zarr.open_group(self.folder, mode="r")
            self._arrays = {name: group[name] for name in self.names}
        planes = ((name, self._arrays[name][index]) for name in ARRAYS)
        if not self.frames:
            return self.photograph(index), planes
        height, width = self.reader.frame_size(index)
        return self._arrays["image"][index][:height, :width], planes


@dataclass
class TensorStore(OurStore):
    name = "TensorStore"
    package = "tensorstore"
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
            name: (array[which] if "cell" in name else array[which, :rows]).read()
            for name, array in self._arrays.items()
        }
        arrays = {name: read.result() for name, read in reads.items()}
        self._batch = {index: {name: array[row] for name, array in arrays.items()} for row, index in enumerate(indices)}

    def read(self, index: int) -> Sample:
        if index not in self._batch:
            self._fetch([index], None)
        planes = self._batch.pop(index)
        if not self.frames:
            return self.photograph(index), planes.items()
        height, width = self.reader.frame_size(index)
        return planes.pop("image")[:height, :width], planes.items()

    def _open(self) -> dict[str, Any]:
        import tensorstore

        folders = {name: {"driver": "file", "path": f"{self.folder.resolve()}/{name}/"} for name in self.names}
        specs = {name: {"driver": "zarr3", "kvstore": folder} for name, folder in folders.items()}
        return {name: tensorstore.open(spec, read=True).result() for name, spec in specs.items()}


# --- other formats --------------------------------------------------------------------------------------------------


@dataclass
class MdsRaw(Form):
    name = "MosaicML MDS, raw"
    package = "mosaicml-streaming"
    how = "arrays and frame uncompressed, random access"
    opened_by = "only by its package"

    def __post_init__(self) -> None:
        self.dataset: Any = None

    def open(self) -> "MdsRaw":
        """Its workers attach to shared memory that the main process makes, so it must be opened there."""
        from streaming import StreamingDataset

        self.dataset = StreamingDataset(local=str(self.folder), batch_size=1)
        return self

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Sample:
        sample = self.dataset[index]
        image = sample["frame"] if self.frames else decode_image(sample["jpeg"])
        return image, ((name, sample[name]) for name in ARRAYS)

    def write(self, samples: Iterable[Content]) -> None:
        from streaming import MDSWriter

        with MDSWriter(out=str(self.folder), columns=self.columns()) as writer:
            for content in samples:
                writer.write(self.encode(content))

    def columns(self) -> dict[str, str]:
        image = {"frame": "ndarray:uint8"} if self.frames else {"jpeg": "bytes"}
        return image | dict.fromkeys(ARRAYS, "ndarray:uint8")

    def encode(self, content: Content) -> dict[str, Any]:
        return content.planes | ({"frame": content.frame} if self.frames else {"jpeg": content.jpeg})


@dataclass
class MdsZstd(MdsRaw):
    name = "MosaicML MDS, zstd"
    how = "arrays and frame as zstd bytes, random access"

    def read(self, index: int) -> Sample:
        return unpack(self.dataset[index])

    def columns(self) -> dict[str, str]:
        return dict.fromkeys(("frame" if self.frames else "jpeg", *ARRAYS, "size"), "bytes")

    def encode(self, content: Content) -> dict[str, Any]:
        return pack(content, self.frames)


@dataclass
class LitData(Form):
    """Its random access opens a chunk anew whenever the chunk changes, so it streams, as it is meant to be used."""

    name = "LitData, zstd"
    package = "litdata"
    how = "arrays and frame as zstd bytes, streamed with its own shuffling"
    opened_by = "only by its package"
    random_access = False
    _dataset: Any = None

    def stream(self) -> Iterator[Sample]:
        if self._dataset is None:
            from litdata import StreamingDataset

            self._dataset = StreamingDataset(str(self.folder), shuffle=True)
        for sample in self._dataset:
            yield unpack(sample)

    def write(self, samples: Iterable[Content]) -> None:
        from litdata.streaming.cache import Cache

        cache = Cache(str(self.folder), chunk_size=SAMPLES_PER_SHARD)
        for index, content in enumerate(samples):
            cache._add_item(index, pack(content, self.frames))
        cache.done()
        cache.merge()


@dataclass
class WebDataset(Form):
    name = "WebDataset, zstd"
    package = "webdataset"
    how = "arrays and frame as zstd bytes in tar files, streamed through a shuffle buffer of 100"
    opened_by = "tar, then zstd"
    random_access = False

    def stream(self) -> Iterator[Sample]:
        import webdataset

        shards = sorted(map(str, self.folder.glob("*.tar")))
        for sample in webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(100):
            yield unpack(sample)

    def write(self, samples: Iterable[Content]) -> None:
        import webdataset

        self.folder.mkdir(parents=True)
        pattern = str(self.folder / "%04d.tar")
        with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD // 2, verbose=0) as writer:
            for index, content in enumerate(samples):
                writer.write({"__key__": f"{index:06d}"} | pack(content, self.frames))


@dataclass
class PngFiles(Form):
    """A folder per array, a PNG per sample; the slots of cell arrays one below the other."""

    name = "PNG files"
    package = "opencv-contrib-python-headless"
    how = "one file per array and frame by OpenCV, random access"
    opened_by = "any viewer of pictures"
    _stems: tuple[str, ...] = ()

    def __len__(self) -> int:
        self._stems = self._stems or tuple(sorted(path.stem for path in (self.folder / "labels").glob("*.png")))
        return len(self._stems)

    def read(self, index: int) -> Sample:
        stem = self._stems[index]
        if self.frames:
            frame = cv2.imread(str(self.folder / "frame" / f"{stem}.png"), cv2.IMREAD_COLOR_RGB)
            return np.asarray(frame, np.uint8), self.planes(stem)
        return decode_image((self.folder / "jpeg" / f"{stem}.jpg").read_bytes()), self.planes(stem)

    def planes(self, stem: str) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for name in ARRAYS:
            plane = cv2.imread(str(self.folder / name / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
            yield name, np.asarray(plane.reshape(SLOTS, -1, plane.shape[1]) if "cell" in name else plane)

    def write(self, samples: Iterable[Content]) -> None:
        for name in ("frame" if self.frames else "jpeg", *ARRAYS):
            (self.folder / name).mkdir(parents=True)
        for index, content in enumerate(samples):
            for name, plane in content.planes.items():
                cv2.imwrite(str(self.folder / name / f"{index:06d}.png"), plane.reshape(-1, plane.shape[-1]))
            if self.frames:
                cv2.imwrite(str(self.folder / "frame" / f"{index:06d}.png"), content.frame[..., ::-1])
            else:
                (self.folder / "jpeg" / f"{index:06d}.jpg").write_bytes(content.jpeg)


PEERS: tuple[type[Any], ...] = (MdsZstd, MdsRaw, LitData, WebDataset, PngFiles)
READERS: tuple[type[OurStore], ...] = (TensorStore, ZarrPython)
"""Of our store."""


def write_peers(store: Path, folder: Path) -> list[Form]:
    """Write all other formats from a store, with originals and with frames."""
    forms = [form(folder / f"{form.__name__}_{frames}", frames) for form in PEERS for frames in (False, True)]
    for form in forms:
        form.write(contents_of(store))
    return [form.open() if isinstance(form, MdsRaw) else form for form in forms]


# --- the payload of formats without arrays of their own -------------------------------------------------------------


_DECOMPRESSOR = zstandard.ZstdDecompressor()


def pack(content: Content, frames: bool) -> dict[str, bytes]:
    """The image, each array as zstd bytes, and the frame's size."""
    arrays, pixels = (zstandard.ZstdCompressor(level=level) for level in (ZSTD_LEVEL, PICTURE_LEVEL))
    packed = {name: arrays.compress(plane.tobytes()) for name, plane in content.planes.items()}
    image = {"frame": pixels.compress(content.frame.tobytes())} if frames else {"jpeg": content.jpeg}
    return image | packed | {"size": struct.pack("<HH", *content.frame.shape[:2])}


def unpack(sample: dict[str, Any]) -> Sample:
    size = struct.unpack("<HH", sample["size"])
    if "frame" in sample:
        flat = np.frombuffer(_DECOMPRESSOR.decompress(sample["frame"]), np.uint8)
        return flat.reshape(*size, 3), unpack_planes(sample, size)
    return decode_image(sample["jpeg"]), unpack_planes(sample, size)


def unpack_planes(sample: dict[str, Any], size: tuple[int, ...]) -> Iterator[tuple[str, UInt8]]:
    cells = SLOTS, -(-size[0] // CELL_PX), -(-size[1] // CELL_PX)
    for name in ARRAYS:
        flat = np.frombuffer(_DECOMPRESSOR.decompress(sample[name]), np.uint8)
        yield name, flat.reshape(cells if "cell" in name else size)


def contents_of(store: Path) -> Iterator[Content]:
    """JPEG bytes, frame, and arrays at frame size of every sample of a store."""
    reader = StoreReader(store, ARRAYS)
    for index in reader.usable.tolist():
        height, width = reader.frame_size(index)
        sizes = {"y": height, "x": width, "cell_y": -(-height // CELL_PX), "cell_x": -(-width // CELL_PX)}
        planes = {}
        for name, plane in reader.read(index).items():
            rows, columns = (sizes[dim] for dim in reader.schema.spec(name).dims[-2:])
            planes[name] = np.ascontiguousarray(plane[..., :rows, :columns])
        path = Path(reader.manifest.root) / reader.manifest.table.value("image_path", index)
        frame = np.ascontiguousarray(Frame().resize_image(reader.manifest.load_image(index)))
        yield Content(path.read_bytes(), frame, planes)
