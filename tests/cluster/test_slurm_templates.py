"""The batch scripts of docs/slurm, submitted as their first lines say: fewer, smaller jobs on pretended nodes."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import physseg as package
import pytest
from physseg.train.evaluation.result import read_evaluation
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log

from ..conftest import write_shapes
from ..forked import wait_until
from ..train.conftest import MODEL, to_toml
from . import slurm as slurm_server
from .commands import SETTINGS, Shapes, assert_same_tree, physseg, tree
from .test_slurm import call

pytestmark = pytest.mark.cluster
TEMPLATES = Path(package.__file__).parent / "docs/slurm"
Write = Callable[..., None]
RUN = RunFolder(Path("runs/both"))


@pytest.fixture(scope="module")
def nodes() -> Iterator[Path]:
    """The folder of a Slurm of two nodes with processors, memory and GPUs as the templates ask for."""
    if reason := slurm_server.missing():
        pytest.skip(f"Slurm: {reason}")
    with tempfile.TemporaryDirectory(prefix="physseg-slurm-") as name:
        slurm_server.start(Path(name), nodes=2, cpus=64, memory_mb=2**18, gpus=8)
        try:
            yield Path(name)
        finally:
            slurm_server.stop(Path(name))


@pytest.fixture
def site(nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with the commands `physseg` and `torchrun`; nodes of this Slurm have no address."""
    values = slurm_server.environment(nodes) | {"MASTER_ADDR": "127.0.0.1", "INTERFACE": "lo", "OMP_NUM_THREADS": "1"}
    (tmp_path / "bin").mkdir()
    for name, module in (("physseg", "physseg.cli"), ("torchrun", "torch.distributed.run")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    values["PATH"] = f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrunk(name: str, *changes: tuple[str, str]) -> list[str]:
    """Put the template into docs/slurm of the current folder, with other sizes; returns the lines that submit it."""
    text = (TEMPLATES / name).read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    Path("docs/slurm").mkdir(parents=True, exist_ok=True)
    Path("docs/slurm", name).write_text(text)
    head = text.split("#SBATCH")[0]
    return re.sub(r" \\\n# +", " ", head).replace("#     ", "$ ").split("$ ")[1:]


def submit(*lines: str) -> list[str]:
    """Numbers of the jobs that these lines of a shell submit."""
    script = "set -e\n" + "".join(line.splitlines()[0] + "\necho $job\n" for line in lines)
    return list(
        dict.fromkeys(re.findall(r"^(?:Submitted batch job )?(\d+)$", call("bash", "-c", script), re.MULTILINE))
    )


def states(job: str) -> set[str]:
    """Of a job, or of each task of an array, as long as Slurm remembers them."""
    return set(re.findall(r"JobState=(\w+)", call("scontrol", "show", "job", job)))


def wait_for(*jobs: str, seconds: float = 240) -> None:
    """Until all have ended; all were successful."""
    over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
    wait_until(lambda: all(states(job) <= over for job in jobs), seconds)
    printed = "\n".join(f"{path}:\n{path.read_text()}" for path in Path().glob("*.txt"))
    assert {state for job in jobs for state in states(job)} == {"COMPLETED"}, printed


def hurry(job: str) -> None:
    """Once it waits and its old script has said its end: Slurm lets a requeued job wait two minutes for that."""
    wait_until(lambda: states(job) == {"PENDING"} and not num_scripts())
    call("scontrol", "update", f"JobId={job}", "StartTime=now")


def num_scripts() -> int:
    """Number of Slurm's processes that each look after a batch script or a step."""
    found = 0
    for process in slurm_server.processes(Path(os.environ["SLURM_CONF"]).parent):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += "slurmstepd" in Path(f"/proc/{process}/comm").read_text()
    return found


# --- preprocess ---


@pytest.fixture
def of_shapes(site: Path, shapes: Shapes) -> Path:
    (site / "train.parquet").symlink_to(shapes.manifest)
    return site / "train.zarr"


def test_preprocess(of_shapes: Path, shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    array, verify = shrunk("preprocess.sh", ("--array=1-64", "--array=1-3"))
    monkeypatch.setenv("PARTS", "3")
    settings = f"train.zarr --scheduler sync {' '.join(SETTINGS)})"
    wait_for(*submit(array.replace("train.zarr)", settings), verify))
    assert_same_tree(tree(of_shapes), shapes.files)
    assert "no fault" in Path("verify.txt").read_text()
    assert len(list(Path().glob("physseg-preprocess-*_[123].txt"))) == 3


@pytest.mark.torture
def test_preprocess_by_dask(of_shapes: Path, shapes: Shapes) -> None:
    (line,) = shrunk("preprocess_dask.sh")
    wait_for(*submit(line.replace("--workers 64", f"--workers 2 {' '.join(SETTINGS)}")))
    assert_same_tree(tree(of_shapes), shapes.files)


# --- train, evaluate ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures and their store."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "data", 7, ((100, 140), (240, 160))).write(folder / "m.parquet")
    frame = ("--short-edge", 96, "--max-long-edge", 192, "--canvas", 192)
    physseg("preprocess", folder / "m.parquet", folder / "s.zarr", "--scheduler", "sync", *frame)
    return folder


@pytest.fixture
def write_config(site: Path, data: Path) -> Write:
    """`write_config(steps=9, ...)`: settings of a tiny model in `config.toml`."""

    def write(**changes: object) -> None:
        values = {"batch_size": 4, "seed": 5, "log_every": 1, "device": "cpu", "checkpoint_every": 10**6} | changes
        tables = {"data": {"store": str(data / "s.zarr"), "crop": 96, "num_workers": 0}, "model": MODEL}
        (site / "config.toml").write_text("\n".join(to_toml(values | tables)) + "\n")

    return write


def num_steps() -> int:
    return len(read_log(RUN.log_file, "step")) if RUN.log_file.exists() else 0


def losses(run: RunFolder) -> list[float]:
    return [entry["loss/total"] for entry in read_log(run.log_file, "step")]


def ends() -> list[tuple[str | None, bool]]:
    return [(entry["stopped_by"], entry["finished"]) for entry in read_log(RUN.log_file, "end")]


def submit_training(
    *options: str, time_limit: str = "24:00:00", warning: int = 300, ranks: int = 2, seconds: float = 0.5
) -> str:
    """The job's number. Steps of a model so small are over before anybody can signal: here each takes so long."""
    slow = "import time; from physseg.train import optim; from physseg.cli import main; clip = optim.clip_gradients\n"
    slow += f"optim.clip_gradients = lambda *words: (time.sleep({seconds}), clip(*words))[1]\nmain()\n"
    Path("bin/slow_physseg.py").write_text(slow)
    changes = {"--gpus-per-node=4": f"--gpus-per-node={ranks}", "-m physseg": "bin/slow_physseg.py"}
    changes |= {"--time=24:00:00": f"--time={time_limit}", "USR1@300": f"USR1@{warning}"}
    line, _ = shrunk("train.sh", *changes.items())
    (job,) = submit(line.replace("sbatch", " ".join(["sbatch", *options])))
    return job


@pytest.mark.torture
@pytest.mark.parametrize(("number", "steps", "seconds"), [(1, 5, 8), (2, 12, 0.5)], ids=["one node", "two nodes"])
def test_train_is_requeued_and_resumes(write_config: Write, number: int, steps: int, seconds: float) -> None:
    """Signalled as before a time limit; it ends with the steps of an undisturbed training.

    A step of eight seconds takes longer than Slurm waits before it kills what it has asked to end.
    """
    write_config(steps=steps)
    job = submit_training(f"--nodes={number}", seconds=seconds)
    wait_until(lambda: num_steps() >= 2, 240)
    call("scancel", "--batch", "--signal=USR1", job)
    hurry(job)
    assert ends() == [("SIGTERM", False)]
    assert checkpoint.steps(RUN.checkpoints) == [num_steps()] and num_steps() < steps
    wait_for(job)
    assert ends() == [("SIGTERM", False), (None, True)]
    starts = read_log(RUN.log_file, "start")
    assert [start["ranks"] for start in starts] == [2 * number] * 2 and starts[1]["step"] >= 2
    physseg("train", "config.toml", "--out", "runs/whole")
    expected = losses(RunFolder(Path("runs/whole")))
    assert len(expected) == steps and losses(RUN) == pytest.approx(expected, rel=2e-4)


@pytest.mark.torture
def test_train_is_signalled_before_its_time_limit(write_config: Write) -> None:
    """Slurm may signal a minute too early: between half a minute and a minute and a half after the start."""
    write_config(steps=100_000)
    job = submit_training(time_limit="3", warning=90, ranks=1)
    wait_until(RUN.log_file.exists, 120)
    wait_until(lambda: states(job) == {"PENDING"}, 180)
    call("scancel", job)
    assert ends() == [("SIGTERM", False)] and checkpoint.steps(RUN.checkpoints) == [num_steps()]


@pytest.mark.torture
def test_a_cancelled_training_has_a_checkpoint_and_stays_away(write_config: Write) -> None:
    write_config(steps=100_000)
    job = submit_training()
    wait_until(lambda: num_steps() >= 2, 240)
    call("scancel", job)
    wait_until(lambda: states(job) == {"CANCELLED"})
    wait_until(ends)
    assert ends() == [("SIGTERM", False)] and checkpoint.steps(RUN.checkpoints) == [num_steps()]


@pytest.mark.torture
def test_a_training_that_fails_stays_away(write_config: Write) -> None:
    write_config(steps=0)
    job = submit_training(ranks=1)
    wait_until(lambda: states(job) == {"FAILED"}, 120)
    (output,) = Path().glob("physseg-train-*.txt")
    assert "steps" in output.read_text()


def test_evaluate(write_config: Write, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(steps=1)
    physseg("train", "config.toml", "--out", "runs/both")
    Path("ade150.parquet").symlink_to(data / "m.parquet")
    array, merge = shrunk("evaluate.sh", ("--array=1-8", "--array=1-2"))
    monkeypatch.setenv("PARTS", "2")
    fast = "--checkpoint latest --no-windows"
    wait_for(*submit(array.replace("--checkpoint best", fast), merge.replace("of-8", "of-2")))
    found = read_evaluation(RUN.evaluations / "ade150-step_00000001.json")
    physseg("evaluate", "runs/both", "ade150.parquet", "--no-windows", "--out", "whole")
    whole = read_evaluation(Path("whole/ade150-step_00000001.json"))
    assert found.num_images == whole.num_images == 7
    assert (found.confusion.matrix == whole.confusion.matrix).all()
