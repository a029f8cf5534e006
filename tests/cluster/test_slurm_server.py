"""The Slurm of these tests starts and ends as a whole, and nobody else on the network can reach it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ..forked import wait_until
from . import slurm as slurm_server

pytestmark = pytest.mark.cluster


def listening(processes: list[int]) -> set[str]:
    """Local addresses (hexadecimal, as the kernel has them) of the TCP sockets on which these processes listen."""
    inodes = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            inodes.add(str(link.readlink()))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def test_it_listens_on_loopback_alone(slurm: Path) -> None:
    assert listening(slurm_server.processes(slurm)) == {"0100007F"}


def test_stopping_ends_daemons_jobs_and_what_jobs_left_behind(slurm_folder: Path, tmp_path: Path) -> None:
    script = Path(slurm_server.__file__)
    started = subprocess.run([sys.executable, script, "start", tmp_path], capture_output=True, text=True, check=True)
    assert started.stdout == f"export SLURM_CONF={tmp_path}/slurm.conf\n"
    daemons = slurm_server.processes(tmp_path)
    job = "sbatch --output=/dev/null --wrap 'setsid sleep 600 & sleep 600'"
    subprocess.run(f"{started.stdout} {job}", shell=True, capture_output=True, check=True)
    # A batch script, its step's daemon and two sleepers.
    wait_until(lambda: len(slurm_server.processes(tmp_path)) >= len(daemons) + 4, 20)
    everything = slurm_server.processes(tmp_path)
    subprocess.run([sys.executable, script, "stop", tmp_path], check=True)
    assert slurm_server.processes(tmp_path) == []
    assert [process for process in everything if is_alive(process)] == []
    assert slurm_server.processes(slurm_folder) != [], "the other one runs on"


def test_a_start_that_fails_says_why_and_leaves_nothing(
    slurm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_server, "CONFIGURATION", slurm_server.CONFIGURATION + "Nonsense=1\n")
    with pytest.raises(RuntimeError, match=r"slurmctld ended with 1:\n[^$]*Nonsense"):
        slurm_server.start(tmp_path)
    assert slurm_server.processes(tmp_path) == []


def is_alive(process: int) -> bool:
    """Not even waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
