"""CAT-Seg's upsampling decoder: aggregated cost, guided by earlier CLIP levels, to logits at four times the grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .bounded import Bounded
from .config import SegmenterConfig


class UpBlock(nn.Module):
    """Double the resolution, join the image guidance, and convolve twice.

    Published form: transposed convolution (kernel 2, stride 2), concatenate the guidance repeated for all T classes,
    3x3 convolution. Here the first two convolutions are one (`upsampling_kernel`) and the guidance, the same for all
    classes of an image, goes through its half of the weight once: the same numbers for half of the arithmetic,
    without the upsampled cost, the largest tensor of the published form.
    """

    reach: Tensor

    def __init__(self, in_dim: int, out_dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.cost_dim = in_dim - guidance_dim
        self.up = nn.ConvTranspose2d(in_dim, self.cost_dim, kernel_size=2, stride=2)
        self.conv1 = nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(1, out_dim // 16), out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(1, out_dim // 16), out_dim)
        self.register_buffer("reach", _REACH, persistent=False)  # on the device: each copy there would wait for it

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B * T, C, h, w), guidance (B, G, 2 h, 2 w) to (B * T, C', 2 h, 2 w); channels last in memory."""
        of_cost, of_guidance = torch.split(self.conv1.weight, [self.cost_dim, guidance.shape[1]], dim=1)
        bias = torch.as_tensor(self.up.bias)[:, None, None].expand(-1, *guidance.shape[2:])[None]
        shared = F.conv2d(guidance, of_guidance, padding=1) + F.conv2d(bias, of_cost, padding=1)
        phases = F.conv2d(x, upsampling_kernel(self.up.weight, of_cost, self.reach), padding=1)
        hidden = F.relu(self.norm1(interleave(phases, shared)), inplace=True)
        return F.relu(self.norm2(self.conv2(hidden)), inplace=True)


class Decoder(Bounded):
    """Two UpBlocks and a convolution to one logit, class by class."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        dims, guidance, projected = config.decoder_dims, config.decoder_guidance_dims, config.decoder_guidance_proj_dims
        self.guidance1 = nn.Conv2d(guidance[0], projected[0], kernel_size=3, padding=1)
        self.guidance2 = nn.Conv2d(guidance[1], projected[1], kernel_size=3, padding=1)
        self.up1 = UpBlock(config.hidden_dim, dims[0], projected[0])
        self.up2 = UpBlock(dims[0], dims[1], projected[1])
        self.head = nn.Conv2d(dims[1], 1, kernel_size=3, padding=1)

    def forward(self, x: Tensor, guidance: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, h, w, C) and guidance (B, G1, 2 h, 2 w), (B, G2, 4 h, 4 w) to logits (B, T, 4 h, 4 w)."""
        near, fine = F.relu(self.guidance1(guidance[0])), F.relu(self.guidance2(guidance[1]))

        def decode(classes: Tensor) -> Tensor:
            maps = classes.flatten(0, 1).permute(0, 3, 1, 2)
            maps = self.up2(self.up1(maps, near), fine)
            logits: Tensor = self.head(maps)
            return torch.unflatten(logits[:, 0], 0, classes.shape[:2])

        # The second stage's convolution holds its input and output and what it was laid out from: about four maps.
        held = 4 * len(x) * self.head.in_channels * fine.shape[2] * fine.shape[3] * x.element_size()
        return self.in_pieces(decode, x, 1, held)


# _REACH[a, j, tap, s] is 1 where, for an output row 2 y + a, this tap (0..2) of a 3x3 convolution falls on the
# sub-row s that a stride-2 transposed convolution makes of the input row y - 1 + a + j.
_REACH = torch.zeros(2, 2, 3, 2)
_REACH[0, 0, 0, 1] = _REACH[0, 1, 1, 0] = _REACH[0, 1, 2, 1] = 1
_REACH[1, 0, 0, 0] = _REACH[1, 0, 1, 1] = _REACH[1, 1, 2, 0] = 1


def upsampling_kernel(up: Tensor, conv: Tensor, reach: Tensor) -> Tensor:
    """One 2x2 kernel per sub-position that does what upsampling by `up` and then convolving by `conv` does.

    A transposed convolution `up` (C, M, 2, 2) with stride 2 followed by a 3x3 convolution `conv` (O, M, 3, 3) is
    linear, and each output pixel sees 2x2 input pixels only. `reach` is `_REACH`, on the device of both. Returns
    (4 O, C, 2, 2), ordered by sub-row, sub-column, output channel, to be applied with padding 1 and then laid out by
    `interleave`.
    """
    with torch.autocast(up.device.type, enabled=False):  # products of weights: too few to be worth rounding
        reach = reach.to(up)
        rows = torch.einsum("ajds,cmst->ajdcmt", reach, up)
        mixed = torch.einsum("ajdcmt,omde->ajcote", rows, conv)
        kernel = torch.einsum("ajcote,bket->abocjk", mixed, reach)
    return kernel.flatten(0, 2)


def interleave(phases: Tensor, shared: Tensor) -> Tensor:
    """Sub-positions to space, plus `shared` for every class of an image.

    phases (B * T, 4 O, h + 1, w + 1) from a convolution by `upsampling_kernel`, shared (B, O, 2 h, 2 w); returns
    (B * T, O, 2 h, 2 w). Pixel (2 y + a, 2 x + b) takes sub-position (a, b) at (y + a, x + b).
    """
    if torch.compiler.is_compiling():
        return interleave_slices(phases, shared)
    laid_out: Tensor = _Interleave.apply(phases, shared)
    return laid_out


def interleave_slices(phases: Tensor, shared: Tensor) -> Tensor:
    """As `interleave`, from slices and sums: for a compiler, which makes one pass over memory of them by itself."""
    batch, _, height, width = shared.shape
    parts = torch.unflatten(phases, 1, (2, 2, -1))
    rows = [
        torch.stack([parts[:, a, b, :, a : a + height // 2, b : b + width // 2] for b in (0, 1)], dim=-1)
        for a in (0, 1)
    ]
    laid_out = torch.stack(rows, dim=3).flatten(2, 3).flatten(3, 4)
    return (torch.unflatten(laid_out, 0, (batch, -1)) + shared[:, None]).flatten(0, 1)


class _Interleave(torch.autograd.Function):
    """One pass over memory each way; as slices and sums autograd would make eight."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor, shared: Tensor) -> Tensor:
        phases = phases.contiguous(memory_format=torch.channels_last)
        ctx.shapes = phases.shape, shared.shape
        batch, channels, height, width = shared.shape
        pixels = torch.unflatten(_by_pixel(phases), 0, (batch, -1))
        image = shared.permute(0, 2, 3, 1).reshape(batch, 1, height // 2, 2, width // 2, 2, channels)
        laid_out = phases.new_empty(pixels.shape)
        torch.add(pixels, image, out=laid_out)
        return laid_out.view(-1, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (number, parts, rows, columns), (batch, channels, height, width) = ctx.shapes
        grad = grad.permute(0, 2, 3, 1).contiguous()
        phases = grad.new_zeros(number, rows, columns, parts).permute(0, 3, 1, 2)  # channels last at once
        _by_pixel(phases).copy_(grad.view(-1, height // 2, 2, width // 2, 2, channels))
        shared = grad.view(batch, -1, height * width * channels).sum(dim=1)
        return phases, shared.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _by_pixel(phases: Tensor) -> Tensor:
    """Phases (N, 4 O, h + 1, w + 1), channels last, as a view (N, h, 2, w, 2, O) in the order of output pixels."""
    number, channels, rows, columns = phases.shape
    part = channels // 4
    image, row, column = rows * columns * channels, columns * channels, channels
    strides = (image, row, row + 2 * part, column, column + part, 1)
    return phases.as_strided((number, rows - 1, 2, columns - 1, 2, part), strides)
