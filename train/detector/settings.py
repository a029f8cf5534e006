"""Settings of a detector's training, and what is chosen by the machine: precision and processes."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ...common.processes import available_cpus
from ...common.settings import check_ranges
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.homography import HomographySettings
from ...structure_extractors.superpoint.network import CELL_PX
from ..model.device import choose_device
from .pictures.photometric import PhotometricSettings

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Everything that the weights depend on, besides the source of the pictures."""

    steps: int = 8000  # number of steps of the whole schedule
    batch_size: int = 32  # number of pictures per step
    size: tuple[int, int] = (96, 128)  # height and width of the training pictures, multiples of 8
    seed: int = 0  # seed of the first weights, the pictures and their changes
    widths: tuple[int, ...] = (16, 16, 32, 32, 64, 64, 128, 128)  # output channels of the eight encoder convolutions
    head_width: int = 128  # channels between the two convolutions of the head
    learning_rate: float = 3e-3  # the largest; it rises for a twentieth of the steps, then falls along a cosine to 0
    weight_decay: float = 1e-4  # weight decay of AdamW
    warped: float = 0.5  # share of the pictures that a random homography changes
    homography: HomographySettings = field(default_factory=HomographySettings)
    photometric: PhotometricSettings = field(default_factory=PhotometricSettings)
    precision: str = "auto"  # of the convolutions: bfloat16, float32, or auto; weights and optimiser are float32

    def __post_init__(self) -> None:
        if min(self.size) < CELL_PX or self.size[0] % CELL_PX or self.size[1] % CELL_PX:
            raise ExtractorError.mismatch("size", f"multiples of {CELL_PX}", self.size)
        check_ranges(self, steps="[1, inf)", batch_size="[1, 1e7]", learning_rate="(0, 1e18]", warped="[0, 1]")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        rise = max(1, self.steps // 20)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


def further_settings(**settings: Any) -> TrainSettings:
    """Settings to train a detector further, on labelled pictures: a lower learning rate, more warped pictures."""
    return TrainSettings(learning_rate=1e-3, warped=0.7, **settings)


def chosen_precision(precision: str, device: str, recorded: str | None = None) -> str:
    """What "auto" means on a device; every other name comes back as it is.

    `recorded` is the precision of the work that is resumed, which "auto" keeps. Without one it is bfloat16 where the
    device has instructions for it (a CPU without them takes 2.5 times as long as in float32), and float32 elsewhere.
    Raises ExtractorError for an unknown precision, ConfigError for a device that PyTorch cannot use.
    """
    if precision == "auto":
        return recorded or ("bfloat16" if _computes_in_bfloat16(choose_device(device)) else "float32")
    if precision not in PRECISIONS:
        raise ExtractorError.mismatch("precision", f"{', '.join(PRECISIONS)} or auto", repr(precision))
    return precision


def drawing_processes(workers: int | None, device: torch.device) -> int:
    """Number of processes that draw pictures: as asked, or 0 beside a CPU that computes and up to 8 beside a GPU.

    A step's 32 pictures take a core 0.1 to 0.2 s to draw and to change.
    """
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else min(8, max(1, available_cpus() - 1))


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
