"""Colour jitter of SSD, on the device: random numbers are drawn on the host, the images are changed as one batch.

Keeping the draw apart from the arithmetic makes an augmentation a function of (seed, position) alone: the numbers
travel with the sample, so the result does not depend on how many workers, ranks or devices there are.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor

from ..errors import ShapeError

NEUTRAL = (0.0, 1.0, 1.0, 0.0, 0.0)
"""Brightness, contrast, saturation, hue and whether contrast comes last, that change nothing, not even a bit."""

BRIGHTNESS = 32.0
"""Largest amount added to every pixel, either way, of 255."""
CONTRAST = (0.5, 1.5)
"""Range of the factor on every pixel."""
SATURATION = (0.5, 1.5)
"""Range of the factor on S of HSV."""
HUE = 18
"""Largest shift of H, either way, in whole steps of 2 degrees (OpenCV's unit; a circle has 180)."""


def draw_jitter(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw the parameters of one sample, (5,) float32 in the order of `NEUTRAL`.

    Each of brightness, contrast, saturation and hue happens with probability 1/2, uniformly in its range; contrast
    comes first or last with probability 1/2 (Liu et al. 2016, SSD; ranges and order of detectron2's
    ColorAugSSDTransform). Nine numbers are drawn whatever comes out, so what `rng` gives next does not depend on this
    sample's luck.

    Examples:
        >>> [round(float(value), 2) for value in draw_jitter(np.random.default_rng(2))]
        [6.41, 1.23, 1.0, -16.0, 1.0]
    """
    uniform = rng.random(9)
    happens, amount = uniform[:4] < 0.5, uniform[4:8]
    drawn = (
        (2 * amount[0] - 1) * BRIGHTNESS,
        CONTRAST[0] + amount[1] * (CONTRAST[1] - CONTRAST[0]),
        SATURATION[0] + amount[2] * (SATURATION[1] - SATURATION[0]),
        math.floor(amount[3] * (2 * HUE + 1)) - HUE,
    )
    return np.array([*np.where(happens, drawn, NEUTRAL[:4]), uniform[8] < 0.5], dtype=np.float32)


def color_jitter(images: Tensor, params: Tensor, valid: Tensor | None = None) -> Tensor:
    """Apply drawn jitter: brightness; contrast, if first; saturation and hue in HSV; contrast, if last.

    After every step values are clipped to 0..255, as in the reference. Unlike it, they are not cut to whole numbers in
    between (nor H to whole steps), which loses up to one grey level, always downwards, at each of up to six steps.

    Args:
        images: (B, 3, H, W) RGB, uint8 or floating, 0..255.
        params: (B, 5), rows from `draw_jitter`.
        valid: (B, H, W) bool, True inside the image; padding keeps its value, as in the reference, which pads after the
            jitter. None: every pixel is image.

    Returns:
        (B, 3, H, W) float32 (float64 for float64), 0..255, on the device of `images`. Samples are independent of each
        other, and one whose parameters are neutral comes back bit for bit.

    Raises:
        ShapeError: The shapes do not fit.

    Examples:
        >>> grey = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
        >>> color_jitter(grey, torch.tensor([[10.0, 1.5, 1.0, 0.0, 0.0]])).flatten().tolist()
        [165.0, 165.0, 165.0]
    """
    if images.ndim != 4 or images.shape[1] != 3 or params.shape != (images.shape[0], len(NEUTRAL)):
        got = f"{tuple(images.shape)} and {tuple(params.shape)}"
        raise ShapeError(f"expected images (B, 3, H, W) and params (B, {len(NEUTRAL)}), got {got}")
    original = images if images.dtype == torch.float64 else images.float()
    brightness, contrast, saturation, hue, last = params.to(original)[:, :, None, None, None].unbind(1)
    neutral = torch.ones_like(contrast)
    pixels = (original + brightness).clamp(0, 255)
    pixels = (pixels * torch.where(last > 0, neutral, contrast)).clamp(0, 255)
    pixels = torch.where((saturation != 1) | (hue != 0), _shift_hsv(pixels, saturation, hue), pixels)
    pixels = (pixels * torch.where(last > 0, contrast, neutral)).clamp(0, 255)
    return pixels if valid is None else torch.where(valid[:, None], pixels, original)


def _shift_hsv(pixels: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale S (kept at most 1) and turn H by `hue` steps of 2 degrees; pixels in 0..255, parameters (B, 1, 1, 1)."""
    h, s, v = rgb_to_hsv(pixels / 255).unbind(1)
    turned = torch.remainder(h + hue[:, 0] * (2 * math.pi / 180), 2 * math.pi)
    rgb: Tensor = hsv_to_rgb(torch.stack([turned, (s * saturation[:, 0]).clamp(max=1), v], dim=1))
    return rgb * 255
