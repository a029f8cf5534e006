"""Prediction by the published protocol among 847 classes, with 256 and with 64 of them kept in each crop."""

from collections.abc import Iterator

import torch
from sliding_window import measure_alone

from common import Section, spread
from gpu.material import let_go
from gpu.parts import Kit


def measure(kit: Kit) -> Iterator[Section]:
    if kit.on_gpu:
        clip, classes, pictures = "ViT-B-16", 847, 4
        rounds = [("4GiB", 256), ("4GiB", 64), ("16GiB", 256)]
    else:
        clip, classes, pictures = "tiny", 40, 1
        rounds = [("1GiB", 16), ("1GiB", 8)]
    rows: list[dict[str, object]] = []
    for memory, kept in rounds:
        let_go(kit.device)
        if kit.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        result = measure_alone(memory, kept, classes, clip, kit.device, pictures)
        seconds: list[float] = result["seconds"]  # type: ignore[assignment]
        rows.append(
            {
                "--classes-kept": kept,
                "--memory-limit": memory,
                "s a picture": spread(seconds),
                "held, GiB": f"{result['held'] / 2**30:.2f}" if kit.on_gpu else "-",  # type: ignore[operator]
                "crops at once": result["crops"],
            }
        )
        yield Section(
            title=f"Predicting among {classes} classes",
            text=f"{clip}, 640x480 px, four windows and the whole picture, float32 products as tf32 on a GPU, on "
            f"{result['hardware']}; {pictures} pictures after one that does not count. "
            "Held: beyond the model's weights.",
            tables=[rows],
        )
