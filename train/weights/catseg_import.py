"""A published CAT-Seg checkpoint as a run folder: `physseg import-catseg model_base.pth OUT`.

The file is what detectron2 saves: `{"model": state dict, ...}`. It is read without running any code in it. A state dict
does not tell everything: heads of the aggregator, padding length, guidance blocks and prompts take published values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ...common.atomic import atomic_folder
from ...common.settings import to_dict
from ...common.text import counted, preview
from ...manifests.datasets.coco_stuff import coco_stuff_vocabulary
from ..errors import CheckpointError, RunFolderError
from ..model.backbones.clip import ClipArchitecture
from ..model.config import SegmenterConfig
from ..runs import checkpoint
from ..runs.checkpoint import CheckpointState
from ..runs.run_folder import RunFolder
from ..runs.tensor_files import check_weights, read_tensors
from .cache import file_sha256
from .catseg_names import fitted_state, from_catseg, is_ignored, sizes_from_catseg

_EXPECTED = 'expected a checkpoint of CAT-Seg (CVPR 2024): {"model": state dict} with names sem_seg_head.predictor.*'


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What was found in a checkpoint."""

    run: Path
    config: SegmenterConfig
    num_parameters: int
    ignored: tuple[str, ...]
    """Names in the file that are of no use here."""

    def lines(self) -> list[str]:
        """What the command prints, one line each."""
        config = self.config
        prompts = repr(config.templates[0]) if len(config.templates) == 1 else f"{len(config.templates)} prompts"
        arch = cast(ClipArchitecture, config.arch)  # CAT-Seg knows no other
        blocks = f"blocks {' and '.join(map(str, arch.guidance_blocks))}"
        text = "with" if config.text_encoder else "WITHOUT a"
        lines = [
            f"{self.run}: {config.clip}, {self.num_parameters / 1e6:.1f} M parameters, {text} text encoder",
            f"aggregator: {config.num_layers} layers, {config.hidden_dim} channels, window {config.window}; {prompts}",
            f"taken as published: {config.num_heads} heads, padding to {config.pad_len} classes, guidance by {blocks}",
            f"ignored: {counted(len(self.ignored), 'name')}{': ' + ', '.join(self.ignored) if self.ignored else ''}",
        ]
        if not config.text_encoder:
            lines.append("evaluate and predict need a text encoder: this run takes text features from elsewhere only")
        return lines


def import_catseg(
    path: Path, out: Path, *, classes: tuple[str, ...] | None = None, prompts: str = "", num_heads: int = 4
) -> Imported:
    """Make a run folder from a checkpoint, atomically.

    Args:
        classes: The vocabulary that the model was trained on. Default: COCO-Stuff's.
        prompts: Templates of the model, as in SegmenterConfig.
        num_heads: Heads of the aggregator's attention.

    Raises:
        CheckpointError: The file is none of CAT-Seg's, or the settings do not fit it.
        RunFolderError: `out` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: exists already", hint="choose another name for the run folder")
    state, step = read_catseg(path)
    try:
        renamed = from_catseg(state)
        config = sizes_from_catseg(state, renamed, num_heads=num_heads, **_prompts(renamed, prompts))
    except CheckpointError as error:
        raise error.prefixed(path) from error
    fitted = fitted_state(config, renamed, source=str(path))
    vocabulary = classes or coco_stuff_vocabulary().classes
    origin = {"imported": {"file": path.name, "sha256": file_sha256(path)}}
    with atomic_folder(out) as partial:
        run = RunFolder(partial)
        run.create(model=to_dict(config), training=None, data=None, classes=vocabulary, origin=origin)
        content = CheckpointState(step=step, model=to_dict(config), classes=vocabulary, data=None)
        checkpoint.save(run.checkpoints, content, fitted)
    return Imported(
        run=out,
        config=config,
        num_parameters=sum(tensor.numel() for tensor in fitted.values()),
        ignored=tuple(name for name in state if is_ignored(name)),
    )


def read_catseg(path: Path) -> tuple[dict[str, Tensor], int]:
    """The state dict of a checkpoint file under its own names, and the steps it was trained for; 0 if it does not tell.

    Raises:
        CheckpointError: The file is missing, torn, or of another kind.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file", hint=_EXPECTED)
    content = read_tensors(path, fault=f"{path}: cannot be read", hint=f"{_EXPECTED}; is it whole?")
    model = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(model, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items()
    ):
        found = f"keys {preview(content, 3)}" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: {_EXPECTED}; got {found}")
    state = {name.removeprefix("module."): tensor for name, tensor in model.items()}
    _refuse_foreign(path, state)
    check_weights(state, path)
    iteration = content.get("iteration")
    return state, iteration + 1 if isinstance(iteration, int) else 0


def _refuse_foreign(path: Path, state: Mapping[str, Tensor]) -> None:
    """Say what a file is that is not what we want, where that is easy to tell."""
    what, hint = "", None
    if "visual.conv1.weight" in state or "visual.layer1.0.conv1.weight" in state:
        what, hint = "a CLIP", f'to train with it, set clip_weights = "{path}"'
    elif any(name.startswith("clip.visual.") for name in state):
        what, hint = "a model of physseg's own", "evaluate and predict take its run folder as it is"
    elif any(name.startswith("backbone.") for name in state):
        what = "a model with an image backbone beside CLIP, such as CAT-Seg before CVPR 2024 (Swin or ResNet)"
        hint = "take the later release: model_base.pth or model_large.pth"
    elif not any(name.startswith("sem_seg_head.predictor.") for name in state):
        what = f"names {preview(state, 3)}"
    if what:
        raise CheckpointError(f"{path}: {_EXPECTED}; got {what}", hint=hint)


def _prompts(renamed: Mapping[str, Tensor], prompts: str) -> dict[str, Any]:
    """The setting that gives as many templates as the model has input channels for."""
    weight = renamed.get("aggregator.cost_embedding.weight")
    count = 1 if weight is None or weight.ndim != 4 else weight.shape[1]
    if not prompts and count in (1, 80):
        prompts = "single" if count == 1 else "imagenet"
    if not prompts and any(name.startswith("clip.text.") for name in renamed):
        fault = f"trained with {count} prompts per class, which the file does not tell"
        hint = "give them with --prompts: a file, one template with {} a line, in the order of training"
        raise CheckpointError(fault, hint=hint)
    if not prompts:
        return {}
    templates = SegmenterConfig(prompts=prompts).templates
    if len(templates) != count:
        raise CheckpointError(f"trained with {count} prompts per class, but {prompts!r} has {len(templates)}")
    return {"templates": templates}
