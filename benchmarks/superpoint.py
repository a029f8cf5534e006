"""SuperPoint on one CPU core: images/s at 384x512, and the share of what the core's convolutions can do at best.

    python benchmarks/superpoint.py [--repeats 5] [--threads 1] [--adaptation]

The peak is measured, not computed: the fastest of several 3x3 convolutions whose sizes suit the library, in the same
precision, in turns with the networks. A network's rate is its multiply-adds over its time, post-processing left out;
`extractor` is the whole call for one RGB image, post-processing and coding included.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from physseg.structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS, SuperPoint
from physseg.structure_extractors.superpoint.inference import gpus
from physseg.structure_extractors.superpoint.network import (
    Architecture,
    DetectorNetwork,
    fold_normalisation,
    keypoint_probabilities,
)
from physseg.structure_extractors.superpoint.weights import load_detector
from physseg.train.detector.settings import chosen_precision
from torch import nn

from common import Goal, Section, Timing, machine, time_calls

SIZE = (384, 512)  # height, width
PEAK_SHAPES = ((64, 64, 96, 128), (128, 128, 48, 64), (256, 256, 24, 32), (256, 256, 48, 64))  # in, out, height, width
# bfloat16 only where the CPU computes in it: without, it is emulated, and takes minutes.
PRECISIONS = tuple(dict.fromkeys(("float32", chosen_precision("auto", "cpu"))))
LABELS = np.zeros((1, 1), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--adaptation", action="store_true", help="time the extractor with adaptation 16, too (slow)")
    args = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()) + "\n")
    print(measure(repeats=args.repeats, threads=args.threads, adaptation=args.adaptation).markdown())


def measure(*, repeats: int = 7, threads: int = 1, adaptation: bool = False) -> Section:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    networks = {
        "shipped": load_detector(SHIPPED_WEIGHTS.read_bytes(), where=str(SHIPPED_WEIGHTS)).network,
        "full width": DetectorNetwork(Architecture()).eval(),
    }
    rows = []
    for precision in PRECISIONS:
        rows += rows_of(networks, getattr(torch, precision), repeats=repeats)
    shipped = next(r for r in rows if r["network"] == "shipped, batch 1" and r["precision"] == "float32")
    section = Section(
        title="SuperPoint on one core",
        text=f"{SIZE[1]}x{SIZE[0]} px, {threads} thread(s), channels-last, batch normalisation folded; median "
        f"(10th-90th percentile) of {repeats} calls in turns. Peak: the fastest of {len(PEAK_SHAPES)} 3x3 convolutions "
        "in the same precision; rates are of each one's 10th percentile. A CPU takes a batch picture by picture. The "
        "narrow layers at full size are bound by memory, so the share falls as bfloat16 makes arithmetic faster. "
        "Figures of quality: structure_extractors/superpoint/weights/superpoint_physseg.md.",
        tables=[rows, extractor_rows(repeats, adaptation=adaptation)],
        goals=[
            Goal(
                text="shipped width at 60 % of the measured convolution peak or more, float32",
                measured=f"{shipped['share of peak']:.0%}",
                met=shipped["share of peak"] >= 0.6,
            )
        ],
    )
    torch.set_num_threads(before)
    return section


def rows_of(networks: dict[str, DetectorNetwork], precision: torch.dtype, *, repeats: int) -> list[dict[str, Any]]:
    """Each network at batch 1 and 4 against the best convolution, interleaved."""
    calls: dict[str, Callable[[], object]] = {}
    work: dict[str, float] = {}
    for shape in PEAK_SHAPES:
        name = f"peak {shape}"
        calls[name], work[name] = convolution(*shape, precision)
    for name, network in networks.items():
        ready = fold_normalisation(network).to(dtype=precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for batch in (1, 4):
            images = torch.rand(batch, 1, *SIZE)
            key = f"{name}, batch {batch}"
            calls[key] = lambda ready=ready, images=images: keypoint_probabilities(ready, images)  # type: ignore[misc]
            work[key] = batch * multiply_adds(network.architecture, SIZE)
    timings = time_calls(calls, repeats=repeats)
    rates = {name: work[name] / timing.p10_s for name, timing in timings.items()}
    peak = max(rate for name, rate in rates.items() if name.startswith("peak"))
    rows = []
    for name, timing in timings.items():
        if not name.startswith("peak"):
            batch = int(name.rsplit(" ", 1)[1])
            rows.append(row(name, precision, timing, batch, rates[name], peak))
    return rows


def row(name: str, precision: torch.dtype, timing: Timing, batch: int, rate: float, peak: float) -> dict[str, Any]:
    return {
        "network": name,
        "precision": str(precision).removeprefix("torch."),
        "time": str(timing),
        "images/s": batch / timing.median_s,
        "GMAC/s": rate / 1e9,
        "peak GMAC/s": peak / 1e9,
        "share of peak": rate / peak,
    }


def extractor_rows(repeats: int, *, adaptation: bool) -> list[dict[str, Any]]:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    calls: dict[str, Callable[[], object]] = {}
    for precision in PRECISIONS:
        for number in (0, 16) if adaptation else (0,):
            extractor = SuperPoint(precision=precision, adaptation=number)  # type: ignore[arg-type]
            calls[f"{precision}, adaptation {number}"] = lambda extractor=extractor: extractor(  # type: ignore[misc]
                image, LABELS, ignore_index=255
            )
    if gpus():
        on_gpu = SuperPoint(device="cuda")
        calls["float32, adaptation 0, on a GPU of this process"] = lambda: on_gpu(image, LABELS, ignore_index=255)
    timings = time_calls(calls, repeats=repeats, warmup=1)
    return [{"extractor": name, "time": str(t), "images/s": 1 / t.median_s} for name, t in timings.items()]


def convolution(
    inputs: int, outputs: int, height: int, width: int, precision: torch.dtype
) -> tuple[Callable[[], object], float]:
    """One 3x3 convolution with its ReLU as a call, and its multiply-adds."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1).to(dtype=precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(4, inputs, height, width).to(dtype=precision, memory_format=torch.channels_last)

    @torch.inference_mode()
    def call() -> object:
        return layer(images)

    return call, 4 * 9.0 * inputs * outputs * height * width


def multiply_adds(architecture: Architecture, size: tuple[int, int]) -> float:
    """Multiply-adds of a detector for one picture of `size` (h, w)."""
    widths = (1, *architecture.widths)
    total, pixels = 0.0, float(size[0] * size[1])
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        total += pixels * 9 * inputs * outputs
        if index in (1, 3, 5):
            pixels /= 4
    return total + pixels * architecture.head_width * (9 * widths[-1] + 65)


if __name__ == "__main__":
    main()
