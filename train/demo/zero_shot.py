"""What a CLIP that was pretrained on captions tells without any further training: of each patch the nearest name."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.metrics import ConfusionMatrix
from ..model.backbones.clip import Clip, as_map
from ..model.backbones.clip_presets import clip_architecture
from ..weights.cache import find_clip_weights
from ..weights.clip_weights import load_clip_weights
from .drawing import IGNORE_INDEX, UInt8
from .world import SIDE_PX

ARCHITECTURE = clip_architecture("tiny").adapted(image_px=SIDE_PX)
"""The tiny CLIP on a grid of 12x12 patches instead of 24x24: a quarter of the work."""


def packaged() -> Clip:
    """The package's own CLIP: tag `scenes`, which the demo's model and the study's begin with."""
    clip = Clip(ARCHITECTURE).eval()
    load_clip_weights(clip, find_clip_weights("scenes", "tiny").path)
    return clip


def patch_embeds(clip: Clip, images: Tensor) -> Tensor:
    """Unit vectors (B, N, D) of the patches of images (B, 3, S, S), uint8, S any multiple of the patch size."""
    mean, std = (torch.tensor(three)[:, None, None] for three in (clip.arch.image_mean, clip.arch.image_std))
    return F.normalize(clip.visual((images / 255 - mean) / std).tokens[:, 1:], dim=-1)


def text_embeds(clip: Clip, texts: Sequence[str]) -> Tensor:
    """Unit vectors (M, D) of texts."""
    return F.normalize(clip.encode_text(clip.tokenize(texts)), dim=-1)


@torch.inference_mode()
def label_map(clip: Clip, image: UInt8, texts: Tensor) -> npt.NDArray[np.int64]:
    """Of each pixel of an image (H, W, 3) the place among texts (M, D) with the greatest cosine: int64 (H, W).

    The image is resized to the square that the CLIP takes, its cosines are interpolated between patches.
    """
    side = clip.arch.image_px
    square = image if image.shape[:2] == (side, side) else cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    cosines = patch_embeds(clip, torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1)))[None]) @ texts.T
    scores = F.interpolate(as_map(cosines, clip.arch.grid), size=image.shape[:2], mode="bilinear")
    return scores[0].argmax(dim=0).numpy()


@torch.inference_mode()
def score(clip: Clip, pictures: Iterable[tuple[UInt8, UInt8]], classes: Sequence[str]) -> ConfusionMatrix:
    """Pixels by true and told class, of images (H, W, 3) and label maps (H, W)."""
    confusion, texts = ConfusionMatrix(num_classes=len(classes), ignore_index=IGNORE_INDEX), text_embeds(clip, classes)
    for image, labels in pictures:
        confusion.update(label_map(clip, image, texts), labels)
    return confusion
