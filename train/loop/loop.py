"""The training loop: one process per device, resumed by itself from the run folder.

Same run folder, same settings: the weights after step n are bitwise the same however often the run was stopped in
between, and with any number of data workers (on one device type and number of ranks; see docs/training.md for what
PyTorch promises beyond it). Other numbers of ranks or micro-batches see the same samples, and differ by rounding only.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from math import isfinite
from operator import add
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...common.atomic import remove_partials
from ...common.errors import ConfigError, PhyssegError
from ...common.processes import keep_freed_memory
from ...common.progress import ProgressBar
from ...common.settings import build, to_dict
from ...common.text import Part, counted, preview
from ...manifests.manifest import Manifest
from .. import optim
from ..config import RESUMABLE_KEYS, TrainConfig
from ..data.dataset import Batch, TrainSamples, batches, to_device
from ..data.order import PositionBatches
from ..errors import CheckpointError, NonFiniteLossError, RankError
from ..evaluation.evaluate import evaluate_model
from ..evaluation.image_counts import ImageCounts
from ..evaluation.result import Evaluation
from ..model.backbones.interface import published_names
from ..model.bounded import bounded_parts
from ..model.config import SegmenterConfig
from ..model.device import matmul_precision
from ..model.inference import InferenceSettings, class_texts
from ..model.segmenter import Segmenter
from ..report.pictures import prediction_rows, structure_rows
from ..runs import checkpoint
from ..runs.checkpoint import CheckpointState
from ..runs.run_folder import RunFolder
from ..runs.run_log import RunLog, SilentLog, evaluated_steps
from ..runs.weights_and_biases import find_wandb, open_wandb
from ..weights.clip_weights import load_clip_weights
from ..weights.initial_weights import settle_clip_weights
from . import words
from .loss_gradients import LossGradients
from .meter import AverageMeter
from .model_ema import ModelEma
from .objective import Objective, check_batch_size, micro_batches
from .process import StopSignals, random_state, set_random_state
from .ranks import Ranks, joined, no_sync


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a call of `train` ended."""

    run: Path
    step: int
    """Number of steps that the weights have taken."""
    first_step: int
    """Number of steps that they had taken when this call began."""
    finished: bool
    """Whether these are all of the configuration's steps."""
    stopped_by: str | None
    """Name of the signal that ended the call early."""
    seconds: float
    rank: int = 0
    """Which of the processes that torchrun started this is."""


def train(config: TrainConfig, *, stop_at: int | None = None, progress: bool = True) -> TrainResult:
    """Train, or resume training, until `config.steps` or `stop_at` steps, or a signal (see process.StopSignals).

    Under torchrun, every process calls this and is one rank of the training; the run folder and the store must be
    the same files for all. Every end that we can see coming leaves a checkpoint of the last good step: reaching the
    last one, a signal, NonFiniteLossError, a sample that cannot be read any more.

    Args:
        stop_at: Number of steps to stop at. The schedule is not changed.
        progress: Whether the main process says what it does, and draws a bar.

    Raises:
        PhyssegError: ConfigError, TrainDataError, StoreIncompleteError, RunFolderError or CheckpointError before
            anything is computed; NonFiniteLossError, RankError or what the data met after that.
    """
    if config.run is None:
        raise ConfigError("no run folder given", hint='Say --out RUN, or write `run = "..."` in the configuration.')
    run = RunFolder(config.run)
    if config.log.wandb:
        find_wandb()
    with joined(config.device) as ranks:
        check_batch_size(config, ranks.size)
        with run.locked() if ranks.is_main else nullcontext(), matmul_precision(config.precision):
            return _Training(config, run, ranks).run_until(min(stop_at or config.steps, config.steps), progress)


class _Training:
    """Everything a run holds in memory: data, model, optimizer, and how many steps they have taken."""

    def __init__(self, config: TrainConfig, run: RunFolder, ranks: Ranks) -> None:
        self.run, self.ranks, self.device = run, ranks, ranks.device
        if self.device.type == "cpu":
            keep_freed_memory()
        with ranks.main_process_first():
            self.config, self.clip_weights = settle_clip_weights(config, run)
            config = self.config
            structures, with_cells = config.model.structures, config.losses.lambda_sac > 0
            self.samples = TrainSamples(config.data, structures, with_cells, config.seed)
            classes = self.samples.structure_classes
            model = replace(config.model, structures=self.samples.structures, structure_classes=classes)
            self.config = config = replace(config, model=model, optim=self._optim(config))
            self.vocabulary = self.samples.reader.vocabulary
            self.eval_manifest = Manifest.read(config.eval.manifest) if config.eval.manifest else None
            if begun := run.exists():
                self._begin_or_check_run()
        torch.manual_seed(config.seed)
        self.model = Segmenter(config.model)
        for part in bounded_parts(self.model):
            part.recompute = config.recompute
        objective = Objective(self.model, config, self.vocabulary.classes, self.vocabulary.ignore_index)
        self.objective = objective.to(self.device).train()
        self.optimizer = optim.build_optimizer(self.model, config.optim, objective.loss_modules)
        self.loss_gradients = LossGradients(self.model, objective.losses, config.log.gradients)
        self.step = self.saved_step = self._resume_or_begin()
        with ranks.main_process_first():  # only now, so that weights that do not fit leave no run behind
            if not begun:
                self._begin_or_check_run()
        self.counts_compared = False
        self.shared = ranks.share_gradients(self.objective)
        if config.compile:
            self.shared.compile()

    def _optim(self, config: TrainConfig) -> optim.OptimConfig:
        """The optimizer's settings with `clip_scale` settled: as set, as the run began, or as is usual."""
        if config.optim.clip_scale is not None:
            return config.optim
        usual = optim.default_clip_scale(config.model.clip)
        saved = self.run.read()["training"] if self.run.exists() else None
        return replace(config.optim, clip_scale=((saved or {}).get("optim") or {}).get("clip_scale", usual))

    def run_until(self, stop_at: int, progress: bool) -> TrainResult:
        """Train until `stop_at` steps have been taken."""
        started, first_step, steps = time.perf_counter(), self.step, self.config.steps
        self.speaks = progress and self.ranks.is_main
        with (
            self._open_log() as log,
            ProgressBar(total=steps, initial=first_step, unit="step", disable=not self.speaks, smoothing=0.1) as bar,
            StopSignals() as stop,
        ):
            self._log_start(log, stop_at)
            try:
                self._evaluate_if_missed(log)
                stopped_by = self._loop(stop_at, log, bar, stop)
            except PhyssegError:
                self._save()  # raised between steps: the weights are whole
                raise
            log.event("end", self.step, finished=self.step >= steps, stopped_by=stopped_by)
        return TrainResult(
            run=self.run.path,
            step=self.step,
            first_step=first_step,
            finished=self.step >= steps,
            stopped_by=stopped_by,
            seconds=time.perf_counter() - started,
            rank=self.ranks.rank,
        )

    def _loop(self, stop_at: int, log: RunLog, bar: ProgressBar, stop: StopSignals) -> str | None:
        """Step after step until `stop_at`, or until any rank must stop; returns the signal's name if one was why."""
        config, meter = self.config, AverageMeter(self.config.batch_size)
        data = _Data(self._stream(stop_at), meter, stop)
        data.fetch()
        while self.step < stop_at and not self.ranks.any(bool(stop.received or data.failure)):
            batch = data.batch
            assert batch is not None
            factor = optim.learning_rate_factor(self.step, config.steps, config.optim.warmup_steps)
            optim.set_learning_rate(self.optimizer, factor)
            parts = self._gradients(to_device(batch, self.device))
            parts["gradient_norm"] = optim.clip_gradients(self.optimizer, config.optim.max_gradient_norm)
            data.fetch()  # while the device is at work
            self._take_step(log, batch, parts, meter)
            if pulls := self.loss_gradients.take(self.ranks):
                log.scalars(self.step, pulls)
            bar.update()
            if self.step % config.log_every == 0:
                self._log_means(log, bar, meter)
            with meter.paused():
                if self.step % config.checkpoint_every == 0:
                    self._save()
                if self._evaluation_is_due():
                    self._evaluate(log)
        if meter:
            self._log_means(log, bar, meter)
        self._raise_if_any_failed(data.failure)
        stopped_by = next((signal for signal in self.ranks.gather(stop.received) if signal), None)
        self._save()
        return stopped_by

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """One step's gradients in the parameters, and its losses, over all micro-batches and ranks."""
        number = self.config.accumulate
        counts = self._counts(batch, number) if number * self.ranks.size > 1 else None
        losses: list[dict[str, Tensor]] = []
        for part in micro_batches(batch, number):
            with no_sync(self.shared) if len(losses) + 1 < number else nullcontext():
                parts = self.shared(part, counts)
                if self.loss_gradients.is_due(self.step):
                    self.loss_gradients.add(parts, 1 / number)
                (parts["loss"] / number).backward()
            losses.append({name: value.detach() for name, value in parts.items()})
        return self.ranks.mean({name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]})

    def _counts(self, batch: Batch, number: int) -> dict[str, Tensor]:
        """What the losses of each part of a spread step are divided by: the mean over ranks and micro-batches.

        Raises ConfigError for a loss of another package whose `count` is not what it divides by; looked at once.
        """
        objective, compared = self.objective, () if self.counts_compared else self.config.losses.named
        said = self.ranks.mean(objective.counts(batch))
        names = [name for name in objective.losses if name not in said or name in compared]
        called = self.ranks.mean(objective.called_counts(batch, number, names)) if names else {}
        for name in said.keys() & called.keys():
            if not torch.allclose(said[name], called[name], rtol=1e-4):
                where, size = f"losses.{name}: `count` of a step", self.ranks.size
                expected = f"{called[name] * size}, what the loss itself divides by"
                hint = "the count of a batch must be that of its parts together; without `count` it is found by calling"
                raise ConfigError.mismatch(where, expected, said[name] * size, hint=hint)
        self.counts_compared = True
        # Each micro-batch has one share of what this rank counts.
        return {name: count / number for name, count in {**called, **said}.items()}

    def _take_step(self, log: RunLog, batch: Batch, parts: Mapping[str, Tensor], meter: AverageMeter) -> None:
        """Change the weights, unless a number says that would ruin them."""
        try:
            values = optim.require_finite(parts, step=self.step, sample_ids=batch["sample_ids"])
        except NonFiniteLossError as error:
            sample_ids = [name for names in self.ranks.gather(batch["sample_ids"]) for name in names]
            log.event("non_finite", self.step, parts=error.fields["parts"], sample_ids=sample_ids)
            raise
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        meter.count(values)

    def _raise_if_any_failed(self, failure: PhyssegError | None) -> None:
        """Raises this rank's failure, or RankError for that of another one: all ranks end together."""
        failures = self.ranks.gather(str(failure) if failure else None)
        if failure is not None:
            raise failure
        for rank, text in enumerate(failures):
            if text is not None:
                raise RankError(f"stopped at step {self.step} because rank {rank} failed: {text}")

    def _stream(self, stop_at: int) -> Iterator[Batch]:
        batch_size, ranks = self.config.batch_size, self.ranks
        sampler = PositionBatches(
            start=self.step, stop=stop_at, batch_size=batch_size, rank=ranks.rank, num_ranks=ranks.size
        )
        return batches(self.samples, sampler, pin_memory=self.device.type == "cuda")

    def _begin_or_check_run(self) -> None:
        settings = to_dict(self.config)
        model = settings.pop("model")
        if self.run.exists():
            current = {"model": model, "training": settings, "data": self.samples.identity}
            saved = self.run.read()
            # A run that was begun before a setting existed has its default.
            saved["model"] = to_dict(build(SegmenterConfig, saved["model"], base=self.run.path))
            self.run.check_same(current, saved=saved, resumable=RESUMABLE_KEYS)
        else:
            origin = {"clip_weights": self.clip_weights.facts()} if self.clip_weights else None
            data, classes = self.samples.identity, self.vocabulary.classes
            self.run.create(model=model, training=settings, data=data, classes=classes, origin=origin)

    # --- checkpoints ---

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if not self.ranks.is_main or self.step == self.saved_step:
            return
        model, data = self.run.read()["model"], self.samples.identity
        state = CheckpointState(step=self.step, model=model, classes=self.vocabulary.classes, data=data)
        trainer = {"optimizer": self.optimizer.state_dict(), "random": random_state()} | self.ema.state()
        with self.ema.in_place():
            if losses := self.objective.loss_modules.state_dict():
                trainer["losses"] = losses
            checkpoint.save(self.run.checkpoints, state, self.model.state_dict(), trainer)
        self.saved_step = self.step
        self._prune()

    def _prune(self) -> None:
        """Keep the last checkpoints and the best one."""
        checkpoint.prune(self.run.checkpoints, self.config.keep_last, keep=(self.run.best() or {}).get("step"))

    def _resume_or_begin(self) -> int:
        """Put the latest checkpoint, or else pretrained CLIP weights, into the model; returns the steps taken."""
        with self.ranks.main_process_first():
            if self.ranks.is_main:
                remove_partials(self.run.checkpoints)
        if not checkpoint.steps(self.run.checkpoints):
            if self.clip_weights is not None:
                load_clip_weights(self.model.clip, self.clip_weights.path)
            self.ema = ModelEma(self.objective, self.config.ema_decay)
            return 0
        path = checkpoint.path_of(self.run.checkpoints, None)
        state = checkpoint.load_model(path, self.model, self.run.read()["model"])
        trainer = checkpoint.load_trainer(path)
        try:
            self.objective.loss_modules.load_state_dict(trainer.get("losses", {}))
        except RuntimeError as error:
            fault = " ".join(str(error).split())
            hint = "install the version of the losses' package that the run was begun with"
            raise CheckpointError(f"{path}: parameters of losses do not fit: {fault}", hint=hint) from error
        self.optimizer.load_state_dict(trainer["optimizer"])
        self.ema = ModelEma(self.objective, self.config.ema_decay)
        self.ema.restore(trainer)
        set_random_state(trainer["random"])
        return state.step

    # --- evaluation ---

    def _evaluation_is_due(self) -> bool:
        due = self.step % self.config.eval.every == 0 or self.step == self.config.steps
        return self.eval_manifest is not None and self.step > 0 and due

    def _evaluate_if_missed(self, log: RunLog) -> None:
        """A run that was killed while it evaluated has a checkpoint of that step, and no result in its log."""
        if self._evaluation_is_due():
            logged = self.ranks.is_main and self.step in evaluated_steps(self.run.log_file)
            if not self.ranks.any(logged):
                self._evaluate(log)

    def _evaluate(self, log: RunLog) -> None:
        settings, ranks, manifest = self.config.eval, self.ranks, self.eval_manifest
        assert manifest is not None
        self._save()  # an evaluation takes long, and may be killed
        part, failure = None, None
        try:
            with self.ema.in_place():
                texts = class_texts(self.model, manifest.vocabulary.classes)
                inference = InferenceSettings(windows=settings.windows, classes_kept=settings.classes_kept)
                part = evaluate_model(
                    self.model,
                    manifest,
                    trained_on=self.vocabulary.classes,
                    max_images=settings.max_images,
                    part=Part(ranks.rank + 1, ranks.size),
                    settings=inference,
                    texts=texts,
                    progress=False,
                    source={"step": self.step},
                )
                if ranks.is_main:
                    self._log_pictures(log, manifest, texts, inference)
        except PhyssegError as error:
            failure = error
        self._raise_if_any_failed(failure)
        assert part is not None and part.boundary is not None
        # Sums of each rank: counts of images by themselves are large.
        bands = ImageCounts.joined(ranks.gather(part.boundary.summed()))
        number, unlabelled = sum(ranks.gather(part.num_images)), sum(ranks.gather(part.unlabelled), ())
        confusion = reduce(add, ranks.gather(part.confusion))
        counted = {"num_images": number, "unlabelled": unlabelled, "part": None, "images": None}
        whole = replace(part, confusion=confusion, boundary=bands and bands.summed(), **counted)
        if ranks.is_main:
            whole.write(self.run.path, "evaluation")
        self._keep_if_best(whole)
        log.scalars(self.step, whole.scalars())  # last: what is logged is done
        if self.speaks:
            tqdm.write(words.evaluated(self.step, whole, self.run))

    def _log_pictures(self, log: RunLog, manifest: Manifest, texts: Tensor, settings: InferenceSettings) -> None:
        """A few predictions and structure maps, always of the same samples, beside what they should be."""
        shown = self.config.eval.max_images
        rows = {"predictions": prediction_rows(self.model, manifest, texts, settings, max_images=shown)}
        if self.config.model.structures:
            rows["structures"] = structure_rows(self.model, self.samples.reader, self.config.data.crop)
        for kind, of_kind in rows.items():
            for row in of_kind:
                log.picture(self.step, f"{kind}/{row.title}", row.tiled())

    def _keep_if_best(self, result: Evaluation) -> None:
        settings, miou = self.config.eval, result.confusion.miou()
        if settings.keep_best and self.ranks.is_main and isfinite(miou):  # NaN: no label was looked at
            of = {"manifest": result.source["manifest"], "max_images": settings.max_images, "windows": settings.windows}
            of["protocol"] = result.source["fingerprint"]  # earlier versions averaged over other classes and have none
            best = self.run.best()
            # One of a later step, or whose checkpoint somebody deleted, is of a past that this run went back behind.
            kept = best is not None and best["step"] in checkpoint.steps(self.run.checkpoints)
            if best is None or not kept or best["step"] >= self.step or best["of"] != of or miou > best["miou"]:
                if best is not None and best["of"] != of:
                    tqdm.write(f"step {best['step']} was the best by another protocol: now it is step {self.step}")
                self.run.set_best({"step": self.step, "miou": miou, "miou_over": "ground_truth", "of": of})
                self._prune()

    # --- log ---

    def _open_log(self) -> RunLog:
        if not self.ranks.is_main:
            return SilentLog()
        wandb = open_wandb(self.run) if self.config.log.wandb else None
        return RunLog(self.run.log_file, self.run.tensorboard, start_step=self.step, wandb=wandb)

    def _log_means(self, log: RunLog, bar: ProgressBar, meter: AverageMeter) -> None:
        values = meter.take() | optim.learning_rates(self.optimizer)
        log.scalars(self.step, values)
        bar.set_postfix_str(f"loss {values['loss/total']:.3f}, data wait {values['speed/data_wait']:.0%}")

    def _log_start(self, log: RunLog, stop_at: int) -> None:
        left_out = self.samples.quarantined
        losses = [one.OFFER.where for one in self.config.losses.named.values()]
        log.event(
            "start",
            self.step,
            stop_at=stop_at,
            steps=self.config.steps,
            device=str(self.device),
            ranks=self.ranks.size,
            torch=torch.__version__,
            samples=len(self.samples.usable),
            quarantined=left_out,
            clip_weights=self.clip_weights.facts() if self.clip_weights else None,
            **({"losses": losses} if losses else {}),
        )
        if not self.ranks.is_main:
            return
        if self.speaks and self.step < stop_at:
            known = {"samples": len(self.samples.usable), "classes": len(self.vocabulary.classes), "step": self.step}
            tqdm.write(words.beginning(self.config, device=self.device, ranks=self.ranks.size, **known))
        if self.step == 0 and self.clip_weights is None and self.config.model.clip in published_names():
            tqdm.write(f"{self.config.model.clip} begins with random weights; `clip_weights` names pretrained ones")
        if left_out:
            tqdm.write(f"left out: {counted(len(left_out), 'quarantined sample')}: {preview(left_out)}")


@dataclass(slots=True)
class _Data:
    """The stream of batches, one ahead; and what ended it."""

    stream: Iterator[Batch]
    meter: AverageMeter
    stop: StopSignals
    failure: PhyssegError | None = None
    batch: Batch | None = None

    def fetch(self) -> None:
        """Take the next batch from the stream, unless a signal asked to stop."""
        if self.stop.received is not None:
            return
        try:
            with self.meter.waiting():
                self.batch = next(self.stream, None)
        except PhyssegError as error:
            self.failure = error
        except RuntimeError:
            if self.stop.received is None:  # else the signal may have ended data workers as well
                raise
