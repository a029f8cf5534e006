"""A trained model from what it was left in: a run's checkpoint, or an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ... import __version__
from ...common.errors import ConfigError
from ...common.settings import build
from ..errors import CheckpointError
from ..model.config import SegmenterConfig
from ..model.segmenter import Segmenter, blank_segmenter
from ..model.text import read_templates
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from ..weights.export import is_export, read_export


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A model with a checkpoint's weights, in evaluation mode."""

    model: Segmenter
    classes: tuple[str, ...]
    """Training vocabulary."""
    step: int
    origin: Mapping[str, Any]
    """Where the weights come from: run, data it was trained on, pretrained CLIP, imported file; as far as is known."""
    weights: str
    """sha256 of the file that the weights were read from."""


Step = int | Literal["best", "previous"] | None
"""A checkpoint of a run: that of a step, the best or the one before the latest; None is the latest."""


def step_of(checkpoint: str | int) -> Step:
    """The checkpoint that a word names: a step, latest, previous or best. Raises ConfigError for another word."""
    named: dict[str, Step] = {"latest": None, "previous": "previous", "best": "best"}
    if not (text := str(checkpoint)).isdecimal() and text not in named:
        raise ConfigError.mismatch("checkpoint", "a step, latest, previous or best", repr(checkpoint))
    return named[text] if text in named else int(text)


def load_run(
    run: Path | str,
    *,
    step: Step = None,
    device: torch.device | str = "cpu",
    prompts: str = "",
    synonyms: str | None = None,
) -> LoadedRun:
    """Load a run's checkpoint (the latest unless `step` is given), or an exported model, for evaluation and prediction.

    "best" is the step of the highest mIoU that was evaluated during training.

    `prompts` and `synonyms` replace those of training, as in SegmenterConfig. Raises RunFolderError for what is no run
    folder, CheckpointError for a checkpoint that is missing, torn or foreign, ConfigError for other prompts in number.
    """
    path = Path(run)
    loaded = _load_export(path, step) if is_export(path) else _load_checkpoint(path, step)
    if prompts or synonyms:
        loaded.model.set_prompts(templates=read_templates(prompts) if prompts else None, synonyms=synonyms)
    loaded.model.to(device)
    return loaded


def _load_checkpoint(run: Path, step: Step) -> LoadedRun:
    folder = RunFolder(run)
    document = folder.read()
    if step == "best":
        best = folder.best()
        if best is None:
            hint = "set eval.manifest, and eval.keep_best, to have one; or name a step"
            raise CheckpointError(f"{run}: no best checkpoint: nothing was evaluated during training", hint=hint)
        step = int(best["step"])
    path = checkpoint.path_of(folder.checkpoints, step)
    try:
        model = blank_segmenter(build(SegmenterConfig, document["model"], base=folder.path))
    except ConfigError as error:
        hint = error.hint or f"it was written by physseg {document['version']}, this is {__version__}"
        raise CheckpointError(f"{folder.config_file}: {error.args[0]}", hint=hint) from error
    state = checkpoint.load_model(path, model, document["model"])
    origin = {"run": run.absolute().name, "data": state.data, **(document.get("origin") or {})}
    weights = checkpoint.weights_sha256(path)
    return LoadedRun(model=model.eval(), classes=state.classes, step=state.step, origin=origin, weights=weights)


def _load_export(path: Path, step: Step) -> LoadedRun:
    model, document = read_export(path)
    if step not in (None, document["step"]):
        raise CheckpointError(f"{path}: an exported model of step {document['step']}, got --checkpoint {step}")
    return LoadedRun(
        model=model,
        classes=tuple(document["vocabulary"]),
        step=document["step"],
        origin=document["origin"] or {},
        weights=document["weights"]["sha256"],
    )
