"""The device that a model runs on, by the name that settings and options give it."""

import torch

from ...common.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA if there is one. Raises ConfigError if PyTorch cannot use it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device: cannot use {name!r}: {first}", hint='Use "auto", "cpu" or "cuda".') from error
    return device
