"""One training step at full size: ViT-B/16, 171 classes, random weights, text encoder and both losses included.

    python benchmarks/train_step.py [--device cuda] [--steps 4] [--batch 1 4 16]

Every row is a process of its own, so that its peak memory is its own. Data come from a store of generated pictures
through the trainer's own loader, prefetched as in training. FLOPs are what PyTorch's counter finds in matrix products,
convolutions and attention, of both passes and of what is recomputed; the device's rate is that of one large matrix
product.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import open_samples, write_store
from physseg.common.processes import keep_freed_memory
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import Batch, DataConfig, TrainSamples, batches, to_device
from physseg.train.data.order import PositionBatches
from physseg.train.loop.objective import Objective
from physseg.train.losses.total import LossConfig
from physseg.train.model.bounded import bounded_parts
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.optim import build_optimizer, clip_gradients, require_finite
from torch.utils.flop_counter import FlopCounterMode

from common import Goal, Section, machine, spread

STRUCTURES = ("canny", "mask_edges", "sift")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row of the table."""

    device: str
    batch: int
    precision: str
    compiled: bool = False
    recompute: bool = False
    steps: int = 4
    clip: str = "ViT-B-16"

    @property
    def name(self) -> str:
        options = [self.precision, "compiled" if self.compiled else "eager"]
        options += ["recompute"] * self.recompute
        return f"{self.device}, batch {self.batch}, {', '.join(options)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", help="Default: 1 on a CPU; 1, 4 and 16 on a GPU.")
    parser.add_argument("--steps", type=int, default=4, help="Steps that count; two before them do not.")
    parser.add_argument("--clip", default="ViT-B-16")
    parser.add_argument("--json", type=Path, help="Write the rows here, too.")
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "CASE", "STORE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        what, case, store = args.run
        measured = {"step": measure_step, "overhead": measure_overhead}[what]
        print(json.dumps(measured(Case(**json.loads(case)), Path(store))))
        return
    with tempfile.TemporaryDirectory() as name:
        store = write_store(open_samples(None, 32, Path(name)).manifest, Path(name) / "store.zarr")
        section = measure(store, args.device, args.steps, args.batch, clip=args.clip)
    print(f"{machine()}\n\n{section.markdown()}")
    if args.json:
        args.json.write_text(json.dumps(asdict(section), indent=1) + "\n")


def measure(store: Path, device: str, steps: int, batch: Sequence[int] | None, *, clip: str = "ViT-B-16") -> Section:
    """All rows for a device."""
    results = {case: run_alone("step", case, store) for case in cases(device, steps, batch, clip)}
    plain = next(iter(results))
    overhead = run_alone("overhead", replace(plain, precision="bf16") if device != "cpu" else plain, store)
    rows = [
        {
            "what": case.name,
            "s a step": spread(result["step"]),
            "forward": f"{np.median(result['forward']):.3g}",
            "backward": f"{np.median(result['backward']):.3g}",
            "optimizer": f"{np.median(result['optimizer']):.3g}",
            "images/s": f"{case.batch / np.median(result['step']):.3g}",
            "data wait": f"{np.median(result['wait']) / np.median(result['step']):.1%}",
            "peak GB": f"{result['peak'] / 1e9:.3g}",
            "TFLOP": f"{result['flop'] / 1e12:.3g}",
            "of the matrix rate": f"{result['flop'] / np.median(result['step']) / result['rate']:.0%}",
        }
        for case, result in results.items()
    ]
    rates = {result["rate"] for result in results.values()}
    return Section(
        title="A training step",
        text=f"{clip}, 171 classes, crops of 384 px, random weights, both losses, text encoder included; on "
        f"{next(iter(results.values()))['hardware']}. Median (smallest-largest) of {steps} steps after two; matrix "
        f"products of {', '.join(f'{rate / 1e12:.3g}' for rate in sorted(rates))} TFLOP/s. Peak memory is the "
        "process's resident memory on a CPU, what PyTorch allocated on a GPU.",
        tables=[rows],
        goals=[loss_goal(overhead)],
    )


def cases(device: str, steps: int, batch: Sequence[int] | None, clip: str) -> Iterator[Case]:
    first = Case(device=device, batch=1, precision="fp32", steps=steps, clip=clip)
    if torch.device(device).type == "cpu":
        for size in batch or (1,):
            case = replace(first, batch=size)
            yield from (case, replace(case, recompute=True))
        return
    for size in batch or (1, 4, 16):
        for precision in ("fp32", "bf16"):
            for compiled in (False, True):
                yield replace(first, batch=size, precision=precision, compiled=compiled)
        yield replace(first, batch=size, precision="bf16", recompute=True)


def loss_goal(overhead: dict[str, Any]) -> Goal:
    """What the two auxiliary losses, heads included, add to a step."""
    ratios = [both / none - 1 for both, none in zip(overhead["both"], overhead["none"], strict=True)]
    extra = float(np.median(ratios))
    low, high = min(ratios), max(ratios)
    return Goal(
        text="both losses together add at most 5 % to a step",
        measured=f"{extra:.1%} ({low:.1%} to {high:.1%}; {len(ratios)} pairs of steps in turns)",
        met=extra <= 0.05,
    )


def run_alone(what: str, case: Case, store: Path) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--run", what, json.dumps(asdict(case)), str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}: {done.stderr[-2000:]}")
    print(f"{case.name}: done", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_step(case: Case, store: Path) -> dict[str, Any]:
    """Seconds of each part of each step, peak bytes, FLOPs of a step, and the device's FLOP/s."""
    device = torch.device(case.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    trained = Trained(configuration(case, store, losses=True))
    objective = trained.objective
    if case.compiled:
        objective.compile()
    stream = trained.stream(case.steps + 3)
    seconds: dict[str, list[float]] = {name: [] for name in ("wait", "forward", "backward", "optimizer", "step")}
    for number in range(case.steps + 2):
        clock = Clock(device)
        batch = to_device(next(stream), device)
        clock.lap("wait")
        parts = objective(batch)
        clock.lap("forward")
        parts["loss"].backward()
        clock.lap("backward")
        trained.update(parts, batch, number)
        clock.lap("optimizer")
        if number >= 2:
            for name, value in clock.laps.items():
                seconds[name].append(value)
            seconds["step"].append(sum(clock.laps.values()))
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as counter:  # last, for it takes memory; eager, for it sees nothing else
        objective.forward(to_device(next(stream), device))["loss"].backward()
    hardware = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} CPU threads"
    rate = matrix_rate(device, torch.bfloat16 if case.precision == "bf16" else torch.float32)
    return {**seconds, "peak": peak, "flop": counter.get_total_flops(), "rate": rate, "hardware": hardware}


def measure_overhead(case: Case, store: Path) -> dict[str, Any]:
    """Seconds of steps with both losses and with none, in turns, on the same batches."""
    device = torch.device(case.device)
    if device.type == "cpu":
        keep_freed_memory()
    sides = {name: Trained(configuration(case, store, losses=name == "both")) for name in ("both", "none")}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(sides["both"].stream(case.steps + 2)):
        for name in sorted(sides, reverse=number % 2 == 1):
            clock = Clock(device)
            sides[name].step(to_device(batch, device), number)
            clock.lap("step")
            if number >= 2:
                seconds[name].append(clock.laps["step"])
    return seconds


class Trained:
    """A model in training."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.samples = TrainSamples(config.data, config.model.structures, config.losses.lambda_sac > 0, 0)
        vocabulary = self.samples.reader.schema.vocabulary
        torch.manual_seed(0)
        model = Segmenter(self.config.model)
        for part in bounded_parts(model):
            part.recompute = config.recompute
        self.objective = Objective(model, self.config, vocabulary.classes, vocabulary.ignore_index)
        self.objective.to(torch.device(config.device)).train()
        self.optimizer = build_optimizer(model, self.config.optim)

    def stream(self, steps: int) -> Iterator[Batch]:
        sampler = PositionBatches(start=0, stop=steps, batch_size=self.config.batch_size)
        return batches(self.samples, sampler, pin_memory=self.config.device != "cpu")

    def step(self, batch: Batch, number: int) -> torch.Tensor:
        """One step on a batch; its loss before the step."""
        parts = self.objective(batch)
        parts["loss"].backward()
        self.update(parts, batch, number)
        return parts["loss"].detach()

    def update(self, parts: dict[str, torch.Tensor], batch: Batch, number: int) -> None:
        parts["norm"] = clip_gradients(self.optimizer, self.config.optim.max_gradient_norm)
        require_finite(parts, step=number, sample_ids=batch["sample_ids"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def configuration(case: Case, store: Path, *, losses: bool) -> TrainConfig:
    weight = 1.0 if losses else 0.0
    return TrainConfig(
        data=DataConfig(store=store, num_workers=4 if torch.device(case.device).type == "cuda" else 1),
        model=SegmenterConfig(clip=case.clip, structures=STRUCTURES),
        losses=LossConfig(lambda_p=weight, lambda_sac=weight),
        batch_size=case.batch,
        precision=case.precision,  # type: ignore[arg-type]
        recompute=case.recompute,
        device=case.device,
    )


class Clock:
    """Seconds between laps, all work of the device done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self._since = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name], self._since = now - self._since, now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        clock = Clock(device)
        left @ right
        clock.lap("product")
        best = min(best, clock.laps["product"])
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
