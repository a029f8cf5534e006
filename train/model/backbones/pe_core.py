"""Perception Encoder (PE-Core): EVA's image encoder with attention pooling at its end, and its dense image features."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .eva import EvaArchitecture, EvaClip, EvaVision, eva_sizes

# Of each image encoder: channels of a token, blocks, attention heads, side of a patch.
_SIZES = {
    "PE-Core-T-16-384": (192, 12, 3, 16),
    "PE-Core-S-16-384": (384, 12, 6, 16),
    "PE-Core-B-16": (768, 12, 12, 16),
    "PE-Core-L-14-336": (1024, 24, 16, 14),
    "PE-Core-bigG-14-448": (1536, 50, 16, 14),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PECoreArchitecture(EvaArchitecture):
    """Sizes of PE-Core (Bolya et al. 2025)."""

    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def build(self, *, text: bool = True) -> "PECore":
        return PECore(self, text=text)


def pe_core_architecture(name: str) -> PECoreArchitecture:
    """Sizes by open_clip's name. Raises ConfigError if open_clip lacks it."""
    return PECoreArchitecture(**eva_sizes(name, _SIZES[name]))


class PECoreVision(EvaVision):
    """PE-Core's image encoder, dense form.

    All blocks run as usual, then the final norm. One learned query pools the tokens by attention, and only what it
    pools is aligned with text, so MaskCLIP's step (Zhou et al. 2022) is taken in the pooling: each patch token alone
    goes through its value and output projection, then through the projection into the space of the texts. TextRegion
    (Xiao et al. 2025, TMLR) does so for PE-Core-L14-336, without the pooling's MLP: its keys are the same for all
    tokens, so the feature of a region is the mean of these. Tokens that go around the pooling match no text
    (facebookresearch/perception_models, issue 117: an mIoU of 0 to 2).
    """

    kind: ClassVar[str] = "PE-Core"
    mark: ClassVar[str] = "attn_pool.latent"

    def forward(self, images: Tensor, keep_blocks: Collection[int]) -> tuple[Tensor, dict[int, Tensor]]:
        self.trunk.set_grad_checkpointing(self.recompute)
        wanted = sorted(keep_blocks)
        x, found = self.trunk.forward_intermediates(images, indices=wanted, output_fmt="NLC")
        pool, patches = self.trunk.attn_pool, x[:, self.trunk.num_prefix_tokens :]
        weight, bias = (keys_values.chunk(2)[1] for keys_values in (pool.kv.weight, pool.kv.bias))
        tokens: Tensor = self.trunk.head(pool.proj(F.linear(patches, weight, bias)))
        return tokens, dict(zip(wanted, found, strict=True))

    def idle(self) -> tuple[str, ...]:
        return tuple(f"trunk.attn_pool.{part}" for part in ("latent", "q.", "norm.", "mlp."))


class PECore(EvaClip):
    """Both encoders side by side, `visual` and `text`."""

    vision: ClassVar[type[EvaVision]] = PECoreVision
