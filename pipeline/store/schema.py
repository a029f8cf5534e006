"""The store's schema: one table of arrays, from which creation, validation, the reader and the README's table derive.

A store is one Zarr v3 group. Each array belongs to a *layer*: what one extractor computes from one sample (or the
built-in layer `labels`). Layers are added, recomputed and committed independently of each other.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...common.documents import digest_of_json, parsing
from ...common.settings import build
from ...manifests.vocabulary import Vocabulary
from ...structure_extractors.patch_counts import CELL_PX
from .errors import REPAIR_HINT, StoreError
from .frame import Frame
from .shard_codec import ZSTD_LEVEL

SCHEMA_VERSION: Final = 1
SAMPLES_PER_SHARD: Final = 64
MAX_SAMPLES: Final = 10**9

LABELS_LAYER: Final = "labels"
"""The layer that is no extractor's: the label map, and the frame's size."""

MISSING, DONE, QUARANTINED = 0, 1, 2
"""Values of the array `status`. Only a sample whose status is DONE may be read: absent shards read as fill."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One row of the schema table."""

    name: str
    layer: str
    """Name of the layer that yields the array; empty for `status`."""
    dtype: str
    """NumPy name of the dtype, or `label`: uint8 up to 255 classes, uint16 beyond."""
    dims: tuple[str, ...]
    """Dimension names after `sample`; see `StoreSchema.dimension_size`."""
    fill: int | str
    """Value outside the frame; `ignore` is the vocabulary's ignore index."""
    meaning: str
    """What the values say, for the README's table and the array's own document."""
    drawn: str = ""
    """How `inspect` shows it: a kind of `draw.structure_overlay`; empty if in a way of its own, or not at all."""

    @property
    def is_sharded(self) -> bool:
        """Whether each sample is a chunk of its own, 64 to a file; arrays of a few bytes a sample are one chunk."""
        return len(self.dims) >= 2


YX: Final = ("y", "x")
CELLS: Final = ("slot", "cell_y", "cell_x")

ARRAYS: Final[tuple[ArraySpec, ...]] = (
    ArraySpec("labels", "labels", "label", YX, "ignore", "class ids; ignore index where unlabelled or outside"),
    ArraySpec("frame_size", "labels", "uint16", ("edge",), 0, "height and width of the frame on the canvas, px"),
    ArraySpec("canny", "canny", "uint8", YX, 0, "Canny edges of the image: 0 or 255", "edges"),
    ArraySpec("mask_edges", "mask_edges", "uint8", YX, 0, "edges of the label map (EdgeGT): 0 or 255", "edges"),
    ArraySpec(
        "sift", "sift", "uint8", YX, 0, "SIFT keypoints: square-root coded confidence 1..255, else 0", "keypoints"
    ),
    ArraySpec("superpoint", "superpoint", "uint8", YX, 0, "SuperPoint keypoints, coded as SIFT's", "keypoints"),
    ArraySpec(
        "superpoint_dense", "superpoint", "uint8", YX, 0, "SuperPoint probability before suppression, coded", "density"
    ),
    ArraySpec("cell_classes", "patch_counts", "label", CELLS, "ignore", "classes in each 8-px cell"),
    ArraySpec("cell_counts", "patch_counts", "uint8", CELLS, 0, "pixels of each such class"),
    ArraySpec("cell_dropped", "patch_counts", "uint32", (), 0, "labelled pixels that found no slot in their cell"),
)

STATUS: Final = ArraySpec("status", "", "uint8", (), MISSING, "0 missing, 1 done, 2 quarantined; read only where 1")

SPECS: Final[Mapping[str, ArraySpec]] = {spec.name: spec for spec in (*ARRAYS, STATUS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSchema:
    """What a store holds: the settings that give its arrays their names, shapes and meaning."""

    num_samples: int
    """Number of samples, in the order of the manifest."""
    frame: Frame
    """Size rule of the canonical frame, on which all arrays are computed."""
    vocabulary: Vocabulary
    """Classes of `labels` and `cell_classes`; see `StoreReader.vocabulary`."""
    dataset: str
    manifest_fingerprint: str
    """Fingerprint of the manifest, which leaves out the root of its paths."""
    manifest_sha256: str
    """Hash of all bytes of the store's copy of the manifest."""
    layers: Mapping[str, Mapping[str, Any]]
    """Layer name -> the settings and weight hashes of what computed it."""
    array_names: tuple[str, ...]
    """Names of the arrays besides `status`, in the order of the schema table."""
    made_with: Mapping[str, str]
    """Versions of physseg and of the libraries whose results are stored. Information, not identity."""
    cell_px: int = CELL_PX
    """Side of the cells in which classes are counted, px."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    """Number of samples in each shard but the last."""

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """Rows of the schema table that this store has, `status` last."""
        return (*(SPECS[name] for name in self.array_names), STATUS)

    @property
    def num_shards(self) -> int:
        """Number of shards, the last of which may be short."""
        return -(-self.num_samples // self.samples_per_shard)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First and one past the last sample of a shard."""
        start = shard * self.samples_per_shard
        return start, min(start + self.samples_per_shard, self.num_samples)

    def layer_digest(self, layer: str) -> str:
        """What makes two runs of a layer comparable: frame, cells, vocabulary and the layer's own settings."""
        identity = [SCHEMA_VERSION, asdict(self.frame), self.cell_px, self.vocabulary.fingerprint, self.layers[layer]]
        return digest_of_json(identity)

    def dimension_size(self, dim: str) -> int:
        """Length of a named dimension other than `sample`."""
        if dim == "slot":
            return int(self.layers["patch_counts"]["max_classes"])
        cells = self.frame.canvas // self.cell_px
        return {"y": self.frame.canvas, "x": self.frame.canvas, "edge": 2, "cell_y": cells, "cell_x": cells}[dim]

    def sample_shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Shape of one sample of an array."""
        return tuple(self.dimension_size(dim) for dim in spec.dims)

    def dtype(self, spec: ArraySpec) -> np.dtype[Any]:
        """Dtype of an array in this store."""
        return np.dtype(self.vocabulary.label_dtype if spec.dtype == "label" else spec.dtype)

    def fill(self, spec: ArraySpec) -> int:
        """Value of an array outside the frame, and of samples that are absent."""
        return self.vocabulary.ignore_index if spec.fill == "ignore" else int(spec.fill)

    def shard_file(self, spec: ArraySpec, shard: int) -> str:
        """Path inside the store of the file that holds a shard of an array (Zarr's default chunk key encoding)."""
        return "/".join([spec.name, "c", str(shard), *("0" for _ in spec.dims)])

    def array_metadata(self, spec: ArraySpec) -> dict[str, Any]:
        """The Zarr v3 document (`zarr.json`) of one array."""
        shape = self.sample_shape(spec)
        shard_shape = [self.samples_per_shard, *shape]
        inner: list[dict[str, Any]] = [_bytes_codec(self.dtype(spec)), *_COMPRESSION]
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [1, *shape],
                "codecs": inner,
                "index_codecs": [_bytes_codec(np.dtype("u8")), {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        return {
            "shape": [self.num_samples, *shape],
            "data_type": self.dtype(spec).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": self.fill(spec),
            "codecs": [sharding] if spec.is_sharded else inner,
            "attributes": {"meaning": spec.meaning},
            "dimension_names": ["sample", *spec.dims],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    def group_metadata(self) -> dict[str, Any]:
        """The Zarr v3 document of the store's root group; `from_attributes` reads its attributes back."""
        content = self.to_attributes()
        attributes = {"physseg": content, "physseg_digest": digest_of_json(content)}
        return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}

    def to_attributes(self) -> dict[str, Any]:
        """What the store says of itself in its root document, and what `settings_digest` hashes."""
        words = self.vocabulary
        fold = {} if words.fold_from is None else {"fold_from": words.fold_from}  # other stores keep their bytes
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": self.dataset,
            "num_samples": self.num_samples,
            "samples_per_shard": self.samples_per_shard,
            "frame": asdict(self.frame),
            "cell_px": self.cell_px,
            "vocabulary": {"name": words.name, "classes": list(words.classes)} | fold,
            "ignore_index": words.ignore_index,
            "layers": {name: dict(identity) for name, identity in self.layers.items()},
            "arrays": list(self.array_names),
            "manifest_fingerprint": self.manifest_fingerprint,
            "manifest_sha256": self.manifest_sha256,
            "made_with": dict(self.made_with),
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "StoreSchema":
        """Inverse of `to_attributes`, from the root group's attributes; refuses what it does not know."""
        content = attributes.get("physseg")
        if content is None:
            raise StoreError(f"{where}: a Zarr group, but not a physseg store", hint="was another folder meant?")
        if content.get("schema_version") != SCHEMA_VERSION:
            message = f"{where}: schema version {content.get('schema_version')}, this physseg reads {SCHEMA_VERSION}"
            hint = "install the physseg release that wrote it, or preprocess into a new store"
            raise StoreError(message, hint=hint)
        if digest_of_json(content) != attributes.get("physseg_digest"):
            raise StoreError(f"{where}: the store's settings do not match their checksum", hint=REPAIR_HINT)
        hint = "it was not written by physseg; preprocess into a new store"
        with parsing(StoreError, f"{where}: its settings are not those of a store", hint):
            for name, kind in _KINDS.items():
                if not isinstance(content[name], kind):
                    raise TypeError(f"expected {name} as {kind.__name__}, got {type(content[name]).__name__}")
            schema = cls(
                num_samples=content["num_samples"],
                frame=build(Frame, content["frame"], base=Path(), where="frame"),
                vocabulary=build(Vocabulary, content["vocabulary"], base=Path(), where="vocabulary"),
                dataset=content["dataset"],
                manifest_fingerprint=content["manifest_fingerprint"],
                manifest_sha256=content["manifest_sha256"],
                layers={name: dict(identity) for name, identity in content["layers"].items()},
                array_names=tuple(content["arrays"]),
                made_with=content["made_with"],
                cell_px=content["cell_px"],
                samples_per_shard=content["samples_per_shard"],
            )
            schema._check_sizes()
        return schema

    def _check_sizes(self) -> None:
        """Refuse what no run writes: stores come from other people, and sizes are asked for as memory."""
        slots = self.layers["patch_counts"]["max_classes"] if "cell_classes" in self.array_names else 1
        sizes = {
            "num_samples": (self.num_samples, MAX_SAMPLES),
            "samples_per_shard": (self.samples_per_shard, 4096),
            "patch_counts.max_classes": (slots, CELL_PX**2),
        }
        for name, (value, limit) in sizes.items():
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"expected {name} from 1 to {limit}, got {value!r}")
        if self.cell_px != CELL_PX:
            raise ValueError(f"expected cells of {CELL_PX} px, got {self.cell_px!r}")
        if unknown := [name for name in self.array_names if name not in SPECS]:
            raise ValueError(f"unknown array {unknown[0]!r}")
        if absent := [spec.layer for spec in self.specs if spec.layer and spec.layer not in self.layers]:
            raise ValueError(f"an array of the layer {absent[0]!r}, which it does not have")


_KINDS: Final[Mapping[str, type]] = {
    "dataset": str,
    "frame": dict,
    "vocabulary": dict,
    "layers": dict,
    "arrays": list,
    "manifest_fingerprint": str,
    "manifest_sha256": str,
    "made_with": dict,
}
"""What JSON has in the settings; numbers are the business of `_check_sizes`."""


def to_json(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON document as the store writes it: deterministic, and readable by a person."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def markdown_table() -> str:
    """The README's table of arrays."""
    lines = ["| array | layer | dtype | dimensions | fill | what |", "|---|---|---|---|---|---|"]
    for spec in (*ARRAYS, STATUS):
        dims = ", ".join(("sample", *spec.dims))
        lines.append(f"| `{spec.name}` | {spec.layer or '-'} | {spec.dtype} | {dims} | {spec.fill} | {spec.meaning} |")
    return "\n".join(lines)


_COMPRESSION: Final = (
    {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
    {"name": "crc32c"},  # of the compressed bytes; see shard_codec
)


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    # Zarr wants no endianness where it has no meaning.
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
