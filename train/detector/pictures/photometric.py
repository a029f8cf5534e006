"""Photometric augmentation of whole batches, on the CPU: the source of a detector's robustness.

A detector trained on clean shapes finds nothing under noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt
import torch
from kornia.filters import filter2d
from torch import Tensor
from torch.nn import functional

from ....common.images import encode_jpeg


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotometricSettings:
    """Strengths are limits, drawn for each picture but for `resample`; grey values are shares of the full range."""

    probability: float = 0.6  # probability of each kind of change, drawn for each picture
    brightness: float = 0.2  # grey value that is added or taken away
    contrast: tuple[float, float] = (0.3, 1.8)  # range of the factor about the picture's mean
    noise: float = 15 / 255  # standard deviation of Gaussian noise
    speckle: float = 0.0035  # share of pixels turned black or white
    shades: int = 20  # number of ellipses that darken or lighten what they cover, softly
    shade: float = 0.6  # share by which the ellipses darken or lighten
    blur_px: float = 1.5  # standard deviation of Gaussian blur
    motion_blur_px: int = 7  # length of a smear in any direction, odd; side of the kernels of both, so 1 is no blur
    processed: float = 0.3  # probability of each step of processing, drawn for each picture
    resample: float = 0.5  # smallest size that the pictures of a batch pass through, share of their own
    sharpen: float = 1.0  # share of the difference to a blurred picture that is added
    jpeg_quality: tuple[int, int] = (5, 95)  # range of the quality


def augment(images: Tensor, settings: PhotometricSettings, generator: torch.Generator) -> Tensor:
    """Change pictures (B, 1, H, W) float in [0, 1], each in its own way.

    In the order of a camera: light and shade on the scene, blur by lens and motion, noise of the sensor.
    """
    number = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape or (number, 1, 1, 1), generator=generator)
        return low + (high - low) * drawn

    def sometimes(changed: Tensor) -> Tensor:
        return torch.where(uniform(0, 1) < settings.probability, changed, images)

    images = sometimes(_shaded(images, settings, uniform))
    mean = images.mean(dim=(2, 3), keepdim=True)
    images = sometimes((images - mean) * uniform(*settings.contrast) + mean).clamp(0, 1)
    images = sometimes(images + uniform(-settings.brightness, settings.brightness)).clamp(0, 1)
    sigma = uniform(0.3, settings.blur_px).flatten()
    images = sometimes(_filtered(images, _gaussian_kernels(sigma, settings.motion_blur_px)))
    angle, length = uniform(0, math.pi).flatten(), uniform(1, settings.motion_blur_px).flatten()
    images = sometimes(_filtered(images, _motion_kernels(angle, length, settings.motion_blur_px)))
    noise = torch.randn(images.shape, generator=generator)
    images = sometimes(images + uniform(0, settings.noise) * noise)
    where = torch.rand(images.shape, generator=generator)
    share = uniform(0, settings.speckle)
    speckled = torch.where(where < share / 2, 0.0, torch.where(where > 1 - share / 2, 1.0, images))
    return sometimes(speckled).clamp(0, 1)


def as_from_file(images: Tensor, settings: PhotometricSettings, generator: torch.Generator) -> Tensor:
    """Change pictures (B, 1, H, W) float in [0, 1] as the way into a file does: resample, sharpen, JPEG.

    Without it the corners of JPEG's blocks are taken for keypoints: of the points of photographs of quality 10, twice
    as many as by chance lay beside the edges of blocks. Grey values come back whole, of 255.
    """
    if not settings.processed:
        return images
    number = len(images)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def sometimes(changed: Tensor) -> Tensor:
        return torch.where(drawn(number, 1, 1, 1) < settings.processed, changed, images)

    (scale, *_), luck, *places = drawn(5, number).tolist()
    scale = settings.resample + (1 - settings.resample) * scale
    smaller = _resized(images, [max(1, round(scale * side)) for side in images.shape[-2:]])
    images = sometimes(_resized(smaller, images.shape[-2:]))
    soft = _filtered(images, _gaussian_kernels(0.5 + drawn(number), 7))
    images = sometimes(images + settings.sharpen * drawn(number, 1, 1, 1) * (images - soft)).clamp(0, 1)
    greys = (255 * images[:, 0]).round().to(torch.uint8).numpy()
    low, high = settings.jpeg_quality
    for index, (quality, top, left) in enumerate(zip(*places, strict=True)):
        if luck[index] < settings.processed:
            offset = int(8 * top), int(8 * left)
            greys[index] = jpeg(greys[index], int(low + (high + 1 - low) * quality), offset)
    return torch.from_numpy(greys)[:, None] / 255


def augmented(image: npt.NDArray[np.uint8], seed: int, settings: PhotometricSettings) -> npt.NDArray[np.uint8]:
    """One picture (H, W) uint8, changed as `augment` does, by random numbers of its own seed."""
    tensor = torch.from_numpy(image)[None, None].float() / 255
    other = augment(tensor, settings, torch.Generator().manual_seed(seed))
    return np.asarray(np.rint(255 * other[0, 0].numpy()), np.uint8)


def jpeg(image: npt.NDArray[np.uint8], quality: int, offset: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A grey picture (H, W) uint8 after compression; its blocks of 8x8 pixels begin `offset` (y, x) before the corner.

    Grey stands for both forms of chroma: of photographs of quality 20 they change the grey by 0.04 levels, and the
    compression by 6.
    """
    padded = np.pad(image, [(before, 0) for before in offset], mode="edge")
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(padded, quality), np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(decoded, np.uint8)[offset[0] :, offset[1] :]


def _shaded(images: Tensor, settings: PhotometricSettings, uniform: Callable[..., Tensor]) -> Tensor:
    """Multiply by the soft shadow of random ellipses: made at a quarter of the size, for it is smooth."""
    number, _, height, width = images.shape
    y, x = torch.meshgrid(
        torch.linspace(0, height / width, max(height // 4, 2)),
        torch.linspace(0, 1, max(width // 4, 2)),
        indexing="ij",
    )
    ellipses = (number, settings.shades, 1, 1)
    angle, a, b = uniform(0, math.pi, *ellipses), uniform(0.03, 0.3, *ellipses), uniform(0.03, 0.3, *ellipses)
    dx, dy = x - uniform(0, 1, *ellipses), y - uniform(0, height / width, *ellipses)
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    inside = ((along / a) ** 2 + (across / b) ** 2 < 1).any(dim=1, keepdim=True).float()
    kernel = _gaussian_kernels(uniform(1, 4, number), 13)
    soft = functional.interpolate(_filtered(inside, kernel), (height, width), mode="bilinear", align_corners=True)
    return images * (1 - uniform(-settings.shade, settings.shade, number, 1, 1, 1) * soft)


# To a size (h, w), not by a factor: that would move what is on a picture by up to a pixel.
_resized = partial(functional.interpolate, mode="bilinear", antialias=True)
# Convolves each picture (B, 1, H, W) with its own kernel (B, k, k), k odd.
_filtered = partial(filter2d, border_type="replicate")


def _gaussian_kernels(sigma_px: Tensor, side: int) -> Tensor:
    at = torch.arange(side) - side // 2
    line = torch.exp(-0.5 * (at / sigma_px[:, None]) ** 2)
    line = line / line.sum(dim=1, keepdim=True)
    return line[:, :, None] * line[:, None, :]


def _motion_kernels(angle: Tensor, length_px: Tensor, side: int) -> Tensor:
    """Soft segments through the middle: weight falls off within a pixel of the line."""
    at = (torch.arange(side) - side // 2).float()
    y, x = torch.meshgrid(at, at, indexing="ij")
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = (x * cosine + y * sine).abs(), (y * cosine - x * sine).abs()
    within = (length_px[:, None, None] / 2 + 0.5 - along).clamp(0, 1)
    weight = within * (1 - across).clamp(0, 1)
    return weight / weight.sum(dim=(1, 2), keepdim=True)
