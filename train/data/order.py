"""Which sample stands where, and with which random draws: functions of (seed, position) and of nothing else.

A run walks through *positions* 0, 1, 2, ... Step `s` takes the positions [s B, (s + 1) B), B being the global batch
size. Position `p` belongs to epoch `p // n` of `n` samples; every epoch is a permutation of its own. How many
workers or ranks share the work changes who handles a position, never what happens to it: this is what makes a resumed
run exact, and 1, 2 or 4 ranks see the same batches.

The random bits are Philox's, used raw: NumPy promises the streams of its bit generators for good, but not what
`Generator.permutation` and friends make of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


class Purpose(IntEnum):
    """Independent random streams; the number is part of the stream's identity, so never renumber."""

    ORDER = 0
    """Indexed by epoch: the permutation."""
    CROP = 1
    """Indexed by position: crop offsets and flip."""
    JITTER = 2
    """Indexed by position: colour jitter."""


def random_bits(seed: int, purpose: Purpose, index: int) -> np.random.Philox:
    """The stream of (seed, purpose, index): key = (seed, index), the purpose in the counter's highest word."""
    key = np.array([seed, index], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, purpose], dtype=np.uint64))


def uniforms(seed: int, purpose: Purpose, index: int, count: int) -> npt.NDArray[np.float64]:
    """(count,) float64 in [0, 1), multiples of 2^-53, of the stream (seed, purpose, index)."""
    words: npt.NDArray[np.uint64] = random_bits(seed, purpose, index).random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, num_samples: int) -> npt.NDArray[np.int64]:
    """The order (num_samples,) int64 of an epoch: samples sorted by 64 random bits each."""
    words: npt.NDArray[np.uint64] = random_bits(seed, Purpose.ORDER, epoch).random_raw(num_samples)
    return np.argsort(words, kind="stable").astype(np.int64)


class SampleOrder:
    """Sample number of every position; keeps the permutations of the two epochs that a batch can straddle."""

    def __init__(self, seed: int, num_samples: int) -> None:
        self.seed, self.num_samples = seed, num_samples
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def __call__(self, position: int) -> int:
        """Number in [0, num_samples) of the sample at `position`."""
        epoch, rank = divmod(position, self.num_samples)
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = permutation(self.seed, epoch, self.num_samples)
        return int(self._epochs[epoch][rank])

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self.seed, "num_samples": self.num_samples, "_epochs": {}}


@dataclass(frozen=True, kw_only=True)
class PositionBatches(Sampler[list[int]]):
    """Positions of each step in [start, stop) that one rank handles; starts at any step without walking up to it.

    Rank `r` (from 0) of `num_ranks` takes the r-th of as many equal slices of the step's global batch.
    """

    start: int
    stop: int
    batch_size: int
    """Number of samples of one step over all ranks; a multiple of `num_ranks`."""
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.num_ranks:
            raise ValueError(f"batch size {self.batch_size} is not a multiple of the {self.num_ranks} ranks")

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.num_ranks
        for step in range(self.start, self.stop):
            first = step * self.batch_size + self.rank * share
            yield list(range(first, first + share))
