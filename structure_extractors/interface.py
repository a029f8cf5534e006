"""What every structure extractor is: frozen settings that are called with an image and its label map.

A layer of a store is known by its extractor's `identity`, so a setting may never depend on the image, the machine or
a path, and equal settings must give equal bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ..common.plugins import ConformanceError
from .errors import ExtractorError

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Image: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

CELL_PX: Final = 8
"""Side of a cell: its 64 pixels fit a uint8 count, and every backbone's patch is 16 px of a 384 crop."""
DTYPES: Final = ("label", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")
SHAPES: Final = (
    (),
    ("slot",),
    ("edge",),
    ("y", "x"),
    ("slot", "y", "x"),
    ("cell_y", "cell_x"),
    ("slot", "cell_y", "cell_x"),
    ("y", "x", "channel"),
    ("byte",),
)
_MAP, _PLANES = ("uint8", ("y", "x")), ("label", ("slot", "y", "x"))
DRAWN: Final = {"edges": _MAP, "keypoints": _MAP, "density": _MAP, "class_edges": _PLANES}
"""How an array is drawn -> the dtype and dims that it then has."""
TARGETS: Final = {"map": _MAP, "classes": _PLANES}
"""What L^p learns of an array -> the dtype and dims that it then has."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array that an extractor computes of each sample, as a store describes it. Raises ExtractorError."""

    name: str
    """Its name in the store: small letters, digits and underscores, unlike that of any other array there."""
    dtype: str
    """One of `DTYPES`: NumPy's name, or `label`, which is uint8 for up to 255 classes and uint16 beyond."""
    dims: tuple[str, ...]
    """One of `SHAPES`. `y` and `x` are pixels of the frame, `cell_y` and `cell_x` its cells of 8 px (the last ones may
    reach beyond it), `slot` as many as the extractor's `slots` says, `channel` red, green and blue. `byte` are those of
    a file, as many as it has; a store has room for one for each pixel of its canvas."""
    fill: int | str
    """Value outside the frame, and of samples that are not there; `ignore` is the vocabulary's ignore index."""
    meaning: str
    """What the values say, in a few words."""
    drawn: str = ""
    """How `physseg inspect` draws it: `edges` (all that is not 0), `keypoints` (a dot each, by the square-root coded
    confidence), `density` (by the value), all uint8 on y, x; `class_edges` (planes of class ids); empty: not at all."""
    target: str = ""
    """What L^p may learn of it: `map` (uint8 on y, x: one channel; a package may say more, such as `edges`), `classes`
    (planes of class ids: a channel for each class); empty: nothing."""
    units: str = "1"
    """Unit of the values, as xarray shows it."""

    def __post_init__(self) -> None:
        for name, value in (("dims", tuple(self.dims)), ("drawn", self.drawn or ""), ("target", self.target or "")):
            object.__setattr__(self, name, value)
        named = isinstance(self.name, str) and re.fullmatch("[a-z][a-z0-9_]{0,63}", self.name)
        self._check("name", bool(named), "small letters, digits and underscores")
        self._check("dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        self._check("dims", self.dims in SHAPES, f"one of {', '.join(map(str, SHAPES))}")
        fill = self.fill == "ignore" or (type(self.fill) is int and abs(self.fill) < 2**32)
        self._check("fill", fill, "an integer, or 'ignore'")
        for name in ("meaning", "drawn", "target", "units"):
            self._check(name, isinstance(getattr(self, name), str), "text")
        for field, kinds in (("drawn", DRAWN), ("target", TARGETS)):  # others are of a later version
            dtype, dims = kinds.get(getattr(self, field), (self.dtype, self.dims))
            self._check(field, (self.dtype, self.dims) == (dtype, dims), f"an array of {dtype} on {', '.join(dims)}")

    @property
    def is_sharded(self) -> bool:
        """Whether each sample is a chunk of its own, 64 to a file; arrays of a few bytes a sample are one chunk."""
        return len(self.dims) >= 2 or self.dims == ("byte",)

    @property
    def is_target(self) -> bool:
        """Whether L^p can learn of it."""
        return bool(self.target) and (self.dtype, self.dims) == TARGETS.get(self.target, _MAP)

    def fills(self, dtype: np.dtype[Any], fill: int) -> bool:
        """Whether its dtype and fill, as they are in a store, go together."""
        return dtype.kind == "f" or np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max

    def _check(self, field: str, ok: bool, expected: str) -> None:
        if not ok:
            raise ExtractorError.mismatch(f"array {self.name!r}: {field}", expected, repr(getattr(self, field)))


class Extractor(Protocol):
    """One frozen dataclass per extractor; its fields are its settings, each with a comment that says what it means.

    Two members more are looked for. `slots: int` is the length of the dimension `slot`, where an array has it.
    `identity()` is for an extractor whose bytes depend on more than its settings (a file of weights, say): see
    `settings_identity`, which says the rest.
    """

    @property
    def name(self) -> str:
        """Name of the extractor and of its layer, which is that of its entry point."""

    @property
    def revision(self) -> int:
        """Raised whenever the code changes so that equal settings give other bytes: stores then recompute the layer."""

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays that a call yields, in order. Ask the instance: settings may add one."""

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> Mapping[str, npt.NDArray[Any]]:
        """Compute the arrays, by their names. Each extractor checks the input that it uses, and changes none.

        Args:
            image: (H, W, 3) uint8 RGB, of any strides.
            labels: (H, W) uint8 or uint16 class ids, of any strides.
            ignore_index: The id of pixels without a class.
        """


def identity(extractor: Extractor) -> dict[str, JSON]:
    """Everything an extractor's bytes depend on besides the inputs, as JSON: revision, settings, hash of weights."""
    own = getattr(extractor, "identity", None)
    return own() if own is not None else settings_identity(extractor)


def setting_fields(extractor: Any) -> "list[Field[Any]]":
    """The fields of an extractor, or of its class, that are settings: not those that are members of the interface."""
    return [field for field in fields(extractor) if field.name not in ("name", "revision", "arrays")]


def settings_identity(extractor: Any, *, revision: int | None = None, without: tuple[str, ...] = ()) -> dict[str, JSON]:
    """The settings of a dataclass as JSON, with the revision of its algorithm, or another one that a setting decides.

    `without` are fields that may not enter (paths, speed).
    """
    names = [field.name for field in setting_fields(extractor) if field.name not in without]
    settings: dict[str, JSON] = {name: getattr(extractor, name) for name in names}
    return {"extractor": extractor.name, "revision": revision or extractor.revision, **settings}


def check_image(image: Any, *, extractor: str) -> Image:
    """The image in C order. Raises ExtractorError unless it is (H, W, 3) uint8 with H, W >= 1."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        expected = "an RGB image, uint8 (H, W, 3)"
    elif image.size == 0:
        expected = "an image of at least one pixel"
    else:
        return np.ascontiguousarray(image)
    raise ExtractorError.mismatch(extractor, expected, _describe(image))


def check_labels(labels: Any, *, ignore_index: int, extractor: str) -> Labels:
    """The labels in C order. Raises ExtractorError unless (H, W) uint8 or uint16 with room for `ignore_index`."""
    got = _describe(labels)
    if not isinstance(labels, np.ndarray) or labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2:
        expected = "a label map, uint8 or uint16 (H, W)"
    elif labels.size == 0:
        expected = "a label map of at least one pixel"
    elif not 0 <= ignore_index <= np.iinfo(labels.dtype).max:
        expected, got = f"an ignore_index that {labels.dtype} can hold", str(ignore_index)
    else:
        return np.ascontiguousarray(labels)
    raise ExtractorError.mismatch(extractor, expected, got)


def check_option(extractor: Any, option: str, ok: bool, expected: str) -> None:
    """Raise ExtractorError that names the option of an extractor and its value, unless `ok`."""
    if not ok:
        raise ExtractorError.mismatch(f"{extractor.name}.{option}", expected, repr(getattr(extractor, option)))


def check_made(made: Any, extractor: Extractor, labels: Labels) -> None:
    """Refuse what an extractor promised otherwise: a missing array, or a part of one, would be stored as fill.

    `labels` (H, W) is what it was called with. Raises ConformanceError for other arrays, shapes or dtypes.
    """
    where, hint = f"extractor {extractor.name}", "this is a bug of the extractor"
    specs = {spec.name: spec for spec in extractor.arrays}
    if not isinstance(made, Mapping) or set(made) != set(specs):
        got = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
        raise ConformanceError.mismatch(where, f"the arrays {', '.join(specs)}", got or "none", hint)
    sizes = {"y": labels.shape[0], "x": labels.shape[1], "slot": getattr(extractor, "slots", 0), "edge": 2}
    sizes |= {f"cell_{axis}": -(-sizes[axis] // CELL_PX) for axis in "yx"} | {"channel": 3}
    for name, spec in specs.items():
        dtype = labels.dtype if spec.dtype == "label" else np.dtype(spec.dtype)
        value = made[name]
        shape = tuple((sizes | {"byte": np.size(value)})[dim] for dim in spec.dims)
        if not (_is_plain(value) and value.dtype == dtype and value.shape == shape):
            raise ConformanceError.mismatch(where, f"{name} as {dtype} {shape}", _describe(value), hint)


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)  # the mask would be lost


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if _is_plain(value) else type(value).__name__
