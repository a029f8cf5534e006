"""Sizes of the CLIP models that physseg knows, by name."""

from dataclasses import replace

from ....common.errors import ConfigError
from .clip import ClipArchitecture

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
