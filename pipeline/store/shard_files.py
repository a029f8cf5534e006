"""The files of one shard while they grow, compressed sample by sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...structure_extractors.errors import ExtractorError
from .commits import CommitRecord
from .schema import DONE, QUARANTINED, STATUS, StoredArray, StoreSchema
from .shard_codec import compress, encode_shard

Planes = dict[str, npt.NDArray[Any]]
"""Arrays of one sample at frame size, by name."""


class ShardBuffer:
    """The growing files of one shard: compressed chunks, one per sample, and the arrays too small for that."""

    def __init__(self, schema: StoreSchema, specs: Sequence[StoredArray]) -> None:
        self.schema = schema
        self.specs = specs
        self.chunks: dict[str, list[bytes]] = {spec.name: [] for spec in specs if spec.is_sharded}
        self.rows: dict[str, list[npt.NDArray[Any]]] = {spec.name: [] for spec in specs if not spec.is_sharded}
        self._canvases: dict[tuple[Any, ...], npt.NDArray[Any]] = {}

    def append(self, planes: Planes) -> None:
        """Add one sample; arrays that `planes` lacks (a quarantined sample) hold fill."""
        for spec in self.specs:
            plane = planes.get(spec.name)
            if spec.is_sharded:
                self.chunks[spec.name].append(compress(self._on_canvas(plane, spec), spec.zstd_level))
            else:
                empty = np.full(self.schema.sample_shape(spec), self.schema.fill(spec), self.schema.dtype(spec))
                self.rows[spec.name].append(empty if plane is None else np.asarray(plane, dtype=empty.dtype))

    def files(self, shard: int) -> dict[str, bytes]:
        """Path inside the store -> bytes."""
        files = {}
        for spec in self.specs:
            if spec.is_sharded:
                data = encode_shard(self.chunks[spec.name], self.schema.samples_per_shard)
            else:
                data = encode_rows(self.rows[spec.name], spec, self.schema)
            files[self.schema.shard_file(spec, shard)] = data
        return files

    def dropped_pixels(self) -> int | None:
        """Labelled pixels that found no slot in their cell; None if they were not counted."""
        rows = self.rows.get("cell_dropped")
        return None if rows is None else int(np.sum(rows))

    def _on_canvas(self, plane: npt.NDArray[Any] | None, spec: StoredArray) -> npt.NDArray[Any]:
        """`plane` at the beginning of each dimension of the array's canvas, fill elsewhere.

        Arrays of one shape share one canvas: memory that is in cache already, where a new one costs its page faults.
        """
        dtype = self.schema.dtype(spec)
        if plane is not None and plane.dtype != dtype:
            raise ExtractorError.mismatch(spec.name, f"{dtype} from its extractor", plane.dtype)
        shape = (1, *self.schema.sample_shape(spec))
        if (shape, dtype) not in self._canvases:
            self._canvases[shape, dtype] = np.empty(shape, dtype)
        canvas = self._canvases[shape, dtype]
        canvas[...] = self.schema.fill(spec)
        if plane is not None:
            canvas[0][tuple(map(slice, plane.shape))] = plane
        return canvas


def encode_rows(rows: Sequence[Any] | npt.NDArray[Any], spec: StoredArray, schema: StoreSchema) -> bytes:
    """The one-chunk file of an unsharded array: a row per sample, then fill (Zarr stores edge chunks whole)."""
    shape = (schema.samples_per_shard, *schema.sample_shape(spec))
    chunk = np.full(shape, schema.fill(spec), dtype=schema.dtype(spec))
    chunk[: len(rows)] = rows
    return compress(chunk)


def encode_status(record: CommitRecord, schema: StoreSchema) -> bytes:
    """The status file of a shard whose layers are all committed; it follows from the record alone."""
    start, stop = record.samples
    status = np.full(stop - start, DONE, dtype=np.uint8)
    status[[entry.index - start for entry in record.quarantine]] = QUARANTINED
    return encode_rows(status, STATUS, schema)
