"""The training step and a prediction with fake tensors: what they hold and compute, without memory, values or images.

It is the trainer's own network, losses and optimizer. Kernels are the CPU's: where a GPU's keep other intermediate
tensors (its autocast, cuDNN's workspaces), figures differ a little; estimate.py leaves room for them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)

from ...common.plugins import PluginError
from .. import optim
from ..config import TrainConfig
from ..data.dataset import TrainSamples, to_device
from ..errors import PlanningError
from ..loop.model_ema import ModelEma
from ..loop.objective import Objective
from ..model.bounded import bounded_parts
from ..model.inference import PUBLISHED, class_texts, probability_maps
from ..model.segmenter import Segmenter, blank_segmenter
from .meter import Meter

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
MOST_RECOMPUTED = 8
"""Samples at once up to which a step with `recompute` is rehearsed: it has more and more operations, up to minutes."""
IMAGE_SIZE = (640, 854)
"""Height and width of the image that is predicted: 4:3 after the first resize."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one pass takes."""

    memory: dict[str, int]
    """Bytes by part when most was held."""
    work: dict[str, int]
    """FLOP of "product" and "convolution", and "bytes" that all else reads and writes."""

    @property
    def peak_bytes(self) -> int:
        return sum(self.memory.values())


class Rehearsal:
    """A training in fake tensors: weights, optimizer states and averages are there, as from the second step on.

    Raises PlanningError where a loss of another package needs values, which there are none of.
    """

    def __init__(self, config: TrainConfig, samples: TrainSamples, gpus: int) -> None:
        vocabulary, classes = samples.reader.vocabulary, samples.structure_classes
        model = replace(config.model, structures=samples.structures, structure_classes=classes)
        self.config = replace(config, model=model)
        self.at_once = config.batch_size // (gpus * config.accumulate)
        self.samples, self.gpus, self.classes = samples, gpus, vocabulary.classes
        self.meter, self.fake = Meter(), FakeTensorMode(allow_non_fake_inputs=True)
        self.model = blank_segmenter(model, _Segmenter)  # not among fake tensors: timm reads values while it builds
        with self._counted("weights"):
            weights = {
                name: torch.empty(value.shape, dtype=value.dtype) for name, value in self.model.state_dict().items()
            }
            self.model.load_state_dict(weights, assign=True)
            del weights
            self.objective = Objective(self.model, self.config, self.classes, vocabulary.ignore_index).train()
        with self._counted("optimizer"):
            self.optimizer = optim.build_optimizer(self.model, config.optim, self.objective.loss_modules)
            self.trained = [value for group in self.optimizer.param_groups for value in group["params"]]
            self._hold_gradients()
            self._update()  # which makes the states
            self.averages = ModelEma(self.objective, config.ema_decay)
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._claim_gradient)
        self._rehearsed = cache(self._rehearse)

    def step(self, number: int | None = None, *, recompute: bool | None = None, several: bool | None = None) -> Reading:
        """A pass of one GPU over `number` samples, and the optimizer's step; what is not given is as configured.

        `several` says whether other passes are part of the same step.
        """
        number = number or self.at_once
        recompute = self.config.recompute if recompute is None else recompute
        several = self.config.accumulate > 1 if several is None else several
        if not recompute or number <= MOST_RECOMPUTED:
            return self._rehearsed(number, recompute, several)
        less, most = (self._rehearsed(each, recompute, several) for each in (MOST_RECOMPUTED - 2, MOST_RECOMPUTED))
        times = (number - MOST_RECOMPUTED) / 2  # on the line through both: all of it is affine
        memory, work = (
            {name: round(value + times * (value - smaller[name])) for name, value in larger.items()}
            for larger, smaller in ((most.memory, less.memory), (most.work, less.work))
        )
        return Reading(memory, work)

    def _rehearse(self, number: int, recompute: bool, several: bool) -> Reading:
        for part in bounded_parts(self.model):
            part.recompute = recompute
        with self._counted("gradients"):
            # DDP's buckets are there from the beginning, and gradients are views of them; but where several passes add
            # up, those before the last one have made gradients of their own.
            buckets = [torch.empty_like(each) for each in self.trained] if several and self.gpus > 1 else []
            if spread := several or self.gpus > 1:
                self._hold_gradients()
            self.meter.part = "activations"
            batch = to_device(self.samples.empty(number), torch.device("cpu"))
            if spread and self.objective.losses.keys() - self.objective.counts(batch).keys():
                with torch.no_grad():  # another pass finds what losses divide by
                    self.objective(batch)
            self.objective(batch)["loss"].backward()
            self._update()
            del buckets
        return Reading(dict(self.meter.peak), dict(self.meter.work))

    def prediction(self) -> Reading:
        """One image by the published protocol among the classes of training."""
        image = np.zeros((*IMAGE_SIZE, 3), np.uint8)
        with self._counted("activations"):
            texts = class_texts(self.model, self.classes)
            for _ in probability_maps(self.model, image, texts, PUBLISHED):
                pass
        memory = {part: size for part, size in self.meter.peak.items() if part in ("weights", "activations")}
        return Reading(memory, dict(self.meter.work))

    @contextmanager
    def _counted(self, part: str) -> Iterator[None]:
        self.meter.part = part
        self.meter.restart()
        try:
            with self.fake, self.meter:
                yield
        except (PluginError, *NEEDS_VALUES) as blamed:
            error = blamed.__cause__ if isinstance(blamed, PluginError) else blamed
            if not isinstance(error, NEEDS_VALUES):
                raise
            where, got = "a step without values", f"{type(error).__name__}: {error}"
            hint = "a loss of another package reads or indexes by values; switch it off for the dry run"
            raise PlanningError.mismatch(where, "operations whose shapes alone decide", got, hint) from error

    def _hold_gradients(self) -> None:
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)

    def _update(self) -> None:
        optim.clip_gradients(self.optimizer, self.config.optim.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _claim_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.meter.claim(parameter.grad, "gradients")


class _Segmenter(Segmenter):
    """Its tokens are real: they steer Python."""

    def tokenize(self, names: Sequence[str]) -> Tensor:
        with unset_fake_temporarily():
            return super().tokenize(names)
