"""`physseg` as processes of its own, the data set that the tests here share, and what is compared after a run."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..forked import Forked, calling

NUM_SAMPLES = 352
"""Six shards, the last one half full."""
SETTINGS = ("--short-edge", "192")
"""About 0.4 s a shard: long enough to be interrupted, short enough to be repeated."""
QUICK_BEATS = "from physseg.pipeline.store import leases; leases.HEARTBEAT_SECONDS = 0.5"
"""So that a test need not wait for seconds until a writer is known alive."""
SHORT_LEASES = f"""{QUICK_BEATS}
acquire = leases.Lease._acquire
def impatient(lease):
    patience, leases.LEASE_SECONDS = leases.LEASE_SECONDS, 3.0
    try:
        acquire(lease)
    finally:
        leases.LEASE_SECONDS = patience
leases.Lease._acquire = impatient
"""
"""So that a test need not wait for minutes until a killed writer is known dead; nobody gives up his own sooner."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """A data set, and the store that one uninterrupted run in one process computes from it."""

    root: Path
    manifest: Path
    store: Path
    files: Mapping[str, bytes]
    """``tree(store)``."""


def command(*words: object) -> list[str]:
    """For those who start processes themselves: Slurm, other hosts."""
    return [sys.executable, "-m", "physseg.cli", *map(str, words)]


def physseg(*words: object, code: int = 0, before: str = "", **environment: str) -> str:
    """Run a command to its end, which must be this exit code; returns what it printed, errors too."""
    with tempfile.TemporaryDirectory() as folder:
        with Forked(calling(*words, before=before), Path(folder, "output.txt"), **environment) as process:
            process.wait(180)
        printed = process.text()
    assert process.returncode == code, f"physseg {' '.join(map(str, words))}: {process.returncode}\n{printed}"
    return printed


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: relative path -> content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_tree(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """Names first: a difference in them explains others."""
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
