"""ConvNeXt-CLIP: CLIP with a convolutional image encoder, open_clip's own, whose four stages make a pyramid.

Its dense features are those of FC-CLIP (Yu et al. 2023, 2308.02487) and SED (Xie et al. 2024, 2311.15537).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ....common.errors import ConfigError
from ..bounded import Bounded
from .clip_text import TextArchitecture, TextEncoder, described_by_open_clip
from .interface import DenseFeatures, Finetune, Level
from .published import from_open_clip

# timm's channels of the four stages, which open_clip's files do not tell.
_CHANNELS = {
    "convnext_base": (128, 256, 512, 1024),
    "convnext_large": (192, 384, 768, 1536),
    "convnext_xxlarge": (384, 768, 1536, 3072),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvNextArchitecture(TextArchitecture):
    """Sizes of a CLIP whose image encoder is a ConvNeXt (Liu et al. 2022, 2201.03545)."""

    trunk: str
    """Name of timm's ConvNeXt."""
    channels: tuple[int, int, int, int]
    """Channels of its stages, at strides 4, 8, 16 and 32."""
    projection: Literal["linear", "mlp"]
    """How features are brought to `embed_dim`."""
    image_px: int = 768
    """Side of the square that images are resized to: SED's, 24 x 24 patches, whatever the weights were trained at."""
    patch_px: int = 32
    """Stride of the last stage in pixels."""

    @property
    def levels(self) -> tuple[Level, Level, Level, Level]:
        first, second, third, last = self.channels
        return Level(last, 32), Level(third, 16), Level(second, 8), Level(first, 4)

    @property
    def guidance(self) -> tuple[Level, Level]:
        return self.levels[1:3]

    @property
    def finetune(self) -> Finetune:
        return "all"

    @property
    def crop_bytes(self) -> int:
        """A block of the first stage: its input, the normalised input, and the MLP's four before and after GELU."""
        return 10 * 4 * self.channels[0] * (self.image_px // 4) ** 2

    def build(self, *, text: bool = True) -> "ConvNextClip":
        return ConvNextClip(self, text=text)


class ConvNextClip(TextEncoder, Bounded):
    """open_clip's image encoder (`visual`) beside our text encoder.

    Drop path, which open_clip trains with, is off: tokens do not depend on chance, in training neither.
    """

    def __init__(self, arch: ConvNextArchitecture, *, text: bool = True) -> None:
        super().__init__(arch, text=text)
        from open_clip.timm_model import TimmModel  # seconds, which describing an architecture should not take

        self.visual = TimmModel(arch.trunk, arch.embed_dim, pool="", proj=arch.projection, drop_path=0.0)

    def encode_image(self, images: Tensor, *, levels: bool = False) -> DenseFeatures:
        """Dense features of normalised crops (B, 3, S, S); levels are the outputs of the stages.

        CLIP averages the last stage's map over the positions, normalises and projects. Both of the latter treat each
        position by itself, so here they act on the map and nothing is averaged, as in SED; FC-CLIP does so with means
        over masks. Convolutions see their neighbourhood only, and need no positional embedding: features stay local,
        and images may be larger than those that the weights were trained with, without the change that ViTs need.
        """
        trunk = self.visual.trunk
        x = trunk.stem(images)
        stages: list[Tensor] = []
        for stage in trunk.stages:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_part(block, x)
            stages.append(x)
        patches = self.visual.head(trunk.head.norm(x).flatten(2).transpose(1, 2))
        kept = tuple(reversed(stages)) if levels else ()
        return DenseFeatures(patches=patches, guidance=(stages[2], stages[1]), levels=kept)

    def trainable(self, rule: str) -> frozenset[str]:
        """The image encoder under "all", as in SED, whose text encoder stays as published; nothing, as in FC-CLIP."""
        if rule == "qv":
            hint = 'set model.finetune to "all" (the image encoder, as in SED) or "none" (as in FC-CLIP)'
            raise ConfigError("finetune: qv needs attention, and the image encoder of a ConvNeXt has none", hint=hint)
        names = (name for name, _ in self.named_parameters() if name.startswith("visual."))
        return frozenset(names if rule == "all" else ())

    def from_published(self, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """open_clip's names under ours: the text encoder's move, the image encoder's are the same."""
        return from_open_clip(state, source=source, kind="ConvNeXt CLIP", mark="visual.trunk.stem.0.weight")


def convnext_architecture(name: str) -> ConvNextArchitecture:
    """Sizes by open_clip's name, from its file. Raises ConfigError if open_clip lacks it."""
    described, text = described_by_open_clip(name)
    vision = described["vision_cfg"]
    trunk = vision["timm_model_name"]
    return ConvNextArchitecture(**text, trunk=trunk, channels=_CHANNELS[trunk], projection=vision["timm_proj"])
