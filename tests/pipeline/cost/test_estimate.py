"""What a run is said to take: the arithmetic, the choice of images, and that measuring leaves nothing behind."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.cli import main
from physseg.common.storage.location import open_storage
from physseg.common.text import LEAST_SPREAD, MOST_SPREAD, between, spread_of
from physseg.manifests.manifest import Manifest
from physseg.pipeline.cost import trial
from physseg.pipeline.cost.estimate import (
    CLUSTER_SECONDS,
    estimate,
    estimate_job,
    makespan,
    rows_of_tasks,
)
from physseg.pipeline.cost.report import describe_estimate
from physseg.pipeline.cost.trial import (
    SAMPLES_PER_SHARD,
    Trial,
    compute_at_once,
    evenly,
    run_trial,
)
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ExecutorError
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.reader import StoreReader

SMALL = Frame(short_edge=32, max_long_edge=64, canvas=64)


@given(seconds=st.lists(st.integers(1, 9), min_size=1, max_size=30), workers=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_makespan_is_that_of_tasks_placed_one_by_one(seconds: list[int], workers: int) -> None:
    free = [0.0] * workers
    for each in seconds:
        free[free.index(min(free))] += each
    assert makespan(seconds, workers) == max(free)


def test_makespan_of_a_million_tasks_is_cheap_and_sure() -> None:
    assert makespan([0.5] * 1_000_000, 1000) == 500.0


def test_images_in_the_store_are_no_files(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    job = run.prepare(make_manifest(8), tmp_path / "s.zarr", structures=["image"], frame=SMALL)
    found = estimate_job(job, workers=1)
    assert found is not None and found.image_file_bytes == 0
    assert found.epoch_bytes == round(8 * found.sample_bytes)
    assert "and an image of" not in "\n".join(describe_estimate(found))


def test_any_small_shard_is_like_the_whole() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.lognormal(12, 0.5, 5000).astype(np.int64)
    rows = np.arange(5000)
    chosen = evenly(rows, pixels, 6)
    assert len(set(chosen.tolist())) == 6 * SAMPLES_PER_SHARD
    for shard in np.split(pixels[chosen], 6):
        assert shard.mean() == pytest.approx(pixels.mean(), rel=0.2)
    assert len(set(evenly(rows[:11], pixels[:11], 6).tolist())) == 8, "as many as fill shards"
    assert sorted(evenly(rows[:5], pixels[:5], 6).tolist()) == list(range(5)), "all there are, once"
    assert evenly(rows[:0], pixels[:0], 6).tolist() == []


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def trial_of(job: run.Job) -> Trial:
    """A tenth of a second an image and 0.6 a shard; 100 bytes a sample and array."""
    return Trial(
        images=32,
        failed=0,
        processes=2,
        busy=1.0,
        parts={"load": 0.1, "canny": 0.0, "compress": 0.0, "write": 0.6 / 64},
        spread=LEAST_SPREAD,
        process_seconds=1.0,
        first_seconds=0.5,
        peak_bytes=300_000_000,
        largest_pixels=3072,
        array_bytes={spec.name: 100.0 for spec in job.schema.specs if spec.is_sharded},
        record_bytes=2000,
        image_file_bytes=5000.0,
        read_seconds=0.004,
    )


def test_the_sums(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    job = run.prepare(make_manifest(70), tmp_path / "s.zarr", frame=SMALL)
    found = estimate(job, trial_of(job), workers=2)
    assert found.samples == 70 and found.shards == 2
    assert found.core_seconds == pytest.approx(70 * 0.1 + 2 * 0.6 + 2 * 0.5), "each worker has a first shard"
    assert found.core_hours[1] == pytest.approx(found.core_seconds * (1 + LEAST_SPREAD) / 3600)
    start = 1.5 + CLUSTER_SECONDS
    assert found.wall_seconds == pytest.approx(start + 64 * 0.1 + 0.6), "the short shard runs beside the long one"
    assert found.wall_seconds_range[0] == pytest.approx(start + 7 * (1 - LEAST_SPREAD))
    assert not found.wall_seconds_on, "there are fewer shards than eight workers would want"
    assert found.memory_bytes > 300_000_000
    assert found.epoch_bytes == 70 * (found.reads * 100 + 5000)
    assert found.loader_samples_per_second == pytest.approx(250)
    text = "\n".join(describe_estimate(found))
    assert "an epoch reads 392.0 KB, a sample 600 B in 6 reads and an image of 5.0 KB" in text
    assert "a loader process reads up to 250 samples/s here, 4 feed 1,000" in text
    alone = estimate(job, trial_of(job), workers=1, in_one_process=True)
    assert alone.wall_seconds == pytest.approx(alone.core_seconds), "no cluster to start"


def test_the_time_on_other_numbers_of_workers(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    whole = make_manifest(1)
    copies = [replace(whole.samples[0], sample_id=str(index)) for index in range(65 * 64)]
    job = run.prepare(replace(whole, samples=copies), tmp_path / "s.zarr", frame=SMALL)
    found = estimate(job, trial_of(job), workers=2)
    shard, start = 64 * 0.1 + 0.6, 1.5 + CLUSTER_SECONDS
    assert found.wall_seconds_on == {8: pytest.approx(start + 9 * shard), 64: pytest.approx(start + 2 * shard)}
    assert "65 s on 8, 16 s on 64" in "\n".join(describe_estimate(found))


def test_a_shard_that_took_long_is_told() -> None:
    assert spread_of([0.1, 0.1, 0.1, 0.1, 0.9]) == MOST_SPREAD
    assert spread_of([1.0, 1.2, 1.1, 0.9]) == pytest.approx(0.123, abs=1e-3)
    assert spread_of([0.1] * 4) == LEAST_SPREAD
    assert spread_of([0.1]) == MOST_SPREAD, "of one nobody knows how far others are"


def test_samples_in_quarantine_cost_nothing(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    whole = make_manifest(10)
    table = replace(
        whole, samples=[replace(sample, problem="bad") for sample in whole.samples[:4]] + [*whole.samples[4:]]
    )
    job = run.prepare(table, tmp_path / "s.zarr", frame=SMALL)
    found = estimate(job, trial_of(job), workers=1)
    assert found.samples == 6
    assert found.core_seconds == pytest.approx(6 * 0.1 + 0.6 + 0.5)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (6480, 7560, "1.8 to 2.1 hours"),
        (40 * 3600, 44 * 3600, "40 to 44 hours"),
        (100, 130, "1.7 to 2.2 minutes"),
        (0.2, 0.3, "0.2 to 0.3 seconds"),
        (30, 30.2, "30 seconds"),
    ],
)
def test_ranges_in_words(low: float, high: float, text: str) -> None:
    assert between(low, high) == text
    assert between(low, high, core=True) == text.replace(
        text.rsplit(maxsplit=1)[-1], "core-" + text.rsplit(maxsplit=1)[-1]
    )


def test_what_is_measured_is_what_comes(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    """All but the time, which no test should look at; the images differ in size, and each is measured."""
    table = make_manifest(40, sizes=((48, 64), (64, 48), (200, 100)))
    job = run.prepare(table, tmp_path / "stores/s.zarr", frame=SMALL)
    found = estimate_job(job, workers=1, images=80)
    assert found is not None
    assert not (tmp_path / "stores").exists() and names(tmp_path) == ["data"], "nothing is left behind"
    assert found.images == 40
    assert (found.failed, found.processes) == (0, 1)
    assert found.core_seconds > 0 and found.start_seconds > 0
    assert set(found.parts) == {"load", "canny", "mask_edges", "sift", "patch_counts", "compress", "write"}
    run.execute(job, SyncExecutor(), progress=False)
    files = [file.stat().st_size for file in (tmp_path / "stores/s.zarr").rglob("*") if file.is_file()]
    assert found.files == len(files)
    assert found.store_bytes == pytest.approx(sum(files), rel=0.01)
    images = [(Path(table.root) / sample.image_path).stat().st_size for sample in table.samples]
    assert found.image_file_bytes == pytest.approx(np.mean(images), rel=0.1)
    sharded = ("labels", "canny", "mask_edges", "sift", "cell_classes", "cell_counts")
    arrays = [(tmp_path / "stores/s.zarr" / name / "c/0").rglob("*") for name in sharded]
    read = sum(file.stat().st_size for array in arrays for file in array if file.is_file()) + sum(images)
    assert found.epoch_bytes == pytest.approx(read, rel=0.1)
    assert 1 < found.loader_samples_per_second < 100_000


def test_only_what_is_left_is_planned(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    table, store = make_manifest(70), tmp_path / "s.zarr"
    run.preprocess(table, store, structures=["canny"], frame=SMALL, scheduler="sync", progress=False)
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    job = run.prepare(table, store, structures=["mask_edges"])
    assert [task.layers for task in job.plan.tasks] == [("mask_edges",)] * 2
    found = estimate_job(job, workers=1, images=8)
    assert found is not None
    assert set(found.parts) == {"load", "mask_edges", "compress", "write"}
    assert found.files == 2 * 3, "an array, the status and the record of each shard"
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*")} == before
    canny = sum(open_storage(store).list("canny/c").values()) / 128
    assert found.sample_bytes > canny, "training reads what the store has already, too"
    (store / "provenance/commits/000001.json").unlink()
    tasks = run.prepare(table, store, structures=["mask_edges"]).plan.tasks
    assert [set(task.layers) for task in tasks] == [
        {"mask_edges"},
        {"labels", "canny", "mask_edges", "patch_counts"},
    ]


def test_a_replaced_image_is_planned_with_its_shard(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    table, store = make_manifest(70), tmp_path / "s.zarr"
    run.preprocess(table, store, frame=SMALL, scheduler="sync", progress=False)
    image = tmp_path / "data/images/003.jpg"
    image.write_bytes((tmp_path / "data/images/005.jpg").read_bytes())
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    changed = replace(table.samples[3], image_sha256=digest, height=table.samples[5].height)
    table = replace(table, samples=[changed if index == 3 else sample for index, sample in enumerate(table.samples)])
    job = run.prepare(table, store)
    found = estimate(job, trial_of(job), workers=1)
    assert (found.samples, found.shards) == (64, 1)
    assert found.core_seconds == pytest.approx(64 * 0.1 + 0.6 + 0.5)
    assert found.store_bytes > 64 * 6 * 100, "the shard's files are written whole"
    assert found.epoch_bytes == round(70 * (found.sample_bytes + 5000)), "training reads the other shard, too"


def test_each_kind_of_work_has_its_own_cost(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    table, store = make_manifest(70), tmp_path / "s.zarr"
    run.preprocess(table, store, structures=["canny"], frame=SMALL, scheduler="sync", progress=False)
    (store / "provenance/commits/000001.json").unlink()
    job = run.prepare(table, store, structures=["mask_edges"])
    measured = run_trial(job, np.concatenate(rows_of_tasks(job)), processes=1, images=16)
    assert measured is not None
    parts = {"load": 0.1, "canny": 1.0, "mask_edges": 0.01, "patch_counts": 0.05, "compress": 0.0, "write": 0.6 / 64}
    assert measured.parts.keys() == parts.keys(), "what any shard needs"
    found = estimate(job, replace(measured, parts=parts, first_seconds=0.0), workers=1)
    assert found.core_seconds == pytest.approx(64 * (0.1 + 0.01) + 6 * (0.1 + 1 + 0.01 + 0.05) + 2 * 0.6)


@pytest.mark.parametrize("structures", [["canny"], ["canny", "image"]])
def test_reading_is_of_images_and_arrays(
    structures: list[str], make_manifest: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process's own shards: others may still be written. With the layer `image`, no file is opened."""

    class Recorded(StoreReader):
        def image(self, index: int, *, verify: bool = True) -> Any:
            images.append(index)
            return super().image(index, verify=verify)

        def planes(self, index: int) -> Iterator[tuple[str, Any]]:
            for name, plane in super().planes(index):
                read.append((index, name))
                yield name, plane

    read, images = list[tuple[int, str]](), list[int]()
    monkeypatch.setattr(trial, "StoreReader", Recorded)
    monkeypatch.setattr(trial, "READ_SECONDS", 600.0)
    table, store = make_manifest(70), tmp_path / "s.zarr"
    (tmp_path / "data/images/003.jpg").write_bytes(b"")
    tasks = run.prepare(table, store, structures=structures, frame=SMALL).plan.tasks
    run.preprocess(table, store, structures=structures, frame=SMALL, scheduler="sync", progress=False)
    if "image" in structures:
        shutil.rmtree(tmp_path / "data")
    seconds = trial._read(tasks[:1])
    rows = [row for row in range(64) if row != 3]
    assert len(seconds) == len(rows) and min(seconds) > 0
    assert sorted(set(images)) == rows and len(images) == len(rows) + 1, "the first one is not counted"
    assert images != sorted(images)
    assert {row for row, _ in read} == set(rows)
    assert {name for _, name in read} == {"labels", "canny", "cell_classes", "cell_counts"}
    monkeypatch.setattr(trial, "READ_SECONDS", 0.0)
    assert len(trial._read(tasks[:1])) == 1, "however long the manifest takes"


def test_less_work_than_processes(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    job = run.prepare(make_manifest(70), tmp_path / "s.zarr", frame=SMALL)
    found = run_trial(job, np.array([3]), processes=2)
    assert found is not None
    assert (found.processes, found.images) == (1, SAMPLES_PER_SHARD)


def test_images_that_fail_are_counted(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    table = make_manifest(8)
    (tmp_path / "data/images/003.jpg").write_bytes(b"")
    found = estimate_job(run.prepare(table, tmp_path / "s.zarr", frame=SMALL), workers=1)
    assert found is not None and found.failed == 1
    assert "1 of the images" in "\n".join(describe_estimate(found))
    for index in range(8):
        (tmp_path / f"data/images/{index:03d}.jpg").write_bytes(b"")
    assert estimate_job(run.prepare(table, tmp_path / "s.zarr", frame=SMALL), workers=1) is None


class Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (9,)


def test_a_process_that_dies_is_an_error_with_a_hint() -> None:
    with pytest.raises(ExecutorError) as caught:
        compute_at_once([[Deadly()]], 1.0)  # type: ignore[list-item]
    assert "--workers" in str(caught.value.hint)


class Endless:
    """A shard that computes, as far as anybody can wait; a file tells that it has begun."""

    def __init__(self, begun: Path) -> None:
        self.begun = begun

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.begun.touch()
        time.sleep(600)


MEASURING = """
import sys
from pathlib import Path
from physseg.pipeline.cost.trial import compute_at_once
from test_estimate import Endless
if __name__ == "__main__":
    compute_at_once([[Endless(Path(sys.argv[1]))]], 1.0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_at_once_with_a_command_that_is_interrupted_or_killed(
    number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "measuring.py").write_text(MEASURING)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, str(tmp_path / "measuring.py"), str(tmp_path / "begun")]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        try:
            process.communicate(timeout=60)  # the pipe's other end is held by every process below
        finally:
            process.kill()
    assert process.returncode not in (0, None)


Run = Callable[..., str]


@pytest.fixture
def physseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that must succeed, in this process; returns what it printed."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["physseg", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    return call


def test_the_command(physseg: Run, make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    make_manifest(40).write(tmp_path / "m.parquet")
    words = (tmp_path / "m.parquet", "--short-edge", 32, "--num-images", 8)
    text = physseg("plan", *words, "--target-hours", 1, "--workers", 3)  # an option of before
    assert f"{tmp_path / 'm.parquet'}: new store, 40 samples in 1 shard" in text
    for line in ("core-seconds", "on 3 workers", "files", "memory", "an epoch reads", "a loader process"):
        assert line in text
    facts = json.loads(physseg("plan", *words[:1], tmp_path / "s.zarr", *words[1:], "--json", "-"))
    assert (facts["samples"], facts["shards"], facts["reasons"]) == (40, 1, {"not computed yet": 1})
    assert facts["estimate"]["core_hours"][0] < facts["estimate"]["core_seconds"] / 3600
    assert names(tmp_path) == ["data", "m.parquet"]
    run.preprocess(tmp_path / "m.parquet", tmp_path / "s.zarr", frame=SMALL, scheduler="sync", progress=False)
    assert "nothing: every shard" in physseg("plan", tmp_path / "m.parquet", tmp_path / "s.zarr")
    done = json.loads(physseg("plan", tmp_path / "m.parquet", tmp_path / "s.zarr", "--json", "-"))
    assert done == {"samples": 0, "shards": 0, "reasons": {}, "estimate": None}
