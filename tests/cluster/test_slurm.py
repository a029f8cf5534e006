"""Preprocessing as Slurm jobs: array jobs whose parts need no network, and workers that Dask asks Slurm for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..forked import wait_until
from .commands import SETTINGS, Shapes, assert_same_tree, command, physseg, tree

pytestmark = pytest.mark.cluster
NUM_PARTS = 3


def call(*words: object) -> str:
    """A Slurm command's output."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def array_script(folder: Path, manifest: Path, store: Path) -> Path:
    """A batch script that computes one part, as the README shows it."""
    part = f"$SLURM_ARRAY_TASK_ID/{NUM_PARTS}"
    words = command("preprocess", manifest, store, "--scheduler", "sync", *SETTINGS, "--part")
    script = folder / "array.sh"
    script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=1\nexec {' '.join(words)} {part}\n")
    return script


def submit(folder: Path, script: Path, *options: str) -> str:
    """Submit the array; returns the job's number."""
    array = f"--array=1-{NUM_PARTS}"
    return call("sbatch", "--parsable", array, f"--output={folder}/%a.txt", "--open-mode=append", *options, script)


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("[0-9].txt")))


def num_commits(store: Path) -> int:
    return len(list((store / "provenance/commits").glob("*.json")))


def assert_is_whole(store: Path, shapes: Shapes) -> None:
    assert "no fault" in physseg("verify", store)
    assert_same_tree(tree(store), shapes.files)


def test_an_array_job_computes_the_store_of_a_single_run(slurm: Path, shapes: Shapes, tmp_path: Path) -> None:
    """All parts start at once, on a store that does not exist yet."""
    store = tmp_path / "s.zarr"
    submit(tmp_path, array_script(tmp_path, shapes.manifest, store), "--wait")
    assert_is_whole(store, shapes)


def test_parts_that_were_killed_and_requeued_lose_nothing(slurm: Path, shapes: Shapes, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    script = array_script(tmp_path, shapes.manifest, store)
    job = submit(tmp_path, script)
    wait_until(lambda: num_commits(store))
    call("scancel", "--signal=KILL", "--full", f"{job}_1")
    call("scontrol", "requeue", f"{job}_2")
    # Slurm lets a requeued job wait two minutes, in case its node is ill.
    wait_until(lambda: "PENDING" in call("scontrol", "show", "job", f"{job}_2"))
    call("scontrol", "update", f"JobId={job}_2", "StartTime=now")
    wait_until(lambda: not call("squeue", "--noheader", "--format=%i"))
    physseg("verify", store, code=1)
    submit(tmp_path, script, "--wait")
    assert_is_whole(store, shapes)


@pytest.fixture
def jobqueue(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's configuration for this Slurm, where a user's would be as well."""
    configuration = {
        "jobqueue": {
            "slurm": {
                "cores": 1,
                "processes": 1,
                "memory": "1 GiB",
                "walltime": "00:10:00",
                "interface": "lo",
                "python": sys.executable,
                "local-directory": str(tmp_path / "dask"),
                "log-directory": str(tmp_path / "logs"),
            }
        }
    }
    (tmp_path / "dask-config").mkdir()
    (tmp_path / "dask-config/jobqueue.yaml").write_text(json.dumps(configuration))  # which is YAML too
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path / "dask-config"))


def jobs() -> list[str]:
    return call("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()


def test_dask_workers_as_slurm_jobs(jobqueue: None, shapes: Shapes, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    physseg("preprocess", shapes.manifest, store, "--cluster", "slurm", "--workers", 2, *SETTINGS)
    assert_is_whole(store, shapes)
    assert any((tmp_path / "logs").iterdir())  # as the configuration says
    wait_until(lambda: not jobs())


@pytest.mark.torture
def test_the_only_worker_job_is_killed_and_replaced(jobqueue: None, shapes: Shapes, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    words = command("preprocess", shapes.manifest, store, "--cluster", "slurm", "--workers", 1, *SETTINGS)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        wait_until(lambda: num_commits(store))
        (victim,) = jobs()
        call("scancel", "--signal=KILL", "--full", victim)
        output, _ = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert_is_whole(store, shapes)
