"""One rank of ddp.py: some steps with DistributedDataParallel and without, and the trainer's collectives."""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from physseg.train.data.dataset import to_device
from physseg.train.loop.ranks import Ranks
from physseg.train.model.device import matmul_precision
from train_step import Trained

from gpu.material import configuration, finish
from gpu.parts import Kit

STEPS = 5


def main() -> None:
    name, folder, store, answer = sys.argv[1], *map(Path, sys.argv[2:])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu" if name == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        kit = Kit(device=str(device), folder=folder, out=answer, seconds=0)
        clip, batch_size = ("B/16", 2) if kit.on_gpu else ("demo", 2)
        losses: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        # Two at least, for a world of one shares nothing by itself.
        ranks = Ranks(device, rank, max(size, 2))
        for kind in ("alone", "shared"):
            trained = Trained(configuration(kit, clip, store, precision="fp32", batch_size=batch_size))
            module = ranks.share_gradients(trained.objective) if kind == "shared" else trained.objective
            batch = to_device(trained.samples.batch(range(batch_size)), device)
            losses[kind], seconds[kind] = [], []
            with matmul_precision("fp32"):
                for number in range(STEPS):
                    finish(kit.device)
                    started = time.perf_counter()
                    parts = module(batch)
                    parts["loss"].backward()
                    trained.update(parts, batch, number)
                    finish(kit.device)
                    seconds[kind].append(time.perf_counter() - started)
                    losses[kind].append(float(parts["loss"]))
            del trained, module
        ranks = Ranks(device, rank, size)
        ones = {"one": torch.ones((), device=device), "rank": torch.tensor(float(rank), device=device)}
        means = {key: float(value) for key, value in ranks.mean(ones).items()}
        expected = {"one": 1.0, "rank": (size - 1) / 2}
        if means != expected or ranks.gather(rank) != list(range(size)) or ranks.any(rank == size - 1) is not True:
            raise RuntimeError(f"the ranks do not agree: means {means}, expected {expected}")
        if rank == 0:
            what = f"{clip}, batch {batch_size}, fp32"
            found = {"what": what, "backend": dist.get_backend(), "losses": losses}
            answer.write_text(json.dumps(found | {"seconds": {kind: each[1:] for kind, each in seconds.items()}}))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
