"""What a training takes on its GPUs: memory, what fits, and time; from a few rehearsed steps."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from ...common.errors import ConfigError
from ...common.text import align, counted, format_bytes, format_duration
from ..config import TrainConfig
from ..data.dataset import TrainSamples
from ..errors import PlanningError, WeightsError
from ..loop.objective import check_batch_size
from ..model.device import choose_device
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from ..weights.cache import find_clip_weights
from ..weights.initial_weights import fitted_to
from .rate import Rates
from .rehearsal import Rehearsal

CONTEXT_BYTES, FRAGMENTED = 2**29, 0.04
"""Left free of a GPU: for CUDA's context and workspaces, and the share that its allocator cannot use. Assumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a training takes, and what that is based on; bytes and samples are those of one GPU."""

    settings: dict[str, Any]
    """GPUs, batch_size, accumulate, recompute, precision and steps as configured; samples that a GPU takes at once."""
    memory: dict[str, int]
    """Bytes by part when most is held: weights, gradients, optimizer (with averages), activations."""
    inference_bytes: int
    """Bytes of a prediction by the published protocol, weights included."""
    gpu_memory: int | None
    """Bytes of a GPU, where known."""
    largest: int | None
    """Largest number of samples at once, `accumulate` and `recompute` as they are."""
    fitting: dict[str, Any] | None
    """`accumulate` and `recompute` with which a step fits; None where nothing does or the memory is not known."""
    flop: int
    """FLOP a step, of all GPUs."""
    step_seconds: float
    hours: float
    images_per_second: float
    """Images that the data loaders of all GPUs must give."""
    rates: Rates
    uncounted: list[str]
    """What the figures are without."""

    def describe(self) -> str:
        """All of it in words for the terminal."""
        settings, memory = self.settings, self.gpu_memory
        parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in self.memory.items())
        passes = f", {settings['accumulate']} passes" if settings["accumulate"] > 1 else ""
        passes += ", recompute" if settings["recompute"] else ""
        at_once = f"{counted(settings['gpus'], 'GPU')}, {counted(settings['at_once'], 'sample')} at once"
        rows = [
            ("step", f"{at_once}{passes}, {settings['precision']}: {self.flop / 1e12:.3g} TFLOP"),
            ("memory", f"{format_bytes(sum(self.memory.values()))} a GPU at the peak: {parts}"),
            ("", f"{format_bytes(self.inference_bytes)} for a prediction by the published protocol"),
        ]
        if memory is not None:
            fits = "yes" if self.fitting and self.fitting.items() <= settings.items() else f"no: {advice(self.fitting)}"
            rows.append(("fits", f"{fits}; {format_bytes(memory)} hold {counted(self.largest or 0, 'sample')} at once"))
        all_steps = f"{format_duration(3600 * self.hours)} for {settings['steps']:,} steps"
        rows.append(("time", f"{self.step_seconds:.3g} s a step, {all_steps}, by {self.rates.describe()}"))
        rows += [("loader", f"{self.images_per_second:.3g} images/s"), ("without", "; ".join(self.uncounted))]
        return "\n".join(f"  {line}" for line in align(rows, right=()))


def plan(config: TrainConfig, *, gpus: int, gpu_memory: int | None, rates: Rates) -> Plan:
    """Rehearse some steps of a training and reckon; the store is looked at, images and run folder are not.

    Raises:
        ConfigError: The batch cannot be spread over the GPUs.
        TrainDataError, StoreIncompleteError: The store has not what the configuration wants.
        PlanningError: A loss needs values.
    """
    rehearsal = rehearse(config, gpus)
    step, limit = rehearsal.step(), gpu_memory and usable_bytes(gpu_memory)
    work = {kind: config.accumulate * amount for kind, amount in step.work.items()}
    seconds = rates.seconds(work)
    said = ("batch_size", "accumulate", "recompute", "precision", "steps")
    return Plan(
        settings={"gpus": gpus, "at_once": rehearsal.at_once} | {name: getattr(config, name) for name in said},
        memory=step.memory,
        inference_bytes=rehearsal.prediction().peak_bytes,
        gpu_memory=gpu_memory,
        largest=largest(rehearsal, limit) if limit else None,
        fitting=fitting(rehearsal, limit) if limit else None,
        flop=gpus * (work["product"] + work["convolution"]),
        step_seconds=seconds,
        hours=config.steps * seconds / 3600,
        images_per_second=config.batch_size / seconds,
        rates=rates,
        uncounted=list(_uncounted(rehearsal.config)),
    )


def _uncounted(config: TrainConfig) -> Iterator[str]:
    yield "evaluations, and waiting for data and for other GPUs"
    if config.compile:
        yield "compile, which saves time and memory"
    if config.clip_weights and config.model.quick_gelu is None:
        try:
            find_clip_weights(config.clip_weights, config.model.clip)
        except WeightsError:
            yield f"the activation that clip_weights {config.clip_weights} need: they are not here"


def rehearse(config: TrainConfig, gpus: int) -> Rehearsal:
    """A rehearsal of the training; errors of `plan`."""
    check_batch_size(config, gpus)
    if config.clip_weights:
        with suppress(WeightsError):  # a dry run does without the file
            weights = find_clip_weights(config.clip_weights, config.model.clip)
            config = replace(config, model=fitted_to(weights, config.model))
    samples = TrainSamples(config.data, config.model.structures, config.losses.lambda_sac > 0, config.seed)
    return Rehearsal(config, samples, gpus)


def device_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None for a device that is none."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def usable_bytes(gpu_memory: int) -> int:
    """What a step may hold of a GPU's memory."""
    return int(gpu_memory * (1 - FRAGMENTED)) - CONTEXT_BYTES


def largest(rehearsal: Rehearsal, limit: int) -> int:
    """The largest number of samples at once whose step holds at most `limit` bytes; 0 if there is none.

    What a step holds is affine in them where the peak is always at the same moment, and else convex: few rehearsals, on
    lines through the two nearest to the limit, find it, and the answer and the number after it are rehearsed.
    """
    guess, known = rehearsal.at_once, {rehearsal.at_once + 2: rehearsal.step(rehearsal.at_once + 2).peak_bytes}
    while True:
        known[guess] = rehearsal.step(guess).peak_bytes
        low = max((number for number, peak in known.items() if peak <= limit), default=0)
        high = min((number for number, peak in known.items() if peak > limit), default=16 * (low + 1))
        if high == low + 1:
            return low
        nearest = sorted(known, key=lambda number: abs(known[number] - limit))[:2]
        less, more = (low, high) if low and high in known else sorted(nearest)
        each = max((known[more] - known[less]) / (more - less), 1)
        guess = min(max(int(less + (limit - known[less]) / each), low + 1), high - 1)


def fitting(rehearsal: Rehearsal, limit: int) -> dict[str, Any] | None:
    """`accumulate` and `recompute` whose step holds at most `limit` bytes, as they are or changed; None: nothing fits.

    More passes come before recomputing, which takes a third more time.
    """
    config, share = rehearsal.config, rehearsal.config.batch_size // rehearsal.gpus
    passes = [number for number in range(1, share + 1) if share % number == 0]
    choices = [(config.recompute, config.accumulate), *product((config.recompute, True), passes)]
    for recompute, accumulate in dict.fromkeys(choices):
        step = rehearsal.step(share // accumulate, recompute=recompute, several=accumulate > 1)
        if step.peak_bytes <= limit:
            return {"accumulate": accumulate, "recompute": recompute}
    return None


def refuse_what_cannot_fit(config: TrainConfig) -> None:
    """Raise ConfigError, with a hint that fits, for a step larger than the GPU. What resumes has fitted before."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if config.run is None or not is_first or checkpoint.steps(RunFolder(config.run).checkpoints):
        return
    device = choose_device(config.device)
    if (memory := device_memory(device)) is None:
        return
    with suppress(PlanningError):  # then it is not known
        rehearsal = rehearse(config, int(os.environ.get("WORLD_SIZE", "1")))
        if (peak := rehearsal.step().peak_bytes) > memory:
            at_once = f"{counted(rehearsal.at_once, 'sample')} at once ({config.precision})"
            fault = f"{at_once} take {format_bytes(peak)}, {device} has {format_bytes(memory)}"
            raise ConfigError(fault, hint=advice(fitting(rehearsal, usable_bytes(memory))))


def advice(settings: dict[str, Any] | None) -> str:
    """What `fitting` found, as one would write it."""
    if settings is None:
        return "no `accumulate` and `recompute` fit: take a smaller CLIP, precision bf16 or a larger GPU"
    return f"set accumulate = {settings['accumulate']}, recompute = {str(settings['recompute']).lower()}"
