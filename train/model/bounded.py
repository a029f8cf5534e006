"""Bounded working memory: parts of the network that treat classes, or positions, alike take a few of them at a time.

What such a part holds besides its input and output can be cut as small as one likes. Without gradients that is all: 256
classes of five crops would otherwise make intermediate tensors of 1.5 GB each. With gradients it goes together with
activation checkpointing (Chen et al. 2016): nothing but the inputs is kept, and each piece is computed again when its
gradient is due.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RECOMPUTED_BYTES = 2**27
"""Working memory of a piece where activations are recomputed; its gradient takes about three times as much."""


class Bounded(nn.Module):
    """A module whose parts run through `run_part` and `in_pieces`."""

    recompute: bool = False
    """Whether activations are computed again for the gradient instead of kept."""
    working_bytes: int | None = None
    """Bound on what this module holds in evaluation; None lifts the bound."""

    def run_part(self, part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`part(*inputs)`; where gradients are wanted and `recompute` is set, only the inputs are kept for them."""
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
            return again
        return part(*inputs)

    def in_pieces(self, part: Callable[[Tensor], Tensor], x: Tensor, dim: int, bytes_each: int) -> Tensor:
        """`part(x)`, for a part that treats the slices of `dim` alike and holds `bytes_each` for each of them."""
        with_gradient = torch.is_grad_enabled()
        limit = RECOMPUTED_BYTES if with_gradient else self.working_bytes
        if limit is None or (with_gradient and not self.recompute):
            return part(x)
        count = max(1, limit // bytes_each)
        return torch.cat([self.run_part(part, piece) for piece in torch.split(x, count, dim)], dim)


def bounded_parts(network: nn.Module) -> Iterator[Bounded]:
    """The parts of a network whose `recompute` and `working_bytes` decide what they hold."""
    return (module for module in network.modules() if isinstance(module, Bounded))
