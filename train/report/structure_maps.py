"""The structure head's maps of whole images.

The head sees an image as in training: in windows of the training crop's side on the canonical frame (at half-crop
steps, padded with 128 where the image is smaller), and the probabilities of overlapping windows are averaged.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ...pipeline.store.frame import CELL_PX
from ..data.crop import IMAGE_FILL
from ..model.segmenter import Segmenter

UInt8 = npt.NDArray[np.uint8]

WINDOWS_AT_ONCE = 4


def structure_maps(model: Segmenter, image: UInt8, window_px: int) -> npt.NDArray[np.float32]:
    """Probabilities (S, h, w) in [0, 1] of the model's structures, of an RGB image (h, w, 3) at its own size."""
    height, width = image.shape[:2]
    rows, columns = (_offsets(edge, window_px) for edge in (height, width))
    canvas = np.full((rows[-1] + window_px, columns[-1] + window_px, 3), IMAGE_FILL, np.uint8)
    canvas[:height, :width] = image
    device = next(model.parameters()).device
    planes = torch.from_numpy(canvas).to(device).permute(2, 0, 1).float()
    places = [(y, x) for y in rows for x in columns]
    total = planes.new_zeros(len(model.config.structures), *planes.shape[1:])
    cover = planes.new_zeros(planes.shape[1:])
    for start in range(0, len(places), WINDOWS_AT_ONCE):
        part = places[start : start + WINDOWS_AT_ONCE]
        crops = torch.stack([planes[:, y : y + window_px, x : x + window_px] for y, x in part])
        size = (window_px, window_px)
        maps = F.interpolate(model.predict_structures(crops), size=size, mode="bilinear", align_corners=False)
        for (y, x), found in zip(part, maps, strict=True):
            total[:, y : y + window_px, x : x + window_px] += found
            cover[y : y + window_px, x : x + window_px] += 1
    merged: npt.NDArray[np.float32] = (total / cover)[:, :height, :width].cpu().numpy()
    return merged


def _offsets(edge: int, window_px: int) -> list[int]:
    """Where windows begin along an edge: from 0 on, half a window apart at most, in steps of the trainer's (8 px)."""
    last = -(-max(0, edge - window_px) // CELL_PX) * CELL_PX
    count = 1 + -(-2 * last // window_px)
    return sorted({round(last * step / max(1, count - 1) / CELL_PX) * CELL_PX for step in range(count)})
