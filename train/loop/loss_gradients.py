"""How each loss pulls on the image encoder that all of them share: gradient norms and their cosines (`log.gradients`).

Losses compete where a cosine is negative (Yu et al. 2020, Gradient Surgery for Multi-Task Learning), and the norms say
which of them the encoder follows.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from ...common.errors import ConfigError
from ..losses.total import Losses
from ..model.segmenter import Segmenter
from .ranks import Ranks


class LossGradients:
    """Gradients of each loss by itself, from the step's own forward pass; what the step computes stays as it is."""

    def __init__(self, model: Segmenter, losses: Losses, every: int) -> None:
        """`every`: number of steps between two looks; 0 never looks.

        Raises ConfigError where there is nothing to look at: of a backbone of others only its model tells.
        """
        self.every, self.weights = every, {name: weight for name, (_, weight) in losses.items()}
        named = model.clip.named_parameters()  # type: ignore[attr-defined]
        self.encoder = [each for name, each in named if each.requires_grad and not name.startswith("text.")]
        if every and not self.encoder:
            expected, got = "an image encoder that trains", f"model.finetune = {model.config.finetune!r}"
            raise ConfigError.mismatch("log.gradients", expected, got, hint="set log.gradients = 0")
        self._sums: dict[str, Tensor] = {}

    def is_due(self, step: int) -> bool:
        """Whether to look at the step that is taken after `step` others."""
        return self.every > 0 and (step + 1) % self.every == 0

    def add(self, parts: Mapping[str, Tensor], share: float) -> None:
        """Add the gradients of a micro-batch's losses, which has this share in the step; the graph is kept."""
        for name, weight in self.weights.items():
            slopes: Sequence[Tensor] = [torch.zeros_like(each) for each in self.encoder]
            if parts[name].requires_grad:
                slopes = torch.autograd.grad(parts[name], self.encoder, retain_graph=True, materialize_grads=True)
            flat = torch.cat([slope.flatten() for slope in slopes]) * (weight * share)
            self._sums[name] = self._sums[name] + flat if name in self._sums else flat

    def take(self, ranks: Ranks) -> dict[str, float]:
        """L2 norms of the gradients that were added, averaged over ranks, and the cosine of each two; starts anew.

        Nothing where nothing was added. A cosine with a gradient of 0 is NaN.
        """
        means = {name: ranks.mean({name: flat})[name] for name, flat in self._sums.items()}
        self._sums = {}
        norms = {name: torch.linalg.vector_norm(flat) for name, flat in means.items()}
        found = {f"gradient_norm/{name}": float(norm) for name, norm in norms.items()}
        for one, other in combinations(means, 2):
            cosine = torch.dot(means[one], means[other]) / (norms[one] * norms[other])
            found[f"gradient_cosine/{one}-{other}"] = float(cosine)
        return found
