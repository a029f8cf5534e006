"""A loader of batches whose processes cannot hand them over, or take long."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.common.errors import PhyssegError
from physseg.common.loader import load_batches
from torch import Tensor
from torch.utils.data import Dataset

BATCH = 2**20
SLOW_DISK = 190.0  # seconds; more than any time limit of PyTorch or multiprocessing would be


class Batches(Dataset[dict[str, Any] | PhyssegError]):
    """Four batches of a mebibyte each, every one after `seconds`."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.seconds if index == 1 else 0)
        return {"index": index, "plane": torch.full((BATCH,), index, dtype=torch.uint8)}


def nothing() -> None: ...


def loaded(seconds: float = 0) -> Iterator[dict[str, Tensor]]:
    death = PhyssegError("a data worker died", hint="lower data.num_workers")
    return load_batches(Batches(seconds), num_workers=2, start_worker=nothing, death=death)  # type: ignore[arg-type]


def in_small_shared_memory(size: str) -> subprocess.CompletedProcess[str]:
    """This file as a program, where /dev/shm has another size; as little as a container may grant."""
    command = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" "$1"'
    words = ["unshare", "--mount", "sh", "-c", command, sys.executable, str(Path(__file__))]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare command here")
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    return done


def test_a_full_shared_memory_ends_the_loading_in_words() -> None:
    done = in_small_shared_memory("64k")
    assert done.returncode == 3, done.stderr
    assert "1.0 MB for a batch" in done.stdout and "KB free" in done.stdout, done.stdout
    assert "lower data.num_workers" in done.stdout
    assert "Traceback" not in done.stderr, done.stderr


def test_enough_shared_memory_loads_every_batch() -> None:
    assert in_small_shared_memory("64m").stdout.split() == ["0", "1", "2", "3"]


@pytest.mark.torture
def test_a_disk_that_takes_three_minutes_is_waited_for() -> None:
    assert [int(batch["plane"][0]) for batch in loaded(SLOW_DISK)] == [0, 1, 2, 3]


class Unsendable(Batches):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": lambda: index}


def test_a_worker_that_cannot_send_ends_the_loading() -> None:
    """Whatever the reason: here, what it should send cannot be pickled."""
    death = PhyssegError("a data worker died")
    with pytest.raises(PhyssegError, match="a data worker died"):
        list(load_batches(Unsendable(), num_workers=1, start_worker=nothing, death=death))


if __name__ == "__main__":
    try:
        for batch in loaded():
            sys.stdout.write(f"{int(batch['plane'][-1])}\n")
    except PhyssegError as error:
        sys.stdout.write(str(error))
        sys.exit(3)
