"""What a run begins with: CLIP weights found, and the model's activation and normalisation settled by them.

The file is looked at when a run begins. A resumed run takes everything from its own folder, so the file may be gone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...common.errors import ConfigError
from ...common.settings import is_name
from ..config import TrainConfig
from ..errors import RunFolderError
from ..model.config import SegmenterConfig
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from .cache import NEEDS, ClipWeights, find_clip_weights


def settle_clip_weights(config: TrainConfig, run: RunFolder) -> tuple[TrainConfig, ClipWeights | None]:
    """The configuration fitted to its weights, and the weights to load, or None where there are none to load.

    Raises:
        WeightsError: The weights cannot be found.
        ConfigError: The settings ask for what the weights were not trained with.
        RunFolderError: A run that has no checkpoint yet was begun with another file.
    """
    name = config.clip_weights
    if name is None:
        return config, None
    saved = run.read() if run.exists() else None
    if saved is not None:
        config = replace(config, model=_filled(config.model, saved["model"]))
        if checkpoint.steps(run.checkpoints):
            return config, None
    weights = find_clip_weights(name, config.model.clip)
    if saved is None:
        return replace(config, model=fitted_to(weights, config.model)), weights
    before = (saved.get("origin") or {}).get("clip_weights", {}).get("sha256")
    if before != weights.sha256:
        fault = f"{run.path}: begun with clip_weights of sha256 {before}, now {name} has {weights.sha256}"
        raise RunFolderError(fault, hint="name the same file again, or start another run with another --out")
    return config, weights


def fitted_to(weights: ClipWeights, model: SegmenterConfig) -> SegmenterConfig:
    """The settings with the activation and the normalisation that weights need, as far as the file tells.

    A file in open_clip's form does not. For ViT-B-16 most of those were trained with GELU, for ViT-L-14-336 none.

    Raises:
        ConfigError: The settings say something else than a tag does. Of one's own file one knows best.
    """
    needs = {field: getattr(weights, field) for field in NEEDS}
    for field, needed in needs.items():
        if is_name(weights.name) and getattr(model, field) not in (None, needed):
            fault = f"model.{field} is {getattr(model, field)}, but {weights.name!r} needs {needed}".lower()
            raise ConfigError(fault, hint=f"leave {field} out: it follows from the tag")
    if weights.quick_gelu is None and model.clip == "ViT-B-16":
        needs["quick_gelu"] = False
    return _filled(model, needs)


def _filled(model: SegmenterConfig, needs: Mapping[str, Any]) -> SegmenterConfig:
    """The settings, those of `NEEDS` that they leave open taken from `needs`."""
    given = {field: needs.get(field) for field in NEEDS if getattr(model, field) is None}
    changed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return replace(model, **changed)
