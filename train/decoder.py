"""CAT-Seg's upsampling decoder: aggregated cost, guided by earlier CLIP levels, to logits at four times the grid."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpBlock(nn.Module):
    """Double the resolution, join the image guidance, and convolve twice."""

    def __init__(self, in_dim: int, out_dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.cost_dim = in_dim - guidance_dim
        self.up = nn.ConvTranspose2d(in_dim, self.cost_dim, kernel_size=2, stride=2)
        self.conv1 = nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(max(1, out_dim // 16), out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(max(1, out_dim // 16), out_dim)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B * T, C, h, w) and guidance (B, G, 2 h, 2 w) to (B * T, C', 2 h, 2 w).

        The first convolution sees [cost, guidance]; it is applied to the two halves apart, because the guidance is the same
        for all T classes of an image.
        """
        of_cost, of_guidance = torch.split(self.conv1.weight, [self.cost_dim, guidance.shape[1]], dim=1)
        mixed = F.conv2d(self.up(x), of_cost, padding=1)
        shared = F.conv2d(guidance, of_guidance, padding=1)
        mixed = (torch.unflatten(mixed, 0, (len(shared), -1)) + shared[:, None]).flatten(0, 1)
        hidden = F.relu(self.norm1(mixed), inplace=True)
        return F.relu(self.norm2(self.conv2(hidden)), inplace=True)


class Decoder(nn.Module):
    """Two UpBlocks and a convolution to one logit, class by class."""

    def __init__(
        self,
        hidden_dim: int,
        dims: tuple[int, ...],
        guidance_dims: tuple[int, ...],
        guidance_proj_dims: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.guidance1 = nn.Conv2d(guidance_dims[0], guidance_proj_dims[0], kernel_size=3, padding=1)
        self.guidance2 = nn.Conv2d(guidance_dims[1], guidance_proj_dims[1], kernel_size=3, padding=1)
        self.up1 = UpBlock(hidden_dim, dims[0], guidance_proj_dims[0])
        self.up2 = UpBlock(dims[0], dims[1], guidance_proj_dims[1])
        self.head = nn.Conv2d(dims[1], 1, kernel_size=3, padding=1)

    def forward(self, x: Tensor, guidance: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, h, w, C) and guidance (B, G1, 2 h, 2 w), (B, G2, 4 h, 4 w) to logits (B, T, 4 h, 4 w)."""
        maps = x.flatten(0, 1).permute(0, 3, 1, 2)
        maps = self.up1(maps, F.relu(self.guidance1(guidance[0])))
        maps = self.up2(maps, F.relu(self.guidance2(guidance[1])))
        logits: Tensor = self.head(maps)
        return torch.unflatten(logits[:, 0], 0, x.shape[:2])
