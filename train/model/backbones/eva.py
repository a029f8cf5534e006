"""EVA02-CLIP: timm's `Eva` transformer beside CLIP's text encoder, and its dense image features."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..bounded import Bounded
from .clip import TransformerArchitecture, as_map
from .clip_text import TextEncoder, described_by_open_clip
from .interface import DenseFeatures
from .published import from_open_clip

# Of each image encoder: channels of a token, blocks, attention heads, side of a patch.
_SIZES = {
    "EVA02-B-16": (768, 12, 12, 16),
    "EVA02-L-14": (1024, 24, 16, 14),
    "EVA02-L-14-336": (1024, 24, 16, 14),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaArchitecture(TransformerArchitecture):
    """Sizes of a CLIP whose image encoder is timm's `Eva`."""

    timm_name: str
    """timm's name of the image encoder, which decides all that the sizes here leave open."""

    @property
    def guidance_blocks(self) -> tuple[int, int]:
        """Blocks at a third and two thirds of the depth, as CAT-Seg takes those of OpenAI's CLIP."""
        return round(self.vision_layers / 3) - 1, round(2 * self.vision_layers / 3) - 1

    def build(self, *, text: bool = True) -> "EvaClip":
        return EvaClip(self, text=text)


def eva02_architecture(name: str) -> EvaArchitecture:
    """Sizes of EVA02-CLIP (Sun et al. 2023, EVA-CLIP) by open_clip's name. Raises ConfigError if open_clip lacks it."""
    return EvaArchitecture(**eva_sizes(name, _SIZES[name]))


def eva_sizes(name: str, vision: tuple[int, int, int, int]) -> dict[str, Any]:
    """Fields of an architecture from open_clip's file and a family's table; 24 patches a side, as CAT-Seg has them."""
    width, layers, heads, patch_px = vision
    described, text = described_by_open_clip(name)
    return text | {
        "image_px": 24 * patch_px,
        "patch_px": patch_px,
        "timm_name": described["vision_cfg"]["timm_model_name"],
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": heads,
    }


class EvaVision(Bounded):
    """EVA02-CLIP's image encoder, dense form.

    The last block runs without attention: what each token says about itself (its value, normed and projected) is added
    to the token, then the MLP, the final norm and the projection act on every token. CLIPSelf (Wu et al. 2024) distils
    EVA02-CLIP into these features, and MaskCLIP++ (Zeng et al. 2024) takes them for its patches; both keep the token's
    own residual, where CAT-Seg adds the class token to those of OpenAI's CLIP.
    """

    kind: ClassVar[str] = "EVA02-CLIP"
    """The family, in errors."""
    mark: ClassVar[str] = "blocks.0.mlp.fc1_g.weight"
    """A parameter by which published weights of the family are known."""

    def __init__(self, arch: EvaArchitecture) -> None:
        import timm  # here, as it takes seconds, and describing a backbone needs none of it

        super().__init__()
        trunk = timm.create_model(
            arch.timm_name,
            img_size=arch.image_px,
            patch_size=arch.patch_px,
            embed_dim=arch.vision_width,
            depth=arch.vision_layers,
            num_heads=arch.vision_heads,
            num_classes=arch.embed_dim,
            qkv_fused=False,
        )
        self.trunk = cast(Any, trunk)
        with torch.device("cpu"):  # also where the model is made on the meta device: no file holds rotary embeddings
            self.trunk.rope.to_empty(device="cpu").init_non_persistent_buffers()

    def forward(self, images: Tensor, keep_blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Dense tokens (B, N, D) of normalised images (B, 3, S, S), and patch tokens (B, N, C) after blocks."""
        self.trunk.set_grad_checkpointing(self.recompute)
        *_, last = self.trunk.blocks
        end = len(self.trunk.blocks) - 1
        wanted = sorted({*keep_blocks, end - 1} - {end})
        found = self.trunk.forward_intermediates(
            images, indices=wanted, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        kept: dict[int, Tensor] = dict(zip(wanted, found, strict=True))
        x = kept[end - 1]
        x = x + last.attn.proj(last.attn.norm(last.attn.v_proj(last.norm1(x))))
        kept[end] = x = x + last.mlp(last.norm2(x))
        return self.trunk.head(self.trunk.norm(x)), kept

    def idle(self) -> tuple[str, ...]:
        """Beginnings of names of parameters that dense features do not depend on."""
        last = f"trunk.blocks.{len(self.trunk.blocks) - 1}.attn."
        return f"{last}q_proj.", f"{last}k_proj."


class EvaClip(TextEncoder):
    """Both encoders side by side, `visual` and `text`; the text encoder is the one of OpenAI's CLIP."""

    vision: ClassVar[type[EvaVision]] = EvaVision

    def __init__(self, arch: EvaArchitecture, *, text: bool = True) -> None:
        super().__init__(arch, text=text)
        self.arch = arch
        self.visual = self.vision(arch)

    def encode_image(self, images: Tensor, *, levels: bool = False) -> DenseFeatures:
        """Dense features of normalised crops (B, 3, S, S)."""
        arch = self.arch
        deep = tuple(reversed(arch.structure_blocks)) if levels else ()
        patches, blocks = self.visual(images, {*arch.guidance_blocks, *deep})
        maps = {index: as_map(tokens, arch.grid) for index, tokens in blocks.items()}
        near, fine = (maps[index] for index in arch.guidance_blocks)
        return DenseFeatures(patches=patches, guidance=(near, fine), levels=tuple(maps[index] for index in deep))

    def trainable(self, rule: str) -> frozenset[str]:
        """Query and value weights of both encoders' blocks under "qv", everything under "all": of what can learn."""
        idle = tuple(f"visual.{beginning}" for beginning in self.visual.idle())
        able = frozenset(name for name, _ in self.named_parameters() if not name.startswith(idle))
        ends = tuple(f".attn.{letter}_proj{joint}weight" for letter in "qv" for joint in "._")
        if rule == "qv":
            return frozenset(name for name in able if name.endswith(ends))
        return able if rule == "all" else frozenset()

    def from_published(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """open_clip's names under ours, fused projections split, positional embeddings resized to the model's grid."""
        from timm.layers.pos_embed import resample_abs_pos_embed

        mark = f"visual.trunk.{self.visual.mark}"
        named: dict[str, Tensor] = {}
        for name, tensor in from_open_clip(state, source=source, kind=self.visual.kind, mark=mark).items():
            if ".attn.qkv." in name:
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    named[name.replace(".qkv.", f".{letter}_proj.")] = part
            else:
                named[name] = tensor
        stored, others = named.get("visual.trunk.pos_embed"), self.visual.trunk.num_prefix_tokens
        count = stored.shape[1] - others if stored is not None and stored.ndim == 3 else 0
        if stored is not None and count > 0 and math.isqrt(count) ** 2 == count:
            grid = [self.arch.grid, self.arch.grid]
            named["visual.trunk.pos_embed"] = resample_abs_pos_embed(stored.float(), grid, num_prefix_tokens=others)
        return named
