"""Fixtures that start real components: Slurm, an object store. Each skips, with a reason, where it cannot be had."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import slurm as slurm_server


@pytest.fixture(scope="session")
def slurm_folder() -> Iterator[Path]:
    """The folder of a running Slurm with three nodes of one processor each; see slurm.py."""
    if reason := slurm_server.missing():
        pytest.skip(f"Slurm: {reason}")
    with tempfile.TemporaryDirectory(prefix="physseg-slurm-") as name:  # short: sockets' paths have 108 bytes at most
        try:
            slurm_server.start(Path(name), nodes=3)
        except RuntimeError as error:
            pytest.skip(f"Slurm cannot start here: {error}")
        try:
            yield Path(name)
        finally:
            slurm_server.stop(Path(name))


@pytest.fixture
def slurm(slurm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with the environment set that sbatch, squeue and others need."""
    for name, value in slurm_server.environment(slurm_folder).items():
        monkeypatch.setenv(name, value)
    return slurm_folder
