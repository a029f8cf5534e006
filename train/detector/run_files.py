"""The files of a detector's training: its settings, checkpoint, weights and log.

RUN/settings.json         everything the weights depend on: settings, source of the pictures, first weights
RUN/checkpoint.pt         weights, optimiser and step that training resumes from
RUN/weights.safetensors   weights of the same step, to detect with
RUN/log.jsonl             mean loss of every few steps
"""

import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from ...common.atomic import atomic_write
from ...common.settings import differing_keys
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.network import DetectorNetwork

WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint.pt"
SETTINGS = "settings.json"
LOG = "log.jsonl"


def recorded_settings(run: Path) -> dict[str, Any]:
    """Settings that the training in a folder began with; empty if there is none."""
    path = run / SETTINGS
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__}")
        return settings
    except ValueError as error:
        raise ExtractorError(
            f"{path}: expected the settings of a training, got a file that does not read ({error})",
            hint="name another folder, or remove this one",
        ) from error


def record_settings(run: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new training, or raise ExtractorError unless they are those that it began with."""
    found = recorded_settings(run)
    if not found:
        atomic_write(run / SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    elif different := differing_keys(found, settings):
        key, (before, now) = next(iter(different.items()))
        raise ExtractorError(
            f"{run}: a training with other settings is here: {key} {before}, now {now}",
            hint="name another folder, or repeat the command that made this one",
        )


def resume(run: Path, network: DetectorNetwork, optimiser: torch.optim.Optimizer) -> int:
    """Load the checkpoint of a run, if it has one; returns the number of steps taken."""
    path = run / CHECKPOINT
    if not path.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ExtractorError(
            f"{path}: expected a checkpoint of this training, got a file that does not load ({error})",
            hint="remove it to begin anew, or name another folder",
        ) from error


def save(run: Path, network: DetectorNetwork, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights and checkpoint of a step."""
    buffer = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, buffer)
    # In this order: stopped in between, a finished training would be one whose weights are an earlier step's.
    atomic_write(run / WEIGHTS, weights_file(network))
    atomic_write(run / CHECKPOINT, buffer.getvalue())


def weights_file(network: DetectorNetwork) -> bytes:
    """A safetensors file of a network, in our own naming scheme, half precision, without the norms' counters."""
    state = {
        key: value.detach().to("cpu", torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return save_safetensors(state)


def log(run: Path, row: Mapping[str, float]) -> None:
    """Append a line to the log."""
    with (run / LOG).open("a") as file:
        file.write(json.dumps(row) + "\n")
