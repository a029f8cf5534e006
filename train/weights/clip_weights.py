"""Load CLIP weights from local files: OpenAI's .pt, open_clip's .bin, .pt and .safetensors.

No code from a file is executed: see runs/tensor_files.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...common.text import preview
from ..errors import CheckpointError
from ..model.backbones.clip import Clip, resize_positions
from ..runs.tensor_files import check_weights, is_torchscript, read_tensors

# Scalars that OpenAI's and open_clip's dicts carry beside the encoders.
_DROPPED = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")
_OTHER_ARCHITECTURE = "the file belongs to another architecture; check the `clip` preset"
_TEXT_PARTS = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


def load_clip_weights(model: Clip, path: Path | str) -> None:
    """Fill both encoders from a file; float16 tensors are widened, positional embeddings resized to the model's grid.

    Raises:
        CheckpointError: The file cannot be read, names are missing or unknown, or shapes differ.
    """
    path = Path(path)
    state = from_open_clip(_read(path), source=str(path))
    load_state(model, fit_positions(state, model.arch.position_grid), source=str(path))


def is_openai_form(path: Path | str) -> bool:
    """Whether a file has the form of OpenAI's releases: a TorchScript archive, or a bare state dict in a .pt file.

    Such weights need QuickGELU. What open_clip publishes (.bin, .safetensors, training checkpoints) needs it by model.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or not path.is_file():
        return False
    return is_torchscript(path) or (path.suffix in (".pt", ".pth") and _is_bare_state(path))


def fit_positions(
    state: Mapping[str, Tensor], grid: int, name: str = "visual.positional_embedding"
) -> dict[str, Tensor]:
    """The state dict with its positional embedding (1 + n², C) resized to `grid`, as CAT-Seg does (bicubic)."""
    fitted = dict(state)
    stored = fitted.get(name)
    if stored is not None and stored.ndim == 2 and (round((len(stored) - 1) ** 0.5)) ** 2 == len(stored) - 1 > 0:
        fitted[name] = resize_positions(stored.float(), (grid, grid))
    return fitted


def from_open_clip(state: Mapping[str, Tensor], *, source: str = "CLIP state dict") -> dict[str, Tensor]:
    """A state dict in OpenAI's or open_clip's layout (text encoder at the top or under `text.`) under our names."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "visual.conv1.weight" not in state:
        expected, got = "a CLIP ViT state dict (with visual.conv1.weight)", f"names like {sorted(state)[:3]}"
        hint = "OpenAI's ViT .pt files and open_clip's ViT weights are understood; ResNet CLIPs are not"
        if any(name.startswith(("vision_model.", "text_model.")) for name in state):
            got = f"the names of Hugging Face's transformers ({sorted(state)[0]}, ...)"
            hint = "take open_clip_model.safetensors of the repository, or `physseg weights fetch TAG`"
        raise CheckpointError.mismatch(source, expected, got, hint)
    renamed = {
        f"text.{name}" if name.startswith(_TEXT_PARTS) else name: tensor
        for name, tensor in state.items()
        if name.removeprefix("text.") not in _DROPPED
    }
    return split_fused_projections(renamed)


def split_fused_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace every fused `in_proj_weight` (3 C, C) by `q_proj_weight`, `k_proj_weight`, `v_proj_weight` (C, C)."""
    separate: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".in_proj_weight"):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                separate[name.removesuffix("in_proj_weight") + f"{letter}_proj_weight"] = part
        else:
            separate[name] = tensor
    return separate


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


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, whatever its kind."""
    if not path.exists():
        raise CheckpointError(f"{path}: expected a file with CLIP weights, found none")
    hint = "expected OpenAI's .pt, or open_clip's .bin, .pt or .safetensors; a torn download looks like this too"
    state = _unwrap(read_tensors(path, fault=f"{path}: cannot be read as CLIP weights", hint=hint), path)
    check_weights(state, path)
    return state


def _is_bare_state(path: Path) -> bool:
    """Whether a torch file holds tensors by name at its top; an unreadable one does not."""
    try:
        content = read_tensors(path, fault=str(path))
    except CheckpointError:  # whatever is wrong with it, reading the weights will say
        return False
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict, also where a training checkpoint holds it under `state_dict`."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError.mismatch(path, "a state dict (names to tensors)", type(content).__name__)
    if not all(isinstance(name, str) for name in content):
        raise CheckpointError.mismatch(path, "a state dict (names to tensors)", "keys that are no names")
    return dict(content)
