"""Regions of an id map: all pixels of one id, or one 8-connected part of them."""

from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from ..losses.numerics import check_choice
from .metrics import Integers

Regions = Literal["class", "connected"]


def split_regions(
    ids: Integers, kind: Regions, *, ignore_index: int | None = None
) -> tuple[npt.NDArray[np.int32], Integers]:
    """Number the regions of an id map (H, W): (H, W) int32 from 0 on, -1 where ignored, and the id of each region (R,).

    >>> regions, ids = split_regions(np.array([[7, 7, 0], [0, 0, 0], [7, 255, 0]]), "connected", ignore_index=255)
    >>> regions.tolist(), ids.tolist()
    ([[1, 1, 0], [0, 0, 0], [2, -1, 0]], [0, 7, 7])
    """
    check_choice("kind of region", kind, get_args(Regions))
    regions = np.full(ids.shape, -1, np.int32)
    owners: list[int] = []
    for index in np.unique(ids):
        if index == ignore_index:
            continue
        mask = ids == index
        if kind == "class":
            regions[mask] = len(owners)
            owners.append(int(index))
            continue
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions[mask] = parts[mask] - 1 + len(owners)
        owners += [int(index)] * (count - 1)
    return regions, np.array(owners, dtype=np.int64)
