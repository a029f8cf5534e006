"""Ranks that torchrun starts, one for each GPU: NCCL there, Gloo on a CPU.

`physseg train` talks to nobody where it is alone, so a single GPU is a world of one in `ddp_worker`, with the wrapper
and the collectives of the trainer. Where there are several, the trainer itself is compared with one rank, too.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import torch
from physseg.train.runs.run_log import read_log

from common import Goal, Section, spread
from gpu.material import DEMO, hardware, pictures_store, scenes_store
from gpu.parts import Kit

TOLERANCE = 1e-3
"""Of a loss, relative: sums in another order, and kernels of a GPU that add in any order, over five steps."""


def measure(kit: Kit) -> Iterator[Section]:
    ranks = ranks_here(kit)
    store = pictures_store(kit) if kit.on_gpu else scenes_store(kit, 192)
    answer = kit.folder / "ddp.json"
    torchrun(ranks, "-m", "gpu.ddp_worker", kit.device, kit.folder, store, answer)
    found = json.loads(answer.read_bytes())
    alone, shared = found["losses"]["alone"], found["losses"]["shared"]
    rows = [
        {
            "backend": found["backend"],
            "ranks": ranks,
            "s a step, alone": spread(found["seconds"]["alone"]),
            "s a step, DistributedDataParallel": spread(found["seconds"]["shared"]),
        }
    ]
    goals = [agree("DistributedDataParallel takes the steps of one rank", alone, shared)]
    section = Section(
        title="Ranks",
        text=f"{found['what']} on each rank, the same batch everywhere, so the mean over ranks is the step of one. On "
        f"{hardware(kit.device)}. The trainer as a whole is compared where there are several ranks.",
        tables=[rows],
        goals=goals,
    )
    yield section
    if ranks > 1:
        losses = [trainer(kit, number) for number in (1, ranks)]
        goals.append(agree(f"`physseg train` on {ranks} ranks takes the steps of one", *losses))
        yield section


def agree(text: str, expected: list[float], found: list[float]) -> Goal:
    worst = max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))
    said = f"losses {', '.join(f'{loss:.5g}' for loss in found)}; differ by {worst:.1e}, at most {TOLERANCE:.0e}"
    return Goal(text=text, measured=said, met=worst <= TOLERANCE)


def trainer(kit: Kit, ranks: int) -> list[float]:
    """Losses of a short training by the public command."""
    run, config = kit.folder / f"ranks{ranks}", kit.folder / "ranks.toml"
    config.write_text("steps = 5\n" + DEMO.read_text())
    settings = {
        "data.store": scenes_store(kit, 192),
        "device": kit.device,
        "batch_size": 4 * ranks_here(kit),
        "log_every": 1,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    torchrun(ranks, "-m", "physseg", "train", config, "--out", run, *words)
    return [line["loss/total"] for line in read_log(run / "log.jsonl", "step") if "loss/total" in line]


def ranks_here(kit: Kit) -> int:
    """One for each GPU; on a CPU two."""
    return torch.cuda.device_count() if kit.on_gpu else 2


def torchrun(ranks: int, *words: object) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run([*program, *map(str, words)], check=True)
