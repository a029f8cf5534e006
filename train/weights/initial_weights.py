"""What a run begins with: CLIP weights found, and the model's activation settled by them.

The file is looked at when a run begins. A resumed run takes everything from its own folder, so the file may be gone.
"""

from dataclasses import replace

from ...common.errors import ConfigError
from ...common.settings import is_name
from ..config import TrainConfig
from ..errors import RunFolderError
from ..model.config import SegmenterConfig
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from .cache import ClipWeights, find_clip_weights


def settle_clip_weights(config: TrainConfig, run: RunFolder) -> tuple[TrainConfig, ClipWeights | None]:
    """The configuration with its activation settled, and the weights to load, or None where there are none to load.

    Raises:
        WeightsError: The weights cannot be found.
        ConfigError: The settings ask for an activation that the weights were not trained with.
        RunFolderError: A run that has no checkpoint yet was begun with another file.
    """
    name = config.clip_weights
    if name is None:
        return config, None
    saved = run.read() if run.exists() else None
    if saved is not None and config.model.quick_gelu is None:
        config = _with_activation(config, saved["model"].get("quick_gelu"))
    if saved is not None and checkpoint.steps(run.checkpoints):
        return config, None
    weights = find_clip_weights(name, config.model.clip)
    if saved is not None:
        before = (saved.get("origin") or {}).get("clip_weights", {}).get("sha256")
        if before != weights.sha256:
            fault = f"{run.path}: begun with clip_weights of sha256 {before}, now {name} has {weights.sha256}"
            hint = "name the same file again, or start another run with another --out"
            raise RunFolderError(fault, hint=hint)
    return _with_activation(config, activation(config.model, weights)), weights


def activation(model: SegmenterConfig, weights: ClipWeights) -> bool | None:
    """Whether the model uses QuickGELU: as the settings say, else as the weights need it, as far as that is known.

    A file in open_clip's form does not tell. For ViT-B-16 most of those were trained with GELU, for ViT-L-14-336 none.
    """
    if model.quick_gelu is not None:
        if is_name(weights.name) and weights.quick_gelu != model.quick_gelu:
            set_to, trained = str(model.quick_gelu).lower(), "QuickGELU" if weights.quick_gelu else "GELU"
            fault = f"model.quick_gelu is {set_to}, but {weights.name!r} was trained with {trained}"
            raise ConfigError(fault, hint="leave quick_gelu out: it follows from the tag")
        return model.quick_gelu
    if weights.quick_gelu is not None:
        return weights.quick_gelu
    return False if model.clip == "ViT-B-16" else None


def _with_activation(config: TrainConfig, quick_gelu: bool | None) -> TrainConfig:
    return replace(config, model=replace(config.model, quick_gelu=quick_gelu))
