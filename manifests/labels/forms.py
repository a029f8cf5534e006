"""How the files of a data set hold label ids: the manifest names one of these forms, every reader decodes by it.

| form | file | raw id of a pixel |
|---|---|---|
| `ids` | one-channel picture | the stored number; of palette pictures the index |
| `ade-full` | RGB PNG (`X_seg.png` of the full ADE20K) | (R // 10) * 256 + G; B counts instances |
| `mat` | MATLAB 5 file | the number in the matrix `LabelMap` |
| `voc-colours` | RGB PNG | the index that the colour has in VOC's palette; a one-channel picture is read as `ids` |
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from ..decoding import (
    MAX_MEGAPIXELS,
    PNG_COLOUR_TYPE,
    PNG_DEPTH,
    check_not_empty,
    damage_named,
    decode_label,
    is_png,
    opened,
)
from ..errors import LabelFormatError
from .mat_file import read_matrix

PNG_RGB = 2  # the colour type
MAX_RAW_ID = 65535

RawIds = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def decode_raw(data: bytes, form: str, max_megapixels: float = MAX_MEGAPIXELS) -> RawIds:
    """The raw ids of a label file, (H, W) uint8 or uint16. Raises DecodeError for a file that has another form,
    and, before its pixels are unpacked, for one of more than `max_megapixels`.
    """
    return FORMS[form](data, max_megapixels)


def voc_palette() -> npt.NDArray[np.uint8]:
    """The (256, 3) RGB colours of VOC's palette: bit 3k+c of an id is bit 7-k of its channel c.

    >>> voc_palette()[[1, 15, 255]].tolist()
    [[128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((ids >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def _ade_full(data: bytes, max_megapixels: float) -> RawIds:
    """8-bit arithmetic would wrap: the ids reach 3688."""
    colours = _rgb_png(data, max_megapixels).astype(np.uint16)
    return np.asarray(colours[..., 0] // 10 * 256 + colours[..., 1], np.uint16)


def _mat(data: bytes, max_megapixels: float) -> RawIds:
    numbers = read_matrix(data, "LabelMap", max_megapixels)
    if not numbers.size or numbers.min() < 0 or numbers.max() > MAX_RAW_ID or (numbers != np.floor(numbers)).any():
        # Also where a number is not a number.
        raise LabelFormatError(f"LabelMap: expected whole numbers of 0..{MAX_RAW_ID}, got others")
    return np.ascontiguousarray(numbers, np.uint16)


def _voc_colours(data: bytes, max_megapixels: float) -> RawIds:
    if not (is_png(data) and data[PNG_COLOUR_TYPE] == PNG_RGB):
        return decode_label(data, max_megapixels)
    colours = _rgb_png(data, max_megapixels).astype(np.uint32)
    keys = colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]
    known, index_of = _colour_keys()
    positions = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    foreign = known[positions] != keys
    if foreign.any():
        hint = "smoothed or recompressed label colours cannot be turned into ids; find the original picture"
        got = f"{tuple(colours[foreign][0].tolist())} and others in {int(foreign.sum())} pixels"
        raise LabelFormatError(f"expected colours of VOC's palette, got {got}", hint=hint)
    return np.asarray(index_of[positions], np.uint8)


@cache
def _colour_keys() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    red, green, blue = voc_palette().astype(np.uint32).T
    keys = red << 16 | green << 8 | blue
    order = np.argsort(keys)
    return keys[order], order.astype(np.uint8)


def _rgb_png(data: bytes, max_megapixels: float) -> npt.NDArray[np.uint8]:
    """The colours of an 8-bit RGB PNG; Pillow would silently cut 16 bits to 8."""
    check_not_empty(data)
    if not is_png(data) or data[PNG_DEPTH : PNG_COLOUR_TYPE + 1] != bytes((8, PNG_RGB)):
        raise LabelFormatError("expected an RGB PNG of 8 bits a channel, got another picture")
    with damage_named(), opened(data, max_megapixels, "label") as picture:
        return np.asarray(picture, np.uint8)


FORMS: Mapping[str, Callable[[bytes, float], RawIds]] = {
    "ids": decode_label,
    "ade-full": _ade_full,
    "mat": _mat,
    "voc-colours": _voc_colours,
}
