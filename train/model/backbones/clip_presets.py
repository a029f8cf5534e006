"""Sizes of the CLIP models that physseg knows, by name."""

import math
from dataclasses import dataclass, fields, replace

from ....common.errors import ConfigError
from ....common.settings import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipArchitecture:
    """Sizes of both encoders. Raises ConfigError where they contradict each other."""

    embed_dim: int
    """Dimension D of the space that images and texts share."""
    image_px: int
    """Side of the square that images are resized to for the encoder, in pixels."""
    patch_px: int
    """Side of a patch in pixels; image_px / patch_px is the side of the patch grid."""
    position_grid: int
    """Side of the positional embedding's grid; published ones are resized to it on loading."""
    vision_width: int
    """Channels of an image token."""
    vision_layers: int
    """Number of blocks of the image encoder."""
    vision_heads: int
    """Number of attention heads of the image encoder."""
    text_width: int
    """Channels of a text token."""
    text_layers: int
    """Number of blocks of the text encoder."""
    text_heads: int
    """Number of attention heads of the text encoder."""
    guidance_blocks: tuple[int, int]
    """Image blocks whose outputs guide the decoder, counted from zero."""
    quick_gelu: bool
    """Whether the activation is x sigmoid(1.702 x) instead of GELU; presets have what the best known weights need."""
    context_length: int = 77
    """Longest prompt in tokens."""
    vocabulary_size: int = 49408
    """Number of tokens of CLIP's byte-pair tokeniser."""

    def __post_init__(self) -> None:
        sizes_of = {field.name: "[1, 1e6]" for field in fields(self) if field.type in (int, "int")}
        check_ranges(self, **sizes_of | {"vision_layers": "[1, 1000]", "text_layers": "[0, 1000]"})
        if self.image_px % self.patch_px:
            raise ConfigError(f"CLIP sizes: image_px {self.image_px} is not a multiple of patch_px {self.patch_px}")
        for name in ("vision", "text"):
            width, heads = getattr(self, f"{name}_width"), getattr(self, f"{name}_heads")
            if width % heads:
                raise ConfigError(f"CLIP sizes: {name}_width {width} is not a multiple of {name}_heads {heads}")
        if not all(0 <= block < self.vision_layers for block in self.guidance_blocks):
            limits = f"0..{self.vision_layers - 1}"
            raise ConfigError(f"CLIP sizes: guidance_blocks {self.guidance_blocks} must lie in {limits}")

    @property
    def grid(self) -> int:
        """Side of the patch grid."""
        return self.image_px // self.patch_px

    @property
    def structure_blocks(self) -> tuple[int, ...]:
        """Four equally spaced blocks, zero-based, the last one last: the levels of the structure head."""
        return tuple(math.ceil(self.vision_layers * part / 4) - 1 for part in (1, 2, 3, 4))


_B16 = ClipArchitecture(
    embed_dim=512,
    image_px=384,
    patch_px=16,
    position_grid=24,
    vision_width=768,
    vision_layers=12,
    vision_heads=12,
    text_width=512,
    text_layers=12,
    text_heads=8,
    guidance_blocks=(3, 7),
    quick_gelu=True,
)
_L14 = replace(
    _B16,
    embed_dim=768,
    image_px=336,
    patch_px=14,
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    text_width=768,
    text_heads=12,
    guidance_blocks=(7, 15),
)
_H14 = replace(
    _L14,
    embed_dim=1024,
    vision_width=1280,
    vision_layers=32,
    text_width=1024,
    text_layers=24,
    text_heads=16,
    # Not published for H: a third and two thirds of the depth, as 3 and 7 of 12, or 7 and 15 of 24, are.
    guidance_blocks=(10, 20),
    quick_gelu=False,
)
# Random weights, for tests and the demo: a step of batch 4 with 16 classes takes about half a second on 2 cores.
_TINY = replace(
    _B16,
    embed_dim=64,
    vision_width=96,
    vision_layers=6,
    vision_heads=2,
    text_width=64,
    text_layers=3,
    text_heads=2,
    guidance_blocks=(1, 3),
    quick_gelu=False,
)

CLIP_PRESETS: dict[str, ClipArchitecture] = {"tiny": _TINY, "ViT-B-16": _B16, "ViT-L-14-336": _L14, "ViT-H-14": _H14}

PRETRAINED = ("ViT-B-16", "ViT-L-14-336", "ViT-H-14")
"""The presets that published weights exist for; open_clip's names."""


def clip_architecture(name: str) -> ClipArchitecture:
    """Sizes by name. Raises ConfigError, which lists the known names."""
    if name not in CLIP_PRESETS:
        raise ConfigError(f"clip: unknown preset {name!r}", hint=f"known presets: {', '.join(CLIP_PRESETS)}")
    return CLIP_PRESETS[name]
