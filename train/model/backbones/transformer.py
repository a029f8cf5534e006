"""The pre-norm transformer that both of CLIP's encoders are made of.

Parameters carry the names of OpenAI's CLIP, except that every attention keeps query, key and value weights apart
(`q_proj_weight`, `k_proj_weight`, `v_proj_weight`, and one `in_proj_bias`), because fine-tuning trains queries and
values only (docs/method.md, Baseline).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounded import Bounded


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

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.c_fc(x)
        # x sigmoid(1.702 x) = silu(1.702 x) / 1.702: one tensor is kept for the backward pass instead of two.
        hidden = F.silu(hidden * 1.702) * (1 / 1.702) if self.quick_gelu else F.gelu(hidden)
        projected: Tensor = self.c_proj(hidden)
        return projected


class ResidualBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, quick_gelu: bool, mlp_ratio: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio), quick_gelu)

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

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, quick_gelu, mlp_ratio) for _ in range(layers))
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
