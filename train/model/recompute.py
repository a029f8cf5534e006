"""Activation checkpointing (Chen et al. 2016): what a part of the network kept for its gradient is computed again."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A module whose parts may be run through `run_part`; `set_recompute` decides for a whole network."""

    recompute: bool = False

    def run_part(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`part(*inputs)`. Where gradients are wanted and `recompute` is set, only the inputs are kept for them."""
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
            return again
        return part(*inputs)


def set_recompute(network: nn.Module, recompute: bool) -> None:
    """Switch every Recomputable of a network."""
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.recompute = recompute
