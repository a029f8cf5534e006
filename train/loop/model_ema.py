"""An exponential moving average of the weights (Polyak averaging): often better, always smoother, than the last ones.

Where it is on, the averages are what a run is evaluated with and what its checkpoints' `model.safetensors` holds; the
weights that training resumes from are in `trainer.pt`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class ModelEma:
    """Averages of a module's trainable parameters: after each step, average = decay x average + (1 - decay) x weight.

    The first steps are not held back by where training began: step t uses min(decay, (1 + t) / (10 + t)). A decay of 0
    keeps no averages, and nothing here does anything.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad and decay}
        # What a checkpoint calls them: those of the model by their names in it.
        self._weights = {name.removeprefix("model."): value for name, value in trained.items()}
        self._averages = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`."""
        if not self._weights:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._averages.values()), list(self._weights.values()), weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the averages inside, and its own weights again after."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Any]:
        """The weights that training resumes from, for a checkpoint; call it while the module holds them."""
        return {"weights": {name: value.detach() for name, value in self._weights.items()}} if self._weights else {}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """The module holds averages, as after loading a checkpoint: keep those, and give it the state's weights."""
        for name, value in self._weights.items():
            self._averages[name].copy_(value)
            value.copy_(state["weights"][name])

    def _swap(self) -> None:
        for name, value in self._weights.items():
            value.data, self._averages[name] = self._averages[name], value.data
