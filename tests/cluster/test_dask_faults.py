"""Workers, schedulers and clients that die in the middle of a run, and samples that kill: nothing else is lost.

After each fault the same command is run again, and the store must be that of an uninterrupted run, byte by byte.
"""

import json
import os
import pickle
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ExecutorError, ShardFailedError
from physseg.pipeline.run.executors import dask_cluster
from physseg.pipeline.run.executors.local import LocalExecutor
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.lone_shards import compute_alone
from physseg.pipeline.run.task import ShardReport, ShardTask
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import create_store

from ..forked import Forked, calling, wait_until
from .commands import NUM_SAMPLES, SETTINGS, Shapes, assert_same_tree, physseg, tree

pytestmark = pytest.mark.cluster
FRAME = Frame(short_edge=192, max_long_edge=384, canvas=384)  # as SETTINGS
MEMORY_LIMIT = 900_000_000
SIGKILL = "computing it killed its process twice: signal 9 (SIGKILL)"
EXIT = "computing it killed its process twice: exit code 3"
HOG = "needed more than 0.9 GB of memory"

Start = Callable[..., Forked]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(code, **environment)``: a process that writes to a file; it and all below it end with the test."""

    def start(code: str, **environment: str) -> Forked:
        started.append(Forked(code, tmp_path / f"output{len(started)}.txt", **environment))
        return started[-1]

    started: list[Forked] = []
    yield start
    for process in started:
        for each in [*children(process.pid), *process.group()]:
            with suppress(psutil.NoSuchProcess):  # gone since they were listed
                each.kill()
        process.wait(10)
        print(f"--- {process.output.name}\n{process.text()}")  # noqa: T201 (shown with a failure)


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def workers(pid: int) -> list[psutil.Process]:
    """The worker processes below a client, or below a nanny."""
    found = []
    for child in children(pid):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def num_commits(store: Path) -> int:
    return len(list((store / "provenance/commits").glob("*.json")))


def wait_for_commits(store: Path, count: int, client: Forked) -> None:
    wait_until(lambda: num_commits(store) >= count or client.poll() is not None)
    assert client.poll() is None, "it ended before anything could happen to it"


def assert_whole(store: Path, shapes: Shapes) -> None:
    assert "no fault" in physseg("verify", store)
    assert_same_tree(tree(store), shapes.files)


def assert_counts_samples(positions: list[int]) -> None:
    """Of a run of all shapes: it moves within shards, never back, and ends where it should."""
    assert positions == sorted(positions) and positions[-1] == NUM_SAMPLES
    assert any(position % 64 for position in positions[:-1])


def preprocess(shapes: Shapes, store: Path, *words: object, before: str = "") -> str:
    return calling("preprocess", shapes.manifest, store, *SETTINGS, *words, before=before)


# --- processes that die ---------------------------------------------------------------------------------------------


def test_workers_killed_at_random_cost_time_only(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    store = tmp_path / "s.zarr"
    client = start(preprocess(shapes, store, "--workers", 2))
    wait_until(lambda: workers(client.pid) or client.poll() is not None)
    time.sleep(rng.uniform(0, 2))  # it may still be starting
    kills = 0
    while client.poll() is None:
        if kills < 6 and (kills == 0 or num_commits(store)) and (found := workers(client.pid)):
            found[rng.integers(len(found))].kill()
            kills += 1
        time.sleep(rng.uniform(0.1, 1.0))
    assert (client.returncode, kills > 1) == (0, True)
    assert_whole(store, shapes)


def test_a_killed_client_leaves_no_worker_and_the_next_one_resumes(
    start: Start, shapes: Shapes, tmp_path: Path
) -> None:
    store = tmp_path / "s.zarr"
    for commits in (1, 3):
        client = start(preprocess(shapes, store, "--workers", 2))
        wait_for_commits(store, commits, client)
        client.kill()
        client.wait(10)
        client.wait_until_gone()
    assert num_commits(store) < 6
    physseg("preprocess", shapes.manifest, store, "--scheduler", "sync")
    assert_whole(store, shapes)


def test_ctrl_c_as_a_terminal_sends_it_ends_everything(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    """To the workers as well, who leave it to the client."""
    store = tmp_path / "s.zarr"
    client = start(preprocess(shapes, store, "--workers", 2))
    wait_for_commits(store, 1, client)
    os.killpg(client.pid, signal.SIGINT)
    assert client.wait(20) == 130
    client.wait_until_gone()
    assert "re-running the command resumes" in (tmp_path / "output0.txt").read_text()
    physseg("preprocess", shapes.manifest, store, "--scheduler", "sync")
    assert_whole(store, shapes)


def test_ctrl_c_while_workers_start_is_one_line(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    """They are still importing, and would answer with a traceback each, as would a cluster that is closed by halves."""
    client = start(preprocess(shapes, tmp_path / "s.zarr", "--workers", 2))
    wait_until(lambda: workers(client.pid) or client.poll() is not None)
    time.sleep(0.3)  # the interpreter is up
    os.killpg(client.pid, signal.SIGINT)
    assert client.wait(30) == 130
    client.wait_until_gone()
    said = client.text()
    assert "re-running the command resumes" in said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said


def test_a_second_client_is_refused(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    first = start(preprocess(shapes, store, "--workers", 1))
    wait_for_commits(store, 1, first)
    assert "another" in physseg("preprocess", shapes.manifest, store, "--workers", 1, code=1)
    assert first.wait(60) == 0
    assert_whole(store, shapes)


class Cluster:
    """`dask scheduler` and two `dask worker` processes, on ports that the kernel chooses."""

    def __init__(self, start: Start, folder: Path) -> None:
        folder.mkdir()
        file = folder / "scheduler.json"
        here = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = start(dask_command("scheduler", *here, "--port", "0", "--scheduler-file", str(file)))
        wait_until(lambda: file.exists() and file.read_text().rstrip().endswith("}"))
        self.address = json.loads(file.read_text())["address"]
        limits = ("--nthreads", "1", "--memory-limit", "2GB", "--death-timeout", "10")
        worker = dask_command("worker", self.address, *here, *limits, "--local-directory", str(folder))
        self.workers = [start(worker), start(worker)]


def dask_command(*words: str) -> str:
    """The code of `dask WORDS`."""
    return f"import sys\nsys.argv = {['dask', *words]}\nfrom dask.__main__ import main\nmain()"


def test_a_lost_scheduler_ends_the_run_and_another_one_resumes(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    first = Cluster(start, tmp_path / "first")
    client = start(preprocess(shapes, store, "--scheduler", first.address))
    wait_for_commits(store, 1, client)
    first.scheduler.kill()
    assert client.wait(60) == 1
    said = client.text()
    assert f"the scheduler at {first.address} was lost" in said and "Traceback" not in said
    assert num_commits(store) < 6
    second = Cluster(start, tmp_path / "second")
    physseg("preprocess", shapes.manifest, store, "--scheduler", second.address)
    assert_whole(store, shapes)


def test_a_cluster_survives_a_client_and_a_whole_worker(start: Start, shapes: Shapes, tmp_path: Path) -> None:
    """The next client begins while the tasks of the killed one may still run: they write the same."""
    store = tmp_path / "s.zarr"
    cluster = Cluster(start, tmp_path / "cluster")
    client = start(preprocess(shapes, store, "--scheduler", cluster.address))
    wait_for_commits(store, 1, client)
    client.kill()
    client.wait(10)
    lines = "from physseg.common import progress; progress.LINE_SECONDS = 0"
    again = start(preprocess(shapes, store, "--scheduler", cluster.address, before=lines))
    wait_for_commits(store, 3, again)
    for each in (*children(cluster.workers[0].pid), cluster.workers[0]):
        each.kill()
    assert again.wait(90) == 0
    assert_whole(store, shapes)
    shown = re.findall(r"(\d+) of (\d+) img, \S+ img/s", again.text())
    (total,) = {int(total) for _, total in shown}
    positions = [int(position) for position, _ in shown]
    assert positions == sorted(positions) and positions[-1] == total, "bar"
    assert any(position % 32 for position in positions), "a shard has 64 samples, the last one 32"


# --- samples that kill ----------------------------------------------------------------------------------------------


def faulty_job(shapes: Shapes, store: Path, faults: Mapping[int, str]) -> run.Job:
    """A run whose Canny does this at these samples."""
    from faulty_extractors import FaultyCanny, digest

    manifest = Manifest.read(shapes.manifest)
    job = run.prepare(manifest, store, frame=FRAME)
    images = {index: FRAME.resize_image(manifest.load(index)[0]) for index in faults}
    canny = FaultyCanny(faults=tuple((digest(images[index]), fault) for index, fault in faults.items()))
    tasks = [
        replace(task, extractors=tuple(canny if each.name == "canny" else each for each in task.extractors))
        for task in job.plan.tasks
    ]
    return replace(job, plan=replace(job.plan, tasks=tuple(tasks)))


def refusing_job(shapes: Shapes, store: Path, reasons: Mapping[int, str]) -> run.Job:
    """A run that is told beforehand which samples it must not try."""
    job = run.prepare(Manifest.read(shapes.manifest), store, frame=FRAME)
    return replace(job, plan=replace(job.plan, tasks=tuple(replace(task, refused=reasons) for task in job.plan.tasks)))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers unpickle the faulty extractor by its module's name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_exactly_the_samples_that_kill_are_quarantined(
    importable: None, shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar_positions: list[int]
) -> None:
    """Two in one shard, by signal and by exit; one in another, by memory; the memory of all others is let be."""
    monkeypatch.setitem(dask_cluster.CONFIGURATION, "distributed.scheduler.allowed-failures", 1)  # fewer restarts
    reasons = {70: SIGKILL, 101: EXIT, 200: HOG}
    job = faulty_job(shapes, tmp_path / "s.zarr", {70: "kill", 101: "exit", 200: "hog"})
    report = run.execute(job, LocalExecutor(workers=2, memory_limit=MEMORY_LIMIT))
    assert_counts_samples(bar_positions)
    assert {entry.index: entry.reason for entry in report.quarantine} == reasons
    assert report.shards_computed == 6
    run.execute(refusing_job(shapes, tmp_path / "told.zarr", reasons), SyncExecutor(), progress=False)
    assert_same_tree(tree(tmp_path / "s.zarr"), tree(tmp_path / "told.zarr"))
    assert "no fault" in physseg("verify", tmp_path / "s.zarr")
    physseg("preprocess", shapes.manifest, tmp_path / "s.zarr", "--scheduler", "sync", "--retry-quarantined")
    assert_whole(tmp_path / "s.zarr", shapes)  # no fault of the data: with the extractor mended all is as it should be


def test_a_bug_of_ours_shows_and_is_one_line(
    importable: None, shapes: Shapes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Dask's workers would print the task and its traceback; the latter is in the error, for --debug."""
    job = faulty_job(shapes, tmp_path / "s.zarr", {0: "divide"})
    with pytest.raises(ShardFailedError, match=r"shard 0 .*ZeroDivisionError: division by zero") as error:
        run.execute(job, LocalExecutor(workers=1), progress=False)
    assert capfd.readouterr() == ("", "")
    told = "".join(traceback.format_exception(error.value))
    assert "faulty_extractors.py" in told and "1 / 0" in told


def alone(task: ShardTask) -> ShardReport:
    return compute_alone(task, memory_limit=MEMORY_LIMIT, still_ours=lambda: None)


def test_a_lone_process_killed_by_others_loses_no_sample(importable: None, shapes: Shapes, tmp_path: Path) -> None:
    """Three times, each time at another sample."""
    store = tmp_path / "s.zarr"
    faults = {index: f"once {tmp_path}/{index}" for index in (3, 40, 63)}
    job = faulty_job(shapes, store, faults)
    run.execute(refusing_job(shapes, store, {}), SyncExecutor(), progress=False)
    assert not alone(job.plan.tasks[0]).quarantine
    assert all((tmp_path / str(index)).exists() for index in faults)
    assert_same_tree(tree(store), shapes.files)


def test_what_a_lone_process_raises_fails_the_run(importable: None, shapes: Shapes, tmp_path: Path) -> None:
    task = faulty_job(shapes, tmp_path / "s.zarr", {}).plan.tasks[0]
    with pytest.raises(ShardFailedError, match=r"shard 0 of .*nowhere.zarr failed: .*no store here") as error:
        alone(replace(task, store=str(tmp_path / "nowhere.zarr")))
    assert "Traceback" in error.value.__notes__[0], "where in the other process, for --debug"


def test_a_lone_process_dies_with_its_parent(importable: None, start: Start, shapes: Shapes, tmp_path: Path) -> None:
    job = faulty_job(shapes, tmp_path / "s.zarr", {0: "sleep"})
    create_store(job.store, job.schema, job.manifest)
    (tmp_path / "task").write_bytes(pickle.dumps(job.plan.tasks[0]))
    parent = start(
        "import pickle, pathlib\n"
        "from physseg.pipeline.run.lone_shards import compute_alone\n"
        f"task = pickle.loads(pathlib.Path('{tmp_path}/task').read_bytes())\n"
        "compute_alone(task, memory_limit=10**9, still_ours=lambda: print('alive', flush=True))\n"
    )
    wait_until(lambda: parent.text().count("alive") > 2)
    assert workers(parent.pid)
    parent.kill()
    parent.wait(10)
    parent.wait_until_gone()


# --- Slurm ----------------------------------------------------------------------------------------------------------


def test_slurm_jobs_that_dask_asks_for_leave_the_same_bytes(
    slurm: Path, shapes: Shapes, tmp_path: Path, bar_positions: list[int]
) -> None:
    """Both jobs are cancelled on the way, and others take their place."""
    pytest.importorskip("dask_jobqueue")
    options = {
        "memory": "2GB",
        "walltime": "00:05:00",
        "log-directory": str(tmp_path / "jobs"),
        "local-directory": str(tmp_path),
        "interface": "lo",
    }

    def cancel_all() -> None:
        wait_until(lambda: num_commits(store))
        subprocess.run(["scancel", "--user", str(os.getuid())], check=True)

    store = tmp_path / "s.zarr"
    thread = threading.Thread(target=cancel_all)
    thread.start()
    settings = {f"jobqueue.slurm.{name}": value for name, value in options.items()}
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s", **settings}):
        report = run.preprocess(shapes.manifest, store, scheduler="slurm", workers=2, frame=FRAME)
    thread.join()
    assert_counts_samples(bar_positions)
    assert report.shards_computed == 6
    assert_whole(store, shapes)


def test_what_slurm_refuses_is_told(slurm: Path, shapes: Shapes, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    refused = pytest.raises(ExecutorError, match=r"slurm: .*[Ii]nvalid partition")
    with dask.config.set({"jobqueue.slurm.queue": "nowhere", "jobqueue.slurm.interface": "lo"}), refused:
        run.preprocess(shapes.manifest, tmp_path / "s.zarr", scheduler="slurm", workers=2, frame=FRAME, progress=False)
