"""Segments of COCO annotations, polygons or run-length codes (RLE), become masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def segment_mask(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Pixels of one annotation's `segmentation` as (H, W) bool. Raises ValueError for one that does not fit the image.

    pycocotools turns polygons into run lengths; those are checked and unrolled here. Left to itself it takes a polygon
    of two points for a box, ignores an odd coordinate, and leaves the pixels behind a short code uninitialised.
    """
    if isinstance(segmentation, Mapping):
        size, counts = list(segmentation["size"]), segmentation["counts"]
        if size != [height, width]:
            raise ValueError(f"expected a segment of {height} x {width} pixels (h x w) as its image, got size {size}")
    else:
        counts = _polygon_counts(segmentation, height, width)
    runs = run_lengths(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"expected runs over {height} x {width} = {height * width} pixels, got {int(runs.sum())}")
    inside = np.arange(len(runs)) % 2 == 1  # the first run lies outside
    return np.asarray(np.repeat(inside, runs).reshape(width, height).T)  # runs go down the columns


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


def _polygon_counts(polygons: Any, height: int, width: int) -> bytes:
    """Compressed run lengths of the union of polygons, each a flat list x, y, x, y, ..."""
    from pycocotools import mask as coco_mask  # which nothing but these needs

    if isinstance(polygons, list) and polygons and isinstance(polygons[0], int | float):
        raise ValueError("expected a list of polygons, got one flat list of numbers: put it into a list, [[x, y, ...]]")
    for polygon in polygons or [[]]:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"expected polygons of at least three points (x, y), got {len(polygon)} coordinates")
        if not (np.abs(np.asarray(polygon, np.float64)) <= 10 * max(height, width)).all():  # long edges take memory
            raise ValueError(f"expected coordinates in or near {width} x {height} pixels (w x h), got others")
    counts: bytes = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]
    return counts
