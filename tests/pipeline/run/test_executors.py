"""What the loop over tasks does between results, without a cluster: a client of our own plays Dask's part."""

import asyncio
import importlib.util
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.scheduler import KilledWorker, WorkerState
from physseg.common.processes import memory_of
from physseg.pipeline.run import lone_shards
from physseg.pipeline.run.errors import ExecutorError, ShardFailedError
from physseg.pipeline.run.executors import dask_cluster, local, slurm, sync, worker
from physseg.pipeline.run.executors.choose import choose_executor
from physseg.pipeline.run.executors.dask_cluster import DaskExecutor
from physseg.pipeline.run.executors.local import LocalExecutor
from physseg.pipeline.run.lone_shards import compute_alone
from physseg.pipeline.run.task import ShardReport, ShardTask
from physseg.pipeline.store.errors import StoreError

ADDRESS = "tcp://head:8786"


def task_of(shard: int) -> ShardTask:
    return ShardTask(store="/s.zarr", settings="", root="", shard=shard, extractors=(), with_labels=True)


def report_of(task: ShardTask) -> ShardReport:
    return ShardReport(shard=task.shard, num_samples=64, quarantine=(), dropped_pixels=0, bytes_written=0)


def killed() -> KilledWorker:
    worker = WorkerState(address="tcp://w:1", status="running", pid=1, name="w", nthreads=1, memory_limit=0,
                         local_directory="", nanny="", server_id="w")  # fmt: skip
    return KilledWorker("key", worker, 3)


class PlayedFuture:
    """Ends with each of `results` in turn, as often as it is asked."""

    def __init__(self, client: "PlayedClient", key: str, results: list[Any], status: str) -> None:
        self.client, self.results, self._key, self._status = client, results, key, status

    @property
    def key(self) -> str:
        self.client.looks_at_futures += 1
        return self._key

    @property
    def status(self) -> str:
        self.client.looks_at_futures += 1
        return self._status

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.client.running.append((self, callback))
        self.client.most_running = max(self.client.most_running, len(self.client.running))

    def result(self, timeout: float) -> ShardReport:
        assert timeout > 0, "a result may never come, and the loop has to look up"
        self.client.looks_at_futures += 1
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


class PlayedClient:
    """A cluster whose tasks end, oldest first, whenever its workers are counted; its clock runs as it is read."""

    def __init__(self, threads: Callable[[], int], results: dict[int, tuple[list[Any], str]]) -> None:
        self.threads, self.results = threads, results
        self.running: deque[tuple[PlayedFuture, Callable[[Any], None]]] = deque()
        self.most_running = self.looks_at_futures = 0
        self.id, self.seconds_between_words = "Client-1", set[float]()
        self.seconds = 0.0
        self.scheduler = type("Scheduler", (), {"address": ADDRESS})

    def clock(self) -> float:
        self.seconds += 0.02
        return self.seconds

    def nthreads(self) -> dict[str, int]:
        threads = self.threads()
        while threads and self.running:
            future, callback = self.running.popleft()
            callback(future)
        return {f"worker{number}": 1 for number in range(threads)}

    def subscribe_topic(self, topic: str, handler: Callable[[tuple[float, Any]], None]) -> None:
        assert topic == worker.TOPIC
        self.hear = handler

    def submit(self, _: object, task: ShardTask, client: str, seconds: float, *, key: str, pure: bool) -> PlayedFuture:
        assert client == self.id
        self.seconds_between_words.add(seconds)
        self.hear((0.0, ("another client", 7)))
        self.hear((0.0, (client, 64 * task.shard)))
        assert not pure, "Dask would take two equal tasks for one"
        results, status = self.results.get(task.shard, ([report_of(task)], "finished"))
        return PlayedFuture(self, key, list(results), status)


class NoWait(queue.SimpleQueue[Any]):
    """The loop's queue: an empty one is not waited for."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        assert timeout is not None and timeout > 0
        return super().get(block=False)


Play = Callable[..., PlayedClient]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play(threads, {shard: (results, status)})`: from now on that is what every scheduler does."""
    monkeypatch.setattr(dask_cluster.queue, "SimpleQueue", NoWait)

    def play(threads: int | Callable[[], int], results: dict[int, tuple[list[Any], str]] | None = None) -> PlayedClient:
        client = PlayedClient(threads if callable(threads) else lambda: threads, results or {})

        @contextmanager
        def connected(*_: object) -> Iterator[PlayedClient]:
            yield client

        monkeypatch.setattr(DaskExecutor, "connected", connected)
        monkeypatch.setattr(dask_cluster, "Watch", partial(dask_cluster.Watch, clock=client.clock))
        return client

    return play


def run(count: int, scheduler: str = ADDRESS, *, memory_limit: int | None = None, **options: Any) -> list[int]:
    """Shards in the order of their reports."""
    executor = choose_executor(scheduler, workers=options.pop("workers", None), memory_limit=memory_limit)
    return [report.shard for report in executor.run(list(map(task_of, range(count))), **options)]


def test_few_tasks_are_in_flight_and_all_are_run(play: Play) -> None:
    client, heard = play(3), list[int]()
    assert sorted(run(50, on_sample=heard.append)) == list(range(50))
    assert client.most_running == 3 * dask_cluster.TASKS_IN_FLIGHT_PER_WORKER
    assert heard == [64 * shard for shard in range(50)]
    assert client.seconds_between_words == {dask_cluster.WORD_SECONDS}


def test_a_thousand_workers_cost_a_task_no_more_than_one(play: Play) -> None:
    """4000 in flight: if every result took a look at each of them, that would be 80 million looks."""
    client = play(2000)
    assert len(run(20_000)) == 20_000
    assert client.most_running == 4000
    assert client.seconds_between_words == {2000 / dask_cluster.WORDS_PER_SECOND}
    assert client.looks_at_futures <= 3 * 20_000


def test_waiting_for_workers_is_said_now_and_then_and_ends_when_they_come(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    client = play(lambda: int(client.seconds > 400))
    assert run(2) == [0, 1]
    start = f"waiting: no worker is connected to {ADDRESS} "
    assert capsys.readouterr().err.splitlines() == [f"{start}(30 s)", f"{start}(6 min)"]


def test_a_local_cluster_without_workers_is_given_up(play: Play) -> None:
    client = play(0)
    with pytest.raises(ExecutorError, match="no worker process stays alive"):
        run(2, scheduler="local")
    assert client.seconds == pytest.approx(LocalExecutor.patience, abs=3)


@pytest.mark.parametrize("scheduler", ["sync", ADDRESS])
def test_whoever_lost_the_store_stops(scheduler: str, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    def still_ours() -> None:
        looks.append(1)
        if len(looks) > 3:
            raise StoreError("another run has taken the store over")

    looks: list[int] = []
    play(1)
    monkeypatch.setattr(sync, "compute_shard", lambda task, _: report_of(task))
    with pytest.raises(StoreError, match="taken the store over"):
        run(1000, scheduler=scheduler, still_ours=still_ours)


@pytest.mark.parametrize(
    ("result", "status", "message"),
    [
        (OSError(28, "No space left on device"), "error", "shard 3 .*No space left"),
        (TimeoutError("the file server does not answer"), "error", "shard 3 .*the file server"),
        (CancelledError("connection closed"), "cancelled", f"shard 3 .*the scheduler at {ADDRESS} was lost"),
        (OSError("Timed out"), "finished", f"shard 3 .*the scheduler at {ADDRESS} was lost"),
    ],
)
def test_the_first_failure_ends_the_run(result: Exception, status: str, message: str, play: Play) -> None:
    play(1, {3: ([result], status)})
    with pytest.raises(ShardFailedError, match=message):
        run(10)


def test_a_report_that_died_with_its_worker_is_waited_for(play: Play) -> None:
    play(1, {1: ([TimeoutError(), TimeoutError(), report_of(task_of(1))], "lost")})
    assert sorted(run(3)) == [0, 1, 2]


def test_killers_come_last_and_alone(
    play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def alone(task: ShardTask, *, memory_limit: int, **_: object) -> ShardReport:
        limits.append(memory_limit)
        return report_of(task)

    limits: list[int] = []
    monkeypatch.setattr(dask_cluster, "compute_alone", alone)
    play(1, {1: ([killed()], "error"), 2: ([killed()], "error")})
    assert run(5, memory_limit=10**9) == [0, 3, 4, 1, 2]
    assert limits == [10**9] * 2
    assert [text.split(":")[0] for text in capsys.readouterr().err.splitlines()] == ["shard 1", "shard 2"]


# --- a shard tried alone --------------------------------------------------------------------------------------------

Death = lone_shards._Death
KILL = "signal 9 (SIGKILL)"


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[ShardTask]]:
    """``die(ends)``: attempts end like this, and then the report; returns the list of tasks as they are tried."""

    def die(*ends: object) -> list[ShardTask]:
        def attempt(task: ShardTask, *_: object) -> object:
            tried.append(task)
            return left.pop(0) if left else report_of(task)

        tried: list[ShardTask] = []
        left = list(ends)
        monkeypatch.setattr(lone_shards, "_attempt", attempt)
        return tried

    return die


def alone() -> ShardReport:
    return compute_alone(task_of(0), memory_limit=10**9, still_ours=lambda: None)


def test_a_sample_that_kills_twice_is_refused_and_said(
    die: Callable[..., list[ShardTask]], capsys: pytest.CaptureFixture[str]
) -> None:
    tried = die(Death(5, KILL, begun=6), Death(5, KILL, begun=6), Death(9, "too much", by_memory=True, begun=10),
                Death(9, "too much", by_memory=True, begun=10))  # fmt: skip
    assert alone().shard == 0
    reason = f"computing it killed its process twice: {KILL}"
    assert [dict(task.refused) for task in tried] == [{}, {}, {5: reason}, {5: reason}, {5: reason, 9: "too much"}]
    assert capsys.readouterr().err.splitlines() == [
        f"shard 0: sample 5 is put in quarantine: {reason}",
        "shard 0: sample 9 is put in quarantine: too much",
    ]


def test_deaths_that_strike_anywhere_refuse_nothing(die: Callable[..., list[ShardTask]]) -> None:
    """Nor do two different ones at the same sample."""
    tried = die(Death(5, KILL), Death(6, KILL), Death(None, KILL), Death(5, "signal 15 (SIGTERM)"), Death(63, KILL))
    alone()
    assert len(tried) == 6
    assert all(not task.refused for task in tried)


@pytest.mark.parametrize(
    ("ends", "match"),
    [
        ([Death(None, KILL)] * 2, f"died 2 times, and not of a sample: {KILL}".replace("(", r"\(").replace(")", r"\)")),
        ([Death(63, KILL)] * 4, "and not of a sample"),  # refused, and still there: it is the writing afterwards
        (
            [Death(at, "signal 4 (SIGILL)", begun=1) for at in (0, 0, 1, 1, 2, 2, 3, 3)],
            "each of its first 4 samples",
        ),
        ([ShardFailedError("disk full")], "disk full"),
    ],
)
def test_what_is_no_samples_fault_fails_the_run(
    ends: list[object], match: str, die: Callable[..., list[ShardTask]]
) -> None:
    die(*ends)
    with pytest.raises(ShardFailedError, match=match):
        alone()


def test_memory_of_a_process_is_seen() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    code = "block = bytearray(300 * 2**20); del block; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory = memory_of(process.pid)
        process.communicate(b"\n")
    assert memory.peak > 300 * 2**20 > 100 * 2**20 > memory.now > 10**6
    assert memory_of(process.pid).now == 0


# --- Slurm, without it ----------------------------------------------------------------------------------------------


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_slurm_needs_a_number_of_workers(sbatch: None) -> None:
    with pytest.raises(ExecutorError, match="expected a number of workers") as error:
        run(1, scheduler="slurm")
    assert error.value.hint is not None and "--workers" in error.value.hint


def test_slurm_needs_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExecutorError, match="no sbatch on this machine"):
        run(1, scheduler="slurm", workers=2)


def test_slurm_needs_dask_jobqueue(sbatch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ExecutorError, match="dask-jobqueue is not installed") as error:
        run(1, scheduler="slurm", workers=2)
    assert error.value.hint is not None and "pip install 'physseg[slurm]'" in error.value.hint


def test_slurm_has_one_thread_per_process_unless_the_configuration_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def options(configured: dict[str, object], memory_limit: int | None = None) -> dict[str, Any]:
        monkeypatch.setattr(slurm, "WORKER_ENVIRONMENT", {"OMP_NUM_THREADS": "1"})
        with dask.config.set({"jobqueue.slurm": configured}):
            return slurm.job_options(memory_limit, 10**9)

    assert options({}) == {
        "cores": 1,
        "processes": 1,
        "memory": "2000000000B",
        "scheduler_options": {"dashboard": False, "dashboard_address": dask_cluster.OWN_PORT},
        "job_script_prologue": ["export OMP_NUM_THREADS=1"],
    }
    ours = {
        "cores": 8,
        "memory": "16GB",
        "scheduler-options": {"dashboard": True},
        "job-script-prologue": ["module load python"],
    }
    assert options(ours) == {
        "cores": 8,
        "processes": 8,
        "memory": "16000000000B",
        "scheduler_options": {"dashboard": True, "dashboard_address": dask_cluster.OWN_PORT},
        "job_script_prologue": ["export OMP_NUM_THREADS=1", "module load python"],
    }
    few = options({**ours, "processes": 2}, memory_limit=3 * 10**9)
    assert (few["processes"], few["memory"]) == (2, "6000000000B")
    with pytest.raises(ExecutorError, match="needs about 1000 MB, and gets 500 MB"):
        options({"cores": 8, "memory": "4GB"})


@pytest.mark.parametrize(
    ("refusals", "before", "submitted"), [(2, 0, True), (3, 0, False), (3, 1, True), (5, 1, False)]
)
def test_slurm_is_asked_again_longer_if_it_has_accepted_a_job_before(
    refusals: int, before: int, submitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "sbatch").write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/calls\n"
        f"[ $(wc -l < {tmp_path}/calls) -gt {refusals} ] && echo Submitted batch job 7 && exit\n"
        "echo sbatch: error: Socket timed out >&2; exit 1\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "FIRST_PAUSES", (0.0,) * len(slurm.FIRST_PAUSES))
    monkeypatch.setattr(slurm, "LATER_PAUSES", (0.0,) * len(slurm.LATER_PAUSES))

    async def submit() -> str:
        job = slurm.patient_job()("tcp://head:1", "name", cores=1, memory="1GB", accepted=accepted)
        await job
        return str(job.job_id)

    accepted: Future[None] = Future()
    if before:
        accepted.set_result(None)
    if submitted:
        assert asyncio.run(submit()) == "7"
    else:
        with pytest.raises(RuntimeError, match="Socket timed out"):
            asyncio.run(submit())
    assert (accepted.exception(0) is None) == (submitted or bool(before))


def test_a_word_that_means_no_executor_is_named() -> None:
    with pytest.raises(ExecutorError, match="'threads'"):
        choose_executor("threads")


@pytest.mark.parametrize("scheduler", ["sync", ADDRESS, "tls://head:8786"])
def test_a_dashboard_is_that_of_a_scheduler_that_is_started_here(scheduler: str) -> None:
    with pytest.raises(ExecutorError, match=f"--dashboard: .*{scheduler}") as error:
        choose_executor(scheduler, dashboard=True)
    assert "its own" in str(error.value.hint)


def test_a_dashboard_needs_bokeh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ExecutorError, match="bokeh") as error:
        choose_executor("local", dashboard=True)
    assert "pip install 'physseg[dashboard]'" in str(error.value.hint)


def test_executors_that_run_elsewhere_say_so() -> None:
    words = {"sync": False, "local": False, "slurm": True, ADDRESS: True}
    assert {word: choose_executor(word).elsewhere for word in words} == words


def test_a_scheduler_that_is_not_there_is_named() -> None:
    refused = pytest.raises(ExecutorError, match=r"tcp://127\.0\.0\.1:1 does not answer")
    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}), refused as caught:
        run(1, scheduler="tcp://127.0.0.1:1")
    assert "is it running" in str(caught.value.hint)


@pytest.mark.parametrize("share", [0, "much", 0.001])
def test_a_share_of_memory_that_kills_every_worker_is_refused(share: object) -> None:
    with dask.config.set({"distributed.worker.memory.terminate": share}), pytest.raises(ExecutorError) as caught:
        local._check_terminate(10**9, 10**7)
    assert "distributed.worker.memory.terminate" in str(caught.value)
    for fine in (False, 0.95, 1):
        with dask.config.set({"distributed.worker.memory.terminate": fine}):
            local._check_terminate(10**9, 10**7)


def test_too_few_open_files_are_named_before_any_worker_starts(tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "from physseg.common.processes import allow_open_files\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 60))\n"
        "from physseg.pipeline.run.executors.local import LocalExecutor\n"
        "assert allow_open_files(52) and resource.getrlimit(resource.RLIMIT_NOFILE) == (52, 60)\n"
        "with LocalExecutor(workers=3).cluster(0): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ExecutorError: 3 workers need 62 open files" in done.stderr


def test_a_file_of_dask_that_does_not_parse_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [b")
    code = "from physseg.pipeline.run.executors.dask_library import import_dask; import_dask()"
    environment = {**os.environ, "DASK_CONFIG": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    last = done.stderr[done.stderr.rindex("ExecutorError") :]
    assert "bad.yaml" in last and "mend or remove the file" in last
