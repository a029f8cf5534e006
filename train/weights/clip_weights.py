"""Load CLIP weights from local files: OpenAI's .pt, open_clip's .bin, .pt and .safetensors.

No code from a file is executed: see runs/tensor_files.py.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...common.text import preview
from ..errors import CheckpointError
from ..model.backbones.interface import Backbone, find_architecture, published_names
from ..model.segmenter import NoInitialWeights
from ..runs.tensor_files import check_weights, is_torchscript, read_tensors

_OTHER_ARCHITECTURE = "the file belongs to another architecture; check the `clip` preset"


def load_clip_weights(model: Backbone, path: Path | str) -> None:
    """Fill both encoders from a file; float16 tensors are widened, positional embeddings resized to the model's grid.

    Raises:
        CheckpointError: The file cannot be read, names are missing or unknown, or shapes differ; the hint
            says which of physseg's own backbones they fit.
    """
    path = Path(path)
    published = _read(path)
    try:
        load_state(cast(nn.Module, model), model.from_published(published, str(path)), source=str(path))
    except CheckpointError as error:
        if fits := _fitting(published):
            error.hint = f"the file is of another model; it fits clip = {' or '.join(map(repr, fits))}"
        raise


def is_openai_form(path: Path | str) -> bool:
    """Whether a file has the form of OpenAI's releases: a TorchScript archive, or a bare state dict in a .pt file.

    Such weights need QuickGELU. What open_clip publishes (.bin, .safetensors, training checkpoints) needs it by model.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not path.is_file():
        return False
    return is_torchscript(path) or (path.suffix in (".pt", ".pth") and _is_bare_state(path))


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `state` into the module. Raises CheckpointError, which names what differs, unless all of it fits."""
    check_state(module, state, source=source)
    module.load_state_dict(state)


def check_state(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, shown: Callable[[str], str] = str
) -> None:
    """Raise CheckpointError unless `state` is complete and of equal shapes; `shown` turns names into the file's."""
    own = module.state_dict()
    missing = [shown(name) for name in own if name not in state]
    unknown = [shown(name) for name in state if name not in own]
    if missing or unknown:
        kinds = (("missing", missing), ("unknown", unknown))
        fault = ", ".join(f"{len(names)} {kind} names ({preview(names, 3)})" for kind, names in kinds)
        raise CheckpointError(f"{source}: {fault}", hint=_OTHER_ARCHITECTURE)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            expected, got = f"shape {tuple(own[name].shape)}", tuple(tensor.shape)
            raise CheckpointError.mismatch(f"{source}: {shown(name)}", expected, got, _OTHER_ARCHITECTURE)


def _fitting(published: Mapping[str, Tensor]) -> list[str]:
    """Names of physseg's own backbones that a published state dict has the names and shapes of."""
    dims, found = {dim for tensor in published.values() for dim in tensor.shape}, []
    for name in published_names():
        arch = find_architecture(name)
        if arch.embed_dim not in dims:  # so that few are built
            continue
        with torch.device("meta"), NoInitialWeights():
            model = cast(nn.Module, arch.build())
        with suppress(CheckpointError):
            check_state(model, cast(Backbone, model).from_published(published, name), source=name)
            found.append(name)
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, whatever its kind."""
    if not path.exists():
        raise CheckpointError(f"{path}: expected a file with CLIP weights, found none")
    hint = "expected OpenAI's .pt, or open_clip's .bin, .pt or .safetensors; a torn download looks like this too"
    state = _unwrap(read_tensors(path, fault=f"{path}: cannot be read as CLIP weights", hint=hint), path)
    check_weights(state, path)
    return state


def _is_bare_state(path: Path) -> bool:
    """Whether a torch file holds tensors by OpenAI's names at its top; an unreadable one does not."""
    try:
        content = read_tensors(path, fault=str(path))
    except CheckpointError:  # whatever is wrong with it, reading the weights will say
        return False
    named = isinstance(content, Mapping) and "visual.conv1.weight" in content
    return named and all(isinstance(value, Tensor) for value in content.values())


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict, also where a training checkpoint holds it under `state_dict`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError.mismatch(path, "a state dict (names to tensors)", type(content).__name__)
    if not all(isinstance(name, str) for name in content):
        raise CheckpointError.mismatch(path, "a state dict (names to tensors)", "keys that are no names")
    return dict(content)
