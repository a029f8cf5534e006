"""The training loop: one process, one device, resumed by itself from the run folder.

Same run folder, same settings: the weights after step n are bitwise the same however often the run was stopped in
between, and with any number of data workers (on one device type; see the README for what PyTorch promises beyond it).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from .. import PhyssegError
from ..manifests.table import Manifest
from . import checkpoint
from .augment import color_jitter
from .checkpoint import CheckpointState
from .config import HARMLESS, TrainConfig
from .config_reading import plain
from .data import Batch, batches, data_identity, open_samples, quarantined_ids, to_device
from .errors import ConfigError, NonFiniteLossError
from .evaluate import evaluate_model
from .host_memory import keep_freed_memory
from .losses.total import total_loss
from .model.clip_presets import PRETRAINED
from .model.inference import InferenceSettings
from .model.segmenter import Segmenter
from .optim import build_optimizer, clip_gradients, learning_rate_factor, require_finite, set_learning_rate
from .order import PositionBatches
from .process import StopSignals, choose_device, random_state, set_random_state
from .run_folder import RunFolder
from .run_log import RunLog
from .weights.clip_weights import load_clip_weights
from .weights.initial_weights import settle_clip_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a call of `train` ended."""

    run: Path
    step: int
    """Steps the weights have taken."""
    first_step: int
    """Steps they had taken when this call began."""
    finished: bool
    """Whether that is all of the configuration's steps."""
    stopped_by: str | None
    """Name of the signal that ended it early."""
    seconds: float


def train(config: TrainConfig, *, stop_at: int | None = None, progress: bool = True) -> TrainResult:
    """Train, or go on training, until `config.steps` or `stop_at` steps, or a signal (see process.StopSignals).

    Raises ConfigError, TrainDataError, StoreIncompleteError, RunFolderError or CheckpointError before anything is
    computed. Every end that we can see coming leaves a checkpoint of the last good step: reaching the last one, a
    signal, NonFiniteLossError, a sample that cannot be read any more.
    """
    if config.run is None:
        raise ConfigError("no run folder given", hint='Say --out RUN, or write `run = "..."` in the configuration.')
    run = RunFolder(config.run)
    with run.locked():
        return _Training(config, run).go_on(min(stop_at or config.steps, config.steps), progress=progress)


class Objective(nn.Module):
    """A batch to its losses: jitter, text and image encoders, heads, and the sum of what the settings switch on."""

    tokens: Tensor

    def __init__(self, model: Segmenter, config: TrainConfig, classes: Sequence[str], ignore_index: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.ignore_index = ignore_index
        self.register_buffer("tokens", model.tokenize(classes), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; `loss` is the sum to differentiate."""
        images = batch["images"].float()
        if self.config.data.jitter:
            images = color_jitter(images, batch["jitter"], batch["valid"])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.model(images, self.model.encode_text(self.tokens))
        return total_loss(
            output,
            batch,
            self.config.losses,
            ignore_index=self.ignore_index,
            structures=self.config.model.structures,
        )


class _Training:
    """Everything a run holds in memory: data, model, optimizer, and how many steps they have taken."""

    def __init__(self, config: TrainConfig, run: RunFolder) -> None:
        config, self.clip_weights = settle_clip_weights(config, run)
        self.config, self.run = config, run
        self.device = choose_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.samples = open_samples(config.data, config.model.structures, config.losses.lambda_sac > 0, config.seed)
        self.vocabulary = self.samples.reader.schema.vocabulary
        self.identity = data_identity(self.samples)
        self.eval_manifest = Manifest.read(config.eval.manifest) if config.eval.manifest else None
        self._begin_or_check_run()
        torch.manual_seed(config.seed)
        self.model = Segmenter(config.model)
        classes = self.vocabulary.classes
        self.objective = Objective(self.model, config, classes, self.vocabulary.ignore_index).to(self.device).train()
        self.optimizer: AdamW = build_optimizer(self.model, config.optim)
        self.step = self.saved_step = self._resume_or_begin()

    def go_on(self, stop_at: int, *, progress: bool) -> TrainResult:
        """Train until `stop_at` steps have been taken."""
        started, first_step = time.perf_counter(), self.step
        with (
            RunLog(self.run.log_file, self.run.tensorboard, start_step=first_step) as log,
            tqdm(total=self.config.steps, initial=first_step, unit="step", disable=not progress, smoothing=0.1) as bar,
            StopSignals() as stop,
        ):
            self._log_start(log, stop_at)
            try:
                self._loop(stop_at, log, bar, stop)
            except PhyssegError:
                if self.step > self.saved_step:  # raised between steps: the weights are whole
                    self._save()
                raise
            log.event("end", self.step, finished=self.step >= self.config.steps, stopped_by=stop.received)
        return TrainResult(
            run=self.run.path,
            step=self.step,
            first_step=first_step,
            finished=self.step >= self.config.steps,
            stopped_by=stop.received,
            seconds=time.perf_counter() - started,
        )

    def _loop(self, stop_at: int, log: RunLog, bar: "tqdm[Any]", stop: StopSignals) -> None:
        config, optimizer, meter = self.config, self.optimizer, _Meter(self.config.batch_size)
        stream = self._stream(stop_at)
        batch = self._next(stream, meter, stop)
        while batch is not None:
            set_learning_rate(optimizer, learning_rate_factor(self.step, config.steps, config.optim.warmup_steps))
            parts = self.objective(to_device(batch, self.device))
            parts["loss"].backward()
            parts["gradient_norm"] = clip_gradients(optimizer, config.optim.max_gradient_norm)
            upcoming = self._next(stream, meter, stop)  # while the device is at work
            self._take_step(log, batch, parts, meter)
            bar.update()
            last = self.step == stop_at or stop.received is not None
            if last or self.step % config.log_every == 0:
                values = meter.take() | learning_rates(optimizer)
                log.scalars(self.step, values)
                bar.set_postfix_str(f"loss {values['loss/total']:.3f}, data wait {values['speed/data_wait']:.0%}")
            if last or self.step % config.checkpoint_every == 0:
                self._save()
            with meter.paused():
                self._evaluate_if_due(log)
            batch = None if last else upcoming

    def _take_step(self, log: RunLog, batch: Batch, parts: Mapping[str, Tensor], meter: "_Meter") -> None:
        """Change the weights, unless a number says that would ruin them."""
        try:
            values = require_finite(parts, step=self.step, sample_ids=batch["sample_ids"])
        except NonFiniteLossError as error:
            log.event("non_finite", self.step, parts=error.fields["parts"], sample_ids=batch["sample_ids"])
            raise
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        meter.count(values)

    def _next(self, stream: Iterator[Batch], meter: "_Meter", stop: StopSignals) -> Batch | None:
        """The next batch; None at the end, or once a signal asked to stop."""
        try:
            with meter.waiting():
                return next(stream, None) if stop.received is None else None
        except RuntimeError:
            if stop.received is not None:  # the signal may have ended data workers as well
                return None
            raise

    def _stream(self, stop_at: int) -> Iterator[Batch]:
        sampler = PositionBatches(start=self.step, stop=stop_at, batch_size=self.config.batch_size)
        return batches(self.samples, sampler, pin_memory=self.device.type == "cuda")

    def _begin_or_check_run(self) -> None:
        settings = plain(self.config)
        model = settings.pop("model")
        if self.run.exists():
            current = {"model": model, "training": settings, "data": self.identity}
            self.run.check_same(current, harmless=HARMLESS)
        else:
            origin = {"clip_weights": self.clip_weights.facts()} if self.clip_weights else None
            classes = self.vocabulary.classes
            self.run.create(model=model, training=settings, data=self.identity, classes=classes, origin=origin)

    def _save(self) -> None:
        state = CheckpointState(
            step=self.step, model=plain(self.config.model), classes=self.vocabulary.classes, data=self.identity
        )
        trainer = {"optimizer": self.optimizer.state_dict(), "random": random_state()}
        checkpoint.save(self.run.checkpoints, state, self.model.state_dict(), trainer)
        checkpoint.prune(self.run.checkpoints, self.config.keep_last)
        self.saved_step = self.step

    def _resume_or_begin(self) -> int:
        """Put the latest checkpoint, or else pretrained CLIP weights, into the model; returns the steps taken."""
        checkpoint.remove_unfinished(self.run.checkpoints)
        if not checkpoint.steps(self.run.checkpoints):
            if self.clip_weights is not None:
                load_clip_weights(self.model.clip, self.clip_weights.path)
            return 0
        path = checkpoint.path_of(self.run.checkpoints, None)
        state = checkpoint.load_model(path, self.model, plain(self.config.model))
        trainer = checkpoint.load_trainer(path)
        self.optimizer.load_state_dict(trainer["optimizer"])
        set_random_state(trainer["random"])
        return state.step

    def _evaluate_if_due(self, log: RunLog) -> None:
        settings = self.config.eval
        if self.eval_manifest is None or (self.step % settings.every and self.step != self.config.steps):
            return
        self.model.eval()
        result = evaluate_model(
            self.model,
            self.eval_manifest,
            trained_on=self.vocabulary.classes,
            max_images=settings.max_images,
            settings=InferenceSettings(windows=settings.windows),
            progress=False,
        )
        self.model.train()
        log.scalars(self.step, result.scalars())

    def _log_start(self, log: RunLog, stop_at: int) -> None:
        left_out = quarantined_ids(self.samples.reader)
        log.event(
            "start",
            self.step,
            stop_at=stop_at,
            steps=self.config.steps,
            device=str(self.device),
            torch=torch.__version__,
            samples=len(self.samples.usable),
            quarantined=left_out,
            clip_weights=self.clip_weights.facts() if self.clip_weights else None,
        )
        if self.step == 0 and self.clip_weights is None and self.config.model.clip in PRETRAINED:
            tqdm.write(f"{self.config.model.clip} begins with random weights; `clip_weights` names pretrained ones")
        if left_out:
            shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
            tqdm.write(f"{len(left_out)} quarantined samples are left out: {shown}")


class _Meter:
    """Means of the losses and the speed since the last log line."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside counts as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts for nothing."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def count(self, values: Mapping[str, float]) -> None:
        """Add one step's numbers."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Means since the last call, under the log's names; starts anew."""
        seconds = time.perf_counter() - self._since
        means = {f"loss/{name}": total / self._steps for name, total in self._sums.items()}
        means["loss/total"] = means.pop("loss/loss")
        means["gradient/norm"] = means.pop("loss/gradient_norm")
        means["speed/images_per_second"] = self._steps * self.batch_size / seconds
        means["speed/data_wait"] = min(1.0, self._waited / seconds)
        self._restart()
        return means


def learning_rates(optimizer: AdamW) -> dict[str, float]:
    """Current rate of every parameter group, under the log's names."""
    return {f"learning_rate/{group['name']}": float(group["lr"]) for group in optimizer.param_groups}
