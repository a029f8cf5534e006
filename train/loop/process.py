"""What a training process owns besides its weights: random generators, and its answer to signals."""

import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch

from ...common.processes import STOP_SIGNALS


def random_state() -> dict[str, Any]:
    """State of PyTorch's generators, for a checkpoint. Data and augmentation have none: see order.py."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Inverse of `random_state`; generators of devices that are not here are left out."""
    torch.set_rng_state(state["cpu"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)


class StopSignals:
    """Remembers SIGTERM, SIGUSR1 (what Slurm sends before it takes a node back), SIGHUP or a first Ctrl-C.

    Whoever loops finishes its step, saves and ends. A second Ctrl-C interrupts as usual.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # as nohup has it
                continue
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not in the main thread: the caller keeps its own handlers
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
