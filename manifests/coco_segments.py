"""Segments of COCO annotations, polygons or run-length codes (RLE), become masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask


def segment_mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Pixels of one annotation's `segmentation` as (H, W) bool. Raises ValueError for one that does not fit the image.

    All is checked before pycocotools sees it: it takes a polygon of two points for a box, ignores an odd coordinate,
    and leaves the pixels behind the end of a short run-length code uninitialised.
    """
    if isinstance(segmentation, Mapping):
        code = _checked_rle(segmentation, height, width)
    else:
        for polygon in segmentation or [[]]:
            if len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(f"expected polygons of at least three points (x, y), got {len(polygon)} coordinates")
            if not np.isfinite(np.asarray(polygon, np.float64)).all():
                raise ValueError("expected finite coordinates")
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return np.asarray(coco_mask.decode(code), dtype=np.bool_)


def run_lengths(counts: str | bytes) -> npt.NDArray[np.int64]:
    """Run lengths of a compressed RLE: 5 bits a character, lowest first; from the fourth run on, relative to two back.

    >>> run_lengths("34=").tolist()
    [3, 4, 13]
    """
    data = counts.encode("ascii") if isinstance(counts, str) else counts
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 0x20) == 0)  # the last character of each number
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or not len(last) or last[-1] != len(codes) - 1:
        raise ValueError("expected a compressed run-length code, got other characters")
    first = np.concatenate([[0], last[:-1] + 1])
    num_chars = last - first + 1
    if num_chars.max() > 7:
        raise ValueError("expected run lengths of at most 32 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, num_chars))
    runs = np.add.reduceat((codes & 0x1F) << shifts, first)
    runs -= np.where(codes[last] & 0x10, np.int64(1) << (5 * num_chars), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _checked_rle(segmentation: Mapping[str, Any], height: int, width: int) -> Mapping[str, Any]:
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"expected a segment of {height} x {width} pixels (h x w) as its image, got size {segmentation['size']}"
        )
    counts = segmentation["counts"]
    runs = run_lengths(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"expected runs over {height} x {width} = {height * width} pixels, got {int(runs.sum())}")
    if isinstance(counts, str | bytes):
        return segmentation
    code: Mapping[str, Any] = coco_mask.frPyObjects(dict(segmentation), height, width)
    return code
