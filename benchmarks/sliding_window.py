"""Prediction of one 640x480 picture among 847 words: sliding windows at full size, ViT-B/16, random weights.

    python benchmarks/sliding_window.py [--memory-limit 1GiB 2GiB] [--classes-kept 256 64] [--classes 847]

Every row is a process of its own. Text features are computed before, as in an evaluation; what is timed is windows,
network, merging and label map. Held: how far the process grows beyond what it held before the first picture.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import psutil
import torch
from dask.utils import parse_bytes
from data import draw
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.inference import InferenceSettings, predict_label_map
from physseg.train.model.segmenter import Segmenter

from common import Goal, Section, machine, spread

KEPT = (256, 64)
MEMORIES = ("512MiB", "1GiB", "2GiB", "4GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-limit", dest="memory", nargs="+", default=MEMORIES)
    parser.add_argument("--classes-kept", type=int, nargs="+", default=KEPT)
    parser.add_argument("--classes", type=int, default=847)
    parser.add_argument("--clip", default="ViT-B-16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(measure_alone(args.memory[0], args.classes_kept[0], args.classes, args.clip, args.device)))
        return
    section = measure(args.device, args.memory, args.classes, args.clip, kept=args.classes_kept)
    print(f"{machine()}\n\n{section.markdown()}")


def measure(
    device: str,
    memories: Sequence[str] = MEMORIES,
    classes: int = 847,
    clip: str = "ViT-B-16",
    pictures: int = 1,
    kept: Sequence[int] = KEPT,
) -> Section:
    """Every memory with the first number of kept classes, then the others with the last memory."""
    rows, goals, seconds = [], [], {}
    others = [(memories[-1], number) for number in kept[1:]]
    for memory, number in [*((memory, kept[0]) for memory in memories), *others]:
        command = [sys.executable, __file__, "--alone", "--memory-limit", memory, "--clip", clip]
        command += ["--classes", str(classes), "--classes-kept", str(number)]
        done = subprocess.run([*command, "--device", device], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        result = json.loads(done.stdout.splitlines()[-1])
        held = result["held"] / 2**30
        rows.append(
            {
                "--memory-limit": memory,
                "--classes-kept": number,
                "s a picture": spread(result["seconds"]),
                "held, GiB": f"{held:.2f}",
                "crops at once": result["crops"],
            }
        )
        bound = parse_bytes(memory) / 2**30
        goals.append(Goal(text=f"within --memory-limit {memory}", measured=f"{held:.2f} GiB", met=held <= bound))
        seconds[number] = min(result["seconds"])  # of the last memory
    if {256, 64} <= seconds.keys():
        times = seconds[256] / seconds[64]
        goals.append(Goal(text="64 kept 3 times as fast as 256", measured=f"{times:.1f} times", met=times >= 3))
    return Section(
        title=f"Predicting among {classes} classes",
        text=f"{clip}, 640x480 px, four windows and the whole picture, {classes} classes, some kept per crop, on "
        f"{result['hardware']}; {pictures} picture after one that does not count. Held: growth of the "
        "process on a CPU, allocations on a GPU, beyond the model and what was there before.",
        tables=[rows],
        goals=goals,
    )


def measure_alone(memory: str, kept: int, classes: int, clip: str, device: str, pictures: int = 1) -> dict[str, object]:
    torch.manual_seed(0)
    model = Segmenter(SegmenterConfig(clip=clip)).to(device).eval()
    settings = InferenceSettings(memory_bytes=int(parse_bytes(memory)), classes_kept=kept)
    text = torch.randn(classes, 1, model.arch.embed_dim, device=device)
    images = [draw(np.random.default_rng([7, index]))[0] for index in range(pictures + 1)]
    before = psutil.Process().memory_info().rss
    if device != "cpu":
        before = torch.cuda.memory_allocated()
    seconds = []
    for image in images:
        start = time.perf_counter()
        predict_label_map(model, image, text, settings)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    return {
        "seconds": seconds[1:],
        "held": peak - before,
        "crops": settings.crops_at_once(model.crop_bytes(classes, kept)),
        "hardware": torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} CPU threads",
    }


if __name__ == "__main__":
    main()
