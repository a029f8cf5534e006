"""CLIP's text encoder, which computes no position twice, with its tokenizer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ....common.documents import parsing, read_text
from ....common.errors import ConfigError
from ....common.settings import check_ranges
from ..text import clip_tokens, open_clip_folder
from .interface import Architecture
from .transformer import ResidualBlock, Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArchitecture(Architecture):
    """Sizes of CLIP's text encoder, beside an image encoder of whatever kind."""

    text_width: int
    """Channels of a text token."""
    text_layers: int
    text_heads: int
    vocabulary_size: int = 49408
    """Number of tokens of CLIP's byte-pair tokeniser."""
    quick_gelu: bool = False
    """Whether the activation is x sigmoid(1.702 x) instead of GELU; presets have what the best known weights need."""

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("vision_layers", "text_layers"), "[1, 1000]")
        sizes = [field.name for field in fields(self) if field.type in (int, "int")]
        check_ranges(self, **{name: limits.get(name, "[1, 1e6]") for name in sizes})
        Architecture.__post_init__(self)
        if self.text_width % self.text_heads:
            heads = f"text_width {self.text_width} is not a multiple of text_heads {self.text_heads}"
            raise ConfigError(f"CLIP sizes: {heads}")


def described_by_open_clip(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What open_clip's own file says of a model, and the fields of `TextArchitecture` in it; open_clip is not imported.

    Raises:
        ConfigError: open_clip does not describe this model, or in another form: it is too old, or too new.
    """
    path = open_clip_folder() / "model_configs" / f"{name}.json"
    fault, hint = f"open_clip's description of {name}", "pip install --upgrade physseg open_clip_torch"
    with parsing(ConfigError, f"{path}: not {fault}", hint):
        sizes = json.loads(read_text(path, ConfigError, fault, hint))
        text = sizes["text_cfg"]
        return sizes, {
            "embed_dim": sizes["embed_dim"],
            "context_length": text["context_length"],
            "vocabulary_size": text["vocab_size"],
            "text_width": text["width"],
            "text_layers": text["layers"],
            "text_heads": text["heads"],
        }


class TextEncoder(nn.Module):
    """The half of a backbone that all CLIPs share: a tokenizer and `text`, None where there is no text encoder."""

    def __init__(self, arch: TextArchitecture, *, text: bool) -> None:
        super().__init__()
        self.context_length, self.vocabulary_size = arch.context_length, arch.vocabulary_size
        self.text: TextTransformer | None = TextTransformer(arch) if text else None

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids by CLIP's tokenizer (`text.clip_tokens`). Raises ConfigError where the encoder lacks some."""
        tokens = clip_tokens(prompts, self.context_length)
        if (most := int(tokens.max())) >= self.vocabulary_size:
            expected = f"more than the {most} of CLIP's end-of-text token"
            raise ConfigError.mismatch("CLIP sizes: vocabulary_size", expected, self.vocabulary_size)
        return tokens

    def encode_text(self, tokens: Tensor, shared: int | None = None) -> Tensor:
        """Features (M, D) of token ids (M, L). Raises ConfigError if there is no text encoder."""
        if self.text is None:
            hint = "pass text features (T, P, D) of your own to the model, or import a checkpoint that has one"
            raise ConfigError("this model has no text encoder: its checkpoint held none", hint=hint)
        features: Tensor = self.text(tokens, shared)
        return features


class TextTransformer(nn.Module):
    """CLIP's causal text encoder, pooled at the end-of-text token (the highest id of a row)."""

    def __init__(self, arch: TextArchitecture) -> None:
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
