"""What is needed of processes that are started here: the environment they begin with, and the memory they hold."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """For a child that is started meanwhile: libraries read some settings once, when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a process."""

    now: int = 0
    peak: int = 0


def memory_of(process: int | str | None) -> Memory:
    """Resident bytes of a process, now and at most so far; zeros where there is no /proc or no such process.

    ``getrusage`` would not do for the peak: a new process inherits it from the one that started it.
    """
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return Memory(found.get("VmRSS", 0), found.get("VmHWM", 0))


def peak_bytes() -> int:
    """The most memory that this process has had resident; where there is no /proc, its parent's may be included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return memory_of("self").peak or (peak if sys.platform == "darwin" else peak * 1024)


def available_cpus() -> int:
    """How many CPUs this process may use (a batch system often grants fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
