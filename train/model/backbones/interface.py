"""What a backbone is: an image encoder with dense tokens, and a text encoder into the same space.

An entry point of the group `physseg.backbones` is a function from its own name to an `Architecture`; `clip = "NAME"` in
a configuration asks for it. The architecture says, before anything is built, what the heads need to know, and builds
the backbone, a `torch.nn.Module` with the members of `Backbone`. docs/backbones.md has an example.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from ....common.errors import ConfigError
from ....common.plugins import OURS, ConformanceError, find, offers
from ....common.settings import check_ranges

if TYPE_CHECKING:  # the public names load without torch
    from torch import Tensor

OPENAI_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Final = (0.26862954, 0.26130258, 0.27577711)

FRAME_PX: Final = 16
"""Pixels of an image, as a crop shows it, that a patch stands for, whatever the encoder resizes the crop to."""

Finetune = Literal["qv", "all", "none"]
"""What of a backbone trains: query and value weights, everything that can, or nothing."""


@dataclass(frozen=True, slots=True)
class Level:
    """A feature map of the image encoder."""

    channels: int
    stride: int
    """Pixels of the encoder's input from one cell to the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture(ABC):
    """What is known of a backbone before it is built. Raises ConfigError where sizes contradict each other."""

    embed_dim: int
    """Dimension D of the space that images and texts share."""
    image_px: int
    """Side of the square that images are resized to for the encoder, in pixels."""
    patch_px: int
    """Side of a patch in pixels: what one dense token stands for. image_px / patch_px is the side of the patch grid."""
    context_length: int = 77
    """Longest prompt in tokens."""
    image_mean: tuple[float, ...] = OPENAI_MEAN
    """Mean of red, green and blue that the encoder was trained with, for values in 0..1."""
    image_std: tuple[float, ...] = OPENAI_STD
    """Their standard deviations."""
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    """How crops of another size are brought to `image_px`."""

    def __post_init__(self) -> None:
        if self.image_px % self.patch_px:
            least, most = (self.image_px // self.patch_px + more for more in (0, 1))
            fits = " or ".join(str(patches * self.patch_px) for patches in (least, most) if patches)
            fault = f"CLIP sizes: image_px {self.image_px} is not a multiple of patch_px {self.patch_px}"
            raise ConfigError(fault, hint=f"set it to {fits}")
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != 3:
                raise ConfigError.mismatch(name, "three numbers, for red, green and blue", getattr(self, name))
        check_ranges(self, image_mean="[-1e3, 1e3]", image_std="[1e-3, 1e3]")

    @property
    def grid(self) -> int:
        """Side of the patch grid."""
        return self.image_px // self.patch_px

    @property
    def crop_px(self) -> int:
        """Side of a training crop and of a window in prediction: 16 px for each patch, as published (384 for 24x24)."""
        return FRAME_PX * self.grid

    @property
    @abstractmethod
    def levels(self) -> tuple[Level, Level, Level, Level]:
        """What the structure head is given, the deepest first."""

    @property
    @abstractmethod
    def guidance(self) -> tuple[Level, Level]:
        """What guides the decoder at twice and at four times the patch grid; neither is finer than that."""

    @property
    def finetune(self) -> Finetune:
        """What trains by default."""
        return "qv"

    @property
    def crop_bytes(self) -> int:
        """Memory that each crop of a batch takes in the image encoder in evaluation, where that is much."""
        return 0

    @property
    def in_full(self) -> Any:
        """Value of `SegmenterConfig.architecture` with which an exported model needs no backbone's name, or None."""
        return None

    def adapted(
        self,
        *,
        image_px: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        quick_gelu: bool | None = None,
    ) -> Self:
        """The same for other images and other weights; None keeps what is.

        Raises:
            ConfigError: The sizes do not fit, or the backbone has no choice of activation, and QuickGELU is asked for.
        """
        if quick_gelu:
            raise ConfigError("quick_gelu: this backbone has no choice of activation", hint="leave it out")
        mean, std = tuple(image_mean or self.image_mean), tuple(image_std or self.image_std)
        return replace(self, image_px=self.image_px if image_px is None else image_px, image_mean=mean, image_std=std)

    @abstractmethod
    def build(self, *, text: bool = True) -> "Backbone":
        """The backbone with random weights, a module; with `text` false, it need have no text encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseFeatures:
    """What one pass of the image encoder yields."""

    patches: "Tensor"
    """(B, N, D): one token for each patch, row by row, in the space of the texts; not normalised."""
    guidance: tuple["Tensor", "Tensor"]
    """Maps (B, C, h, w) of `Architecture.guidance`."""
    levels: tuple["Tensor", ...]
    """Maps (B, C, h, w) of `Architecture.levels`; empty unless asked for."""


class Backbone(Protocol):
    """Images to dense tokens, prompts to features, both differentiable and not normalised: a `torch.nn.Module`."""

    def encode_image(self, images: "Tensor", *, levels: bool = False) -> DenseFeatures:
        """Dense features of normalised crops (B, 3, S, S), S = `image_px`; with `levels`, those too."""

    def tokenize(self, prompts: Sequence[str]) -> "Tensor":
        """Token ids, int64 (M, L) on the CPU: the first of a prompt is not 0, those after its last one are.

        L is at most the context length. Raises ConfigError for a prompt that is longer.
        """

    def encode_text(self, tokens: "Tensor", shared: int | None = None) -> "Tensor":
        """Features (M, D) of what `tokenize` gave, or of some of its rows.

        `shared`: `clip_text.shared_prefix` of all rows, where it is known; it may be ignored.
        """

    def trainable(self, rule: str) -> frozenset[str]:
        """Names of the parameters that train under a rule (`Finetune`). Raises ConfigError for one without a sense."""

    def from_published(self, state: "Mapping[str, Tensor]", source: str) -> "dict[str, Tensor]":
        """A published state dict under this module's names and shapes; `source` names it in errors.

        Raises CheckpointError if it is of something else.
        """


def published_names() -> tuple[str, ...]:
    """Names of physseg's own backbones but "tiny": what open_clip describes under the same names."""
    return tuple(offer.name for offer in offers("backbones") if offer.package == OURS and offer.name != "tiny")


def find_architecture(name: str) -> Architecture:
    """The architecture that `clip = "NAME"` asks for.

    Raises:
        PluginError: No package offers it (the message lists what there is), or its package cannot give it.
    """
    offer = find("backbones", name)
    with offer.blamed("describing it fails: "):
        found = offer.load()(name)
    if not isinstance(found, Architecture):
        raise ConformanceError.mismatch(offer.where, "a function of its name to an Architecture", type(found).__name__)
    return found


def build_backbone(name: str, arch: Architecture, *, text: bool) -> Backbone:
    """The backbone of an architecture that was found by this name, or given in full under any.

    Raises:
        PluginError: Its package fails to build it.
        ConformanceError: It builds something else.
    """
    offer = next((offer for offer in offers("backbones") if offer.name == name), None)
    if offer is None or offer.package == OURS:
        return arch.build(text=text)
    with offer.blamed("building it fails: "):
        built = arch.build(text=text)
    if missing := [member for member in ("encode_image", "trainable") if not hasattr(built, member)]:
        raise ConformanceError.mismatch(offer.where, f"a Backbone with {missing[0]}", type(built).__name__)
    return built
