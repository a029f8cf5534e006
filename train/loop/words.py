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
    run, manifest = RunFolder(config.run or Path()), config.eval.manifest
    spread = f"{counted(ranks, 'rank')}, accumulate {config.accumulate}"
    at_once = config.batch_size // ranks // config.accumulate
    weights = f"{config.model.clip}, {config.clip_weights or 'random weights'}"
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    rows = {
        "device": f"{device}{name}, {config.precision}",
        "data": f"{config.data.store}: {counted(samples, 'sample')}, {counted(classes, 'class')}",
        "structures": ", ".join(config.model.structures) or "none",
        "begins with": f"step {step}, {checkpoint.path_of(run.checkpoints, step)}" if step else weights,
        "steps": f"{config.steps:,}, each of {counted(config.batch_size, 'sample')} ({spread}: {at_once} at once)",
        "evaluation": f"{manifest}, every {config.eval.every:,} steps" if manifest else "none: no eval.manifest",
        "run": str(run.path),
        "watch": shlex.join(["tensorboard", "--logdir", str(run.path)]),
    }
    return "\n".join(align(list(rows.items()), right=()))


def evaluated(step: int, result: Evaluation, run: RunFolder) -> str:
    """Scores of one evaluation, and the best so far where it is kept."""
    scores = f"step {step}: mIoU {percent(result.confusion.miou())}"
    if (boundary := result.boundary_iou()) is not None:
        scores += f", Boundary IoU {percent(boundary)}"
    if (best := run.best()) is None:
        return scores
    is_best = best["step"] == step
    return f"{scores}, " + ("the best so far" if is_best else f"best {percent(best['miou'])} at step {best['step']}")


def end(config: TrainConfig, step: int, seconds: float) -> str:
    """Where the weights are, and what to type next."""
    run, manifest = RunFolder(config.run or Path()), config.eval.manifest or "VAL.parquet"
    best = run.best()
    at_best = ["--checkpoint", "best"] if best and best["step"] != step else []
    rows = [
        ("time", format_duration(seconds)),
        ("checkpoint", str(checkpoint.path_of(run.checkpoints, step))),
        *([("best", f"step {best['step']}, mIoU {percent(best['miou'])}")] if best else []),
        ("next", shlex.join(["physseg", "evaluate", str(run.path), manifest, *at_best])),
        ("", shlex.join(["physseg", "report", str(run.path)])),
    ]
    return "\n".join(align(rows, right=()))
