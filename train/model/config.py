"""Settings of the segmenter: everything that decides its parameters and what they compute."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from ...common.errors import ConfigError
from ...common.settings import NameOrPath, check_ranges
from .backbones.clip import ClipArchitecture
from .backbones.interface import Architecture, find_architecture
from .text import TEMPLATE, Synonyms, read_templates

# What a field of SegmenterConfig stands for when it is left at 0, () or "preset": as published, and for clip = "tiny".
_SIZES: dict[str, tuple[Any, Any]] = {
    "num_layers": (2, 1),
    "num_heads": (4, 2),
    "hidden_dim": (128, 32),
    "guidance_dim": (128, 32),
    "decoder_dims": ((64, 32), (16, 8)),
    "decoder_guidance_dims": ((256, 128), (32, 16)),
    "decoder_guidance_proj_dims": ((32, 16), (16, 8)),
    "structure_dim": (256, 32),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterConfig:
    """Everything that decides the segmenter's parameters and what they compute.

    Fields left at 0, () or "preset" take the published sizes, or small ones for `clip = "tiny"`; after construction
    every field holds its resolved value (but for those whose None says otherwise), so that a saved configuration is
    complete. Raises ConfigError for a name that is unknown, or sizes that do not fit together.
    """

    clip: str = "ViT-B-16"
    """Name of the backbone: `physseg plugins` lists them."""
    image_px: int | None = None
    """Side of the square that crops are resized to for the image encoder, in pixels. None takes the backbone's own."""
    image_mean: tuple[float, ...] | None = None
    """Mean of red, green and blue in 0..1 that images are normalised by. None takes what the weights need."""
    image_std: tuple[float, ...] | None = None
    """Standard deviations that images are normalised by. None takes what the weights need."""
    finetune: Literal["preset", "qv", "all", "none"] = "preset"
    """What trains of CLIP: the query and value weights, all, or nothing."""
    quick_gelu: bool | None = None
    """CLIP's activation. None takes what the pretrained weights need, else the preset's."""
    architecture: ClipArchitecture | None = None
    """Sizes of a CLIP that is no preset; `clip` is then only its name."""
    text_encoder: bool = True
    """Whether there is a text encoder. Without one, text features come from elsewhere."""
    templates: tuple[str, ...] = ()
    """Prompts, each with one {} for the class name. Their number is P."""
    prompts: NameOrPath = ""
    """The templates: one itself, a name, "single" or "imagenet" (80), or a file; empty after construction."""
    synonyms: Synonyms = "first"
    """What stands for a class of comma-separated synonyms: the first, or the mean over all."""
    num_layers: int = 0
    """Number of aggregator layers, each first over space, then over classes."""
    num_heads: int = 0
    """Number of attention heads of both kinds of aggregation."""
    window: int = 12
    """Side of a window of spatial aggregation, in patches."""
    pooling: int = 2
    """Average pooling before aggregation over classes in training; evaluation does not pool."""
    pad_len: int = 256
    """Fewer classes are padded to this many; of more, this many are kept per image (`classes_kept`); 0 does neither."""
    hidden_dim: int = 0
    """Channels of the cost volume's embedding."""
    guidance_dim: int = 0
    """Channels of projected image and text guidance."""
    decoder_dims: tuple[int, ...] = ()
    """Channels of the decoder's two stages, below 16 or multiples of 16."""
    decoder_guidance_dims: tuple[int, ...] = ()
    """Channels of the upsampled CLIP levels at 48x48 and 96x96."""
    decoder_guidance_proj_dims: tuple[int, ...] = ()
    """Channels of the upsampled CLIP levels after their projection."""
    structures: tuple[str, ...] = ()
    """Maps that the structure head predicts, in this order; without any there is no such head."""
    structure_classes: tuple[int, ...] | None = None
    """Number of classes that each structure is predicted in, 0 for one that is a single map; None where all are.
    Training takes it from the store, and puts those of classes last: they have a channel for each class trained on."""
    structure_dim: int = 0
    """Channels of the structure head."""
    alignment: bool = False
    """Whether there is a patch alignment head."""
    alignment_dim: int = 0
    """Dimension of the alignment head's space; 0 takes CLIP's embedding size."""
    alignment_normalize: bool = True
    """Whether both projections of the alignment head have unit length, as in CLIP."""

    def __post_init__(self) -> None:
        self._resolve_templates()
        arch, tiny = self.arch, self.clip == "tiny"
        sizes = {name: small if tiny else published for name, (published, small) in _SIZES.items()}
        sizes["finetune"] = "all" if tiny else arch.finetune
        for name, value in {**sizes, "alignment_dim": arch.embed_dim}.items():
            if getattr(self, name) in (0, (), "preset"):
                object.__setattr__(self, name, value)
        sizes_of = {field.name: "[1, 1e6]" for field in fields(self) if field.type in (int, "int")}
        decoder = ("decoder_dims", "decoder_guidance_dims", "decoder_guidance_proj_dims")
        sizes_of |= dict.fromkeys(decoder, "[1, 1e6]")
        check_ranges(self, **sizes_of | {"num_layers": "[1, 1000]", "pad_len": "[0, 1e6]"})
        for name in decoder:
            if len(getattr(self, name)) != 2:
                raise ConfigError(f"{name}: expected two numbers, got {getattr(self, name)}")
        self._check_names()

    @property
    def arch(self) -> Architecture:
        """The backbone's architecture, for the images and the weights that these settings name."""
        given = {name: getattr(self, name) for name in ("image_px", "image_mean", "image_std", "quick_gelu")}
        return (self.architecture or find_architecture(self.clip)).adapted(**given)

    def classes_kept(self, num_classes: int, asked: int | None = None) -> int:
        """How many of `num_classes` are aggregated per image, where `asked` are asked for; None asks for `pad_len`."""
        return min(num_classes, asked or self.pad_len or num_classes)

    def _resolve_templates(self) -> None:
        named = read_templates(self.prompts or "single") if self.prompts or not self.templates else self.templates
        if self.templates and named != self.templates:
            different = f"prompts: {self.prompts!r} stands for other templates than {self.templates}"
            raise ConfigError(different, hint="give only one of them")
        object.__setattr__(self, "templates", named)
        object.__setattr__(self, "prompts", "")

    def _check_names(self) -> None:
        if self.finetune not in ("qv", "all", "none"):
            raise ConfigError(f"finetune: expected qv, all or none, got {self.finetune!r}")
        if self.synonyms not in ("first", "mean"):
            raise ConfigError(f"synonyms: expected first or mean, got {self.synonyms!r}")
        if self.hidden_dim % self.num_heads:
            raise ConfigError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        if any(dim > 16 and dim % 16 for dim in self.decoder_dims):
            raise ConfigError(f"decoder_dims: groups of 16 channels are normalised, got {self.decoder_dims}")
        stages = (self.hidden_dim, self.decoder_dims[0])
        for dim, guidance in zip(stages, self.decoder_guidance_proj_dims, strict=True):
            if guidance >= dim:
                left = f"{guidance} of a stage's {dim} channels leave none to the cost"
                raise ConfigError(f"decoder_guidance_proj_dims: {left}")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            wrong = f"templates: each needs exactly one {{}} for the class name, got {self.templates}"
            raise ConfigError(wrong, hint=f"the published template is {TEMPLATE!r}")
        if len(set(self.structures)) != len(self.structures):
            raise ConfigError(f"structures: every name once, got {self.structures}")
        if len(self.structure_classes or self.structures) != len(self.structures):
            got = self.structure_classes
            raise ConfigError.mismatch("structure_classes", f"one for each of {self.structures}", got)
