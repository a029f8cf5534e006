"""What every loss needs: enough precision, means over nothing, and checks of names and heads."""

import torch
from torch import Tensor

from ...common.errors import ConfigError


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32 (logarithms of small numbers follow); float64 stays, for gradient checks."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def divide_by_count(total: Tensor, count: Tensor) -> Tensor:
    """`total / count`, `total` itself where nothing was counted (a mean over nothing is 0), NaN where count is none."""
    return total / torch.where(count > 0, count, torch.where(count == 0, 1.0, torch.nan)).to(total.dtype)


def check_choice(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError, which lists the known names, for a name that is none of them."""
    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}", hint=f"known: {', '.join(known)}")


def require_head(predicted: Tensor | None, switch: str, head: str) -> Tensor:
    """What a head of the model predicted; raises ConfigError where the loss is switched on and the head is missing."""
    if predicted is None:
        hint = f"build the model with its {head} head, keep it in training mode, or set {switch} = 0"
        raise ConfigError(f"{switch} is above 0, but the model made no {head} output", hint=hint)
    return predicted
