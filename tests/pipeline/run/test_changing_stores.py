"""Stores that are changed, interrupted, moved, or written by two: no layer is lost, mixed up, or computed in vain."""

import contextlib
import dataclasses
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from physseg.common.storage import local as local_storage
from physseg.common.storage.location import open_storage
from physseg.common.text import Part
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run, sample
from physseg.pipeline.run import task as shard_task
from physseg.pipeline.run.errors import ExecutorError, ShardFailedError
from physseg.pipeline.run.executors import sync
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.verify import repair, verify
from physseg.pipeline.store import layout as store
from physseg.pipeline.store.commits import read_commit
from physseg.pipeline.store.errors import StoreCorruptError, StoreError
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import DONE, MISSING
from physseg.structure_extractors import registry
from physseg.structure_extractors.canny import Canny
from physseg.structure_extractors.interface import ArraySpec

from ..store.test_store import FRAME, MakeManifest, assert_same_bytes, is_of_a_shard, preprocess

Plan = list[tuple[int, set[str]]]


def planned(job: run.Job) -> Plan:
    """Shard and layers of each task."""
    return [
        (task.shard, {extractor.name for extractor in task.extractors} | ({"labels"} if task.with_labels else set()))
        for task in job.plan.tasks
    ]


def die_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run end after so many shard files, status files and records."""
    left = [writes]

    def dying(path: Path, data: bytes) -> None:
        if is_of_a_shard(path):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        real(path, data)

    real = local_storage.atomic_write
    monkeypatch.setattr(local_storage, "atomic_write", dying)


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(70)  # two shards


@pytest.mark.parametrize("writes", range(8))
def test_a_change_that_is_interrupted_and_taken_back_leaves_the_old_bytes(
    writes: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four writes a shard: its record without canny, canny, status, record. None may vouch for the other's canny."""
    path = tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["canny"])
    shutil.copytree(path, tmp_path / "before.zarr")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(writes, patch)
        preprocess(manifest, path, settings={"canny": {"low": 5, "high": 9}})
    status = StoreReader(path, ()).status
    assert (status[64 * ((writes + 1) // 4) :] == MISSING).all(), "nobody may read old canny under new settings"
    job = run.prepare(manifest, path, settings={"canny": {"low": 100, "high": 200}})
    for _, layers in planned(job):
        assert layers <= {"canny"}
    run.execute(job, SyncExecutor(), progress=False)
    assert_same_bytes(tmp_path / "before.zarr", path)


@pytest.mark.parametrize("writes", range(6))
def test_new_settings_that_are_half_written_mislead_nobody(
    writes: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest (its root moved), arrays of other shapes, a new array, the settings twice: cut off at each."""
    path = tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["canny"])
    shutil.copytree(manifest.root, tmp_path / "moved")
    moved = dataclasses.replace(manifest, root=str(tmp_path / "moved"))
    change = {"structures": ["canny", "sift"], "settings": {"patch_counts": {"max_classes": 3}, "canny": {"low": 5}}}
    left = [writes]

    def dying(file: Path, data: bytes) -> None:
        if not is_of_a_shard(file):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        real(file, data)

    real = local_storage.atomic_write
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_storage, "atomic_write", dying)
        preprocess(moved, path, **change)
    with contextlib.suppress(StoreError, StoreCorruptError):
        assert not len(StoreReader(path, ("canny", "cell_counts")).usable)
    preprocess(moved, path, **change)
    preprocess(moved, tmp_path / "fresh.zarr", **change)
    assert_same_bytes(tmp_path / "fresh.zarr", path)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_an_interrupted_addition_resumes_with_the_added_layer_alone(
    writes: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["canny"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_after(writes, patch)
        preprocess(manifest, path, structures=["sift"])
    job = run.prepare(manifest, path)
    assert planned(job) == [(shard, {"sift"}) for shard in range(2)][writes // 3 :]  # sift, status, record
    run.execute(job, SyncExecutor(), progress=False)
    preprocess(manifest, tmp_path / "once.zarr", structures=["canny", "sift"])
    assert_same_bytes(tmp_path / "once.zarr", path)


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", [None, Part(1, 2)])
def test_the_root_document_of_another_store_is_outvoted_and_written_again(
    part: Part | None, manifest: Manifest, tmp_path: Path
) -> None:
    """By its settings, two layers of both shards would have been computed again."""
    path = tmp_path / "s.zarr"
    preprocess(manifest, path)
    preprocess(manifest, tmp_path / "other.zarr", settings={"canny": {"low": 3}, "sift": {"sigma": 2}})
    shutil.copytree(path, tmp_path / "before.zarr")
    shutil.copy(tmp_path / "other.zarr/zarr.json", path)
    foreign = bytes_of(path)
    job = run.prepare(manifest, path, part=part)
    assert planned(job) == []
    (warning,) = job.warnings
    assert "zarr.json differs from provenance/store.json; of 10 layers" in warning
    assert "zarr.json is spoken for by 6; provenance/store.json is spoken for by 10" in warning
    assert bytes_of(path) == foreign, "nothing is written before the run"
    run.execute(job, SyncExecutor(), progress=False)
    assert_same_bytes(tmp_path / "before.zarr", path)


@pytest.mark.parametrize("lost", ["the copy, too", "every record"])
def test_a_root_document_in_doubt_changes_nothing(lost: str, manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    preprocess(manifest, path)
    preprocess(manifest, tmp_path / "other.zarr", frame=dataclasses.replace(FRAME, short_edge=16))
    shutil.copy(tmp_path / "other.zarr/zarr.json", path)
    if lost == "the copy, too":
        shutil.copy(path / "zarr.json", path / "provenance/store.json")
        sides = "of 10 layers in the commit records, zarr.json is spoken for by 0"
    else:
        shutil.rmtree(path / "provenance/commits")
        sides = "zarr.json is spoken for by 0; provenance/store.json is spoken for by 0"
    before = bytes_of(path)
    with pytest.raises(StoreError, match=f"in doubt: .*{sides}") as error:
        preprocess(manifest, path)
    assert "nothing was changed" in str(error.value.hint)
    assert bytes_of(path) == before


def test_an_addition_that_reached_one_document_resumes_and_a_layer_of_the_root_alone_is_in_doubt(
    manifest: Manifest, tmp_path: Path
) -> None:
    """The records speak for both alike. A run writes the copy first: a root that has more was not left by a run."""
    path, more = tmp_path / "s.zarr", tmp_path / "more.zarr"
    preprocess(manifest, path, structures=["canny"])
    preprocess(manifest, more, structures=["canny", "sift"])
    shutil.copy(more / "zarr.json", path / "zarr.json")
    with pytest.raises(StoreError, match=r"zarr.json is spoken for by 6; provenance/store.json is spoken for by 6"):
        run.prepare(manifest, path)
    (path / "zarr.json").write_bytes((path / "provenance/store.json").read_bytes())
    shutil.copy(more / "provenance/store.json", path / "provenance/store.json")
    assert planned(run.prepare(manifest, path)) == []
    preprocess(manifest, path, structures=["sift"])
    assert_same_bytes(more, path)


def test_lost_files_are_noticed_and_computed_alone(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    preprocess(manifest, path)
    shutil.copytree(path, tmp_path / "before.zarr")
    (path / "canny/c/1/0/0").unlink()
    shutil.rmtree(path / "sift/c")
    job = run.prepare(manifest, path)
    assert planned(job) == [(0, {"sift"}), (1, {"canny", "sift"})]
    assert dict(job.plan.reasons) == {"files missing: sift": 1, "files missing: canny, sift": 1}
    run.execute(job, SyncExecutor(), progress=False)
    assert_same_bytes(tmp_path / "before.zarr", path)


def test_a_lost_status_is_written_again_without_computing(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(manifest.root) / manifest.samples[3].label_path).unlink()
    path = tmp_path / "s.zarr"
    preprocess(manifest, path)
    shutil.copytree(path, tmp_path / "before.zarr")
    (path / "status/c/0").unlink()
    job = run.prepare(manifest, path)
    assert dict(job.plan.reasons) == {"status to be written again": 1}
    monkeypatch.setattr(shard_task, "compute_sample", lambda *_: pytest.fail("computed"))
    assert len(run.execute(job, SyncExecutor(), progress=False).quarantine) == 1
    assert_same_bytes(tmp_path / "before.zarr", path)


def test_an_array_that_is_switched_off_leaves_the_store(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """superpoint_dense is there by a setting; without it, its array must go rather than be filled with zeros."""

    @dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
    class Points:
        name: ClassVar = "superpoint"
        revision: ClassVar = 1
        dense: bool = True

        @property
        def arrays(self) -> tuple[ArraySpec, ...]:
            names = ("superpoint", "superpoint_dense") if self.dense else ("superpoint",)
            return tuple(ArraySpec(name, "uint8", ("y", "x"), 0, "nines") for name in names)

        def __call__(self, image: np.ndarray, labels: np.ndarray, *, ignore_index: int) -> dict[str, np.ndarray]:
            return {spec.name: np.full(labels.shape, 9, np.uint8) for spec in self.arrays}

    load = registry._load
    monkeypatch.setattr(registry, "_load", lambda name: Points if name == "superpoint" else load(name))
    path = tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["superpoint"])
    assert StoreReader(path, ["superpoint_dense"]).read(0)["superpoint_dense"].max() == 9
    preprocess(manifest, path, settings={"superpoint": {"dense": False}})
    assert "superpoint_dense" not in StoreReader(path, ()).schema.array_names
    assert StoreReader(path, ["superpoint"]).read(0)["superpoint"].max() == 9
    assert not (path / "superpoint_dense").exists()
    assert verify(path, progress=False).faults == ()


def test_a_plan_is_not_carried_out_on_a_store_that_another_run_changed(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    first = run.prepare(manifest, path)
    preprocess(manifest, path, structures=["canny"])
    with pytest.raises(StoreError, match="appeared since this run was planned"):
        run.execute(first, SyncExecutor(), progress=False)
    adds_edges = run.prepare(manifest, path, structures=["mask_edges"])
    preprocess(manifest, path, structures=["sift"])
    with pytest.raises(StoreError, match="was changed by another run"):
        run.execute(adds_edges, SyncExecutor(), progress=False)
    assert "sift" in StoreReader(path, ["sift"]).read(0)
    with pytest.raises(ShardFailedError, match="not those that shard 0 was planned with"):
        list(SyncExecutor().run(adds_edges.plan.tasks))


def test_two_new_stores_under_one_name(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one appears between the look and the rename."""
    job = run.prepare(manifest, tmp_path / "s.zarr")
    preprocess(manifest, tmp_path / "s.zarr")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(StoreError, match="appeared since"):
        store.create_store(job.store, job.schema, manifest)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*partial")), "nothing stays behind"
    assert verify(tmp_path / "s.zarr", progress=False).faults == ()


def test_a_moved_data_set_is_read_where_it_is_now(manifest: Manifest, tmp_path: Path) -> None:
    """Its manifest has the same fingerprint; a process that read the old one must not go on with the old paths."""
    path = tmp_path / "s.zarr"
    lost = Path(manifest.root) / manifest.samples[3].label_path
    content = lost.read_bytes()
    lost.unlink()
    assert len(preprocess(manifest, path).quarantine) == 1
    lost.write_bytes(content)
    shutil.move(manifest.root, tmp_path / "moved")
    with pytest.raises(StoreError, match="expected the manifest's data set there") as caught:
        preprocess(manifest, path, retry_quarantined=True)
    assert "--root" in str(caught.value)
    with pytest.raises(StoreError, match="expected the manifest's data set there"):
        preprocess(dataclasses.replace(manifest, root=f"file://{manifest.root}"), path, retry_quarantined=True)
    assert StoreReader(path, ()).status[3] != DONE, "nothing was touched"
    moved = dataclasses.replace(manifest, root=str(tmp_path / "moved"))
    assert preprocess(moved, path, retry_quarantined=True).quarantine == ()
    assert StoreReader(path, ()).manifest.root == str(tmp_path / "moved")


def test_a_first_image_that_cannot_be_read_is_one_sample_in_quarantine(
    make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest(3)
    first = Path(manifest.root) / manifest.samples[0].image_path
    first.unlink()
    first.mkdir()  # reading fails for everybody, root included
    (entry,) = preprocess(manifest, tmp_path / "s.zarr").quarantine
    assert entry.index == 0 and "directory" in entry.reason


def test_tasks_do_not_depend_on_the_folder_they_run_in(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    job = run.prepare(manifest, Path("s.zarr"), frame=FRAME)
    store.create_store(job.store, job.schema, manifest)
    monkeypatch.chdir(tmp_path / "elsewhere")
    reports = list(SyncExecutor().run(job.plan.tasks))
    assert sum(report.num_samples for report in reports) == 70
    assert read_commit(open_storage(tmp_path / "s.zarr"), 1) is not None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scheduler": "threads"}, r"scheduler: expected local, sync or an address .*, got 'threads'"),
        (
            {"scheduler": "local", "memory_limit": 250 * 10**6},
            r"memory: 2 workers need about 3\d\d MB each, and get 250",
        ),
        ({"scheduler": "local", "memory_limit": 0}, "and get 0 MB"),
    ],
)
def test_runs_that_would_hang_are_refused(
    options: dict[str, object], match: str, manifest: Manifest, tmp_path: Path
) -> None:
    """A worker that is over its memory before it has done anything waits for ever."""
    with pytest.raises(ExecutorError, match=match):
        preprocess(manifest, tmp_path / "s.zarr", workers=2, **options)


def test_the_hint_of_a_failed_task_is_its_own(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the reason", hint="the way out")

    monkeypatch.setattr(sync, "compute_shard", fail)
    with pytest.raises(ShardFailedError) as caught:
        preprocess(manifest, tmp_path / "s.zarr")
    assert str(caught.value).endswith("failed: the reason\n  hint: the way out")


def test_a_bug_of_ours_is_not_taken_for_a_bad_sample(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: object) -> object:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ShardFailedError, match=r"shard 0 .* failed: ZeroDivisionError"):
        patch.setattr(sample, "compute_planes", buggy)
        preprocess(manifest, tmp_path / "s.zarr")
    assert preprocess(manifest, tmp_path / "s.zarr").quarantine == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "expected the arrays canny, got "),
        ({"canni": np.zeros((32, 43), np.uint8)}, "expected the arrays canny, got canni"),
        ({"canny": np.zeros((31, 43), np.uint8)}, r"expected canny as uint8 \(32, 43\), got uint8 \(31, 43\)"),
        ({"canny": np.zeros((32, 43), np.float32)}, r"got float32 \(32, 43\)"),
    ],
)
def test_an_extractor_that_breaks_its_promise_ends_the_run(
    wrong: dict[str, np.ndarray],
    message: str,
    make_manifest: MakeManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stored all the same, what is missing would be zeros under the status "done"."""
    monkeypatch.setattr(Canny, "__call__", lambda *_, **__: wrong)
    with pytest.raises(ShardFailedError, match=message):
        preprocess(make_manifest(1), tmp_path / "s.zarr")
    assert (StoreReader(tmp_path / "s.zarr", ()).status == MISSING).all()


def test_a_plan_of_another_state_leaves_the_same_bytes(make_manifest: MakeManifest, tmp_path: Path) -> None:
    """Planned against one state of the store, run against another that has the same settings."""
    first = make_manifest(6)
    store, names = tmp_path / "s.zarr", [sample.sample_id for sample in first.samples]

    def with_changed(*indices: int) -> Manifest:
        samples = list(first.samples)
        for index in indices:
            samples[index] = dataclasses.replace(
                samples[index],
                image_path=samples[5 - index].image_path,
                label_path=samples[5 - index].label_path,
                image_sha256=samples[5 - index].image_sha256,
                label_sha256=samples[5 - index].label_sha256,
                height=samples[5 - index].height,
                width=samples[5 - index].width,
            )
        return dataclasses.replace(first, samples=samples)

    preprocess(first, store)
    planned = run.prepare(with_changed(1), store)
    preprocess(with_changed(2), store)
    back = run.prepare(first, store)
    run._initialise(back)  # and that run is killed before its first shard
    run.execute(planned, SyncExecutor(), progress=False)
    preprocess(with_changed(1), tmp_path / "fresh.zarr")
    assert_same_bytes(tmp_path / "fresh.zarr", store)
    assert names == [sample.sample_id for sample in planned.manifest.samples]


def test_a_sample_in_quarantine_stays_there_whole_when_a_layer_is_added(manifest: Manifest, tmp_path: Path) -> None:
    label = Path(manifest.root) / manifest.samples[3].label_path
    content = label.read_bytes()
    label.unlink()
    preprocess(manifest, tmp_path / "fresh.zarr", structures=["canny", "sift"])
    preprocess(manifest, tmp_path / "s.zarr", structures=["canny"])
    label.write_bytes(content)
    report = preprocess(manifest, tmp_path / "s.zarr", structures=["sift"])
    assert [entry.index for entry in report.quarantine] == [3]
    assert_same_bytes(tmp_path / "fresh.zarr", tmp_path / "s.zarr")


def test_what_a_killed_part_left_is_named_and_removed(manifest: Manifest, tmp_path: Path) -> None:
    preprocess(manifest, tmp_path / "s.zarr")
    left = tmp_path / "s.zarr/canny/c/0/0/.0.abc.partial"
    left.write_bytes(b"half")
    report = verify(tmp_path / "s.zarr", progress=False)
    assert [fault.path for fault in report.faults] == ["canny/c/0/0/.0.abc.partial"]
    repair(tmp_path / "s.zarr", report, lambda _: pytest.fail("nothing to compute"))
    assert verify(tmp_path / "s.zarr", progress=False).faults == ()


def test_a_part_that_waited_to_initialise_leaves_what_the_others_computed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both planned a store that was not there; the first made it and is done when the second gets the lock."""
    path = tmp_path / "s.zarr"
    one, two = (run.prepare(manifest, path, frame=FRAME, part=Part(number, 2)) for number in (1, 2))
    run.execute(one, SyncExecutor(), progress=False)
    real, looks = run._is_initialised, iter([False])
    monkeypatch.setattr(run, "_is_initialised", lambda job: next(looks, True) and real(job))
    run.execute(two, SyncExecutor(), progress=False)
    assert (StoreReader(path, ()).status == DONE).all()
    assert verify(path, progress=False).faults == ()


def test_what_a_killed_worker_left_goes_with_the_run(manifest: Manifest, tmp_path: Path) -> None:
    """Of a part's own shards only: what others write looks the same."""
    path = tmp_path / "s.zarr"
    parts = [run.prepare(manifest, path, frame=FRAME, part=Part(number, 2)) for number in (1, 2)]
    run.execute(parts[0], SyncExecutor(), progress=False)
    left = [
        path / "canny/c/0/0/.0.ab.partial",
        path / "status/c/.1.cd.partial",
        path / "provenance/commits/.000001.json.ef.partial",
    ]
    for file in left:
        file.write_bytes(b"half")
    run.execute(parts[1], SyncExecutor(), progress=False)
    assert [file.exists() for file in left] == [True, False, False]
    run.execute(
        run.prepare(manifest, path, structures=["canny"], settings={"canny": {"low": 7}}),
        SyncExecutor(),
        progress=False,
    )
    assert verify(path, progress=False).faults == ()
