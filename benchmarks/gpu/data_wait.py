"""What a training waits for its data loader: ViT-B/16 on the demo's pictures, by number of loader processes."""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from physseg.train.data.dataset import to_device
from physseg.train.model.device import matmul_precision
from train_step import Trained

from common import Section
from gpu.material import configuration, finish, hardware, scenes_store
from gpu.parts import Kit


def measure(kit: Kit) -> Iterator[Section]:
    clip, edge, workers, steps = ("B/16", 384, (0, 2, 8), 12) if kit.on_gpu else ("demo", 192, (0, 1), 3)
    config = configuration(kit, clip, scenes_store(kit, edge), precision="bf16", batch_size=4)
    trained = Trained(config)
    rows: list[dict[str, object]] = []
    for number in workers:
        trained.samples.config = replace(config.data, num_workers=number)
        waited, whole = waits(trained, steps)
        rows.append(
            {
                "loader processes": number,
                "images/s, loader alone": f"{loader_alone(trained, steps):.3g}",
                "images/s, training": f"{4 * steps / whole:.3g}",
                "data wait": f"{waited / whole:.1%}",
            }
        )
        yield Section(
            title="Waiting for data",
            text=f"{clip}, batch 4, bf16, {len(trained.samples.reader.vocabulary.classes)} classes (so steps are "
            "shorter than with COCO-Stuff's 171), the demo's scenes on frames of "
            f"{edge} px, on {hardware(kit.device)}; {steps} steps after three. "
            "The next batch is fetched while the device is at work, as in training.",
            tables=[rows],
        )


def waits(trained: Trained, steps: int) -> tuple[float, float]:
    """Seconds of waiting for data, and of all."""
    device, waited, began = torch.device(trained.config.device), 0.0, 0.0
    stream = trained.stream(steps + 4)
    batch = next(stream)
    with matmul_precision(trained.config.precision):
        for number in range(steps + 3):
            if number == 3:
                finish(trained.config.device)
                began, waited = time.perf_counter(), 0.0
            parts = trained.objective(to_device(batch, device))
            parts["loss"].backward()
            now = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - now
            trained.update(parts, batch, number)
        finish(trained.config.device)
    return waited, time.perf_counter() - began


def loader_alone(trained: Trained, steps: int) -> float:
    """Images/s after the first batch."""
    stream = trained.stream(steps + 1)
    next(stream)
    started = time.perf_counter()
    for _ in stream:
        pass
    return 4 * steps / (time.perf_counter() - started)
