"""Published CLIP state dicts under our names: OpenAI's and open_clip's layouts, and positions for another grid."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CheckpointError

# Scalars that OpenAI's and open_clip's dicts carry beside the encoders.
_DROPPED = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")
_TEXT_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


def resize_positions(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positional embedding (1 + n², C) for a patch grid (h, w): bicubic, align_corners False, class row kept."""
    side = round((len(embedding) - 1) ** 0.5)
    if grid == (side, side):
        return embedding
    planes = torch.unflatten(embedding[1:], 0, (side, side)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], resized[0].flatten(1).T])


def fit_positions(
    state: Mapping[str, Tensor], grid: int, name: str = "visual.positional_embedding"
) -> dict[str, Tensor]:
    """The state dict with its positional embedding (1 + n², C) resized to `grid`, as CAT-Seg does (bicubic)."""
    fitted = dict(state)
    stored = fitted.get(name)
    if stored is not None and stored.ndim == 2 and (round((len(stored) - 1) ** 0.5)) ** 2 == len(stored) - 1 > 0:
        fitted[name] = resize_positions(stored.float(), (grid, grid))
    return fitted


def with_all_rows(state: Mapping[str, Tensor], rows: int, source: str) -> dict[str, Tensor]:
    """The state dict with a whole token embedding where it has one of some tokens, by their ids; the others get zeros.

    Raises CheckpointError for ids that do not fit.
    """
    whole, name = dict(state), "text.token_embedding.weight"
    ids = whole.pop("text.token_embedding.rows", None)
    if ids is not None:
        if name not in whole or ids.shape != whole[name].shape[:1] or not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise CheckpointError.mismatch(
                f"{source}: {name}", f"a row for each of {len(ids)} ids below {rows}", "others"
            )
        whole[name] = whole[name].new_zeros(rows, whole[name].shape[1]).index_copy(0, ids, whole[name])
    return whole


def from_open_clip(
    state: Mapping[str, Tensor],
    *,
    source: str = "CLIP state dict",
    kind: str = "CLIP ViT",
    mark: str = "visual.conv1.weight",
) -> dict[str, Tensor]:
    """A state dict in OpenAI's or open_clip's layout (text encoder at the top or under `text.`) under our names.

    Raises CheckpointError if the name `mark`, which every state dict of this kind has, is missing.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if mark not in state:
        names = sorted(state, key=lambda name: (not name.startswith("visual."), name))
        expected, got = f"a {kind} state dict (with {mark})", f"names like {names[:3]}"
        hint = f"what open_clip publishes for {kind} is understood, and OpenAI's ViT .pt files; ResNet CLIPs are not"
        if any(name.startswith(("vision_model.", "text_model.")) for name in state):
            got = f"the names of Hugging Face's transformers ({sorted(state)[0]}, ...)"
            hint = "take open_clip_model.safetensors of the repository, or `physseg weights fetch TAG`"
        raise CheckpointError.mismatch(source, expected, got, hint)
    renamed = {
        f"text.{name}" if name.startswith(_TEXT_PARTS) else name: tensor
        for name, tensor in state.items()
        if name.removeprefix("text.") not in _DROPPED
    }
    return split_fused_projections(renamed)


def split_fused_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace every fused `in_proj_weight` (3 C, C) by `q_proj_weight`, `k_proj_weight`, `v_proj_weight` (C, C)."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".in_proj_weight"):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                separate[name.removesuffix("in_proj_weight") + f"{letter}_proj_weight"] = part
        else:
            separate[name] = tensor
    return separate
