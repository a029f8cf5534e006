"""What `physseg train --dry-run` says of a training step, against steps with values: FLOP, memory and time.

    python benchmarks/train_plan.py [--manifest M.parquet] [--clip ViT-B-16] [--rounds 3] [--threads 1]

ViT-B/16, 171 classes, both losses, batch 1, on this CPU. FLOP are counted by PyTorch's counter, memory is what the
allocator gave out and did not get back at the most, by PyTorch's profiler. Each round measures the rates, then a step.
With one thread, time is CPU time, which other work on the machine changes least.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from data import open_samples, write_store
from physseg.common.processes import keep_freed_memory
from physseg.train.data.dataset import Batch, to_device
from physseg.train.planning import rate
from physseg.train.planning.estimate import rehearse
from physseg.train.planning.meter import FLOP_FORMULAS
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from train_step import Case, Trained, configuration

from common import Goal, Section, machine, spread

CASES = (
    Case(device="cpu", batch=1, precision="fp32"),
    Case(device="cpu", batch=1, precision="fp32", recompute=True),
    Case(device="cpu", batch=1, precision="bf16"),
)


def attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOP of scores, and of values gathered by them; query and key (B, heads, tokens, channels)."""
    return 4 * query[0] * query[1] * query[2] * key[2] * query[3]


def attention_backward(_: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
    """FLOP of scores again, and of the gradients of scores, values, queries and keys."""
    return 5 * attention(query, key) // 2


FORMULAS = {
    torch.ops.aten.convolution_backward: FLOP_FORMULAS[torch.ops.aten.convolution_backward],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
"""What PyTorch's counter does not know, or not rightly: groups of convolutions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="Photographs of 171 classes. Default: generated pictures.")
    parser.add_argument("--clip", default="ViT-B-16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="0 fp32, 1 recompute, 2 bf16.")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "STORE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.run:
        print(json.dumps(measure_case(Case(**json.loads(args.run[0])), Path(args.run[1]), args.rounds)))
        return
    with tempfile.TemporaryDirectory() as name:
        samples = open_samples(args.manifest, 12, Path(name))
        store = write_store(samples.manifest, Path(name) / "store.zarr")
        results = {}
        for case in (CASES[index] for index in args.cases):
            results[case] = run_alone(replace(case, clip=args.clip), store, args.rounds, args.threads)
    print(f"{machine()}\n\n{section(results, f'{args.clip}, {samples.description}', args.threads).markdown()}")


def run_alone(case: Case, store: Path, rounds: int, threads: int) -> dict[str, Any]:
    """`measure_case` in a process of its own."""
    command = [sys.executable, __file__, "--rounds", str(rounds), "--threads", str(threads)]
    command += ["--run", json.dumps(asdict(case)), str(store)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    print(f"{case.clip}, {case.name}: done", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def section(results: dict[Case, dict[str, Any]], what: str, threads: int) -> Section:
    rows = [
        {
            "what": case.name,
            "TFLOP": f"{one['flop'] / 1e12:.4g}",
            "planned TFLOP": f"{one['planned_flop'] / 1e12:.4g}",
            "GB of the step": f"{one['bytes'] / 1e9:.4g}",
            "planned GB": f"{one['planned_bytes'] / 1e9:.4g}",
            "s a step": spread(one["seconds"]),
            "planned s": spread(one["planned_seconds"]),
            "planned / measured s": spread(
                [a / b for a, b in zip(one["planned_seconds"], one["seconds"], strict=True)]
            ),
        }
        for case, one in results.items()
    ]
    off = {
        kind: max(abs(one[f"planned_{kind}"] / one[kind] - 1) for one in results.values()) for kind in ("flop", "bytes")
    }
    return Section(
        title="A planned training step",
        text=f"{what}, batch 1, {threads} CPU threads, {'CPU' if threads == 1 else 'wall-clock'} seconds. Median "
        "(smallest-largest) of the rounds.",
        tables=[rows],
        goals=[
            Goal(text="FLOP within 2 %", measured=f"{off['flop']:.1%} off at most", met=off["flop"] <= 0.02),
            Goal(text="memory within 15 %", measured=f"{off['bytes']:.1%} off at most", met=off["bytes"] <= 0.15),
        ],
    )


def measure_case(case: Case, store: Path, rounds: int) -> dict[str, Any]:
    """FLOP and bytes of a step, its seconds and its loss in each round, and the first three as planned."""
    keep_freed_memory()
    trained = Trained(configuration(case, store, losses=True))
    batch = to_device(next(trained.stream(1)), torch.device("cpu"))
    trained.step(batch, 0)  # from the second step on there are optimizer states
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        trained.step(batch, 0)
    reading = rehearse(trained.config, 1).step()
    seconds, planned, losses = [], [], []
    for number in range(rounds):
        with cpu_time() if torch.get_num_threads() == 1 else nullcontext():
            planned.append(rate.measured_rates(torch.device("cpu"), trained.config.precision).seconds(reading.work))
            started = time.perf_counter()
            loss = trained.step(batch, number + 1)
            seconds.append(time.perf_counter() - started)
            losses.append(float(loss))
    return {
        "seconds": seconds,
        "losses": losses,
        "planned_seconds": planned,
        "flop": counter.get_total_flops(),
        "planned_flop": reading.work["product"] + reading.work["convolution"],
        "bytes": allocated_by_a_step(trained, batch),
        "planned_bytes": reading.peak_bytes - reading.memory["weights"] - reading.memory["optimizer"],
        "kept_bytes": reading.memory["weights"] + reading.memory["optimizer"],
    }


@contextmanager
def cpu_time() -> Iterator[None]:
    """Make `time.perf_counter` that of this process."""
    with mock.patch.object(time, "perf_counter", time.process_time):
        yield


def allocated_by_a_step(trained: Trained, batch: Batch) -> int:
    """The most bytes that a step held besides what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trained.step(batch, 0)
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiled.export_chrome_trace(trace.name)
        events = [
            one for one in json.loads(Path(trace.name).read_text())["traceEvents"] if one.get("name") == "[memory]"
        ]
    return int(np.cumsum([one["args"]["Bytes"] for one in sorted(events, key=lambda one: one["ts"])]).max())


if __name__ == "__main__":
    main()
