"""CLIP by itself, without the segmenter around it: unit text vectors of classes, unit patch vectors of an image.

It comes from a run (CLIP as it was fine-tuned there) or from pretrained weights of a preset.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import AnalysisError
from ..model.config import SegmenterConfig
from ..model.device import matmul_precision
from ..model.inference import PRECISION, InferenceSettings, class_texts, cut
from ..model.segmenter import Segmenter
from ..model.text import read_templates
from ..prediction.load_run import load_run
from ..runs.run_folder import RunFolder
from ..weights.cache import find_clip_weights
from ..weights.clip_weights import load_clip_weights
from ..weights.export import is_export
from ..weights.initial_weights import fitted_to


@dataclass(frozen=True, slots=True)
class ClipEncoder:
    """Both encoders of one CLIP."""

    model: Segmenter
    """Model whose CLIP, prompts and normalisation of images are used, and nothing else."""
    origin: dict[str, Any]
    """Where the weights come from, for records."""

    @torch.no_grad()
    def texts(self, classes: tuple[str, ...]) -> Tensor:
        """One unit vector per class, (T, D) float32: the direction of the mean of its templates' unit vectors.

        Of synonyms the first is used, or all, as the model's rule says (`model.text`).
        """
        features = class_texts(self.model, classes).float()
        return F.normalize(F.normalize(features, dim=-1).mean(dim=1), dim=-1)

    @torch.no_grad()
    def patches(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """One unit vector per patch of the whole RGB image (H, W, 3), (g, g, D) float32: dense features, no windows."""
        device = next(self.model.parameters()).device
        side = self.model.arch.image_px
        pixels = torch.from_numpy(np.array(image)).to(device)
        whole = cut(pixels, InferenceSettings(windows=False, window_px=side, stride_px=side, canvas_px=side))
        with matmul_precision(PRECISION):
            tokens = self.model.encode_image(whole).patches[0].float()
        return torch.unflatten(F.normalize(tokens, dim=-1), 0, (self.model.arch.grid, self.model.arch.grid))


def clip_of_weights(
    name: str, clip: str, *, prompts: str = "", synonyms: str | None = None, device: torch.device | str = "cpu"
) -> ClipEncoder:
    """Pretrained CLIP: a preset, and a fetched tag or a file. Raises WeightsError, CheckpointError or ConfigError."""
    weights = find_clip_weights(name, clip)
    config = fitted_to(weights, SegmenterConfig(clip=clip))
    model = Segmenter(_asked(config, prompts, synonyms)).eval()
    load_clip_weights(model.clip, weights.path)
    origin = {"clip": clip, "clip_weights": weights.facts(), "templates": list(model.config.templates)}
    return ClipEncoder(model.to(device), origin)


def find_encoder(
    source: str,
    *,
    clip: str | None = None,
    prompts: str = "",
    synonyms: str | None = None,
    device: torch.device | str = "cpu",
) -> ClipEncoder:
    """CLIP of a run or exported model, or with `clip` of weights. Raises AnalysisError where `source` is the other."""
    path = Path(source)
    is_run = path.is_dir() and (RunFolder(path).exists() or is_export(path))
    if is_run and clip is None:
        loaded = load_run(path, device=device)
        # CLIP alone takes any number of templates; only the segmenter's cost volume does not.
        config = loaded.model.config = _asked(loaded.model.config, prompts, synonyms)
        return ClipEncoder(loaded.model, {"run": str(path), "step": loaded.step, "templates": list(config.templates)})
    if not is_run and clip is not None:
        return clip_of_weights(source, clip, prompts=prompts, synonyms=synonyms, device=device)
    fault = f"a run folder, and a preset {clip} too" if is_run else "not a run folder"
    hint = "name a run by itself, or pretrained weights (tag or file) with --clip PRESET"
    raise AnalysisError(f"{source}: {fault}", hint=hint)


def _asked(config: SegmenterConfig, prompts: str, synonyms: str | None) -> SegmenterConfig:
    """The configuration with other prompts. Raises ConfigError for an unknown rule."""
    changed: dict[str, Any] = {"synonyms": synonyms} if synonyms else {}
    if prompts:
        changed["templates"] = read_templates(prompts)
    return replace(config, **changed)
