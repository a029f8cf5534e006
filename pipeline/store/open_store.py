"""A store as a Python sequence of samples; what `physseg.open_store` gives. The trainer's way in is `reader`."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ...common.storage.location import Location, open_storage
from ...common.text import counted, did_you_mean
from ...manifests.vocabulary import Vocabulary
from .errors import UnknownSampleError
from .layout import open_schema
from .reader import StoreReader


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample:
    """What a store holds of one sample."""

    id: str
    size: tuple[int, int]
    """Height and width of the sample's frame, px."""
    arrays: dict[str, npt.NDArray[Any]] = field(repr=False)
    """Arrays by name, cut to the frame: pixels (height, width), cells (..., ceil(height / 8), ceil(width / 8)).

    The layer `image` is (height, width, 3) uint8 RGB, in whatever form the store has it."""


class Store(Sequence[StoredSample]):
    """The samples of a store by index or id, quarantined and missing ones included: those raise when they are read."""

    def __init__(self, path: Location, *, images: str | None = None) -> None:
        storage = open_storage(path)
        names = [spec.name for spec in open_schema(storage).specs if spec.layer]
        self._reader = StoreReader(storage, names, root=images, images=True)
        self.path: str = str(storage)
        """Folder or URL of the store."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of all samples, in the order of the indices."""
        return tuple(self._reader.manifest.table.values("sample_id"))

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """Status of every sample, (N,) uint8: 0 missing, 1 done, 2 quarantined."""
        return self._reader.status.copy()

    @property
    def usable(self) -> npt.NDArray[np.int64]:
        """Indices of the samples that can be read, ascending."""
        return self._reader.usable

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes with their synonyms, and the ignore index of the labels."""
        return self._reader.vocabulary

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of every class id."""
        return self.vocabulary.class_names

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that every sample has."""
        return self._reader.arrays

    def __len__(self) -> int:
        return len(self._reader)

    @overload
    def __getitem__(self, key: int | str) -> StoredSample: ...
    @overload
    def __getitem__(self, key: slice) -> list[StoredSample]: ...
    def __getitem__(self, key: int | str | slice) -> StoredSample | list[StoredSample]:
        """The sample of an index (negative ones count from the end) or of an id; a list of samples for a slice.

        Raises:
            UnknownSampleError: No sample has that id; the hint has close matches. It is a KeyError.
            IndexError: There are not so many samples.
            StoreIncompleteError: The sample is quarantined (the message has the reason), or not computed.
            StoreCorruptError: Bytes do not hold.
        """
        if isinstance(key, slice):
            return [self[index] for index in range(*key.indices(len(self)))]
        return cut_sample(self._reader, self._index(key))

    def image(self, key: int | str) -> npt.NDArray[np.uint8]:
        """The image of a sample on its frame, (height, width, 3) uint8 RGB.

        It comes from the layer `image`, or where the store has none, or `images` was given, from its file. Raises as
        looking a sample up, and `manifests.errors.ContentError` where the file is not the manifest's.
        """
        return self._reader.image(self._index(key))

    def _index(self, key: int | str) -> int:
        if isinstance(key, str):
            if (found := self._reader.manifest.table.find(key)) is None:
                raise UnknownSampleError(f"{self.path}: no sample {key!r}", hint=did_you_mean(key, self.ids))
            return found
        if not -len(self) <= (index := operator.index(key)) < len(self):
            raise IndexError(f"{self.path}: sample {index} of {len(self)}")
        return index % len(self)

    def __contains__(self, sample_id: object) -> bool:
        return isinstance(sample_id, str) and self._reader.manifest.table.find(sample_id) is not None

    def __repr__(self) -> str:
        return f"Store({self.path!r}: {counted(len(self), 'sample')} of {', '.join(self.arrays)})"


def cut_sample(reader: StoreReader, index: int) -> StoredSample:
    """A sample with the reader's arrays, each a new array that is cut to the frame; raises as `StoreReader.read`."""
    height, width = reader.frame_size(index)
    rows, columns = (-(-edge // reader.schema.cell_px) for edge in (height, width))
    sizes = {"y": height, "x": width, "cell_y": rows, "cell_x": columns}
    dims = {spec.name: spec.dims for spec in reader.schema.specs}
    arrays, picture = {}, reader.schema.picture
    for name, plane in reader.planes(index):
        shown = reader.decode_picture(index, plane) if picture and name == picture.name else plane
        arrays[name] = np.array(shown[tuple(slice(sizes.get(dim)) for dim in dims[name])])
    return StoredSample(reader.manifest.table.value("sample_id", index), (height, width), arrays)
