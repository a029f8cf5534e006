"""Published CAT-Seg checkpoints: their parameter names, and a segmenter of the sizes that their shapes tell.

Heads of the aggregator, pooling, padding length and guidance blocks leave no trace in a state dict; they take the
published values unless given.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .clip_presets import CLIP_PRESETS, ClipArchitecture
from .clip_weights import load_state, split_fused_projections
from .errors import CheckpointError
from .segmenter import Segmenter, SegmenterConfig

_PREDICTOR = "sem_seg_head.predictor."
# Regular expressions over the whole name, the first that matches renames.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"sem_seg_head\.predictor\.clip_model\.visual\.(.+)", r"clip.visual.\1"),
    (r"sem_seg_head\.predictor\.clip_model\.(.+)", r"clip.text.\1"),
    (r"sem_seg_head\.predictor\.transformer\.(.+)", r"aggregator.\1"),
    (r"(upsample[12]\..+)", r"\1"),
)
_AGGREGATOR_RENAMES: tuple[tuple[str, str], ...] = (
    (r"aggregator\.conv1\.(\w+)", r"aggregator.cost_embedding.\1"),
    (r"aggregator\.guidance_projection\.0\.(\w+)", r"aggregator.image_guidance.\1"),
    (r"aggregator\.text_guidance_projection\.0\.(\w+)", r"aggregator.text_guidance.\1"),
    (r"aggregator\.decoder_guidance_projection\.0\.0\.(\w+)", r"aggregator.decoder.guidance1.\1"),
    (r"aggregator\.decoder_guidance_projection\.1\.0\.(\w+)", r"aggregator.decoder.guidance2.\1"),
    (r"aggregator\.decoder([12])\.up\.(\w+)", r"aggregator.decoder.up\1.up.\2"),
    (r"aggregator\.decoder([12])\.conv\.double_conv\.0\.(\w+)", r"aggregator.decoder.up\1.conv1.\2"),
    (r"aggregator\.decoder([12])\.conv\.double_conv\.1\.(\w+)", r"aggregator.decoder.up\1.norm1.\2"),
    (r"aggregator\.decoder([12])\.conv\.double_conv\.3\.(\w+)", r"aggregator.decoder.up\1.conv2.\2"),
    (r"aggregator\.decoder([12])\.conv\.double_conv\.4\.(\w+)", r"aggregator.decoder.up\1.norm2.\2"),
    (r"aggregator\.head\.(\w+)", r"aggregator.decoder.head.\1"),
    (
        r"aggregator\.layers\.(\d+)\.swin_block\.(block_[12])\.attn\.proj\.(\w+)",
        r"aggregator.layers.\1.spatial.\2.proj.\3",
    ),
    (r"aggregator\.layers\.(\d+)\.swin_block\.(block_[12])\.mlp\.(.+)", r"aggregator.layers.\1.spatial.\2.\3"),
    (r"aggregator\.layers\.(\d+)\.swin_block\.(.+)", r"aggregator.layers.\1.spatial.\2"),
    (r"aggregator\.layers\.(\d+)\.attention\.attention\.(.+)", r"aggregator.layers.\1.classes.attn.\2"),
    (r"aggregator\.layers\.(\d+)\.attention\.MLP\.0\.(\w+)", r"aggregator.layers.\1.classes.fc1.\2"),
    (r"aggregator\.layers\.(\d+)\.attention\.MLP\.2\.(\w+)", r"aggregator.layers.\1.classes.fc2.\2"),
    (r"aggregator\.layers\.(\d+)\.attention\.padding_tokens", r"aggregator.layers.\1.classes.padding_token"),
    (r"aggregator\.layers\.(\d+)\.attention\.(.+)", r"aggregator.layers.\1.classes.\2"),
)
# Part of a published state dict, of no use here: the window masks follow from the sizes, CLIP's scale is not used.
_DROPPED = re.compile(r".*\.attn_mask|.*\.clip_model\.(logit_scale|input_resolution|context_length|vocab_size)")


def our_name(name: str) -> str | None:
    """Our parameter's name for a published one; None for what is dropped.

    Raises CheckpointError for a name of neither kind.
    """
    if _DROPPED.fullmatch(name):
        return None
    for rules in (_RENAMES, _AGGREGATOR_RENAMES):
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, name):
                name = match.expand(replacement)
                break
        else:
            if rules is _RENAMES:
                raise CheckpointError(
                    f"CAT-Seg checkpoint: unknown name {name!r}",
                    hint="expected names that begin with sem_seg_head.predictor. or upsample1./upsample2.",
                )
    return name


def from_catseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names, with our shapes: separate q, k, v weights, flat padding rows."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = our_name(name)
        if ours is not None:
            renamed[ours] = tensor.flatten() if ".padding_" in ours else tensor
    return split_fused_projections(renamed)


def segmenter_from_catseg(state: Mapping[str, Tensor], **settings: Any) -> Segmenter:
    """A segmenter with the sizes and weights of a published state dict (`{"model": ...}` already unpacked).

    `settings` are fields of SegmenterConfig that shapes cannot tell (num_heads, pooling, pad_len, finetune, templates).
    A state dict without a text encoder gives a segmenter with a random one, for text features that come from elsewhere.
    """
    masks = [tensor for name, tensor in state.items() if name.endswith("block_2.attn_mask")]
    renamed = from_catseg(state)
    try:
        arch = _architecture(renamed)
        config = _config(renamed, arch, masks, settings)
    except KeyError as error:
        raise CheckpointError(
            f"CAT-Seg checkpoint: {error.args[0]!r} (our name) is missing", hint="is this a CAT-Seg state dict?"
        ) from error
    segmenter = Segmenter(config, architecture=arch)
    has_text = any(name.startswith("clip.text.") for name in renamed)
    load_state(segmenter, renamed, source="CAT-Seg checkpoint", optional=() if has_text else ("clip.text.",))
    return segmenter


def _architecture(state: Mapping[str, Tensor]) -> ClipArchitecture:
    """CLIP's sizes: a preset's if they fit one, else heads of 64 channels, the rule of all CLIP models but H."""
    conv = state["clip.visual.conv1.weight"]
    width, _, patch, _ = conv.shape
    layers = _count(state, r"clip\.visual\.transformer\.resblocks\.(\d+)\..+")
    text_width = state["clip.text.ln_final.weight"].shape[0] if "clip.text.ln_final.weight" in state else 64
    for preset in CLIP_PRESETS.values():
        if (preset.vision_width, preset.vision_layers, preset.patch_px) == (width, layers, patch):
            return preset
    return ClipArchitecture(
        embed_dim=state["clip.visual.proj"].shape[1],
        image_px=24 * patch,
        patch_px=patch,
        position_grid=round((len(state["clip.visual.positional_embedding"]) - 1) ** 0.5),
        vision_width=width,
        vision_layers=layers,
        vision_heads=max(1, width // 64),
        text_width=text_width,
        text_layers=_count(state, r"clip\.text\.transformer\.resblocks\.(\d+)\..+") or 1,
        text_heads=max(1, text_width // 64),
        guidance_blocks=(layers // 3 - 1, 2 * layers // 3 - 1),
        quick_gelu=True,
        context_length=len(state["clip.text.positional_embedding"])
        if "clip.text.positional_embedding" in state
        else 77,
        vocabulary_size=len(state["clip.text.token_embedding.weight"])
        if "clip.text.token_embedding.weight" in state
        else 49408,
    )


def _config(
    state: Mapping[str, Tensor], arch: ClipArchitecture, masks: list[Tensor], settings: Mapping[str, Any]
) -> SegmenterConfig:
    names = [name for name, preset in CLIP_PRESETS.items() if preset == arch]
    cost, decoder = state["aggregator.cost_embedding.weight"], "aggregator.decoder."
    sizes: dict[str, Any] = {
        "clip": names[0] if names else "ViT-B-16",
        "finetune": "qv",
        "num_layers": _count(state, r"aggregator\.layers\.(\d+)\..+"),
        "hidden_dim": cost.shape[0],
        "guidance_dim": state["aggregator.text_guidance.weight"].shape[0],
        "decoder_dims": tuple(state[f"{decoder}up{stage}.conv2.weight"].shape[0] for stage in (1, 2)),
        "decoder_guidance_dims": tuple(state[f"upsample{stage}.weight"].shape[1] for stage in (1, 2)),
        "decoder_guidance_proj_dims": tuple(state[f"{decoder}guidance{stage}.weight"].shape[0] for stage in (1, 2)),
    }
    if masks:
        sizes["window"] = round(masks[0].shape[-1] ** 0.5)
    if cost.shape[1] > 1:
        sizes["templates"] = ("{}",) * cost.shape[1]
    return SegmenterConfig(**{**sizes, **settings})


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes over all names."""
    return len({match[1] for name in state if (match := re.fullmatch(pattern, name))})
