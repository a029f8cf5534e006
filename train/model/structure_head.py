"""The structure head: from the image encoder's own levels to one map per physical structure (paper Fig. 3).

It exists in training only: predicting edges and keypoints regularises the encoder, nothing reads the maps afterwards.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...common.errors import ConfigError
from ..errors import ShapeError
from .backbones.interface import Level

# Share of cells that hold something, which predictions start from, so that the first steps are not spent on the easy
# negatives (Lin et al. 2017, section 4.1). In 13 COCO photographs, max-pooled to 4 x 4 px: Canny 0.25 (0.02-0.50), SIFT
# 0.05 (0.01-0.09). Edges of one class are rarer: 0.004 in VOC, 0.002 in MSRC, 0.0006 in COCO.
PRIOR = 0.1
CLASS_PRIOR = 0.01


class Refine(nn.Module):
    """Fuse a coarser map with the next level, and refine the grid by `scale` on the way out (paper Fig. 3).

    Concatenate, normalise (GroupNorm, groups of 16 channels: batches are small), 1x1 convolution, ReLU. The paper names
    no activation; without one, the three modules would collapse into little more than one linear map.

    The convolution makes `scale`² x `channels` channels and a pixel shuffle lays them out in space. Bilinear upsampling
    could not do this job: every level of a plain ViT lies on the patch grid, where each vector describes 16x16 pixels,
    and a 1x1 convolution treats all positions inside a patch alike. The shuffle gives each sub-patch position its own
    output channels, so that the map, and the gradient that reaches the encoder, can tell where in the patch an edge is.
    Where the next level is finer than the coarser map, it brings the detail itself, and `scale` is 1.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.GroupNorm(2 * channels // 16, 2 * channels)
        self.conv = nn.Conv2d(2 * channels, channels * scale * scale, kernel_size=1)

    def forward(self, coarse: Tensor, level: Tensor) -> Tensor:
        """Both (B, C, h, w), the coarser one brought to the finer one's grid bilinearly -> (B, C, scale h, scale w)."""
        grid = max(coarse.shape[-2:], level.shape[-2:])
        pair = torch.cat([_brought_to(grid, coarse), _brought_to(grid, level)], dim=1)
        fused = functional.relu(self.conv(self.norm(pair)))
        return functional.pixel_shuffle(fused, self.scale) if self.scale > 1 else fused


class StructureHead(nn.Module):
    """Predict structure logits at 4 x the patch grid from four levels of the image encoder.

    Each level: 1x1 convolution to `hidden`. Three Refine modules, from the deepest level to the shallowest; for a ViT,
    whose levels all lie on the patch grid, 24 -> 24, 24 -> 48 and 48 -> 96 (for a 384 crop). Levels of a pyramid bring
    finer grids themselves: at strides of a patch, a half, a quarter and an eighth of it, the modules work at 48, 96 and
    96, and refine nothing; what is finer than 4 x the patch grid is averaged down to it. A last 1x1 convolution gives
    one logit per structure, or per class of a structure of classes; the sigmoid is the loss's affair. See
    docs/method.md, Structures.

    Args:
        levels: The four levels, the deepest first.
        patch_px: Side of a patch in pixels of the encoder's input.
        structures: Number of structures to predict, S.
        hidden: Channels after the first convolutions, a multiple of 8 (GroupNorm takes groups of 16 of twice as many).
        classes: For each structure the number of classes it is predicted in, 0 for a single map. None: single maps.

    Raises:
        ConfigError: GroupNorm cannot split `hidden`, or a level's grid does not go with 4 x the patch grid.

    Examples:
        >>> head = StructureHead([Level(64, stride=16)] * 4, 16, structures=2, hidden=32, classes=(0, 20))
        >>> head([torch.rand(1, 64, 24, 24) for _ in range(4)]).shape
        torch.Size([1, 21, 96, 96])
    """

    def __init__(
        self,
        levels: Sequence[Level],
        patch_px: int,
        structures: int,
        hidden: int = 256,
        *,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if hidden < 8 or hidden % 8:
            raise ConfigError(f"hidden must be a positive multiple of 8, got {hidden}", hint="for example 32 or 256")
        self.strides = [level.stride for level in levels]
        self.averaged = [patch_px // (4 * stride) for stride in self.strides]  # above 1 where a level is too fine
        self.levels = nn.ModuleList(nn.Conv2d(level.channels, hidden, kernel_size=1) for level in levels)
        scales = refine_scales(self.strides, patch_px)
        self.refine = nn.ModuleList(Refine(hidden, scale) for scale in scales)
        numbers = classes or [0] * structures
        priors = [prior for number in numbers for prior in ([CLASS_PRIOR] * number or [PRIOR])]
        self.predict = nn.Conv2d(hidden, len(priors), kernel_size=1)
        for channel, prior in enumerate(priors):
            nn.init.constant_(cast(Tensor, self.predict.bias)[channel], -math.log((1 - prior) / prior))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Structure logits of a batch.

        Args:
            levels: Four feature maps (B, C_l, h, w) of one crop at the levels' strides: for a ViT all on the patch grid
                (24 x 24 for a 384 crop), coarse to fine: `levels[0]` is the output of the **deepest** block or stage,
                `levels[3]` of the shallowest.

        Returns:
            (B, C, 4 g, 4 g') logits, g x g' the patch grid, in the levels' dtype, structure by structure: one channel,
            or one a class.

        Raises:
            ShapeError: The head was built for another number of levels, or their grids are not those of one crop.
        """
        shapes = [tuple(level.shape) for level in levels]
        crops = {(h * stride, w * stride) for (*_, h, w), stride in zip(shapes, self.strides, strict=False)}
        if len(levels) != len(self.levels) or len(crops) != 1:
            raise ShapeError.mismatch("levels", f"{len(self.levels)} of one crop, at strides {self.strides}", shapes)
        maps = []
        for conv, cells, level in zip(self.levels, self.averaged, levels, strict=True):
            maps.append(conv(functional.avg_pool2d(level, cells) if cells > 1 else level))
        fused = maps[0]
        for refine, level in zip(self.refine, maps[1:], strict=True):
            fused = refine(fused, level)
        logits: Tensor = self.predict(fused)
        return logits


def refine_scales(strides: Sequence[int], patch_px: int) -> tuple[int, int, int]:
    """Growth of the grid inside each of the three Refine modules, so that the last one ends at 4 x the patch grid.

    What the finest level lacks is made by doubling, as late as possible. Raises ConfigError where that does not go.

    >>> refine_scales([16, 16, 16, 16], 16), refine_scales([32, 16, 8, 4], 32)
    ((1, 2, 2), (1, 1, 1))
    """
    growths = {1: (1, 1, 1), 2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2)}
    fit = all(4 * stride % patch_px == 0 or patch_px % (4 * stride) == 0 for stride in strides)
    growth = max(1, 4 * min(strides) // patch_px)
    if not fit or growth not in growths:
        expected = f"the patch size {patch_px} times or divided by a power of two, at most twice of it"
        raise ConfigError.mismatch("strides of the backbone's levels", expected, list(strides))
    return growths[growth]


def _brought_to(grid: Sequence[int], maps: Tensor) -> Tensor:
    if maps.shape[-2:] == grid:
        return maps
    return functional.interpolate(maps, size=list(grid), mode="bilinear", align_corners=False)
