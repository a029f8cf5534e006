"""Numeric matrices out of MATLAB 5 files (.mat as written by `save -v6`, `save -v7` and by SciPy), alone or in cells.

Format: "MAT-File Format", The MathWorks, chapter 1: a header of 128 bytes, then elements of a type, a number of bytes
and a body padded to 8 bytes; an element of at most 4 bytes may lie in its own tag; an element may be zlib-compressed.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..decoding import MAX_MEGAPIXELS, SMALLER
from ..errors import DecodeError, LabelFormatError

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
# Type of stored numbers -> NumPy's. MATLAB stores a matrix of doubles as the smallest type that holds its values.
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Class of a matrix -> NumPy's type; texts, objects and sparse matrices are none of ours.
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
CELL, STRUCTURE = 1, 2
MAX_BYTES = 1 << 30  # of one unpacked element; a label map of 100 megapixels in doubles takes 0.8e9

Content = TypeVar("Content")


def read_matrix(data: bytes, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[Any]:
    """The real numeric matrix called `name`, (rows, columns) in MATLAB's sense, in the type of its class.

    Raises DecodeError for another format, a damaged file, a file without such a matrix, and one of more than
    `max_megapixels` million numbers.
    """
    return _read_variable(data, name, partial(_matrix, max_megapixels=max_megapixels))


def read_cells(data: bytes, name: str, field: str) -> list[npt.NDArray[Any]]:
    """The numeric matrix `field` of the structure in each cell of the cell array `name`, in its order.

    This is how BSDS500 keeps the boundaries of several people: `groundTruth{i}.Boundaries`. Raises DecodeError as
    `read_matrix` does, and for cells that are no single structures or lack the field.
    """

    def read(parts: list[tuple[int, bytes]], order: str) -> list[npt.NDArray[Any]]:
        if _class(parts, order) != CELL:
            raise LabelFormatError(f"{name!r}: expected a cell array, got something else")
        return [_field(list(_elements(body, order)), order, field) for _, body in parts[3:]]

    return _read_variable(data, name, read)


def _read_variable(data: bytes, name: str, read: Callable[[list[tuple[int, bytes]], str], Content]) -> Content:
    """What `read` makes of the elements of the variable called `name` and the file's byte order."""
    if len(data) < HEADER_BYTES or not data.startswith(b"MATLAB 5.0") or data[126:128] not in (b"IM", b"MI"):
        got = "a MATLAB 7.3 (HDF5) file" if data.startswith(b"MATLAB 7.3") else "something else" if data else "0 bytes"
        hint = "copy or download it again; from MATLAB, `save -v7` writes this format"
        raise (LabelFormatError if data else DecodeError)(f"expected a MATLAB 5 file, got {got}", hint=hint)
    order = "<" if data[126:128] == b"IM" else ">"
    seen = []
    try:
        for outer in _elements(data[HEADER_BYTES:], order):
            [(kind, body)] = _elements(_unpacked(outer[1]), order) if outer[0] == COMPRESSED else [outer]
            if kind != MATRIX:
                continue
            parts = list(_elements(body, order))
            found = bytes(parts[2][1]).decode("ascii", "replace")
            if found == name:
                return read(parts, order)
            seen.append(found)
    except DecodeError:  # a ValueError, too
        raise
    except (struct.error, zlib.error, ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"cannot be decoded: a damaged MATLAB file ({error})") from error
    raise LabelFormatError(f"expected a variable {name!r}, got {', '.join(map(repr, seen)) or 'none'}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and body of each element in turn. Raises ValueError for one that is cut short."""
    offset = 0
    while offset + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, offset)
        start = offset + 8
        if kind >> 16:  # a small element: its size and type share a word, its body is the other one
            kind, size, start = kind & 0xFFFF, kind >> 16, offset + 4
            end = offset + 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        else:
            end = start + size if kind == COMPRESSED else start + -(-size // 8) * 8
        if start + size > len(data):
            raise ValueError(f"it ends in the middle of an element of {size} bytes")
        yield kind, data[start : start + size]
        offset = end


def _unpacked(body: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(body, MAX_BYTES)
    if not unpacker.eof:
        raise ValueError("its compressed part is cut short, or longer than a label map can be")
    return data


def _matrix(parts: list[tuple[int, bytes]], order: str, *, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[Any]:
    """Array flags, dimensions, name, real part: the numbers in Fortran's order, columns first."""
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF not in CLASSES or flags & 0x0800:  # complex
        raise LabelFormatError("expected a matrix of real numbers, got something else")
    shape = np.frombuffer(parts[1][1], f"{order}i4")
    if len(shape) != 2 or (shape < 0).any():
        raise LabelFormatError(f"expected a matrix of 2 dimensions, got {shape.tolist()}")
    if np.prod(shape, dtype=np.float64) > max_megapixels * 1e6:
        too_large = f"expected at most {max_megapixels:g} megapixels, got {shape[0]} x {shape[1]}"
        raise DecodeError(too_large, hint=SMALLER, reason="label too large")
    kind, body = parts[3]
    numbers = np.frombuffer(body, f"{order}{NUMBERS[kind]}")
    return numbers.reshape(tuple(shape.tolist()), order="F").astype(CLASSES[flags & 0xFF])


def _field(parts: list[tuple[int, bytes]], order: str, name: str) -> npt.NDArray[Any]:
    """A numeric field of a structure: flags, dimensions, name, length of the field names, the names, the fields."""
    if _class(parts, order) != STRUCTURE or np.frombuffer(parts[1][1], f"{order}i4").tolist() != [1, 1]:
        raise LabelFormatError("a cell: expected one structure, got something else")
    (length,) = struct.unpack_from(f"{order}i", parts[3][1])
    text = bytes(parts[4][1])
    names = [text[start : start + length].split(b"\0")[0].decode("ascii") for start in range(0, len(text), length)]
    if name not in names:
        raise LabelFormatError(f"expected a field {name!r}, got {', '.join(map(repr, names))}")
    return _matrix(list(_elements(parts[5 + names.index(name)][1], order)), order)


def _class(parts: list[tuple[int, bytes]], order: str) -> int:
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    return int(flags & 0xFF)
