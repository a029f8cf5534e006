"""The segmenter: CLIP, the cost aggregator and, in training, the two auxiliary heads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...common.errors import ConfigError
from ..errors import ShapeError
from .alignment_head import AlignmentHead
from .backbones.clip import as_map
from .backbones.interface import Backbone, DenseFeatures, Level, build_backbone
from .config import SegmenterConfig
from .cost_aggregator import CostAggregator
from .structure_head import StructureHead
from .text import mean_over_synonyms, tokenize

# Prompts that go through the text encoder together where no gradient is wanted: about 1 GB for ViT-L's.
PROMPTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterOutput:
    """What one forward pass yields; the auxiliary parts are None in evaluation or without their head."""

    logits: Tensor
    """(B, T, 4 g, 4 g) with g = 24 patches: scores of each class, to be upsampled and put through a sigmoid."""
    structure_logits: Tensor | None
    """(B, C, 4 g, 4 g) scores of each structure, those of classes with a channel for each class."""
    similarity: Tensor | None
    """(B, g * g, T) similarities of patches and classes, divided by the temperature."""


class Segmenter(nn.Module):
    """Images and class texts to one logit map per class; any set of classes, in training and after it."""

    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.arch = arch = config.arch
        self.clip: Backbone = build_backbone(config.clip, arch, text=config.text_encoder)
        near, fine = config.decoder_guidance_dims
        self.upsample1 = _upsampling(arch.guidance[0], near, arch.patch_px // 2)
        self.upsample2 = _upsampling(arch.guidance[1], fine, arch.patch_px // 4)
        self.aggregator = CostAggregator(arch.embed_dim, config)
        self.structure_head: StructureHead | None = None
        self.alignment_head: AlignmentHead | None = None
        if config.structures:
            number, classes = len(config.structures), config.structure_classes
            self.structure_head = StructureHead(
                arch.levels, arch.patch_px, number, config.structure_dim, classes=classes
            )
        if config.alignment:
            dim, normalize = config.alignment_dim, config.alignment_normalize
            self.alignment_head = AlignmentHead(arch.embed_dim, dim, normalize=normalize)
        # On the CPU even where the model is made on the meta device, to be filled from a file: no file holds these.
        for name, values in (("clip_mean", arch.image_mean), ("clip_std", arch.image_std)):
            colour = torch.tensor([255 * value for value in values], device="cpu").view(3, 1, 1)
            self.register_buffer(name, colour, persistent=False)
        trainable = self.clip.trainable(config.finetune)
        for name, parameter in self.named_parameters():
            if name.startswith("clip."):
                parameter.requires_grad = name.removeprefix("clip.") in trainable

    def set_prompts(self, *, templates: tuple[str, ...] | None = None, synonyms: str | None = None) -> None:
        """Ask in other templates, as many as before, or by another rule for synonyms; None keeps either.

        Raises:
            ConfigError: There is another number of templates, one has no {}, or the rule for synonyms is unknown.
        """
        given = self.config.templates if templates is None else templates
        if len(given) != len(self.config.templates):
            hint = "each template is an input channel of the model; train another one for another number"
            trained = f"this model was trained with {len(self.config.templates)}"
            raise ConfigError(f"templates: {trained}, got {len(given)}", hint=hint)
        changed: dict[str, Any] = {"templates": given, "synonyms": synonyms or self.config.synonyms}
        self.config = replace(self.config, **changed)

    def tokenize(self, names: Sequence[str]) -> Tensor:
        """Token ids on the CPU, cut to the longest prompt: (T, P, L), or (T, S, P, L) where synonyms are averaged."""
        config = self.config
        return tokenize(names, config.templates, synonyms=config.synonyms, encode=self.clip.tokenize)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text features (T, P, D) of what `tokenize` gave; differentiable, not normalised.

        Raises ConfigError if the model has no text encoder.
        """
        present = tokens[..., 0] != 0
        return self.encode_prompts(tokens[present], present)

    def encode_prompts(self, rows: Tensor, present: Tensor, shared: int | None = None) -> Tensor:
        """As `encode_text`, for a caller who asks again: given all three, the host waits for no device.

        Args:
            rows: Token ids (M, L) of the prompts.
            present: (T, P) or (T, S, P) bool, which rows of `tokenize` they are.
            shared: Number of tokens that all of them begin with (`clip_text.shared_prefix`).
        """
        # Without gradients nothing need stay in memory: 80 templates for 847 classes are 70 000 prompts.
        parts = [rows] if torch.is_grad_enabled() else torch.split(rows, PROMPTS_AT_ONCE)
        features = torch.cat([self.clip.encode_text(part, shared) for part in parts])
        if present.ndim == 3:
            return mean_over_synonyms(features, present.to(features.device))
        return torch.unflatten(features, 0, present.shape)

    def forward(self, images: Tensor, text_features: Tensor, classes_kept: int | None = None) -> SegmenterOutput:
        """Segment crops.

        Args:
            images: (B, 3, S, S) float, RGB in 0..255; resized to the encoder's size where that differs.
            text_features: (T, P, D) as `encode_text` gives them, the same for all images.
            classes_kept: Number of classes to aggregate per image, those of the highest cosines. None: `pad_len`.

        Raises:
            ShapeError: The shapes do not fit, or the images are not floating.
        """
        expected, arch = (len(self.config.templates), self.arch.embed_dim), self.arch
        if text_features.ndim != 3 or text_features.shape[1:] != expected or not len(text_features):
            wanted, hint = f"(T, {expected[0]}, {expected[1]})", "pass what Segmenter.encode_text returned"
            raise ShapeError.mismatch("text_features", wanted, tuple(text_features.shape), hint)
        structure_head = self.structure_head if self.training else None
        dense = self.encode_image(images, levels=structure_head is not None)
        near, fine = dense.guidance
        guidance = (self.upsample1(near), self.upsample2(fine))
        logits = self.aggregator(as_map(dense.patches, arch.grid), text_features, guidance, classes_kept)
        structure_logits = similarity = None
        if structure_head is not None:
            structure_logits = structure_head(dense.levels)
        if self.training and self.alignment_head is not None:
            similarity = self.alignment_head(dense.patches, text_features.mean(dim=1))
        return SegmenterOutput(logits=logits, structure_logits=structure_logits, similarity=similarity)

    def encode_image(self, images: Tensor, *, levels: bool = False) -> DenseFeatures:
        """Dense features of crops as `forward` takes them; with `levels`, also what the structure head is given."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            got = f"{images.dtype} {tuple(images.shape)}"
            raise ShapeError.mismatch("images", "float (B, 3, S, S) in 0..255", got)
        encoder_size = (self.arch.image_px, self.arch.image_px)
        normalised = (images - self.clip_mean) / self.clip_std
        if normalised.shape[-2:] != encoder_size:
            normalised = F.interpolate(normalised, size=encoder_size, mode=self.arch.resize, align_corners=False)
        return self.clip.encode_image(normalised, levels=levels)

    @torch.no_grad()
    def predict_structures(self, images: Tensor) -> Tensor:
        """What the structure head sees in crops, for analyses: `forward` computes it in training only.

        Images (B, 3, S, S) as `forward` takes them to probabilities (B, S, 4 g, 4 g) of `config.structures`; of one
        that has classes, the highest over its classes. Raises ConfigError if the model has no structure head.
        """
        if self.structure_head is None:
            missing = (
                "this model has no structure head: it was trained without structures, or exported without its heads"
            )
            raise ConfigError(missing, hint="name the run folder of a training with model.structures")
        logits: Tensor = self.structure_head(self.encode_image(images, levels=True).levels)
        numbers = self.config.structure_classes or [0] * len(self.config.structures)
        each = torch.split(logits.float().sigmoid(), [number or 1 for number in numbers], dim=1)
        return torch.cat([maps.amax(dim=1, keepdim=True) for maps in each], dim=1)

    def crop_bytes(self, num_classes: int, classes_kept: int | None = None) -> int:
        """Memory that each crop of a batch takes in evaluation, besides the bounded part (bounded.py): an estimate.

        Three tensors of the aggregator at full size, the cosines of all classes, and the logits.
        """
        config, positions = self.config, self.arch.grid**2
        kept = config.classes_kept(num_classes, classes_kept)
        values = 3 * kept * config.hidden_dim + 3 * num_classes * len(config.templates) + 2 * 16 * num_classes
        texts = kept * len(config.templates) * self.arch.embed_dim
        return 4 * (positions * values + texts) + self.arch.crop_bytes

    def clip_parameter_names(self) -> frozenset[str]:
        """Names (as in `named_parameters`) of CLIP's parameters: those that take the scaled-down learning rate."""
        return frozenset(name for name, _ in self.named_parameters() if name.startswith("clip."))


def blank_segmenter(config: SegmenterConfig, kind: type[Segmenter] = Segmenter) -> Segmenter:
    """A segmenter of names and shapes on the meta device, to be filled by `load_state_dict(..., assign=True)`.

    It takes neither memory nor the time of drawing initial weights that a file would replace.
    """
    with torch.device("meta"), NoInitialWeights():
        return kind(config)


class NoInitialWeights(TorchFunctionMode):
    """Leaves out random initialisation, for which the meta device would load all of torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawing = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)
        if func in drawing or (func is Tensor.clamp_ and args[0].is_meta):  # timm's truncated normal, which clamps
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _upsampling(level: Level, channels: int, stride: int) -> nn.ConvTranspose2d:
    """Brings a level to `stride` pixels a cell, and to this many channels."""
    scale = level.stride // stride
    return nn.ConvTranspose2d(level.channels, channels, kernel_size=scale, stride=scale)
