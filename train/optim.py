"""Parameter groups, learning rate and gradient clipping of the baseline (docs/method.md, Baseline)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..common.errors import ConfigError
from ..common.settings import check_ranges
from .errors import NonFiniteLossError
from .model.device import fused_on
from .model.segmenter import Segmenter

# detectron2's normalisation layers (batch and instance norm share the private base), and RMSNorm, which is younger.
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW as the baseline runs it. Raises ConfigError for values out of their range."""

    learning_rate: float = 2e-4
    """Learning rate of everything that is not CLIP's, at step 0."""
    clip_scale: float | None = None
    """CLIP's parameters learn at learning_rate x clip_scale. None: 1 for `clip = "tiny"`, which begins with random
    weights, else 0.01; a run that is resumed keeps what it began with."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of all parameters but those of normalisation layers and embedding tables."""
    weight_decay_norm: float = 0.0
    """Weight decay of normalisation layers' parameters."""
    weight_decay_embedding: float = 0.0
    """Weight decay of nn.Embedding tables; bare parameters (positional embeddings, padding tokens) are none."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly; the baseline has none."""
    max_gradient_norm: float = 0.01
    """L2 norm to which the gradient of all parameters together is clipped; 0 switches clipping off."""

    def __post_init__(self) -> None:
        check_ranges(self, learning_rate="(0, 1e18]", clip_scale="[0, 1e18]", weight_decay="[0, 1e18]")
        check_ranges(self, weight_decay_norm="[0, 1e18]", weight_decay_embedding="[0, 1e18]", epsilon="(0, inf)")
        check_ranges(self, beta1="[0, 1)", beta2="[0, 1)", warmup_steps="[0, inf)", max_gradient_norm="[0, inf)")


def build_optimizer(model: Segmenter, config: OptimConfig, losses: nn.Module | None = None) -> AdamW:
    """AdamW over the trainable parameters of `model` and of losses, which learn as heads do.

    They are in at most six groups: head or clip x plain, norm or embedding.

    detectron2's rule decides by the *module* that owns a parameter: normalisation layers and nn.Embedding go without
    decay, everything else decays: biases too, and bare nn.Parameters such as CLIP's positional embedding (where it is
    trained at all) and the aggregator's padding tokens.

    Each group carries `name` and `base_lr`, its rate at step 0, besides AdamW's own keys; a parameter appears once,
    however many modules share it, in the order of `named_modules`.

    Raises:
        ConfigError: Nothing is trainable, or the model has no parameter of a CLIP name.
    """
    clip_names = model.clip_parameter_names()
    scale = default_clip_scale(model.config.clip) if config.clip_scale is None else config.clip_scale
    rates = {"head": config.learning_rate, "clip": config.learning_rate * scale}
    kinds = {"plain": config.weight_decay, "norm": config.weight_decay_norm, "embedding": config.weight_decay_embedding}
    groups: dict[str, dict[str, Any]] = {}
    for part, rate in rates.items():
        for kind, decay in kinds.items():
            name = f"{part}/{kind}"
            groups[name] = {"params": [], "name": name, "lr": rate, "base_lr": rate, "weight_decay": decay}
    seen: set[Tensor] = set()
    names: set[str] = set()
    for module_name, module in chain(model.named_modules(), losses.named_modules(prefix="losses") if losses else ()):
        for own_name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{module_name}.{own_name}" if module_name else own_name
            names.add(name)
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            part = "clip" if name in clip_names else "head"
            groups[f"{part}/{_kind(module)}"]["params"].append(parameter)
    if clip_names - names:
        hint = "build the optimiser before wrapping the model in DDP or torch.compile"
        raise ConfigError(f"the model has no parameter named {min(clip_names - names)!r}", hint=hint)
    if not seen:
        raise ConfigError("no parameter of the model is trainable", hint="check the finetune setting")
    used = [group for group in groups.values() if group["params"]]
    options: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.epsilon}
    return AdamW(used, lr=config.learning_rate, fused=fused_on(next(iter(seen)).device), **options)


def default_clip_scale(clip: str) -> float:
    """What `clip_scale` stands for when it is not set, by the name of CLIP's preset."""
    return 1.0 if clip == "tiny" else 0.01


def learning_rate_factor(step: int, max_steps: int, warmup: int = 0) -> float:
    """Share of the base rate at a step (0-based): half a cosine from 1 at step 0 to 0 at `max_steps`.

    With `warmup`, the first steps are multiplied by (step + 1) / warmup on top. Steps from `max_steps` on get 0.

    Examples:
        >>> [round(learning_rate_factor(step, 4), 4) for step in range(5)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0]
        >>> learning_rate_factor(0, 1000, warmup=10)
        0.1
    """
    if max_steps < 1 or step < 0 or warmup < 0:
        raise ConfigError(f"expected step >= 0, max_steps >= 1, warmup >= 0, got {step}, {max_steps}, {warmup}")
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, max_steps) / max_steps))
    return cosine * min(1.0, (step + 1) / warmup) if warmup else cosine


def set_learning_rate(optimizer: AdamW, factor: float) -> None:
    """Give every group `factor` times its rate at step 0."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: AdamW) -> dict[str, float]:
    """Current rate of every parameter group, under the training log's names."""
    return {f"learning_rate/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}


def clip_gradients(optimizer: AdamW, max_norm: float) -> Tensor:
    """Scale all gradients together so that their L2 norm is at most `max_norm`; 0 only measures.

    Returns the norm before clipping, a scalar on the device. It is NaN or infinite if any gradient is: look at it
    (`require_finite`) before the optimiser's step, for clipping has then spread the damage to all gradients.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)


def require_finite(parts: Mapping[str, Tensor], *, step: int, sample_ids: Sequence[str]) -> dict[str, float]:
    """Read scalars off the device, all at once, and stop if any of them is NaN or infinite.

    Called before the optimiser's step, the weights are still those of the last good one.

    `parts` are losses by name, and the gradient norm: scalars on one device. They are returned as floats, for the log.
    Raises NonFiniteLossError with the fields `step`, `parts` and `sample_ids`.
    """
    values = torch.stack([value.detach().double() for value in parts.values()]).tolist()
    read = dict(zip(parts, values, strict=True))
    bad = [name for name, value in read.items() if not math.isfinite(value)]
    if bad:
        listed = ", ".join(f"{name} = {read[name]}" for name in bad)
        raise NonFiniteLossError(
            f"step {step}: expected finite numbers, got {listed}; samples: {', '.join(sample_ids)}",
            hint="the weights are unchanged; look at these samples, lower the learning rate, or train in float32",
            step=step,
            parts=read,
            sample_ids=list(sample_ids),
        )
    return read


def _kind(module: nn.Module) -> str:
    if isinstance(module, _NORMS):
        return "norm"
    return "embedding" if isinstance(module, nn.Embedding) else "plain"
