"""Homographic adaptation (DeTone et al. 2018, section 5): the mean of a detector's answers to many warped pictures.

A corner that is only found from some angles loses against one that is found from all. It makes the labels that a
detector is trained on further, and at extraction it lifts repeatability where time is no matter.
"""

from functools import lru_cache

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn import functional

from .homography import HomographySettings, random_homographies, valid_pixels, warp
from .network import DetectorNetwork, keypoint_probabilities

# Pixels nearer to the edge of the picture do not count in a warped one: the edge itself looks like a line.
MARGIN_PX = 3
# Answers come back a fraction of a pixel apart, and votes for one corner must meet: standard deviation of the Gaussian
# that the mean is smoothed with. On photographs that it was not chosen by, repeatability is .738 without and .760 with
# it under viewpoint, .647 and .672 under light and noise; wider than 1 px it falls, and fewer points pass a threshold.
SPREAD_PX = 0.75
_CHUNK = 8  # warped pictures per forward pass; more is no faster on a CPU and costs memory


@torch.inference_mode()
def adapted_probabilities(network: DetectorNetwork, images: Tensor, number: int) -> Tensor:
    """Mean probability of a keypoint at each pixel of pictures (B, 1, H, W) float in [0, 1]: (B, H, W) float32.

    The picture as it is and `number` - 1 warped ones: each answer is warped back, and divided is by how often a pixel
    was seen. Unless `number` is 1 the mean is smoothed over `SPREAD_PX`. The homographies depend on number and size
    alone, so equal pictures get equal answers. Each picture is computed by itself, by a network in evaluation mode.
    """
    size = (images.shape[-2], images.shape[-1])
    forth, back, seen = (each.to(images.device, non_blocking=True) for each in _homographies(number, size))
    out = []
    for image in images:
        total = keypoint_probabilities(network, image[None])
        count = torch.ones_like(total)
        for start in range(0, len(forth), _CHUNK):
            part = slice(start, start + _CHUNK)
            warped = warp(image.expand(len(forth[part]), -1, -1, -1), forth[part])
            probability = keypoint_probabilities(network, warped)[:, None]
            visible = seen[part, None].float()
            returned = warp(torch.cat([probability * visible, visible], dim=1), back[part])
            total += returned[:, 0].sum(dim=0)
            count += returned[:, 1].sum(dim=0)
        mean = (total / count)[None]
        if number > 1:
            mean = gaussian_blur2d(mean, (5, 5), (SPREAD_PX, SPREAD_PX), border_type="replicate")
        out.append(mean[0])
    return torch.cat(out)


@lru_cache(maxsize=4)
def _homographies(number: int, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Homographies (N - 1, 3, 3) forth and back, and the pixels (N - 1, H, W) of the warped pictures that are valid."""
    forth = random_homographies(number - 1, size, HomographySettings(), torch.Generator().manual_seed(0))
    eroded = valid_pixels(forth, size, margin_px=MARGIN_PX)
    shrunk = 1 - functional.max_pool2d((~eroded).float()[:, None], 2 * MARGIN_PX + 1, 1, MARGIN_PX)[:, 0]
    return forth, torch.linalg.inv(forth), shrunk > 0
