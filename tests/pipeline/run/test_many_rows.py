"""Runs over manifests of several groups of rows; and that a resume looks at records, not at rows."""

import random
import shutil
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from physseg.common.storage.local import LocalStorage
from physseg.common.storage.location import open_storage
from physseg.common.storage.objects import ObjectStorage
from physseg.common.text import Part
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest
from physseg.manifests.row_groups import ParquetRows
from physseg.manifests.sample_table import SampleTable
from physseg.pipeline.cost.estimate import estimate_job
from physseg.pipeline.run import run
from physseg.pipeline.run import task as shard_task
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store import layout
from physseg.pipeline.store.commits import read_commit
from physseg.pipeline.store.reader import StoreReader

from ..store.test_store import FRAME, MakeManifest, assert_same_bytes, preprocess


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(70)  # two shards


@pytest.fixture
def grouped(manifest: Manifest, tmp_path: Path) -> Manifest:
    """The same rows in two groups, in a file."""
    table = SampleTable(manifest.table._group.table, rows_per_group=64)
    replace(manifest, samples=table).write(tmp_path / "grouped.parquet")
    return Manifest.read(tmp_path / "grouped.parquet")


def files_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_groups_of_rows_change_nothing_but_the_manifest(grouped: Manifest, manifest: Manifest, tmp_path: Path) -> None:
    assert grouped.table.file is not None
    preprocess(manifest, tmp_path / "one.zarr", structures=["canny"])
    preprocess(grouped, tmp_path / "two.zarr", structures=["canny"], scheduler="local", workers=2)
    one, two = files_of(tmp_path / "one.zarr"), files_of(tmp_path / "two.zarr")
    documents = {"provenance/manifest.parquet", "provenance/store.json", "zarr.json"}
    assert {path for path in one if one[path] != two[path]} == documents and one.keys() == two.keys()
    assert two["provenance/manifest.parquet"] == (tmp_path / "grouped.parquet").read_bytes()
    assert not verify(tmp_path / "two.zarr", images=True).faults
    assert StoreReader(tmp_path / "two.zarr", ("canny",)).manifest == manifest


@pytest.mark.parametrize("ahead", [False, True])
def test_a_worker_reads_the_rows_of_its_shard(
    grouped: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Once, also where threads fetch files of a URL ahead."""
    preprocess(grouped, tmp_path / "s.zarr", structures=["canny"])
    asked: list[tuple[int, ...]] = []
    real = ParquetRows.read

    def read(self: ParquetRows, columns: Any, groups: Any = None) -> Any:
        asked.append(tuple(groups))
        time.sleep(0.05)
        return real(self, columns, groups)

    monkeypatch.setattr(shard_task, "is_url", lambda _: ahead)
    shard_task._read_manifest.cache_clear()
    (tmp_path / "s.zarr/status/c/1").unlink()
    (task,) = run.prepare(grouped, tmp_path / "s.zarr").plan.tasks
    task = replace(task, with_labels=True)
    monkeypatch.setattr(ParquetRows, "read", read)
    shard_task.compute_shard(task)
    assert asked == [(1,)]


def test_groups_of_rows_in_an_object_store(grouped: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.store import MemoryStore

    stores: dict[str, MemoryStore] = {}
    monkeypatch.setattr(ObjectStorage, "_connect", lambda self, _: stores.setdefault(self.url, MemoryStore()))
    store = open_storage("s3://bucket/rows/s.zarr")
    grouped.write("s3://bucket/rows/m.parquet")
    read = Manifest.read("s3://bucket/rows/m.parquet")
    assert read.table.file is not None and read == grouped
    preprocess(read, str(store), structures=["canny"])  # type: ignore[arg-type]
    preprocess(grouped, tmp_path / "s.zarr", structures=["canny"])
    assert {path: store.get(path) for path in store.list()} == files_of(tmp_path / "s.zarr")
    assert preprocess(read, str(store)).shards_computed == 0  # type: ignore[arg-type]


def test_a_damaged_group_is_named_before_the_run_and_by_verify(grouped: Manifest, tmp_path: Path) -> None:
    preprocess(grouped, tmp_path / "s.zarr", structures=["canny"])
    file = tmp_path / "s.zarr/provenance/manifest.parquet"
    good = file.read_bytes()
    place = good.index(b"\x28\xb5\x2f\xfd", len(good) // 3) + 12  # in a page that is compressed by zstd
    for path in (file, tmp_path / "grouped.parquet"):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    faults = [str(fault) for fault in verify(tmp_path / "s.zarr").faults]
    assert any("manifest.parquet" in fault for fault in faults)
    with pytest.raises(ManifestError, match=r"grouped\.parquet"):
        preprocess(Manifest.read(tmp_path / "grouped.parquet"), tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()
    (tmp_path / "grouped.parquet").write_bytes(good)
    preprocess(Manifest.read(tmp_path / "grouped.parquet"), tmp_path / "s.zarr")
    assert not verify(tmp_path / "s.zarr").faults


def test_a_resume_computes_no_digest_of_a_row(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["canny"])
    asked: list[tuple[int, int]] = []
    real = Manifest.row_digests
    monkeypatch.setattr(Manifest, "row_digests", lambda self, *rows: (asked.append(rows), real(self, *rows))[1])
    assert preprocess(manifest, path).shards_computed == 0
    assert asked == []
    (path / "status/c/1").unlink()
    assert [task.layers for task in run.prepare(manifest, path).plan.tasks] == [()], "the status is written again"
    assert asked == [(64, 70)]
    moved = replace(manifest, dataset="of another name")  # whose settings are others, and whose rows are not
    asked.clear()
    assert [task.layers for task in run.prepare(moved, path).plan.tasks] == [()]
    assert asked == [(0, 64), (64, 70)]


class Killed(BaseException):
    pass


def kill_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """Let the run end after that many files that are put or removed."""
    left = [writes]

    def dying(real: Any) -> Any:
        def call(self: LocalStorage, paths: Any, *data: Any) -> None:
            for path in [paths] if data else list(paths):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                real(self, path if data else [path], *data)

        return call

    patch.setattr(LocalStorage, "put", dying(LocalStorage.put))
    patch.setattr(LocalStorage, "delete", dying(LocalStorage.delete))


def test_runs_that_are_killed_between_two_manifests_mislead_nobody(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last sample id and files change. Whatever is killed where: the last run leaves its own bytes."""
    rows = list(manifest.samples)
    other = replace(manifest, samples=[*rows[:-1], replace(rows[0], sample_id="other")])
    fresh = {}
    for name, of in (("one", manifest), ("other", other)):
        preprocess(of, tmp_path / f"{name}.zarr", structures=["canny"])
        fresh[name] = of
    draw, path = random.Random(0), tmp_path / "s.zarr"
    ends = [(["other", last], [kill]) for kill in range(6) for last in ("one", "other")]
    ends.append((["other", "one"], [4, 2]))  # with the ids of the other, and back to its own manifest
    ends += [(draw.choices(["one", "other"], k=4), draw.choices(range(22), k=3)) for _ in range(6)]
    for names, kills in ends:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "one.zarr", path)
        for name, kill in zip(names, kills, strict=False):
            with monkeypatch.context() as patch, suppress(Killed):
                kill_after(kill, patch)
                preprocess(fresh[name], path)
        preprocess(fresh[names[-1]], path)
        assert_same_bytes(tmp_path / f"{names[-1]}.zarr", path)


@pytest.mark.parametrize("late", ["task", "settings"])
def test_where_no_lock_holds_a_late_task_is_not_taken_for_done(
    late: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task writes after the settings have changed; or the settings change after it has looked for the last time."""
    rows, path = list(manifest.samples), tmp_path / "s.zarr"
    other = replace(manifest, samples=[*rows[:-1], replace(rows[0], sample_id="other")])
    preprocess(manifest, path, structures=["canny"])
    preprocess(other, tmp_path / "other.zarr", structures=["canny"])
    monkeypatch.setattr(shard_task, "writing", lambda _: nullcontext())
    store, job = open_storage(path), run.prepare(other, path)
    (path / "status/c/1").unlink()
    (task,) = run.prepare(manifest, path).plan.tasks
    task = replace(task, with_labels=True)
    if late == "task":
        real = shard_task.replace_commit

        def replaced(*arguments: Any) -> None:
            real(*arguments)
            run._initialise(job)

        with monkeypatch.context() as patch, pytest.raises(layout.StoreError, match="its settings are not those"):
            patch.setattr(shard_task, "replace_commit", replaced)
            shard_task.compute_shard(task)
    else:
        shard_task.compute_shard(task)
        calls: list[int] = []
        unpublish = layout.unpublish_shards
        with monkeypatch.context() as patch:  # the first time was before the task wrote
            patch.setattr(layout, "unpublish_shards", lambda *of: unpublish(*of) if calls else calls.append(1))
            run._initialise(job)
    record = read_commit(store, 1)
    assert record is not None and record.inputs == manifest.row_digests(64, 70), "as it was written late"
    assert preprocess(other, path).shards_computed == 1
    assert_same_bytes(tmp_path / "other.zarr", path)


def test_the_report_of_a_resume_names_what_is_in_quarantine(manifest: Manifest, tmp_path: Path) -> None:
    (Path(manifest.root) / manifest.samples[3].image_path).write_bytes(b"no picture")
    (Path(manifest.root) / manifest.samples[66].image_path).write_bytes(b"no picture")
    path = tmp_path / "s.zarr"
    whole = preprocess(manifest, path, structures=["canny"])
    assert [entry.index for entry in whole.quarantine] == [3, 66]
    (path / "canny/c/0/0/0").unlink()
    for again in (preprocess(manifest, path), preprocess(manifest, path)):
        assert (again.quarantine, again.dropped_pixels) == (whole.quarantine, whole.dropped_pixels)
    for text, index in (("1/2", 3), ("2/2", 66)):
        assert [entry.index for entry in preprocess(manifest, path, part=Part.parse(text)).quarantine] == [index]


@pytest.mark.torture
def test_an_estimate_of_groups_is_that_of_one(grouped: Manifest, tmp_path: Path) -> None:
    estimate = estimate_job(run.prepare(grouped, tmp_path / "s.zarr", frame=FRAME), images=16, workers=1)
    assert estimate is not None and (estimate.samples, estimate.shards) == (70, 2)
