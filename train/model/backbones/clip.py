"""OpenAI's CLIP with a vision transformer, and its dense image features."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ....common.errors import ConfigError
from ....common.settings import check_ranges
from .clip_text import TextArchitecture, TextEncoder, TextTransformer
from .interface import Architecture, DenseFeatures, Level
from .published import fit_positions, from_open_clip, resize_positions, with_all_rows
from .transformer import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerArchitecture(TextArchitecture):
    """Sizes of a CLIP whose image encoder is a plain transformer: every level lies on the patch grid."""

    vision_width: int
    """Channels of an image token."""
    vision_layers: int
    vision_heads: int

    @property
    def levels(self) -> tuple[Level, Level, Level, Level]:
        level = Level(self.vision_width, self.patch_px)
        return level, level, level, level

    @property
    def guidance(self) -> tuple[Level, Level]:
        return self.levels[:2]

    @property
    def structure_blocks(self) -> tuple[int, ...]:
        """Four equally spaced blocks, zero-based, the last one last: the levels of the structure head."""
        return tuple(math.ceil(self.vision_layers * part / 4) - 1 for part in (1, 2, 3, 4))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipArchitecture(TransformerArchitecture):
    """Sizes of OpenAI's CLIP with a vision transformer."""

    position_grid: int
    """Side of the positional embedding's grid; published ones are resized to it on loading."""
    guidance_blocks: tuple[int, int]
    """Image blocks whose outputs guide the decoder, counted from zero."""
    mlp_ratio: float = 4.0
    """Width of an image block's MLP over that of the block, rounded down to whole channels; texts have 4."""

    def __post_init__(self) -> None:
        TextArchitecture.__post_init__(self)
        check_ranges(self, mlp_ratio="[1, 100]", position_grid="[1, 1000]")
        if self.vision_width % self.vision_heads:
            heads = f"vision_width {self.vision_width} is not a multiple of vision_heads {self.vision_heads}"
            raise ConfigError(f"CLIP sizes: {heads}")
        if len(self.guidance_blocks) != 2 or not all(0 <= block < self.vision_layers for block in self.guidance_blocks):
            limits = f"two, in 0..{self.vision_layers - 1}"
            raise ConfigError(f"CLIP sizes: guidance_blocks {self.guidance_blocks} must be {limits}")

    @property
    def in_full(self) -> Self:
        return self

    def adapted(self, *, quick_gelu: bool | None = None, **images: Any) -> Self:
        """Positional embeddings of another resolution are kept at that one's grid, as CAT-Seg keeps them."""
        changed = Architecture.adapted(self, **images)
        grid = changed.grid if changed.image_px != self.image_px else self.position_grid
        activation = self.quick_gelu if quick_gelu is None else quick_gelu
        return replace(changed, position_grid=grid, quick_gelu=activation)

    def build(self, *, text: bool = True) -> "Clip":
        return Clip(self, text=text)


class Clip(TextEncoder):
    """Both encoders side by side: `visual` and `text`; or, with `text=False`, the image encoder alone."""

    def __init__(self, arch: ClipArchitecture, *, text: bool = True) -> None:
        super().__init__(arch, text=False)
        self.arch = arch
        # In this order, in which initial weights are drawn, and by which the state of an optimizer is saved.
        self.visual = VisionTransformer(arch)
        self.text = TextTransformer(arch) if text else None

    def encode_image(self, images: Tensor, *, levels: bool = False) -> DenseFeatures:
        """Dense features of normalised crops (B, 3, S, S); levels are blocks at quarters of the depth."""
        arch = self.arch
        blocks = tuple(reversed(arch.structure_blocks)) if levels else ()
        found: VisionFeatures = self.visual(images, keep_blocks={*arch.guidance_blocks, *blocks})
        maps = {index: as_map(tokens, arch.grid) for index, tokens in found.blocks.items()}
        near, fine = (maps[index] for index in arch.guidance_blocks)
        kept = tuple(maps[index] for index in blocks)
        return DenseFeatures(patches=found.tokens[:, 1:], guidance=(near, fine), levels=kept)

    def trainable(self, rule: str) -> frozenset[str]:
        """Query and value weights of both encoders under "qv"."""
        names = frozenset(name for name, _ in self.named_parameters())
        if rule == "qv":
            return frozenset(name for name in names if name.endswith(("attn.q_proj_weight", "attn.v_proj_weight")))
        # The last image block has no attention, so its query and key weights cannot learn.
        last = f"visual.transformer.resblocks.{self.arch.vision_layers - 1}.attn."
        return names - {last + "q_proj_weight", last + "k_proj_weight"} if rule == "all" else frozenset()

    def from_published(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """OpenAI's or open_clip's names under ours, positional embeddings at the grid that the model keeps."""
        named = with_all_rows(from_open_clip(state, source=source), self.vocabulary_size, source)
        return fit_positions(named, self.arch.position_grid)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionFeatures:
    """What one pass of the vision transformer yields."""

    tokens: Tensor
    """(B, 1 + N, D): the class token, then patches row by row, after ln_post and projection."""
    blocks: dict[int, Tensor]
    """Index of a block to its patch tokens (B, N, width)."""


class VisionTransformer(nn.Module):
    """CLIP's image encoder, dense form."""

    def __init__(self, arch: ClipArchitecture) -> None:
        super().__init__()
        width, scale = arch.vision_width, arch.vision_width**-0.5
        self.patch_px = arch.patch_px
        self.conv1 = nn.Conv2d(3, width, kernel_size=arch.patch_px, stride=arch.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(arch.position_grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, arch.vision_layers, arch.vision_heads, arch.quick_gelu, arch.mlp_ratio)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, arch.embed_dim))
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=scale)

    def forward(self, images: Tensor, keep_blocks: Collection[int] = ()) -> VisionFeatures:
        """Dense features of normalised images (B, 3, H, W), H and W multiples of the patch size.

        All blocks but the last run as usual; the last one is `ResidualBlock.dense`; ln_post and the projection then
        act on every token (docs/method.md, Baseline, after Zhou et al., MaskCLIP).
        """
        patches = self.conv1(images)
        grid = patches.shape[-2:]
        x = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = self.ln_pre(x + resize_positions(self.positional_embedding, (grid[0], grid[1])))
        kept: dict[int, Tensor] = {}
        blocks = self.transformer.blocks()
        for index, block in enumerate(blocks):
            x = block.dense(x) if index == len(blocks) - 1 else self.transformer.run_part(block, x)
            if index in keep_blocks:
                kept[index] = x[:, 1:]
        return VisionFeatures(tokens=self.ln_post(x) @ self.proj, blocks=kept)


def as_map(tokens: Tensor, side: int) -> Tensor:
    """Patch tokens (B, side * side, C) as a map (B, C, side, side), a view."""
    return torch.unflatten(tokens.transpose(1, 2), 2, (side, side))
