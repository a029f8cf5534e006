"""Sizes of CLIP models with a vision transformer, by open_clip's names."""

from functools import cache

from ....common.errors import ConfigError
from ..text import open_clip_folder
from .clip import ClipArchitecture
from .clip_text import described_by_open_clip
from .interface import published_names

# Random weights, for tests and the demo: a step of batch 4 with 16 classes takes about half a second on 2 cores.
_TINY = ClipArchitecture(
    embed_dim=64,
    image_px=384,
    patch_px=16,
    position_grid=24,
    vision_width=96,
    vision_layers=6,
    vision_heads=2,
    text_width=64,
    text_layers=3,
    text_heads=2,
    guidance_blocks=(1, 3),
)
_QUICK_GELU = ("ViT-B-16", "ViT-L-14-336", "ViT-H-14-378")
"""Those whose best known weights, OpenAI's and dfn5b, have QuickGELU."""

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
    """Sizes of a CLIP with a vision transformer by open_clip's name, from its file; "tiny" is physseg's own.

    The grid has 24 patches a side, as CAT-Seg's has, whatever the patch size. What guides the decoder lies at a third
    and two thirds of the depth, as the published 3 and 7 of 12, or 7 and 15 of 24, do.

    Raises:
        ConfigError: open_clip has no model of that name (the message lists what there is), or it is another network.
    """
    if name == "tiny":
        return _TINY
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
        quick_gelu=name in _QUICK_GELU,
    )
