"""The bar of preprocess: samples, not shards, each of them once."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.executors import worker
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.task import ShardReport, ShardTask
from physseg.pipeline.store.frame import Frame

SMALL = Frame(short_edge=32, max_long_edge=64, canvas=64)


class Restless(SyncExecutor):
    """Workers of it are at these samples before they compute the shard, and are heard of once more when it is done."""

    before: ClassVar[dict[int, tuple[int, ...]]] = {0: (0, 10, 63, 0, 5, 20), 1: (64, 66)}

    def run(
        self, tasks: Sequence[ShardTask], *, on_sample: Callable[[int], None] = lambda _: None, **options: Any
    ) -> Iterator[ShardReport]:
        for task in tasks:
            for index in self.before[task.shard]:
                on_sample(index)
        for report in super().run(tasks, **options):
            yield report
            on_sample(64 * report.shard + 3)


def test_a_shard_that_begins_anew_counts_once(
    make_manifest: Callable[..., Manifest], tmp_path: Path, bar_positions: list[int]
) -> None:
    job = run.prepare(make_manifest(70), tmp_path / "s.zarr", structures=["canny"], frame=SMALL)
    run.execute(job, Restless())
    first, second = [0, 10, 63, 63, 63, 63], [63, 65]
    assert bar_positions == [*first, *second, 66, 66, 70, 70]


def test_in_this_process_every_sample_moves_the_bar(
    make_manifest: Callable[..., Manifest], tmp_path: Path, bar_positions: list[int]
) -> None:
    job = run.prepare(make_manifest(70), tmp_path / "s.zarr", structures=["canny"], frame=SMALL)
    run.execute(job, SyncExecutor())
    assert bar_positions == [*range(65), *range(64, 71)]


def test_a_worker_tells_where_it_is_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of 64 samples of an eighth of a second, told every three seconds, whatever the shard."""

    class Worker:
        def log_event(self, topic: str, word: tuple[str, int]) -> None:
            assert (topic, word[0]) == (worker.TOPIC, "client")
            told.append(word[1])

    def compute(task: int, on_sample: Callable[[int], None]) -> int:
        for index in range(64):
            on_sample(64 * task + index)
            now[0] += 0.125
        return task

    told, now = list[int](), [1000.0]
    monkeypatch.setattr("distributed.get_worker", Worker)
    monkeypatch.setattr(worker, "compute_shard", compute)
    monkeypatch.setattr(worker, "_next_word", [0.0])
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    for shard in (0, 1):
        assert worker.compute_and_tell(shard, "client", 3.0) == shard  # type: ignore[arg-type, comparison-overlap]
    assert told == list(range(0, 128, 24))
