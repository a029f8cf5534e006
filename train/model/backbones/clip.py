"""CLIP's two transformers, with dense image features and a text encoder that computes no position twice.

Parameters carry the names of OpenAI's CLIP, except that every attention keeps query, key and value weights apart
(`q_proj_weight`, `k_proj_weight`, `v_proj_weight`, and one `in_proj_bias`), because fine-tuning trains queries and
values only (docs/method.md, Baseline). `weights/clip_weights.py` converts published state dicts. Nothing here loads or
downloads.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounded import Bounded
from .clip_presets import ClipArchitecture


class Attention(nn.Module):
    """Multi-head self-attention, batch first, whose three projection weights are separate parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj_weight = nn.Parameter(torch.empty(width, width))
        self.k_proj_weight = nn.Parameter(torch.empty(width, width))
        self.v_proj_weight = nn.Parameter(torch.empty(width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every position of (B, N, C) attends to all positions."""
        return self.attend(x, *self.keys_values(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of (B, N, C), each (B, heads, N, C / heads)."""
        _, k_bias, v_bias = self.in_proj_bias.chunk(3)
        key = F.linear(x, self.k_proj_weight, k_bias)
        value = F.linear(x, self.v_proj_weight, v_bias)
        return self._split_heads(key), self._split_heads(value)

    def attend(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries from `x` (B, N, C) over the given keys and values; `mask` is boolean, True where one may look."""
        query = self._split_heads(F.linear(x, self.q_proj_weight, self.in_proj_bias.chunk(3)[0]))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        projected: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return projected

    def value_path(self, x: Tensor) -> Tensor:
        """Value and output projection without attention: what each position would say about itself."""
        value = F.linear(x, self.v_proj_weight, self.in_proj_bias.chunk(3)[2])
        projected: Tensor = self.out_proj(value)
        if self.q_proj_weight.requires_grad:
            # The reference trains this query weight too; its gradient is zero. Without any gradient the optimiser would
            # skip its weight decay, and DistributedDataParallel would wait for a parameter that takes no part.
            projected = projected + 0.0 * self.q_proj_weight[0, 0]
        return projected

    def _split_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU, or with CLIP's sigmoid approximation of it, between them."""

    def __init__(self, width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.c_fc(x)
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702: one tensor is kept for the backward pass instead of two.
        hidden = F.silu(hidden * 1.702) * (1 / 1.702) if self.quick_gelu else F.gelu(hidden)
        projected: Tensor = self.c_proj(hidden)
        return projected


class ResidualBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        fed: Tensor = x + self.mlp(self.ln_2(x))
        return fed

    def dense(self, x: Tensor) -> Tensor:
        """The last image block, without attention: value path plus the input's class token, then the MLP."""
        return self.feed_forward(self.attn.value_path(self.ln_1(x)) + x[:, :1])


class Transformer(Bounded):
    """A stack of blocks; a module of its own only so that parameter names match CLIP's."""

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, quick_gelu) for _ in range(layers))
        self._initialise(width, layers)

    def blocks(self) -> list[ResidualBlock]:
        return [block for block in self.resblocks if isinstance(block, ResidualBlock)]

    def _initialise(self, width: int, layers: int) -> None:
        """CLIP's own scheme: residual branches are scaled so that the sum over the layers keeps its size."""
        for block in self.blocks():
            for weight in (block.attn.q_proj_weight, block.attn.k_proj_weight, block.attn.v_proj_weight):
                nn.init.normal_(weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * width * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=(2 * width * layers) ** -0.5)
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(linear.bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFeatures:
    """What one pass of the image encoder yields."""

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
        self.transformer = Transformer(width, arch.vision_layers, arch.vision_heads, arch.quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, arch.embed_dim))
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=scale)

    def forward(self, images: Tensor, keep_blocks: Collection[int] = ()) -> DenseFeatures:
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
        return DenseFeatures(tokens=self.ln_post(x) @ self.proj, blocks=kept)


class TextTransformer(nn.Module):
    """CLIP's causal text encoder, pooled at the end-of-text token (the highest id of a row)."""

    def __init__(self, arch: ClipArchitecture) -> None:
        super().__init__()
        width = arch.text_width
        self.token_embedding = nn.Embedding(arch.vocabulary_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(arch.context_length, width))
        self.transformer = Transformer(width, arch.text_layers, arch.text_heads, arch.quick_gelu)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, arch.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, tokens: Tensor, shared: int | None = None) -> Tensor:
        """Text features (M, D) of token ids (M, L), L at most the context length; not normalised.

        `shared`: what `shared_prefix` says of these tokens, for a caller who knows.

        Under a causal mask a position depends on what stands before it only. So what follows the longest prompt can
        be cut (`text.tokenize`), the words that all prompts begin with are computed once instead of M times, and in
        the last block only the end-of-text position is worked out: the same numbers for about half of the arithmetic.
        """
        # Best with tokens on the CPU: these two numbers steer Python, and reading them from a GPU would wait for it.
        shared = shared_prefix(tokens) if shared is None else shared
        device = self.positional_embedding.device
        tokens = tokens.to(device)
        end = tokens.argmax(dim=-1) - shared
        length = tokens.shape[1]
        positions = torch.arange(length, device=device)
        prefix = self.token_embedding(tokens[:1, :shared]) + self.positional_embedding[:shared]
        rest = self.token_embedding(tokens[:, shared:]) + self.positional_embedding[shared:length]
        causal = positions[None, :] <= positions[:, None]
        blocks = self.transformer.blocks()
        for block in blocks[:-1]:
            key, value = _keys_values(block, prefix, rest)
            if shared:
                own = (key[:1, :, :shared], value[:1, :, :shared])
                attended = block.attn.attend(block.ln_1(prefix), *own, mask=causal[:shared, :shared])
                prefix = block.feed_forward(prefix + attended)
            rest = rest + block.attn.attend(block.ln_1(rest), key, value, mask=causal[shared:])
            rest = self.transformer.run_part(block.feed_forward, rest)
        key, value = _keys_values(blocks[-1], prefix, rest)
        pooled = rest.take_along_dim(end[:, None, None], dim=1)
        before_end = (positions <= (end + shared)[:, None])[:, None, None]
        attended = blocks[-1].attn.attend(blocks[-1].ln_1(pooled), key, value, mask=before_end)
        pooled = blocks[-1].feed_forward(pooled + attended)
        features: Tensor = self.ln_final(pooled[:, 0]) @ self.text_projection
        return features


class Clip(nn.Module):
    """Both encoders side by side: `visual` and `text`; or, with `text=False`, the image encoder alone."""

    def __init__(self, arch: ClipArchitecture, *, text: bool = True) -> None:
        super().__init__()
        self.arch = arch
        self.visual = VisionTransformer(arch)
        self.text: TextTransformer | None = TextTransformer(arch) if text else None


def resize_positions(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positional embedding (1 + n², C) for a patch grid (h, w): bicubic, align_corners False, class row kept."""
    side = round((len(embedding) - 1) ** 0.5)
    if grid == (side, side):
        return embedding
    planes = torch.unflatten(embedding[1:], 0, (side, side)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], resized[0].flatten(1).T])


def shared_prefix(tokens: Tensor) -> int:
    """How many leading tokens all rows of (M, L) have in common, never reaching a row's end-of-text token."""
    if len(tokens) == 1:
        return 0
    same = (tokens == tokens[:1]).all(dim=0).long()
    return int(torch.minimum(same.cumprod(dim=0).sum(), tokens.argmax(dim=-1).min()))


def _keys_values(block: ResidualBlock, prefix: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values over whole rows, (M, heads, L, d); those of the prefix are computed once."""
    prefix_key, prefix_value = block.attn.keys_values(block.ln_1(prefix))
    rest_key, rest_value = block.attn.keys_values(block.ln_1(rest))
    rows = len(rest)
    key = torch.cat([prefix_key.expand(rows, -1, -1, -1), rest_key], dim=2)
    value = torch.cat([prefix_value.expand(rows, -1, -1, -1), rest_value], dim=2)
    return key, value
