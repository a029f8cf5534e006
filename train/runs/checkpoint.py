"""Checkpoints that appear atomically, and are verified before they are used.

A checkpoint is a folder `step_00000100` inside a run's `checkpoints`:

    model.safetensors   every parameter and buffer of the model to predict with, readable without physseg
    trainer.pt          what else training resumes from: optimizer state, random generators and, where the model's
                        weights are averages, the weights themselves; read with weights_only
    state.json          step, model settings, vocabulary, versions, and the size and sha256 of the other two

It is written atomically (common.atomic): whatever has the final name is complete unless the disk lost it, and that the
hashes tell.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from ... import __version__
from ...common.atomic import atomic_folder, remove_folder, remove_partials
from ...common.documents import digest_of_json, parsing, read_document
from ...common.settings import differing_keys
from ...common.text import preview
from ..errors import CheckpointError, NonFiniteLossError
from .tensor_files import check_weights, read_tensors, writing_to

FORMAT = 1
MODEL_FILE, TRAINER_FILE, STATE_FILE = "model.safetensors", "trainer.pt", "state.json"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """What `state.json` says besides the hashes."""

    step: int
    """Number of optimizer steps taken."""
    model: Mapping[str, Any]
    """Settings of the segmenter as JSON values (`to_dict`)."""
    classes: tuple[str, ...]
    data: Mapping[str, Any] | None
    """Identity of the data it was trained on; None for imported weights."""
    version: str = __version__
    """Version of physseg that wrote the checkpoint."""


def save(
    folder: Path, state: CheckpointState, model: Mapping[str, Tensor], trainer: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint into a run's `checkpoints` atomically; one of the same step is replaced.

    `model` is the state dict of the model to predict with. `trainer` is what training resumes from: anything that
    `torch.load(weights_only=True)` reads back; None: nothing. Returns the checkpoint's folder.
    """
    target = _named(folder, state.step)
    with writing_to(target), atomic_folder(target, replace=True) as partial:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in model.items()}
        safetensors.torch.save_file(tensors, partial / MODEL_FILE)
        names = [MODEL_FILE]
        if trainer is not None:
            with (partial / TRAINER_FILE).open("xb") as file:
                torch.save(dict(trainer), file)
            names.append(TRAINER_FILE)
        document = {"format": FORMAT, **asdict(state), "files": {name: _facts(partial / name) for name in names}}
        document["sha256"] = digest_of_json(document)
        (partial / STATE_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        # safetensors makes private files; this one may be read by whoever may read the others.
        (partial / MODEL_FILE).chmod((partial / STATE_FILE).stat().st_mode)
    return target


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending; unfinished ones do not count."""
    if not folder.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def path_of(folder: Path, step: int | Literal["previous"] | None) -> Path:
    """Path of the checkpoint of `step`, the latest, or the one before it. Raises CheckpointError with what there is."""
    found = steps(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint here", hint="Train first, or check the path of the run.")
    if step == "previous" and len(found) < 2:
        raise CheckpointError(f"{folder}: no checkpoint before that of step {found[0]}")
    chosen = found[-1] if step is None else found[-2] if step == "previous" else step
    if chosen not in found:
        listed = ", ".join(map(str, found))
        raise CheckpointError(f"{folder}: no checkpoint of step {chosen}; there are {listed}")
    return _named(folder, chosen)


def read_state(path: Path) -> CheckpointState:
    """Read and verify a checkpoint: format, sizes and hashes. Raises CheckpointError for a torn or foreign one."""
    fault = f"{path}: not a checkpoint of physseg: {STATE_FILE} is missing or unreadable"
    hint = "Name a run folder that `physseg train` wrote."
    names = [field.name for field in fields(CheckpointState)]
    document = read_document(path / STATE_FILE, FORMAT, CheckpointError, fault, hint, keys=["files", *names])
    check_seal(document, path / STATE_FILE, _other_hint(path))
    with parsing(CheckpointError, fault, hint):
        state = CheckpointState(**{name: document[name] for name in names} | {"classes": tuple(document["classes"])})
        files = {
            name: {"bytes": int(facts["bytes"]), "sha256": str(facts["sha256"])}
            for name, facts in document["files"].items()
        }
        if (
            MODEL_FILE not in files
            or set(files) - {MODEL_FILE, TRAINER_FILE}
            or path.name != _named(path, state.step).name
        ):
            raise CheckpointError(f"{fault} (files {sorted(files)}, step {state.step})", hint=_other_hint(path))
    for name, facts in files.items():
        _verify(path / name, facts)
    return state


def load_model(path: Path, model: torch.nn.Module, settings: Mapping[str, Any]) -> CheckpointState:
    """Put a verified checkpoint's weights into `model`, whose settings are `settings` (`to_dict`).

    Raises CheckpointError that names the differing settings, or the parameters that do not fit.
    """
    state = read_state(path)
    if different := differing_keys(settings, state.model):
        pairs = (f"model.{key} (wanted {ours!r}, has {theirs!r})" for key, (ours, theirs) in different.items())
        hint = "Use the settings it was trained with, or another run folder."
        raise CheckpointError(f"{path}: another architecture: {'; '.join(pairs)}", hint=hint)
    tensors = read_tensors(path / MODEL_FILE, fault=f"{path / MODEL_FILE}: cannot be read", hint=_other_hint(path))
    check_weights(tensors, path / MODEL_FILE, _other_hint(path))
    if problems := _misfits(tensors, model.state_dict()):
        listed, hint = "; ".join(problems[:5]), f"It was written by physseg {state.version}, this is {__version__}."
        raise CheckpointError(f"{path}: {len(problems)} parameters do not fit: {listed}", hint=hint)
    # A model made on the meta device has no memory of its own: it takes the tensors as they are.
    model.load_state_dict(tensors, assign=any(parameter.is_meta for parameter in model.parameters()))
    return state


def weights_sha256(path: Path) -> str:
    """sha256 (hex) of a verified checkpoint's model file, as it was written."""
    fault = f"{path / STATE_FILE}: damaged or changed since it was written"
    document = read_document(path / STATE_FILE, FORMAT, CheckpointError, fault, _other_hint(path), keys=["files"])
    with parsing(CheckpointError, fault, _other_hint(path)):
        return str(document["files"][MODEL_FILE]["sha256"])


def load_trainer(path: Path) -> dict[str, Any]:
    """The trainer's part of a checkpoint that `read_state` verified. Raises CheckpointError if it is none of ours."""
    if not (path / TRAINER_FILE).exists():
        raise CheckpointError(f"{path}: holds weights only, training cannot resume from it")
    where = path / TRAINER_FILE
    trainer = read_tensors(where, fault=f"{where}: cannot be read safely", hint=_other_hint(path))
    if not isinstance(trainer, dict) or not isinstance(trainer.get("optimizer"), dict):
        got = sorted(map(str, trainer))[:5] if isinstance(trainer, dict) else type(trainer).__name__
        raise CheckpointError.mismatch(where, "the state of an optimizer", got, _other_hint(path))
    return trainer


def require_finite(model: torch.nn.Module, *, step: int) -> None:
    """Raise NonFiniteLossError if weights or statistics are not finite in half precision, in which they are kept."""
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}  # counters go beyond
    bad = [key for key, value in state.items() if not value.half().isfinite().all()]
    if bad:
        hint = "the last checkpoint is as it was; train with a lower learning rate, in another folder"
        fault = f"step {step}: expected finite weights, got others in {preview(bad)}"
        raise NonFiniteLossError(fault, hint=hint, step=step, parts={}, sample_ids=[])


def save_last(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], step: int
) -> None:
    """Write the one checkpoint that a training without classes keeps."""
    state = CheckpointState(step=step, model=settings, classes=(), data=None)
    save(folder, state, model.state_dict(), {"optimizer": optimizer.state_dict()})
    prune(folder, keep_last=1)


def resume_last(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> int:
    """Load what `save_last` wrote, if anything is there; returns the number of steps taken. Errors of `load_model`."""
    remove_partials(folder)
    if not steps(folder):
        return 0
    path = path_of(folder, None)
    state = load_model(path, model, settings)
    optimizer.load_state_dict(load_trainer(path)["optimizer"])
    return state.step


def prune(folder: Path, keep_last: int, *, keep: int | None = None) -> list[int]:
    """Delete all but the last `keep_last` checkpoints and that of step `keep`; returns the steps that went."""
    gone = [step for step in steps(folder)[:-keep_last] if step != keep]
    for step in gone:
        remove_folder(_named(folder, step))
    return gone


def _named(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def _misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names that are missing or unknown, and shapes that differ, in words."""
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    return problems + [
        f"{name} is {tuple(tensors[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]


def check_seal(document: dict[str, Any], path: Path, hint: str) -> None:
    """Take a document's `sha256` out and raise CheckpointError if it is another one; none at all gives a note."""
    said = document.pop("sha256", None)
    if said is None:
        tqdm.write(f"note: {path}: written by an earlier physseg, without a digest of its content", file=sys.stderr)
    elif said != digest_of_json(document):
        raise CheckpointError(f"{path}: damaged or changed since it was written", hint=hint)


def _other_hint(path: Path) -> str:
    found = steps(path.parent)
    before = [step for step in found if _named(path.parent, step).name < path.name]
    if not before:
        return f"There is none before it: copy it again, or delete {path} and `train` begins anew."
    word = "previous" if len(before) + 1 == len(found) else before[-1]
    return f"Delete {path} and `train` resumes from step {before[-1]}; other commands take `--checkpoint {word}`."


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    got = _facts(path) if path.is_file() else None
    if got != expected:
        raise CheckpointError.mismatch(
            f"{path}: torn or changed since it was written",
            f"{expected['bytes']} bytes, sha256 {expected['sha256'][:12]}",
            "missing" if got is None else f"{got['bytes']} bytes, sha256 {got['sha256'][:12]}",
            hint=_other_hint(path.parent),
        )
