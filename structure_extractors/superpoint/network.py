"""The detector network of SuperPoint (DeTone, Malisiewicz, Rabinovich 2018), one class for every published variant.

Eight 3x3 convolutions with 2x2 max-pooling after the first three pairs; a head of a 3x3 and a 1x1 convolution gives 65
logits per 8x8 cell: one for each pixel and a last one, the dustbin, for "no keypoint here". The variants differ in
widths, in where batch normalisation stands, and in its epsilon: `Architecture` says which.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ExtractorError

CELL_PX = 8  # three poolings
NUM_LOGITS = CELL_PX * CELL_PX + 1

Order = Literal["conv-relu", "conv-relu-bn", "conv-bn-relu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """What distinguishes one SuperPoint detector from another; the defaults are the published size."""

    widths: tuple[int, ...] = (64, 64, 64, 64, 128, 128, 128, 128)  # output channels of the eight encoder convolutions
    head_width: int = 256  # channels between the two convolutions of the head
    order: Order = "conv-relu"  # where batch normalisation stands, if there is any
    norm_eps: float = 1e-5  # epsilon of batch normalisation
    norm_logits: bool = False  # batch normalisation of the 65 logits (never a ReLU)

    def __post_init__(self) -> None:
        if len(self.widths) != 8 or min(*self.widths, self.head_width) < 1:
            raise ExtractorError(
                f"expected eight positive widths and a head width, got {(*self.widths, self.head_width)}"
            )


class ConvUnit(nn.Module):
    """A convolution that keeps the size, then ReLU and batch normalisation in the given order; "conv" has neither."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, order: str, eps: float) -> None:
        super().__init__()
        self.order = order
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs, eps=eps) if "bn" in order else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for part in self.order.split("-")[1:]:
            x = functional.relu(x) if part == "relu" else self.norm(x)
        return x


class DetectorNetwork(nn.Module):
    """Grey images (B, 1, H, W) float in [0, 1], H and W multiples of 8, to logits (B, 65, H/8, W/8)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        order, eps = architecture.order, architecture.norm_eps
        inputs = (1, *architecture.widths[:-1])
        self.blocks = nn.ModuleList(
            ConvUnit(i, o, 3, order=order, eps=eps) for i, o in zip(inputs, architecture.widths, strict=True)
        )
        self.head = ConvUnit(architecture.widths[-1], architecture.head_width, 3, order=order, eps=eps)
        logits = "conv-bn" if architecture.norm_logits else "conv"
        self.logits = ConvUnit(architecture.head_width, NUM_LOGITS, 1, order=logits, eps=eps)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logits.conv.weight.device

    def forward(self, grey: Tensor) -> Tensor:
        x = grey
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in (1, 3, 5):
                x = functional.max_pool2d(x, 2)
        logits: Tensor = self.logits(self.head(x))
        return logits


def fold_normalisation(network: DetectorNetwork) -> DetectorNetwork:
    """The same function without batch normalisation, for a network in evaluation mode whose norms follow convolutions.

    A normalisation after a convolution is a factor and a shift of its weights: the same numbers up to rounding, in less
    time, for each normalisation reads and writes a whole feature map. Where the ReLU stands between (rpautrat's order)
    the network comes back as it is: the next convolution's zero padding would see the shift.
    """
    if network.architecture.order != "conv-bn-relu":
        return network
    folded = DetectorNetwork(replace(network.architecture, order="conv-relu", norm_logits=False))
    units = zip(
        (*network.blocks, network.head, network.logits), (*folded.blocks, folded.head, folded.logits), strict=True
    )
    for given, made in units:
        weight, bias = given.conv.weight.detach().double(), given.conv.bias.detach().double()
        if "bn" in given.order:
            norm: Any = given.norm
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weight = weight * factor[:, None, None, None]
            bias = (bias - norm.running_mean.double()) * factor + norm.bias.double()
        made.conv.weight.data.copy_(weight)
        made.conv.bias.data.copy_(bias)
    return folded.to(network.logits.conv.weight.dtype).eval().requires_grad_(False)


def keypoint_probability(logits: Tensor) -> Tensor:
    """Turn logits (B, 65, H/8, W/8) into the probability of a keypoint at each pixel, (B, H, W) float32.

    Softmax over the 65 channels of a cell, then the dustbin is dropped: a cell sums to at most 1. Channel 8 dy + dx of
    cell (cy, cx) is pixel (8 cy + dy, 8 cx + dx), which is the order of `pixel_shuffle`.
    """
    probability = torch.softmax(logits.float(), dim=1)[:, :-1]
    return functional.pixel_shuffle(probability, CELL_PX)[:, 0]


@torch.inference_mode()
def keypoint_probabilities(network: DetectorNetwork, images: Tensor) -> Tensor:
    """Probability (B, H, W) float32 of a keypoint at each pixel of pictures (B, 1, H, W) float in [0, 1] of any size.

    A cell of 8x8 pixels sums to at most 1. Right and bottom are padded to a multiple of 8 by repeating the last column
    and row, which invents no corner there, and cut off again: no pixel is lost and none moves. Precision is that of the
    network's weights.

    A CPU takes the pictures of a batch one by one: feature maps of several do not stay in its caches (at 384x512, four
    together took twice as long), and so no answer depends on its batch.
    """
    height, width = images.shape[-2:]
    images = functional.pad(images, (0, -width % CELL_PX, 0, -height % CELL_PX), mode="replicate")
    images = images.to(network.logits.conv.weight.dtype, memory_format=torch.channels_last)
    parts = torch.split(images, 1 if images.device.type == "cpu" else len(images))
    return torch.cat([keypoint_probability(network(part)) for part in parts])[:, :height, :width]


def grey_tensor(grey: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Grey pictures (B, H, W) uint8 as the network takes them: (B, 1, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(grey)).to(device, non_blocking=True)[:, None].float() / 255
