"""The store's schema: what its documents say of it, from which creation, validation and the reader derive.

A store is one Zarr v3 group. Each array belongs to a *layer*: what one extractor computes from one sample (or the
built-in layer `labels`). Layers are added, recomputed and committed independently of each other. The store describes
its arrays itself, so that whoever reads it needs no extractor's package (docs/store.md).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...common.documents import digest_of_json, parsing
from ...common.settings import build
from ...manifests.vocabulary import Vocabulary
from ...structure_extractors.interface import CELL_PX, ArraySpec, Extractor
from . import version_1
from .errors import REPAIR_HINT, StoreError
from .frame import Frame
from .shard_codec import PICTURE_LEVEL, ZSTD_LEVEL

SCHEMA_VERSION: Final = 2
"""Of stores that are written. Those of version 1 are read as well; a run that writes to one brings it up to date."""
PICTURE_VERSION: Final = 3
"""Of stores with arrays on `channel` or `byte`, which releases before them do not know."""
IDENTITY_VERSION: Final = 1
"""Enters the digest of every layer: another number would have every store computed again."""
SAMPLES_PER_SHARD: Final = 64

LABELS_LAYER: Final = "labels"
"""The layer that is no extractor's: the label map, and the frame's size."""

MISSING, DONE, QUARANTINED = 0, 1, 2
"""Values of the array `status`. Only a sample whose status is DONE may be read: absent shards read as fill."""


@dataclass(frozen=True, slots=True)
class StoredArray(ArraySpec):
    """An array of a store."""

    layer: str = ""
    """Name of the layer that yields the array; empty for `status`."""
    slots: int = 0
    """Length of the dimension `slot`, where the array has it."""

    @property
    def zstd_level(self) -> int:
        """At which its chunks are compressed; it follows from the dimensions, so that no document has to say more."""
        return ZSTD_LEVEL if {"channel", "byte"}.isdisjoint(self.dims) else PICTURE_LEVEL


LABEL_ARRAYS: Final = (
    StoredArray(
        "labels", "label", ("y", "x"), "ignore", "class ids; ignore index where unlabelled or outside", layer="labels"
    ),
    StoredArray(
        "frame_size",
        "uint16",
        ("edge",),
        0,
        "height and width of the frame on the canvas",
        units="pixel",
        layer="labels",
    ),
)
STATUS: Final = StoredArray("status", "uint8", (), MISSING, "0 missing, 1 done, 2 quarantined; read only where 1")
RESERVED: Final = {STATUS.name, "sample", "sample_id", "provenance"}
"""Names in a store that no extractor's array may have."""


def arrays_of(extractor: Extractor) -> tuple[StoredArray, ...]:
    """The arrays of an extractor's layer."""
    slots = getattr(extractor, "slots", 0)
    return tuple(
        StoredArray(**asdict(spec), layer=extractor.name, slots=slots if "slot" in spec.dims else 0)
        for spec in extractor.arrays
    )


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
    arrays: tuple[StoredArray, ...]
    """The arrays besides `status`."""
    made_with: Mapping[str, str]
    """Versions of physseg and of the libraries whose results are stored. Information, not identity."""
    cell_px: int = CELL_PX
    """Side of the cells in which classes are counted, px."""
    samples_per_shard: int = SAMPLES_PER_SHARD
    version: int = SCHEMA_VERSION
    """Of those after the first, which one follows from the arrays."""

    def __post_init__(self) -> None:
        if self.version != 1:
            new = any(spec.zstd_level == PICTURE_LEVEL for spec in self.arrays)
            object.__setattr__(self, "version", PICTURE_VERSION if new else SCHEMA_VERSION)

    @property
    def specs(self) -> tuple[StoredArray, ...]:
        """All arrays of this store that are computed, `status` last."""
        return (*self.arrays, STATUS)

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the arrays besides `status`."""
        return tuple(spec.name for spec in self.arrays)

    def spec(self, name: str) -> StoredArray:
        """The array of that name. Raises KeyError."""
        return {spec.name: spec for spec in self.specs}[name]

    def layer_of(self, path: str) -> str:
        """The layer that a file inside the store belongs to; empty for a file of no layer."""
        name = path.split("/", maxsplit=1)[0]
        return next((spec.layer for spec in self.arrays if spec.name == name), "")

    @property
    def picture(self) -> StoredArray | None:
        """The array that holds the frames' pixels, or JPEGs of them, where the store has the layer `image`."""
        forms = [("image", "image", "uint8", dims) for dims in (("y", "x", "channel"), ("byte",))]
        return next((a for a in self.arrays if (a.name, a.layer, a.dtype, a.dims) in forms), None)

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
        identity = [IDENTITY_VERSION, asdict(self.frame), self.cell_px, self.vocabulary.fingerprint, self.layers[layer]]
        return digest_of_json(identity)

    def sample_shape(self, spec: StoredArray) -> tuple[int, ...]:
        canvas, cells = self.frame.canvas, self.frame.canvas // self.cell_px
        sizes = {"y": canvas, "x": canvas, "edge": 2, "slot": spec.slots, "cell_y": cells, "cell_x": cells}
        sizes |= {"channel": 3, "byte": canvas**2}
        return tuple(sizes[dim] for dim in spec.dims)

    def dtype(self, spec: StoredArray) -> np.dtype[Any]:
        return np.dtype(self.vocabulary.label_dtype if spec.dtype == "label" else spec.dtype)

    def fill(self, spec: StoredArray) -> int:
        """Value of an array outside the frame, and of samples that are absent."""
        return self.vocabulary.ignore_index if spec.fill == "ignore" else int(spec.fill)

    def shard_file(self, spec: StoredArray, shard: int) -> str:
        """Path inside the store of the file that holds a shard of an array (Zarr's default chunk key encoding)."""
        return "/".join([spec.name, "c", str(shard), *("0" for _ in spec.dims)])

    def array_metadata(self, spec: StoredArray) -> dict[str, Any]:
        """The Zarr v3 document (`zarr.json`) of one array."""
        shape = self.sample_shape(spec)
        shard_shape = [self.samples_per_shard, *shape]
        inner: list[dict[str, Any]] = [_bytes_codec(self.dtype(spec)), *compression(spec.zstd_level)]
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
            "attributes": self._array_attributes(spec),
            "dimension_names": ["sample", *(_dimension_name(dim, spec) for dim in spec.dims)],
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }

    def _array_attributes(self, spec: StoredArray) -> dict[str, Any]:
        """What xarray and others show of an array, in the words of the CF conventions."""
        if self.version == 1:
            return {"meaning": spec.meaning}
        if spec.dtype != "label":
            return {"long_name": spec.meaning, "units": spec.units}
        names = self.vocabulary.class_names
        words = (re.sub(r"[^\w.+@-]+", "_", name).strip("_") or f"class_{id_}" for id_, name in enumerate(names))
        return {"long_name": spec.meaning, "flag_values": list(range(len(names))), "flag_meanings": " ".join(words)}

    def group_metadata(self) -> dict[str, Any]:
        """The Zarr v3 document of the store's root group; `from_attributes` reads its attributes back."""
        content = self.to_attributes()
        attributes = {"physseg": content, "physseg_digest": digest_of_json(content)}
        if self.version > 1:
            attributes["coordinates"] = "sample_id"  # so that xarray takes it for what it is
        return {"attributes": attributes, "zarr_format": 3, "node_type": "group"}

    def to_attributes(self) -> dict[str, Any]:
        """What the store says of itself in its root document, and what `settings_digest` hashes."""
        words = self.vocabulary
        fold = {} if words.fold_from is None else {"fold_from": words.fold_from}  # other stores keep their bytes
        return {
            "schema_version": self.version,
            "dataset": self.dataset,
            "num_samples": self.num_samples,
            "samples_per_shard": self.samples_per_shard,
            "frame": asdict(self.frame),
            "cell_px": self.cell_px,
            "vocabulary": {"name": words.name, "classes": list(words.classes)} | fold,
            "ignore_index": words.ignore_index,
            "layers": {name: dict(identity) for name, identity in self.layers.items()},
            "arrays": [
                spec.name if self.version == 1 else asdict(spec) | {"dims": list(spec.dims)} for spec in self.arrays
            ],
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
        version = content.get("schema_version")
        if type(version) is not int or version not in range(1, PICTURE_VERSION + 1):
            message = f"{where}: schema version {version!r}, this physseg reads 1 to {PICTURE_VERSION}"
            hint = "install the physseg release that wrote it, or preprocess into a new store"
            raise StoreError(message, hint=hint)
        if digest_of_json(content) != attributes.get("physseg_digest"):
            raise StoreError(f"{where}: the store's settings do not match their checksum", hint=REPAIR_HINT)
        hint = "it was not written by physseg; preprocess into a new store"
        with parsing(StoreError, f"{where}: its settings are not those of a store", hint):
            for name, kind in _KINDS.items():
                if not isinstance(content[name], kind):
                    raise TypeError(f"expected {name} as {kind.__name__}, got {type(content[name]).__name__}")
            layers = {name: dict(identity) for name, identity in content["layers"].items()}
            arrays = version_1.describe_arrays(content["arrays"], layers) if version == 1 else content["arrays"]
            schema = cls(
                num_samples=content["num_samples"],
                frame=build(Frame, content["frame"], base=Path(), where="frame"),
                vocabulary=build(Vocabulary, content["vocabulary"], base=Path(), where="vocabulary"),
                dataset=content["dataset"],
                manifest_fingerprint=content["manifest_fingerprint"],
                manifest_sha256=content["manifest_sha256"],
                layers=layers,
                arrays=tuple(StoredArray(**array) for array in arrays),
                made_with=content["made_with"],
                cell_px=content["cell_px"],
                samples_per_shard=content["samples_per_shard"],
                version=version,
            )
            schema.check()
        return schema

    def check(self) -> None:
        """Refuse what no store holds: they come from other people, and sizes are asked for as memory. ValueError."""
        sizes = {
            "num_samples": (self.num_samples, 10**9),
            "samples_per_shard": (self.samples_per_shard, 4096),
            "number of arrays": (len(self.arrays), 256),
            **{f"slots of {spec.name}": (spec.slots, CELL_PX**2) for spec in self.arrays if "slot" in spec.dims},
        }
        for name, (value, limit) in sizes.items():
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"expected {name} from 1 to {limit}, got {value!r}")
        if self.cell_px != CELL_PX:
            raise ValueError(f"expected cells of {CELL_PX} px, got {self.cell_px!r}")
        self._check_arrays()
        for spec in self.arrays:
            dtype, fill = self.dtype(spec), self.fill(spec)
            if not spec.fills(dtype, fill):
                raise ValueError(f"expected a fill of {spec.name} that {dtype} can hold, got {fill}")

    def _check_arrays(self) -> None:
        """Each array once, of a layer that is there; those that every store has."""
        if repeated := [name for name in self.array_names if self.array_names.count(name) > 1 or name in RESERVED]:
            raise ValueError(f"an array {repeated[0]!r} twice")
        if absent := [spec.layer for spec in self.arrays if spec.layer not in self.layers]:
            raise ValueError(f"an array of the layer {absent[0]!r}, which it does not have")
        there = {(spec.name, spec.dtype, tuple(spec.dims)) for spec in self.arrays}
        if lacking := [array[0] for array in version_1.IN_EVERY_STORE if array not in there]:
            raise ValueError(f"no array {lacking[0]!r} as every store has it")


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
"""What JSON has in the settings; numbers are the business of `check`."""


def to_json(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON document as the store writes it: deterministic, and readable by a person."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _dimension_name(dim: str, spec: StoredArray) -> str:
    """Slots of layers differ in number, and xarray wants one length for a name; the oldest layer keeps its own."""
    return f"{spec.layer}_slot" if dim == "slot" and spec.layer != "patch_counts" else dim


def compression(level: int = ZSTD_LEVEL) -> tuple[dict[str, Any], ...]:
    """The codecs that follow an array's bytes; the crc32c is that of the compressed ones (see shard_codec)."""
    return {"name": "zstd", "configuration": {"level": level, "checksum": False}}, {"name": "crc32c"}


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    # Zarr wants no endianness where it has no meaning.
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
