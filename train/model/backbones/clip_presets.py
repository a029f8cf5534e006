"""Sizes of CLIP models with a vision transformer, by open_clip's names."""

from dataclasses import replace
from functools import cache

from ....common.errors import ConfigError
from ..text import open_clip_folder
from .clip import ClipArchitecture
from .clip_text import described_by_open_clip
from .interface import published_names

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

# What a file of open_clip's says of a network that is ours. Any other key says that it is another one: no norm before
# the blocks, an average for the class token and a BERT tokenizer (CLIPA), layer scale (ViT-M-16-alt), attention pooling
# (CoCa), a tower of timm's (SigLIP), a multilingual tokenizer (worldwide), a text tower of Hugging Face's (nllb,
# roberta). Those are not offered, nor are the "-quickgelu" twins: the activation follows from the weights.
_KEYS = {
    "": {"embed_dim", "vision_cfg", "text_cfg"},
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
}


@cache
def clip_architecture(name: str) -> ClipArchitecture:
    """Sizes of a CLIP with a vision transformer by open_clip's name: physseg's own, or what open_clip's file says.

    The grid has 24 patches a side, as CAT-Seg's has, whatever the patch size.

    Raises:
        ConfigError: open_clip has no model of that name (the message lists what there is), or it is another network.
    """
    if name in CLIP_PRESETS:
        return CLIP_PRESETS[name]
    hint = f"known presets: {', '.join(('tiny', *published_names()))}"
    if not (open_clip_folder() / "model_configs" / f"{name}.json").is_file():
        raise ConfigError(f"clip: unknown preset {name!r}", hint=hint)
    described, text = described_by_open_clip(name)
    vision = described["vision_cfg"]
    odd = [key for part, known in _KEYS.items() for key in (described[part] if part else described) if key not in known]
    if odd:
        raise ConfigError(f"clip: {name} is another network than CLIP's ({', '.join(odd)})", hint=hint)
    width, layers = vision["width"], vision["layers"]
    return ClipArchitecture(
        **text,
        image_px=24 * vision["patch_size"],
        patch_px=vision["patch_size"],
        position_grid=24,
        vision_width=width,
        vision_layers=layers,
        vision_heads=width // vision.get("head_width", 64),
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        guidance_blocks=(round(layers / 3) - 1, round(2 * layers / 3) - 1),
        # Its only published weights, dfn5b, have QuickGELU.
        quick_gelu=name == "ViT-H-14-378",
    )
