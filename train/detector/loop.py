"""The training loop of a detector: seeded, logged, and resumable at any step with the same result.

Nothing random is carried from step to step: batches follow from the seed and the step, and the learning rate from the
step. The same result means the same bytes on a CPU with one number of threads. On a GPU, whose sums may come in any
order, it means the same up to rounding.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...common.atomic import atomic_write
from ...common.settings import to_dict
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.inference import read_weights
from ...structure_extractors.superpoint.network import Architecture, DetectorNetwork
from ...structure_extractors.superpoint.weights import load_detector
from ..model.device import choose_device, fused_on, matmul_precision
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from ..runs.run_log import RunLog
from .batches import drawn_batches
from .pictures.sources import Source
from .settings import TrainSettings, chosen_precision, drawing_processes
from .targets import detector_loss

WEIGHTS = "weights.safetensors"  # in the run folder, of the same step as its checkpoint: what detects
SAVE_EVERY_S = 120.0


def train(
    source: Source,
    settings: TrainSettings,
    run: Path,
    *,
    start: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    log_every: int = 50,
    stop_at: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train into a folder, resuming from its checkpoint if it has one.

    Args:
        settings: Settings of the training; precision "auto" keeps that of a training that is resumed.
        start: File of weights to begin with, architecture included; None begins with random ones.
        workers: Number of processes that draw pictures, on which the weights do not depend. 0 draws in this process,
            None chooses by the device.
        log_every: Number of steps between lines of the log.
        stop_at: Step to end at early, as an interruption would.

    Returns:
        The file of weights.

    Raises:
        RunFolderError: The folder was made with other settings, or another process is training in it.
        CheckpointError: The folder's checkpoint is torn.
        ExtractorError: A picture cannot be read, a worker died, or the loss is not finite.
    """
    place, folder = choose_device(device), RunFolder(run)
    recorded = (folder.read()["training"] or {}).get("precision") if folder.exists() else None
    settings = replace(settings, precision=chosen_precision(settings.precision, device, recorded))
    first = read_weights(start) if start else None
    last = min(settings.steps, settings.steps if stop_at is None else stop_at)
    torch.manual_seed(settings.seed)
    network = _network(settings, first, str(start)).to(device=place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decay = settings.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=decay, fused=fused_on(place))
    with folder.locked(), matmul_precision("fp32"):  # on CUDA, float32 by name would round convolutions to TF32
        beginning = {"source": source.describe(), "start": hashlib.sha256(first).hexdigest() if first else None}
        training = to_dict(settings) | beginning
        sizes = to_dict(network.architecture)
        folder.begin_or_check(model=sizes, training=training, data=None)
        step = checkpoint.resume_last(folder.checkpoints, network, optimizer, sizes)
        if step:
            say(f"{run}: resumes at step {step} of {settings.steps}")
        network.train()
        saved = logged = time.monotonic()
        losses: list[Tensor] = []
        processes = drawing_processes(workers, place)
        with RunLog(folder.log_file, folder.tensorboard, start_step=step) as log:
            pinned = place.type == "cuda"
            for batch in drawn_batches(source, settings, range(step, last), workers=processes, pin_memory=pinned):
                images, classes, valid = (each.to(place, non_blocking=True) for each in batch)
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate_at(step)
                with torch.autocast(place.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                    logits = network(images.to(memory_format=torch.channels_last))
                loss = detector_loss(logits, classes, valid)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
                step += 1
                if step % log_every == 0 or step == last:
                    mean, seconds = float(torch.stack(losses).mean()), time.monotonic() - logged
                    if not math.isfinite(mean):
                        raise ExtractorError(
                            f"{run}: the loss is {mean} at step {step}", hint="lower the learning rate"
                        )
                    log.scalars(step, {"loss": mean, "seconds": seconds})
                    say(f"step {step}/{settings.steps}: loss {mean:.4f}, {len(losses) / seconds:.1f} steps/s")
                    losses, logged = [], time.monotonic()
                if time.monotonic() - saved > SAVE_EVERY_S or step == last:
                    checkpoint.require_finite(network, step=step)
                    # In this order: otherwise a finished training may be left with the weights of an earlier step.
                    atomic_write(run / WEIGHTS, weights_file(network))
                    checkpoint.save_last(folder.checkpoints, network, optimizer, sizes, step)
                    saved = time.monotonic()
    return run / WEIGHTS


def weights_file(network: DetectorNetwork) -> bytes:
    """A safetensors file of a network, in our own naming scheme, half precision, without the norms' counters."""
    state = {
        key: value.detach().to("cpu", torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return save_safetensors(state)


def _network(settings: TrainSettings, first: bytes | None, where: str) -> DetectorNetwork:
    if first is not None:
        return load_detector(first, where=where).network.requires_grad_(True)
    widths, head_width = settings.widths, settings.head_width
    return DetectorNetwork(Architecture(widths=widths, head_width=head_width, order="conv-bn-relu", norm_logits=True))
