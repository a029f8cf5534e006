"""How fast a device computes: measured in a few seconds where it runs, or named."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...common.text import format_bytes
from ..model.device import Precision, matmul_precision

REPEATS = 5


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second."""

    device: str
    """Where it was measured, in words."""
    product: float
    """FLOP/s of matrix products."""
    convolution: float
    """FLOP/s of convolutions."""
    bandwidth: float | None
    """Bytes/s that other operations read and write; None leaves them out."""

    def seconds(self, work: Mapping[str, float]) -> float:
        """Seconds of work as the meter counts it, one operation after the other."""
        other = work["bytes"] / self.bandwidth if self.bandwidth else 0
        return work["product"] / self.product + work["convolution"] / self.convolution + other

    def describe(self) -> str:
        if self.bandwidth is None:
            return self.device
        rates = f"products {self.product / 1e12:.3g} TFLOP/s, convolutions {self.convolution / 1e12:.3g} TFLOP/s"
        return f"{self.device}: {rates}, memory {format_bytes(self.bandwidth)}/s"


def named_rates(tflops: float) -> Rates:
    """One rate for everything, in TFLOP/s: what training was seen to reach, rather than what a data sheet says."""
    return Rates(f"a GPU that computes {tflops:g} TFLOP/s, as named", tflops * 1e12, tflops * 1e12, None)


def measured_rates(device: torch.device, precision: Precision) -> Rates:
    """Rates of this device, the best of a few repeats."""
    on_gpu, dtype = device.type == "cuda", torch.bfloat16 if precision == "bf16" else torch.float32
    side, images, values = (8192, 32, 2**28) if on_gpu else (1024, 1, 2**24)
    square = torch.randn(side, side, device=device).to(dtype)
    maps, kernel = torch.randn(images, 128, 96, 96, device=device).to(dtype), torch.randn(128, 128, 3, 3).to(square)
    numbers, result = torch.zeros(2, values, device=device)
    with torch.no_grad(), matmul_precision(precision):
        product = 2 * side**3 / _seconds(lambda: square @ square, device)
        convolution = 2 * maps.numel() * 9 * 128 / _seconds(lambda: F.conv2d(maps, kernel, padding=1), device)
        bandwidth = 2 * numbers.nbytes / _seconds(lambda: torch.mul(numbers, 2.0, out=result), device)
    name = torch.cuda.get_device_name(device) if on_gpu else "this CPU"
    return Rates(f"{name} in {precision}, measured", product, convolution, bandwidth)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = math.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
