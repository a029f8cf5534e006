"""Random homographies, and images and points under them. Warping is kornia's, on the device of the images.

A homography (3, 3) maps pixel coordinates (x, y, 1); pixel centres lie at integers.
"""

import math
from dataclasses import dataclass

import torch
from kornia.geometry.transform import get_perspective_transform, warp_perspective
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class HomographySettings:
    """How far random homographies go. Lengths are shares of the image's sides."""

    patch: float = 0.8  # side of the patch that becomes the whole picture, before the rest changes it
    perspective: float = 0.2  # standard deviation of each corner's shift: half of it along x, half along y
    scale: float = 0.2  # standard deviation of the size's factor
    max_scale: float = 0.5  # the size's factor lies within 1 -+ this
    rotation: float = math.pi / 2  # largest angle of rotation, radians
    shift: float = 0.1  # largest shift of the centre


def random_homographies(
    number: int, size: tuple[int, int], settings: HomographySettings, generator: torch.Generator
) -> Tensor:
    """Draw N homographies (N, 3, 3) float32 from pictures of `size` (h, w) to warped ones, on the CPU with `generator`.

    A patch in the middle of the picture is bent, scaled, turned and moved, and becomes the warped picture.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).clamp(-2, 2)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    height, width = size
    sides = torch.tensor([width, height], dtype=torch.float32)
    whole = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    patch = settings.patch * whole + settings.perspective / 2 * normal(number, 4, 2)
    factor = (1 + settings.scale * normal(number, 1, 1)).clamp(1 - settings.max_scale, 1 + settings.max_scale)
    angle = settings.rotation * uniform(number)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(number, 2, 2)
    # Turned in pixels, not in shares of the sides: a square stays a square.
    corners = (patch * factor * sides) @ turn.transpose(1, 2) + settings.shift * sides * uniform(number, 1, 2)
    middle = (sides - 1) / 2
    homographies: Tensor = get_perspective_transform(corners + middle, (whole * sides + middle).expand(number, 4, 2))
    return homographies


def warp(images: Tensor, homographies: Tensor) -> Tensor:
    """Warp images (B, C, H, W) float by homographies (B, 3, 3) into pictures of the same size; outside is 0."""
    size = (images.shape[-2], images.shape[-1])
    warped: Tensor = warp_perspective(images, homographies, size, padding_mode="zeros", align_corners=True)
    return warped


def warp_points(points: Tensor, homographies: Tensor) -> Tensor:
    """Map points (B, N, 2) x, y by homographies (B, 3, 3); a point behind the camera becomes infinite."""
    mapped = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1) @ homographies.transpose(-1, -2)
    depth = mapped[..., 2:]
    return torch.where(depth > 1e-6, mapped[..., :2] / depth, torch.inf)


def valid_pixels(homographies: Tensor, size: tuple[int, int], *, margin_px: int = 0) -> Tensor:
    """Which pixels (B, H, W) bool of the warped pictures come from inside the picture, `margin_px` from its edges."""
    height, width = size
    rows, columns = (torch.arange(side, device=homographies.device) for side in size)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(1, -1, 2).to(homographies)
    # `inv` would read of the device whether there is an inverse.
    source = warp_points(grid.expand(len(homographies), -1, -1), torch.linalg.inv_ex(homographies).inverse)
    x, y = source.unbind(dim=-1)
    inside_x = (x >= margin_px) & (x <= width - 1 - margin_px)
    return (inside_x & (y >= margin_px) & (y <= height - 1 - margin_px)).view(-1, height, width)
