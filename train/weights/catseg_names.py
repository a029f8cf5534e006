"""Published CAT-Seg state dicts (the CVPR 2024 code): their parameter names, and the sizes that their shapes tell.

Heads of the aggregator, pooling, padding length and guidance blocks leave no trace in a state dict; they take the
published values unless given.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from ..errors import CheckpointError
from ..model.backbones.clip import ClipArchitecture
from ..model.backbones.clip_presets import clip_architecture
from ..model.backbones.published import fit_positions, split_fused_projections
from ..model.config import SegmenterConfig
from ..model.segmenter import Segmenter, blank_segmenter
from .clip_weights import check_state

# Published name and ours, both ways the first pair that matches. {n} and {m} are numbers, {b} is block_1 or block_2,
# {rest} is anything.
_PREDICTOR = "sem_seg_head.predictor."
_AGGREGATOR = _PREDICTOR + "transformer."
_NAMES: tuple[tuple[str, str], ...] = (
    (_PREDICTOR + "clip_model.visual.{rest}", "clip.visual.{rest}"),
    (_PREDICTOR + "clip_model.{rest}", "clip.text.{rest}"),
    ("upsample{n}.{rest}", "upsample{n}.{rest}"),
    (_AGGREGATOR + "conv1.{rest}", "aggregator.cost_embedding.{rest}"),
    (_AGGREGATOR + "guidance_projection.0.{rest}", "aggregator.image_guidance.{rest}"),
    (_AGGREGATOR + "text_guidance_projection.0.{rest}", "aggregator.text_guidance.{rest}"),
    (_AGGREGATOR + "decoder_guidance_projection.0.0.{rest}", "aggregator.decoder.guidance1.{rest}"),
    (_AGGREGATOR + "decoder_guidance_projection.1.0.{rest}", "aggregator.decoder.guidance2.{rest}"),
    (_AGGREGATOR + "decoder{n}.up.{rest}", "aggregator.decoder.up{n}.up.{rest}"),
    (_AGGREGATOR + "decoder{n}.conv.double_conv.0.{rest}", "aggregator.decoder.up{n}.conv1.{rest}"),
    (_AGGREGATOR + "decoder{n}.conv.double_conv.1.{rest}", "aggregator.decoder.up{n}.norm1.{rest}"),
    (_AGGREGATOR + "decoder{n}.conv.double_conv.3.{rest}", "aggregator.decoder.up{n}.conv2.{rest}"),
    (_AGGREGATOR + "decoder{n}.conv.double_conv.4.{rest}", "aggregator.decoder.up{n}.norm2.{rest}"),
    (_AGGREGATOR + "head.{rest}", "aggregator.decoder.head.{rest}"),
    (_AGGREGATOR + "layers.{n}.swin_block.{b}.attn.proj.{rest}", "aggregator.layers.{n}.spatial.{b}.proj.{rest}"),
    (_AGGREGATOR + "layers.{n}.swin_block.{b}.mlp.fc{m}.{rest}", "aggregator.layers.{n}.spatial.{b}.fc{m}.{rest}"),
    (_AGGREGATOR + "layers.{n}.swin_block.{rest}", "aggregator.layers.{n}.spatial.{rest}"),
    (_AGGREGATOR + "layers.{n}.attention.attention.{rest}", "aggregator.layers.{n}.classes.attn.{rest}"),
    (_AGGREGATOR + "layers.{n}.attention.MLP.0.{rest}", "aggregator.layers.{n}.classes.fc1.{rest}"),
    (_AGGREGATOR + "layers.{n}.attention.MLP.2.{rest}", "aggregator.layers.{n}.classes.fc2.{rest}"),
    (_AGGREGATOR + "layers.{n}.attention.padding_tokens", "aggregator.layers.{n}.classes.padding_token"),
    (_AGGREGATOR + "layers.{n}.attention.{rest}", "aggregator.layers.{n}.classes.{rest}"),
)
_PLACEHOLDERS = {"n": r"(?P<n>\d+)", "m": r"(?P<m>\d+)", "b": r"(?P<b>block_[12])", "rest": r"(?P<rest>.+)"}
# Part of published files, of no use here: window masks follow from the sizes, our normalisation is fixed, and the
# logits do not use CLIP's scale.
_IGNORED = re.compile(
    r".*\.attn_mask|.*\.clip_model\.(logit_scale|input_resolution|context_length|vocab_size)|(clip_)?pixel_(mean|std)"
)


def our_name(name: str) -> str | None:
    """Our parameter's name for a published one, or None for what is of no use here.

    Raises:
        CheckpointError: The name is of neither kind.
    """
    if is_ignored(name):
        return None
    ours = _translate(name, _FORWARD)
    if ours is None:
        hint = "expected names of CAT-Seg (CVPR 2024): sem_seg_head.predictor. and so on, upsample1., upsample2."
        raise CheckpointError(f"unknown name {name!r}", hint=hint)
    return ours


def is_ignored(name: str) -> bool:
    """Whether a published name is of no use here."""
    return _IGNORED.fullmatch(name) is not None


def published_name(name: str) -> str:
    """The inverse of `our_name`, for messages. A name without a published form stays as it is."""
    return _translate(name, _BACKWARD) or name


def from_catseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names, with our shapes: separate q, k, v weights, flat padding rows.

    Raises:
        CheckpointError: A name is unknown.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = our_name(name)
        if ours is not None:
            renamed[ours] = tensor.flatten() if ".padding_" in ours else tensor
    return split_fused_projections(renamed)


def sizes_from_catseg(state: Mapping[str, Tensor], renamed: Mapping[str, Tensor], **settings: Any) -> SegmenterConfig:
    """The settings of a segmenter that a published state dict fits.

    `renamed` is the same through `from_catseg`; `settings` are fields of SegmenterConfig that shapes cannot tell:
    num_heads, pooling, pad_len, finetune, templates.

    Raises:
        CheckpointError: The state dict lacks what the sizes are read from, or has it in another form.
    """
    masks = [tensor for name, tensor in state.items() if name.endswith("block_2.attn_mask")]
    try:
        has_text = any(name.startswith("clip.text.") for name in renamed)
        return SegmenterConfig(**{**_sizes(renamed, masks), "text_encoder": has_text, **settings})
    except KeyError as error:
        hint = "is this a whole CAT-Seg state dict?"
        raise CheckpointError(f"{published_name(error.args[0])!r} is missing", hint=hint) from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"sizes that contradict each other: {error.args[0]}") from error


def fitted_state(config: SegmenterConfig, renamed: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The state dict of a segmenter of these settings: complete, float32, of the right shapes.

    Raises CheckpointError, which names `source`, if it is of another segmenter.
    """
    state = {name: tensor.float() for name, tensor in renamed.items()}
    arch = cast(ClipArchitecture, config.arch)  # CAT-Seg knows no other
    state = fit_positions(state, arch.position_grid, name="clip.visual.positional_embedding")
    check_state(blank_segmenter(config), state, source=source, shown=published_name)
    return state


def segmenter_from_catseg(state: Mapping[str, Tensor], **settings: Any) -> Segmenter:
    """A segmenter with the sizes and weights of a published state dict (`{"model": ...}` already unpacked).

    A state dict without a text encoder gives a segmenter with a random one, for text features that come from elsewhere.
    """
    renamed = from_catseg(state)
    config = sizes_from_catseg(state, renamed, **settings)
    fitted = fitted_state(config, renamed, source="CAT-Seg checkpoint")
    segmenter = Segmenter(replace(config, text_encoder=True))
    segmenter.load_state_dict(segmenter.state_dict() | fitted)
    return segmenter


def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression for names of the form "layers.{n}.{rest}"."""
    literal = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(literal.format(**_PLACEHOLDERS))


_FORWARD = tuple((_pattern(theirs), ours) for theirs, ours in _NAMES)
_BACKWARD = tuple((_pattern(ours), theirs) for theirs, ours in _NAMES)


def _translate(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, target in rules:
        if match := pattern.fullmatch(name):
            return target.format(**match.groupdict())
    return None


def _sizes(state: Mapping[str, Tensor], masks: list[Tensor]) -> dict[str, Any]:
    """Fields of SegmenterConfig; KeyError, with our name, for what is missing."""
    clip = _clip_sizes(state)  # first: what lacks CLIP is no such checkpoint at all
    cost, decoder = state["aggregator.cost_embedding.weight"], "aggregator.decoder."
    sizes: dict[str, Any] = {
        **clip,
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
    if not any(name.endswith(".padding_token") for name in state):
        sizes["pad_len"] = 0
    if cost.shape[1] > 1:
        sizes["templates"] = ("{}",) * cost.shape[1]
    return sizes


def _clip_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A preset's name if it has these sizes; else an architecture, with heads of 64 channels, as OpenAI's models."""
    width, _, patch, _ = state["clip.visual.conv1.weight"].shape
    layers = _count(state, r"clip\.visual\.transformer\.resblocks\.(\d+)\..+")
    found = {"vision_width": width, "vision_layers": layers, "patch_px": patch}
    found["embed_dim"] = state["clip.visual.proj"].shape[1]
    if any(name.startswith("clip.text.") for name in state):
        found |= {
            "text_width": state["clip.text.ln_final.weight"].shape[0],
            "text_layers": _count(state, r"clip\.text\.transformer\.resblocks\.(\d+)\..+"),
            "context_length": len(state["clip.text.positional_embedding"]),
            "vocabulary_size": len(state["clip.text.token_embedding.weight"]),
        }
    for name in ("ViT-B-16", "ViT-L-14-336", "ViT-H-14"):
        preset = clip_architecture(name)
        if all(getattr(preset, field) == value for field, value in found.items()):
            return {"clip": name}
    sizes: dict[str, Any] = {"text_width": 64, "text_layers": 1, **found}
    arch = ClipArchitecture(
        **sizes,
        image_px=24 * patch,
        position_grid=24,
        vision_heads=max(1, width // 64),
        text_heads=max(1, sizes["text_width"] // 64),
        guidance_blocks=(max(0, layers // 3 - 1), max(0, 2 * layers // 3 - 1)),
        quick_gelu=True,
    )
    return {"clip": "custom", "architecture": arch}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the pattern's group takes over all names."""
    return len({match[1] for name in state if (match := re.fullmatch(pattern, name))})
