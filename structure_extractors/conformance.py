"""Whether an extractor keeps its contract: `physseg.testing.check_extractor`, for the tests of its package."""

import json
import os
import pickle
import subprocess
import sys
import timeit
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..common.errors import PhyssegError
from ..common.plugins import ConformanceError, require
from ..common.settings import from_text
from .interface import DRAWN, ArraySpec, Extractor, Image, Labels, check_made, identity, setting_fields
from .registry import check_members

Arrays = Mapping[str, npt.NDArray[Any]]

SIZES: Final = ((1, 1), (1, 40), (40, 1), (7, 9), (8, 8), (33, 50), (16, 200), (200, 24), (64, 96))
"""Height and width of the pictures, in pixels."""
TIMED_SIZE: Final = (384, 512)

_CHILD: Final = """
import os, pickle, sys
answer = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
extractor, identity_of, calls = pickle.load(sys.stdin.buffer)
made = [dict(extractor(image, labels, ignore_index=ignored)) for image, labels, ignored in calls]
answer.write(pickle.dumps((identity_of(extractor), made)))
answer.flush()
"""


class _Picture(NamedTuple):
    what: str
    image: Image
    labels: Labels
    ignore_index: int

    def changed(self, what: str, image: Image, labels: npt.NDArray[Any]) -> "_Picture":
        return _Picture(f"{self.what}, {what}", image, labels, self.ignore_index)


def check_extractor(extractor: Extractor | type[Extractor], *, mirror: bool = False) -> float:
    """Look at what an extractor says of itself, and at what it makes of some twenty small pictures.

        def test_sobel():
            check_extractor(Sobel)
            check_extractor(Sobel(threshold=50), mirror=True)

    Args:
        extractor: The object, or its class for the default settings.
        mirror: Whether it claims that the arrays of a mirrored picture are the mirrored arrays, to the bit. Claims of
            cells are looked at where the width is a multiple of 8 px.

    Returns:
        Seconds that a picture of 384 x 512 px takes, the best of three. What is too slow is yours to say.

    Raises:
        ConformanceError: A rule is broken. The message says which, with which picture, what was expected and what came.
            The rules are those of docs/plugins.md, Extractors.
    """
    made: Any = extractor() if isinstance(extractor, type) else extractor
    where = str(getattr(made, "name", type(made).__name__))
    try:
        check_members(made, where, where)
    except PhyssegError as error:
        raise ConformanceError(error.args[0], hint=error.hint) from error
    _check_settings(made)
    pictures = list(_pictures())
    for picture in pictures:
        for spec in made.arrays:
            _check_spec(made, spec, picture)
    found = [_call(made, picture) for picture in pictures]
    for picture, arrays in reversed(list(zip(pictures, found, strict=True))):
        _same(made, picture, "called again", arrays, _call(made, picture))
    _check_another_process(made, pictures, found)
    for picture, arrays in zip(pictures, found, strict=True):
        order = np.asfortranarray(picture.image), np.asfortranarray(picture.labels)
        strided = picture.changed("in Fortran order", *order)
        _same(made, strided, "other strides", arrays, _call(made, strided))
        if mirror and not (picture.image.shape[1] % 8 and any("cell_x" in spec.dims for spec in made.arrays)):
            mirrored = picture.changed("mirrored", picture.image[:, ::-1], picture.labels[:, ::-1])
            axes = {s.name: [axis for axis, dim in enumerate(s.dims) if dim in ("x", "cell_x")] for s in made.arrays}
            flipped = {name: np.flip(arrays[name], tuple(along)) for name, along in axes.items()}
            _same(made, mirrored, "mirror", flipped, _call(made, mirrored))
    _check_variants(made, pictures, found)
    large = _picture(np.random.default_rng(14), TIMED_SIZE, np.uint8)
    return min(timeit.repeat(lambda: _call(made, large), number=1, repeat=3))


def _pictures() -> Iterator[_Picture]:
    """Noise over blocks of colour and of classes, of many sizes; a void strip; uint8 and uint16 labels in turn."""
    rng = np.random.default_rng(14)
    for number, size in enumerate((*SIZES, SIZES[-1])):
        yield _picture(rng, size, np.uint8 if number % 2 else np.uint16)
    last = _picture(rng, (48, 56), np.uint8)
    for what, value in (("black", 0), ("white", 255)):
        yield last.changed(what, np.full_like(last.image, value), np.zeros_like(last.labels))
    for dtype in (np.uint8, np.uint16):
        each = _picture(rng, (48, 56), dtype)
        yield each.changed("all labels ignored", each.image, np.full_like(each.labels, each.ignore_index))


def _picture(rng: np.random.Generator, size: tuple[int, int], dtype: type[np.unsignedinteger[Any]]) -> _Picture:
    height, width = size
    blocks = rng.integers(0, 5, (height // 12 + 1, width // 12 + 1)).repeat(12, 0).repeat(12, 1)[:height, :width]
    image = rng.integers(40, 216, (5, 3))[blocks] + rng.integers(-30, 31, (height, width, 3))
    ids = np.array([0, 1, 2, 7, 253] if dtype == np.uint8 else [0, 3, 300, 846, 65534], dtype)
    labels, ignored = ids[blocks], int(np.iinfo(dtype).max)
    labels[:, : width // 10] = ignored
    return _Picture(f"{height} x {width} px, labels {labels.dtype}", image.astype(np.uint8), labels, ignored)


def _call(extractor: Extractor, picture: _Picture) -> Arrays:
    """Its arrays of a picture, of the promised dtypes and shapes, with the picture left as it was."""
    where = f"{extractor.name}: {picture.what}"
    before = picture.image.copy(), picture.labels.copy()
    try:
        made = extractor(picture.image, picture.labels, ignore_index=picture.ignore_index)
    except Exception as error:
        raise ConformanceError.mismatch(where, "arrays of any picture", f"{type(error).__name__}: {error}") from error
    require(np.array_equal(before[0], picture.image), where, "the image unchanged", "another")
    require(np.array_equal(before[1], picture.labels), where, "the labels unchanged", "another")
    try:
        check_made(made, extractor, picture.labels)
    except ConformanceError as error:
        raise error.prefixed(picture.what) from error
    for spec in extractor.arrays:
        strange = np.setdiff1d(made[spec.name], [*np.unique(picture.labels), picture.ignore_index])
        known = spec.target != "classes" or not strange.size
        require(known, where, f"{spec.name} of the picture's classes or ignored", strange[:1])
    return {name: array.copy() for name, array in made.items()}


def _same(extractor: Extractor, picture: _Picture, rule: str, expected: Arrays, got: Arrays) -> None:
    for name in expected:
        if name not in got or got[name].shape != expected[name].shape:
            raise ConformanceError.mismatch(f"{extractor.name}, {rule}", f"the arrays {list(expected)}", "others")
        differs = (expected[name] != got[name]) & ((expected[name] == expected[name]) | (got[name] == got[name]))
        if differs.any():
            first = tuple(map(int, np.argwhere(differs)[0]))
            found = f"{got[name][first]} at {first}, and {int(differs.sum())} of {differs.size} values differ"
            wanted = f"{name} to be {expected[name][first]}"
            raise ConformanceError.mismatch(f"{extractor.name}, {rule}: {picture.what}", wanted, found)


def _check_spec(extractor: Extractor, spec: ArraySpec, picture: _Picture) -> None:
    """What a store says of an array can be stored, drawn and trained on."""
    where, dtype = f"{extractor.name}: array {spec.name}", picture.labels.dtype if spec.dtype == "label" else spec.dtype
    fill = picture.ignore_index if spec.fill == "ignore" else int(spec.fill)
    holds = spec.fills(np.dtype(dtype), fill)
    nothing = {"": spec.fill, "map": 0, "classes": "ignore"}.get(spec.target)
    require(holds, where, f"a fill that {dtype} can hold", repr(spec.fill))
    require(spec.drawn in ("", *DRAWN), where, f"drawn to be one of {', '.join(DRAWN)} or nothing", repr(spec.drawn))
    expected = "a target without fill, `map` with fill 0 or `classes` with fill 'ignore'"
    require(spec.fill == nothing, where, expected, (spec.target, spec.fill))


def _check_settings(extractor: Any) -> None:
    """Its settings are frozen and hashable, can be written as text, and come back from a store's document."""
    where, kind = extractor.name, type(extractor)
    frozen = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, where, "a frozen dataclass of settings", kind.__name__)
    try:
        hash(extractor)
        again = pickle.loads(pickle.dumps(extractor))
    except Exception as error:
        expected = "to be hashed, and pickled by its name"
        raise ConformanceError.mismatch(where, expected, f"{type(error).__name__}: {error}") from error
    require(again == extractor, where, f"{extractor} after pickling", again)
    hints = typing.get_type_hints(kind)
    for field in setting_fields(kind):
        value = getattr(extractor, field.name)
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        for written in (value, text) if field.init else ():
            try:
                read = from_text(written, hints[field.name], where=field.name)
            except Exception as error:
                expected = f"a setting {field.name} of bool, int, float, str, Path, Literal, or one of them or None"
                raise ConformanceError.mismatch(where, expected, repr(hints[field.name])) from error
            require(read == value, f"{where}.{field.name}", f"{value!r} from {written!r}", repr(read))
    _check_identity(extractor)


def _check_identity(extractor: Any) -> None:
    """Its identity is JSON with the revision, and those settings that it names make the same extractor again."""
    where, found = f"{extractor.name}: identity", identity(extractor)
    try:
        read = json.loads(json.dumps(found, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConformanceError.mismatch(where, "JSON", f"{found}: {error}") from error
    kept = read == found and type(found.get("revision")) is int
    require(kept, where, "JSON that stays as it is, with the integer `revision`", found)
    again = type(extractor)(**{f.name: read[f.name] for f in setting_fields(extractor) if f.init and f.name in read})
    require(identity(again) == found, where, f"{found} from these settings again", identity(again))


def _check_variants(extractor: Any, pictures: Sequence[_Picture], found: Sequence[Arrays]) -> None:
    """Other settings have another identity, unless they make the same of every picture (a matter of speed)."""
    hints = typing.get_type_hints(type(extractor))
    for field in setting_fields(extractor):
        for value in _others(getattr(extractor, field.name), hints[field.name]) if field.init else ():
            try:
                other = replace(extractor, **{field.name: value})
            except Exception:
                continue  # out of its range
            _check_identity(other)
            if identity(other) == identity(extractor):
                rule = f"one identity with {field.name} {getattr(extractor, field.name)!r} and {value!r}"
                for picture, arrays in zip(pictures, found, strict=True):
                    _same(extractor, picture, rule, arrays, _call(other, picture))


def _others(value: Any, hint: Any) -> Sequence[Any]:
    """Values of a setting to try besides its own; those of a wrong type or out of its range are refused."""
    if typing.get_origin(hint) is typing.Literal:
        return [other for other in typing.get_args(hint) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1, 2 * value + 1, value / 2 if isinstance(value, float) else value // 2]
    return [1] * (value is None and not {int, float}.isdisjoint(typing.get_args(hint)))


def _check_another_process(extractor: Extractor, pictures: Sequence[_Picture], found: Sequence[Arrays]) -> None:
    calls = [(picture.image, picture.labels, picture.ignore_index) for picture in reversed(pictures)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "14"}
    job = pickle.dumps((extractor, identity, calls))
    child = [sys.executable, "-c", _CHILD]
    ended = subprocess.run(child, input=job, capture_output=True, env=environment, check=False)
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
        expected = "the same in another process, which imports it by its name"
        raise ConformanceError.mismatch(extractor.name, expected, " ".join(last) or f"exit code {ended.returncode}")
    theirs, made = pickle.loads(ended.stdout)
    ours = identity(extractor)
    require(theirs == ours, f"{extractor.name}: identity in another process", ours, theirs)
    for picture, arrays, other in zip(pictures, found, reversed(made), strict=True):
        _same(extractor, picture, "another process", arrays, other)
