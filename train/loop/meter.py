"""Means of the losses, and the speed, from one log line to the next."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class AverageMeter:
    """Adds up what steps report until `take` asks for the means."""

    def __init__(self, batch_size: int) -> None:
        """`batch_size`: Number of images of a step, over all ranks."""
        self.batch_size = batch_size
        self._restart()

    def __len__(self) -> int:
        """Steps since the last call of `take`."""
        return self._steps

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens inside counts as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside counts for nothing."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def count(self, values: Mapping[str, float]) -> None:
        """Add one step's numbers."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Means since the last call, under the log's names; starts anew."""
        seconds = time.perf_counter() - self._since
        means = {f"loss/{name}": total / self._steps for name, total in self._sums.items()}
        means["loss/total"] = means.pop("loss/loss")
        means["gradient/norm"] = means.pop("loss/gradient_norm")
        means["speed/images_per_second"] = self._steps * self.batch_size / seconds
        means["speed/data_wait"] = min(1.0, self._waited / seconds)
        self._restart()
        return means

    def _restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._waited = 0.0
        self._since = time.perf_counter()
