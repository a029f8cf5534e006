"""The training loop of a detector: seeded, logged, and resumable at any step with the same result.

Nothing random is carried from step to step: pictures, homographies and noise follow from the seed and the step, and
the learning rate from the step. A checkpoint is weights, optimiser and step. So pictures may as well be drawn by other
processes, ahead of the step that needs them. The same result means the same bytes on a CPU with one number of threads;
on a GPU, whose sums may come in any order, the same up to rounding.
"""

import dataclasses
import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...common.atomic import atomic_write
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.homography import (
    HomographySettings,
    random_homographies,
    valid_pixels,
    warp,
    warp_points,
)
from ...structure_extractors.superpoint.network import CELL_PX, Architecture, DetectorNetwork
from ...structure_extractors.superpoint.weights import load_detector
from .photometric import PhotometricSettings, augment
from .sources import Source, drawn_batches
from .targets import cell_classes, detector_loss, valid_cells

WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint.pt"
SETTINGS = "settings.json"
LOG = "log.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Everything that the weights depend on, besides the source of the pictures."""

    steps: int = 8000
    batch_size: int = 32
    size: tuple[int, int] = (96, 128)  # h, w of the training pictures, multiples of 8
    seed: int = 0
    widths: tuple[int, ...] = (16, 16, 32, 32, 64, 64, 128, 128)
    head_width: int = 128
    learning_rate: float = 3e-3  # the largest; it rises for a twentieth of the steps, then falls along a cosine to 0
    weight_decay: float = 1e-4
    warped: float = 0.5  # share of the pictures that a random homography changes
    homography: HomographySettings = field(default_factory=HomographySettings)
    photometric: PhotometricSettings = field(default_factory=PhotometricSettings)
    precision: str = "bfloat16"  # or float32; of the convolutions; weights and optimiser are float32

    def __post_init__(self) -> None:
        if min(self.size) < CELL_PX or self.size[0] % CELL_PX or self.size[1] % CELL_PX:
            raise ExtractorError(f"size: expected multiples of {CELL_PX}, got {self.size}", option="size")
        if min(self.steps, self.batch_size) < 1:
            raise ExtractorError(f"expected at least one step of one picture, got {self.steps} of {self.batch_size}")
        dtype_of(self.precision)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        rise = max(1, self.steps // 20)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


def train(
    source: Source,
    settings: TrainSettings,
    run: Path,
    *,
    start: Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    save_every_s: float = 120.0,
    log_every: int = 50,
    stop_at: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train into the folder ``run``, going on from its checkpoint if it has one; returns the file of weights.

    ``start``: weights to begin with (architecture included), otherwise random ones. ``workers``: processes that draw
    pictures; 0 draws them here. The weights do not depend on it. ``stop_at`` ends early, as an interruption would. A
    folder made with other settings is an :class:`ExtractorError`.
    """
    device = check_device(device)
    _check_settings(run, settings, source, start)
    torch.manual_seed(settings.seed)
    network = _network(settings, start).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=settings.weight_decay)
    step = _resume(run / CHECKPOINT, network, optimiser)
    if step:
        say(f"{run}: goes on at step {step} of {settings.steps}")
    network.train()
    saved = logged = time.monotonic()
    losses: list[Tensor] = []
    last = min(settings.steps, stop_at or settings.steps)
    for drawn in drawn_batches(
        source,
        settings.seed,
        range(step, last),
        batch_size=settings.batch_size,
        size=settings.size,
        workers=workers,
    ):
        images, classes, valid = training_batch(drawn, settings, step, device=device)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits = network(images.to(memory_format=torch.channels_last))
        loss = detector_loss(logits, classes, valid)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.detach())
        step += 1
        if step % log_every == 0 or step == last:
            mean, seconds = float(torch.stack(losses).mean()), time.monotonic() - logged
            if not math.isfinite(mean):
                raise ExtractorError(f"{run}: the loss is {mean} at step {step}", hint="lower the learning rate")
            _log(run / LOG, {"step": step, "loss": mean, "seconds": seconds})
            say(f"step {step}/{settings.steps}: loss {mean:.4f}, {len(losses) / seconds:.1f} steps/s")
            losses, logged = [], time.monotonic()
        if time.monotonic() - saved > save_every_s or step == last:
            _save(run, network, optimiser, step)
            saved = time.monotonic()
    return run / WEIGHTS


def training_batch(
    drawn: tuple[Tensor, Tensor], settings: TrainSettings, step: int, *, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of a step, made on ``device`` of the pictures and keypoints drawn for it (``draw_batch``): pictures
    (B, 1, H, W) in [0, 1], classes (B, h, w) int64, valid cells (B, h, w) bool.
    """
    images, keypoints = drawn
    place = torch.Generator().manual_seed(_mix(settings.seed, step, 1))
    light = torch.Generator(device=device).manual_seed(_mix(settings.seed, step, 2))
    homographies = random_homographies(settings.batch_size, settings.size, settings.homography, place)
    bent = torch.rand(settings.batch_size, generator=place) < settings.warped
    homographies[~bent] = torch.eye(3)
    images, keypoints, homographies = images.to(device, copy=True), keypoints.to(device), homographies.to(device)
    keypoints = warp_points(keypoints.nan_to_num(posinf=-1e4), homographies)
    images[bent] = warp(images[bent], homographies[bent])
    valid = valid_pixels(homographies, settings.size)
    images = augment(images, settings.photometric, light)
    return images, cell_classes(keypoints, settings.size, light), valid_cells(valid)


def check_device(device: str) -> str:
    """Return ``device``, or raise :class:`ExtractorError` if torch has no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise ExtractorError(
            f"device: {device!r} is not to be had here: {str(error).splitlines()[0]}",
            hint="cpu works everywhere",
            option="device",
            got=device,
        ) from error
    return device


def chosen_precision(precision: str, device: str, recorded: str | None) -> str:
    """What "auto" means: what was ``recorded`` of a run that goes on; else bfloat16 where the device has instructions
    for it (a CPU without them takes 2.5 times as long as in float32), and float32 elsewhere.

    Every other name comes back as it is; one that is not offered is an :class:`ExtractorError`.
    """
    if precision != "auto":
        dtype_of(precision)
        return precision
    return recorded or ("bfloat16" if _computes_in_bfloat16(torch.device(check_device(device))) else "float32")


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def dtype_of(precision: str) -> torch.dtype:
    """The type that a setting names; one that is not offered is an :class:`ExtractorError`."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in known:
        raise ExtractorError(f"precision: expected {', '.join(known)} or auto, got {precision!r}", option="precision")
    return known[precision]


def _mix(*numbers: int) -> int:
    """A seed from several numbers, so that neighbouring steps have nothing in common."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed


def _network(settings: TrainSettings, start: Path | None) -> DetectorNetwork:
    if start is not None:
        if not start.is_file():
            raise ExtractorError(f"{start}: expected a file of weights to start from, found none", option="start")
        return load_detector(start.read_bytes(), where=str(start)).network.requires_grad_(True)
    architecture = Architecture(
        widths=settings.widths, head_width=settings.head_width, order="conv-bn-relu", norm_logits=True
    )
    return DetectorNetwork(architecture)


def recorded_precision(run: Path) -> str | None:
    """The precision of the training in a folder, if there is one."""
    settings = _recorded_settings(run)
    return str(settings["precision"]) if settings and "precision" in settings else None


def _recorded_settings(run: Path) -> dict[str, Any] | None:
    path = run / SETTINGS
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__}")
        return settings
    except ValueError as error:
        raise ExtractorError(
            f"{path}: expected the settings of a training, got a file that does not read ({error})",
            hint="name another folder, or remove this one",
        ) from error


def _check_settings(run: Path, settings: TrainSettings, source: Source, start: Path | None) -> None:
    beginning = hashlib.sha256(start.read_bytes()).hexdigest() if start and start.is_file() else None
    everything = dataclasses.asdict(settings) | {"source": source.describe(), "start": beginning}
    wanted = json.loads(json.dumps(everything))
    found = _recorded_settings(run)
    if found is None:
        atomic_write(run / SETTINGS, (json.dumps(wanted, indent=2) + "\n").encode())
        return
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        key = changed[0]
        raise ExtractorError(
            f"{run}: a training with other settings is here: {key} {found.get(key)}, now {wanted[key]}",
            hint="name another folder, or repeat the command that made this one",
            expected=found.get(key),
            got=wanted[key],
        )


def _resume(path: Path, network: DetectorNetwork, optimiser: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ExtractorError(
            f"{path}: expected a checkpoint of this training, got a file that does not load ({error})",
            hint="remove it to begin anew, or name another folder",
        ) from error


def _save(run: Path, network: DetectorNetwork, optimiser: torch.optim.Optimizer, step: int) -> None:
    buffer = io.BytesIO()
    torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, buffer)
    # In this order: stopped in between, a finished training would be one whose weights are an earlier step's.
    atomic_write(run / WEIGHTS, weights_file(network))
    atomic_write(run / CHECKPOINT, buffer.getvalue())


def weights_file(network: DetectorNetwork) -> bytes:
    """A safetensors file of a network, in our own naming scheme, half precision, without the norms' counters."""
    state = {
        key: value.detach().to("cpu", torch.float16).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    return save_safetensors(state)


def _log(path: Path, row: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
