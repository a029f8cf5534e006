"""Seconds and memory of training steps beside what `physseg train --dry-run` says of the same configurations.

Batches lie on the device: what a training waits for data is another part. Plans are made meanwhile by processes of
their own, for they need a CPU and no GPU. Running out of memory is a result.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import to_device
from physseg.train.model.device import Precision, matmul_precision
from physseg.train.optim import set_learning_rate
from physseg.train.planning.estimate import rehearse
from physseg.train.planning.rate import Rates, measured_rates
from physseg.train.planning.rehearsal import Reading
from train_step import Trained

from common import Section, spread
from gpu.material import configuration, finish, hardware, let_go, pictures_store, scenes_store
from gpu.parts import Kit

PRECISIONS: tuple[Precision, ...] = ("tf32", "bf16")
WARMUP = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One row."""

    clip: str
    losses: bool
    precision: Precision
    batch: int

    def config(self, kit: Kit, store: os.PathLike[str]) -> TrainConfig:
        return configuration(kit, self.clip, store, precision=self.precision, losses=self.losses, batch_size=self.batch)

    @property
    def name(self) -> str:
        return f"{self.clip}, batch {self.batch}, {self.precision}" + ("" if self.losses else ", L_seg alone")


def measure(kit: Kit) -> Iterator[Section]:
    if kit.on_gpu:
        cases = [
            Case(clip, losses, precision, batch)
            for losses in (True, False)
            for clip in ("B/16", "L/14")
            for precision in PRECISIONS
            for batch in ((1, 4, 16) if losses else (4,))
        ]
    else:
        cases = [Case("demo", True, "tf32", 1), Case("demo", True, "bf16", 2), Case("demo", False, "tf32", 1)]
    yield from table(kit, cases, compiled=False)


def table(kit: Kit, cases: Sequence[Case], *, compiled: bool) -> Iterator[Section]:
    """The section after each case."""
    store = pictures_store(kit) if kit.on_gpu else scenes_store(kit, 192)
    rates = {precision: measured_rates(torch.device(kit.device), precision) for precision in PRECISIONS}
    configs = [case.config(kit, store) for case in cases]
    rows: list[dict[str, object]] = []
    trained: Trained | None = None
    workers = max(1, (os.cpu_count() or 1) // 3)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_niced) as pool:
        plans = [pool.submit(planned, replace(config, device="cpu")) for config in configs]
        took = []
        for config in configs:
            if trained is None or trained.config.losses != config.losses or trained.config.model != config.model:
                trained = None
                let_go(kit.device)
                trained = Trained(config)
            took.append(run(trained, config, compiled=compiled))
            rows = [row(*each, rates) for each in zip(cases, took, plans, strict=False)]
            yield section(kit, rows, rates, compiled=compiled)
        for plan in plans:
            plan.result()
        rows = [row(*each, rates) for each in zip(cases, took, plans, strict=True)]
        yield section(kit, rows, rates, compiled=compiled)


def _niced() -> None:
    os.nice(10)
    torch.set_num_threads(1)


def planned(config: TrainConfig) -> Reading:
    return rehearse(config, 1).step()


@dataclass(frozen=True, slots=True)
class Took:
    """What the steps of a case took."""

    seconds: list[float]
    peak_bytes: int | None
    first: float
    """Seconds of the first step: with torch.compile it is compiled in it."""
    error: str = ""


def steps(device: str) -> int:
    """Number of steps that count."""
    return 1 if device == "cpu" else 4


def run(trained: Trained, config: TrainConfig, *, compiled: bool) -> Took:
    """Some steps; those before they are at speed do not count."""
    device, objective = torch.device(config.device), trained.objective
    trained.config = config
    objective.config = config
    set_learning_rate(trained.optimizer, 0)  # all of the work, and the weights of the first row for every row
    let_go(config.device)
    if compiled:
        torch._dynamo.reset()
        objective.compile()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    try:
        batch = to_device(trained.samples.batch(range(config.batch_size)), device)
        with matmul_precision(config.precision):
            for number in range(WARMUP + steps(config.device)):
                finish(config.device)
                started = time.perf_counter()
                trained.step(batch, number)
                finish(config.device)
                seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        trained.optimizer.zero_grad(set_to_none=True)
        return Took([], None, 0.0, "out of memory")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return Took(seconds[WARMUP:], peak, seconds[0])


def row(case: Case, took: Took, plan: "Future[Reading]", rates: dict[Precision, Rates]) -> dict[str, object]:
    known = plan.result() if plan.done() and not plan.exception() else None
    rate = rates[case.precision]
    said = f"{rate.seconds(known.work):.3g}" if known else "-"
    cells: dict[str, object] = {"what": case.name, "s a step": took.error or spread(took.seconds), "planned s": said}
    cells["images/s"] = f"{case.batch / np.median(took.seconds):.3g}" if took.seconds else "-"
    cells["peak GiB"] = f"{took.peak_bytes / 2**30:.3g}" if took.peak_bytes else "-"
    cells["planned GiB"] = f"{known.peak_bytes / 2**30:.3g}" if known else "-"
    flop = known.work["product"] + known.work["convolution"] if known else 0
    cells["TFLOP"] = f"{flop / 1e12:.3g}" if known else "-"
    reached = flop / np.median(took.seconds) / rate.product if known and took.seconds else 0
    cells["of the matmul rate"] = f"{reached:.0%}" if reached else "-"
    cells["first step, s"] = f"{took.first:.3g}" if took.first else "-"
    return cells


def section(kit: Kit, rows: list[dict[str, object]], rates: dict[Precision, Rates], *, compiled: bool) -> Section:
    memory = "Peak: what PyTorch allocated at the most" if kit.on_gpu else "Peak memory is looked at on GPUs alone"
    return Section(
        title="Compiled steps" if compiled else "Steps",
        text=f"On {hardware(kit.device)}; median (smallest-largest) of {steps(kit.device)} steps after {WARMUP}. "
        f"{memory}. "
        "Planned: what `physseg train --dry-run` says of the same step, by these rates: "
        f"{'; '.join(rate.describe() for rate in rates.values())}. A plan adds up operations one after the other. "
        "TFLOP are those of the plan; a share of the matmul rate is of matrix products in the same precision.",
        tables=[rows],
    )
