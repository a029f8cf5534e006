"""A loader of batches whose processes cannot hand them over, or take long."""

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.common.errors import PhyssegError
from physseg.common.loader import load_batches
from torch import Tensor

BATCH = 2**20
SLOW_DISK = 190.0  # seconds; more than any time limit of PyTorch or multiprocessing would be


def batch_of(index: int, *, seconds: float = 0) -> dict[str, Any]:
    """A batch of a mebibyte, the second after `seconds`."""
    time.sleep(seconds if index == 1 else 0)
    return {"index": index, "plane": torch.full((BATCH,), index, dtype=torch.uint8)}


def nothing() -> None: ...


def loaded(seconds: float = 0) -> Iterator[dict[str, Tensor]]:
    death = PhyssegError("a data worker died", hint="lower data.num_workers")
    draw = partial(batch_of, seconds=seconds)
    return load_batches(draw, range(4), num_workers=2, start_worker=nothing, death=death)


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


def test_batches_are_handed_over_beside_the_little_shared_memory_of_a_container() -> None:
    done = in_small_shared_memory("64k")
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr


def little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (BATCH // 2, BATCH // 2))  # which nameless files in memory heed, too


@pytest.mark.torture
def test_no_memory_for_a_batch_ends_the_loading_in_words(capfd: pytest.CaptureFixture[str]) -> None:
    death = PhyssegError("a data worker died", hint="lower data.num_workers")
    with pytest.raises(PhyssegError, match="a data worker died"):
        list(load_batches(batch_of, range(4), num_workers=1, start_worker=little_memory, death=death))
    assert "could not send a batch: OSError" in capfd.readouterr().err


def mixed(index: int) -> tuple[Any, ...]:
    """What a batch may hold: tensors of every size and kind, nested, empty, not contiguous, and what is no tensor."""
    tensors = [torch.arange(7, dtype=torch.int16)[::2], torch.tensor([True, False, True]), torch.tensor(0.5)]
    empty = torch.zeros((2, 0, 3), dtype=torch.uint8)
    return {"index": index, "tensors": tensors, "empty": empty}, torch.full((3, 5), index, dtype=torch.float64)


@pytest.mark.parametrize("pin_memory", [False, True])
def test_batches_arrive_as_they_were(pin_memory: bool) -> None:
    if pin_memory and not torch.cuda.is_available():
        pytest.skip("no device to pin memory for")
    death = PhyssegError("a data worker died")
    arrived = list(
        load_batches(mixed, range(3), num_workers=2, start_worker=nothing, death=death, pin_memory=pin_memory)
    )
    assert len(arrived) == 3
    for index, (batch, last) in enumerate(arrived):
        assert batch["index"] == index and batch["empty"].shape == (2, 0, 3) and batch["empty"].dtype == torch.uint8
        assert [part.tolist() for part in batch["tensors"]] == [[0, 2, 4, 6], [True, False, True], 0.5]
        assert [part.dtype for part in batch["tensors"]] == [torch.int16, torch.bool, torch.float32]
        assert last.tolist() == [[index] * 5] * 3 and last.dtype == torch.float64
        assert last.data_ptr() % 64 == 0
        assert last.add_(1).min() == index + 1  # it may be written to
    assert len(arrived) == 3


@pytest.mark.torture
def test_a_disk_that_takes_three_minutes_is_waited_for() -> None:
    assert [int(batch["plane"][0]) for batch in loaded(SLOW_DISK)] == [0, 1, 2, 3]


def counted(index: int) -> dict[str, Any]:
    """A batch that says how many files in memory its process has."""
    files = sum("memfd:batch" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {"files": files, "plane": torch.full((BATCH,), index, dtype=torch.uint8)}


def test_memory_of_batches_that_are_gone_is_used_again_and_that_of_others_is_not() -> None:
    held = []
    death = PhyssegError("a data worker died")
    for index, batch in enumerate(load_batches(counted, range(24), num_workers=1, start_worker=nothing, death=death)):
        if index % 4 == 0:
            held.append(batch["plane"])
        files = batch["files"]
    assert [plane.unique().tolist() for plane in held] == [[index] for index in range(0, 24, 4)]
    assert files <= 2 * (len(held) + 5)  # opened twice while a batch is on its way


def unsendable(index: int) -> dict[str, Any]:
    return {"index": lambda: index}


def test_a_worker_that_cannot_send_ends_the_loading() -> None:
    """Whatever the reason: here, what it should send cannot be pickled."""
    death = PhyssegError("a data worker died")
    with pytest.raises(PhyssegError, match="a data worker died"):
        list(load_batches(unsendable, range(4), num_workers=1, start_worker=nothing, death=death))


if __name__ == "__main__":
    try:
        for batch in loaded():
            sys.stdout.write(f"{int(batch['plane'][-1])}\n")
    except PhyssegError as error:
        sys.stdout.write(str(error))
        sys.exit(3)
