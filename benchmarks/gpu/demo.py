"""The demo's training on the device by the public commands, shorter."""

import subprocess
import sys
import time
from collections.abc import Iterator

from physseg.train.evaluation.result import read_evaluation
from physseg.train.runs.run_log import read_log

from common import Goal, Section
from gpu.material import DEMO, hardware, scenes_manifest, scenes_store
from gpu.parts import Kit


def measure(kit: Kit) -> Iterator[Section]:
    steps, log_every = (120, 10) if kit.on_gpu else (8, 2)
    store, run = scenes_store(kit, 192), kit.folder / "run"
    settings = {
        "data.store": store,
        "device": kit.device,
        "precision": "tf32",
        "log_every": log_every,
        "optim.warmup_steps": 2,
        "data.num_workers": 2 if kit.on_gpu else 0,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    config = kit.folder / "demo.toml"
    config.write_text(f"steps = {steps}\n" + DEMO.read_text())
    seconds = {
        "train": physseg("train", config, "--out", run, *sets),
        "evaluate": physseg(
            "evaluate", run, scenes_manifest(kit, "val"), "--no-windows", "--all-classes", "--device", kit.device
        ),
    }
    lines = read_log(run / "log.jsonl", "step")
    losses = [line["loss/total"] for line in lines if "loss/total" in line]
    waits = [line["speed/data_wait"] for line in lines if "speed/data_wait" in line]
    rates = [line["speed/images_per_second"] for line in lines if "speed/images_per_second" in line]
    found = read_evaluation(next((run / "evaluations").glob("*.json")))
    yield Section(
        title="A short training",
        text=f"The demo's configuration (12x12 patches, three structures, both losses) in tf32 for {steps} steps of 8 "
        f"crops, on {hardware(kit.device)}.",
        tables=[
            [{"command": name, "seconds": f"{value:.1f}"} for name, value in seconds.items()],
            [
                {
                    "loss, first line": f"{losses[0]:.3f}",
                    "loss, last line": f"{losses[-1]:.3f}",
                    "images/s": f"{sorted(rates)[len(rates) // 2]:.3g}",
                    "data wait": f"{sorted(waits)[len(waits) // 2]:.0%}",
                    "mIoU": f"{found.scalars()['eval/miou']:.1%}",
                }
            ],
        ],
        goals=[
            Goal(text="the loss falls", measured=f"{losses[0]:.3f} to {losses[-1]:.3f}", met=losses[-1] < losses[0]),
            Goal(text="all steps are taken", measured=str(lines[-1]["step"]), met=lines[-1]["step"] == steps),
        ],
    )


def physseg(*words: object) -> float:
    """Run a command; seconds. Its output is the part's."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "physseg", *map(str, words)], check=True)
    return time.perf_counter() - started
