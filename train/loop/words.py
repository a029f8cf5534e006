"""What a training says, in few lines: when it begins, at each evaluation, and at its end."""

import shlex
from pathlib import Path

import torch

from ...common.text import align, counted, format_duration, percent
from ..config import TrainConfig
from ..evaluation.result import Evaluation
from ..runs import checkpoint
from ..runs.run_folder import RunFolder


def beginning(config: TrainConfig, *, device: torch.device, ranks: int, samples: int, classes: int, step: int) -> str:
    """On what a run trains, how, and from where; `step` is the number of steps it has taken."""
    run, parts = RunFolder(config.run or Path()), ranks * config.accumulate
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    spread = f"{counted(ranks, 'rank')}, accumulate {config.accumulate}: {config.batch_size // parts} at once"
    weights = f"{config.model.clip}, {config.clip_weights or 'random weights'}"
    manifest = config.eval.manifest
    rows = [
        ("device", f"{device}{name}, {config.precision}"),
        ("data", f"{config.data.store}: {counted(samples, 'sample')}, {counted(classes, 'class')}"),
        ("structures", ", ".join(config.model.structures) or "none"),
        ("begins with", f"step {step}, {checkpoint.path_of(run.checkpoints, step)}" if step else weights),
        ("steps", f"{config.steps:,}, each of {config.batch_size} samples ({spread})"),
        ("evaluation", f"{manifest}, every {config.eval.every:,} steps" if manifest else "none: no eval.manifest"),
        ("run", str(run.path)),
        ("watch", shlex.join(["tensorboard", "--logdir", str(run.path)])),
    ]
    return "\n".join(align(rows, right=()))


def evaluated(step: int, result: Evaluation, run: RunFolder) -> str:
    """Scores of one evaluation, and the best so far where it is kept."""
    boundary, best = result.boundary_iou(), run.best()
    parts = [f"mIoU {percent(result.confusion.miou())}"]
    parts += [f"Boundary IoU {percent(boundary)}"] if boundary is not None else []
    if best is not None:
        is_best = best["step"] == step
        parts.append("the best so far" if is_best else f"best so far {percent(best['miou'])} at step {best['step']}")
    return f"step {step}: {', '.join(parts)}"


def end(config: TrainConfig, step: int, seconds: float) -> str:
    """Where the weights are, and what to type next."""
    run, manifest = RunFolder(config.run or Path()), config.eval.manifest
    best = run.best()
    at_best = ["--checkpoint", "best"] if best and best["step"] != step else []
    rows = [
        ("time", format_duration(seconds)),
        ("checkpoint", str(checkpoint.path_of(run.checkpoints, step))),
        *([("best", f"step {best['step']}, mIoU {percent(best['miou'])}")] if best else []),
        ("next", shlex.join(["physseg", "evaluate", str(run.path), str(manifest or "VAL.parquet"), *at_best])),
        ("", shlex.join(["physseg", "report", str(run.path)])),
    ]
    return "\n".join(align(rows, right=()))
