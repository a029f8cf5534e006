"""Several processes that train one model: which of them this is, and what they agree on.

`torchrun` starts them and says so in the environment (RANK, WORLD_SIZE, LOCAL_RANK, ...); without it there is one rank,
and nothing here costs anything. Every rank runs the same loop on its own slice of each batch (order.py), and they meet
in `gradients` (PyTorch's DistributedDataParallel), in the means for the log, and in the question whether to stop.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..model.device import choose_device


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes: checkpoints, log and progress are the first one's."""
        return self.rank == 0

    def share_gradients(self, module: nn.Module) -> nn.Module:
        """The module, whose backward pass leaves the mean over all ranks in every gradient; equal weights to begin."""
        if self.size == 1:
            return module
        # PyTorch 2.14 has another name for it, and warns of the older one.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"gradient_as_bucket_view": True, buffers: False}
        return DistributedDataParallel(
            module, device_ids=[self.device] if self.device.type == "cuda" else None, **options
        )

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first rank does what is inside, then the others: what it creates is there for them."""
        if not self.is_main:
            self.any(False)  # which waits for all
        yield
        if self.is_main:
            self.any(False)

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return here
        flag = torch.tensor(int(here), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over ranks of tensors on the device, equal in names and shapes everywhere."""
        if self.size == 1:
            return dict(values)
        flat = torch.cat([value.detach().double().flatten() for value in values.values()])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.size, [value.numel() for value in values.values()])
        return {
            name: part.view(value.shape).to(value.dtype)
            for (name, value), part in zip(values.items(), parts, strict=True)
        }

    def gather(self, value: Any) -> list[Any]:
        """What every rank passes, by rank; picklable things of a few MB at most."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Backward passes inside add to this rank's gradients only; the first one outside shares the sum."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other ranks that torchrun started; `device` as in TrainConfig, where every local rank has its own GPU.

    They talk by NCCL on GPUs, by Gloo on CPUs. Raises ConfigError for a device that PyTorch cannot use.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(choose_device(device))
        return
    # Before anything is allocated: a rank that looked at "cuda" first would leave a context on the first GPU.
    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    chosen = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else device)
    if on_gpu:
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(chosen, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
