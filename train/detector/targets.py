"""From keypoints to what the network is asked for: one of 65 classes in each 8x8 cell, and the loss on that."""

import torch
from torch import Tensor
from torch.nn import functional

from ...structure_extractors.superpoint.network import CELL_PX

DUSTBIN = CELL_PX * CELL_PX  # class of a cell without a keypoint


def cell_classes(keypoints: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The class of each 8x8 cell, (B, H/8, W/8) int64, 0..64: which of its pixels holds a keypoint, or none.

    Channel 8 dy + dx is pixel (8 cy + dy, 8 cx + dx). Of several keypoints in a cell one is taken at random. Keypoints
    are (B, N, 2) float x, y; those outside the picture of `size` (h, w), multiples of 8, do not count.
    """
    height, width = size
    number = len(keypoints)
    pixels = torch.floor(keypoints + 0.5)
    x, y = pixels.unbind(dim=-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = torch.where(inside[..., None], pixels, 0).long().unbind(dim=-1)
    luck = torch.rand(x.shape, generator=generator) * 0.5 + 0.5
    flat = torch.zeros(number, height * width)
    # The winner is the largest number on a cell's pixels, so that it does not depend on the order of the points.
    flat.scatter_reduce_(1, y * width + x, torch.where(inside, luck, 0.0), reduce="amax")
    cells = functional.pixel_unshuffle(flat.view(number, 1, height, width), CELL_PX)
    nothing = torch.full_like(cells[:, :1], 0.25)
    return torch.cat([cells, nothing], dim=1).argmax(dim=1)


def valid_cells(valid: Tensor) -> Tensor:
    """Cells (B, H/8, W/8) bool all of whose pixels (B, H, W) bool are valid."""
    return functional.max_pool2d((~valid).float()[:, None], CELL_PX)[:, 0] == 0


def detector_loss(logits: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, 65, h, w) over the valid cells (B, h, w) of a batch, float32."""
    loss = functional.cross_entropy(logits.float(), classes, reduction="none")
    return (loss * valid).sum() / valid.sum().clamp(min=1)
