"""The store end to end: identical bytes by every way of running, resume, incremental work, quarantine, refusal."""

import dataclasses
import filecmp
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from physseg.common.documents import digest_of_json
from physseg.common.storage import local as local_storage
from physseg.common.storage.location import open_storage
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ShardFailedError
from physseg.pipeline.run.executors import sync
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.sample import compute_planes
from physseg.pipeline.run.task import ShardReport, ShardTask
from physseg.pipeline.store.commits import commit_path, read_commit
from physseg.pipeline.store.errors import StoreError, StoreIncompleteError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.locks import locked
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import DONE, QUARANTINED, StoreSchema
from physseg.structure_extractors import registry
from physseg.structure_extractors.semantic_edges import SemanticEdges

MakeManifest = Callable[..., Manifest]
FRAME = Frame(short_edge=32, max_long_edge=64, canvas=64)
ARRAYS = ("labels", "canny", "mask_edges", "sift", "cell_classes", "cell_counts")


def is_of_a_shard(path: Path) -> bool:
    """Whether a file of a store is one that tasks write."""
    return "c" in path.parts or "commits" in path.parts


def preprocess(manifest: Manifest, store: Path, **options: object) -> run.RunReport:
    options = {"scheduler": "sync", "frame": FRAME, "progress": False} | options
    return run.preprocess(manifest, store, **options)  # type: ignore[arg-type]


def assert_same_bytes(left: Path, right: Path) -> None:
    files = {path.relative_to(left) for path in left.rglob("*") if path.is_file()}
    assert files == {path.relative_to(right) for path in right.rglob("*") if path.is_file()}
    _, mismatch, errors = filecmp.cmpfiles(left, right, [str(file) for file in files], shallow=False)
    assert not mismatch and not errors


def truncate(manifest: Manifest, index: int) -> None:
    file = Path(manifest.root) / manifest.samples[index].image_path
    file.write_bytes(file.read_bytes()[:-40])


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(130)  # three shards, the last one short


def test_convention_the_frame_lies_at_the_top_left_of_the_canvas(make_manifest: MakeManifest, tmp_path: Path) -> None:
    preprocess(make_manifest(1, sizes=((40, 60),)), tmp_path / "s.zarr")
    reader = StoreReader(tmp_path / "s.zarr", ("labels", "frame_size"))
    labels = reader.read(0)["labels"]
    assert labels.shape == (64, 64)
    assert reader.frame_size(0) == (32, 48)
    assert (labels[:32, 3:48] < 5).all()  # the first columns of the toy are ignored
    assert (labels[32:] == 255).all() and (labels[:, 48:] == 255).all()


def test_stored_arrays_are_what_the_extractors_give(manifest: Manifest, tmp_path: Path) -> None:
    preprocess(manifest, tmp_path / "s.zarr")
    reader = StoreReader(tmp_path / "s.zarr", ARRAYS)
    extractors = registry.build(registry.DEFAULT)
    for index in (0, 1, 63, 64, 129):
        planes = compute_planes(*manifest.load(index), reader.schema, extractors)
        stored = reader.read(index)
        height, width = reader.frame_size(index)
        assert planes["labels"].shape == (height, width)
        for name in ("labels", "canny", "mask_edges", "sift"):
            np.testing.assert_array_equal(stored[name][:height, :width], planes[name])
            outside = np.ones(stored[name].shape, bool)
            outside[:height, :width] = False
            assert (stored[name][outside] == (255 if name == "labels" else 0)).all()
        cells = tuple(-(-edge // 8) for edge in (height, width))
        np.testing.assert_array_equal(stored["cell_counts"][:, : cells[0], : cells[1]], planes["cell_counts"])
        assert stored["cell_counts"].sum() == (planes["labels"] != 255).sum()


def test_reader_zarr_and_xarray_agree(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    preprocess(manifest, store)
    reader = StoreReader(store, ARRAYS)
    group = zarr.open_group(store, mode="r")
    dataset = xarray.open_zarr(store, consolidated=False)
    assert dataset["canny"].dims == ("sample", "y", "x")
    for index in (0, 63, 64, 129):
        for name, plane in reader.read(index).items():
            np.testing.assert_array_equal(plane, group[name][index])
            np.testing.assert_array_equal(plane, dataset[name][index].values)
    np.testing.assert_array_equal(reader.status, group["status"][:])


def test_xarray_opens_layers_whose_slots_differ_in_number(make_manifest: MakeManifest, tmp_path: Path) -> None:
    preprocess(make_manifest(2), tmp_path / "s.zarr", structures=["semantic_edges"])
    dataset = xarray.open_zarr(tmp_path / "s.zarr", consolidated=False)
    assert dataset["cell_classes"].dims == ("sample", "slot", "cell_y", "cell_x")
    assert dataset["semantic_edges"].dims == ("sample", "semantic_edges_slot", "y", "x")
    assert (dataset.sizes["slot"], dataset.sizes["semantic_edges_slot"]) == (8, 2)
    reader = StoreReader(tmp_path / "s.zarr", ("labels", "semantic_edges"))
    for index in range(2):
        stored, (height, width) = reader.read(index), reader.frame_size(index)
        np.testing.assert_array_equal(dataset["semantic_edges"][index].values, stored["semantic_edges"])
        planes = stored["semantic_edges"][:, :height, :width]
        labels = stored["labels"][:height, :width]
        (expected,) = SemanticEdges()(np.zeros((1, 1, 3), np.uint8), labels, ignore_index=255).values()
        np.testing.assert_array_equal(planes, expected)
        assert (planes != 255).sum() > 50
        assert (stored["semantic_edges"] != 255).sum() == (planes != 255).sum()


def test_a_cluster_of_processes_leaves_the_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    preprocess(manifest, tmp_path / "sync.zarr")
    preprocess(manifest, tmp_path / "dask.zarr", scheduler="local", workers=2)
    assert_same_bytes(tmp_path / "sync.zarr", tmp_path / "dask.zarr")


@pytest.mark.parametrize("at", [0, 4, 8, 9, 10, 17, 28, 29])
def test_any_interruption_and_a_resume_leave_the_same_bytes(
    at: int, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies half way through the ``at``-th file; a shard has 8 arrays, a status and a record."""
    preprocess(manifest, tmp_path / "whole.zarr")
    writes = 0
    real = local_storage.atomic_write

    def dying_write(path: Path, data: bytes) -> None:
        nonlocal writes
        writes += is_of_a_shard(path)
        if writes > at:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.dead.partial").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        real(path, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(local_storage, "atomic_write", dying_write)
        preprocess(manifest, tmp_path / "s.zarr")
    assert list((tmp_path / "s.zarr").rglob("*.partial"))
    status = StoreReader(tmp_path / "s.zarr", ("labels",)).status
    for shard, start in enumerate(range(0, 130, 64)):
        if read_commit(open_storage(tmp_path / "s.zarr"), shard) is None:
            # Before the record, at most the status file was written, and then everything it speaks of is there.
            assert set(status[start : start + 64]) in ({0}, {DONE})
    preprocess(manifest, tmp_path / "s.zarr")
    assert_same_bytes(tmp_path / "whole.zarr", tmp_path / "s.zarr")


def test_a_finished_store_computes_nothing_again(manifest: Manifest, tmp_path: Path) -> None:
    assert preprocess(manifest, tmp_path / "s.zarr").shards_computed == 3
    assert preprocess(manifest, tmp_path / "s.zarr").shards_computed == 0


def test_structures_added_later_leave_the_same_bytes_and_touch_nothing_else(manifest: Manifest, tmp_path: Path) -> None:
    preprocess(manifest, tmp_path / "once.zarr", structures=["canny", "sift"])
    preprocess(manifest, tmp_path / "twice.zarr", structures=["canny"])
    canny = tmp_path / "twice.zarr/canny/c/0/0/0"
    before = canny.stat().st_mtime_ns
    job = run.prepare(manifest, tmp_path / "twice.zarr", structures=["sift"])
    assert dict(job.plan.reasons) == {"not computed yet: sift": 3}
    run.execute(job, SyncExecutor(), progress=False)
    assert canny.stat().st_mtime_ns == before
    assert_same_bytes(tmp_path / "once.zarr", tmp_path / "twice.zarr")


def test_a_changed_setting_recomputes_its_layer_alone_and_is_kept_on_resume(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    preprocess(manifest, store)
    job = run.prepare(manifest, store, settings={"canny": {"low": "20"}})
    assert dict(job.plan.reasons) == {"settings changed: canny": 3}
    assert {extractor.name for task in job.plan.tasks for extractor in task.extractors} == {"canny"}
    run.execute(job, SyncExecutor(), progress=False)
    assert StoreReader(store, ("canny",)).schema.layers["canny"]["low"] == 20
    assert not run.prepare(manifest, store).plan.tasks, "what is not said again stays as the store has it"
    preprocess(manifest, tmp_path / "fresh.zarr", settings={"canny": {"low": 20.0}})
    assert_same_bytes(tmp_path / "fresh.zarr", store)


def replace_sample(make_manifest: MakeManifest, tmp_path: Path) -> tuple[Manifest, Manifest]:
    """A manifest of 130 samples, and one of the same data set after its 100th was replaced."""
    manifest = make_manifest(130)
    preprocess(manifest, tmp_path / "s.zarr")
    other = make_manifest(131, "other").samples[130]
    for kind in ("image_path", "label_path"):
        shutil.copy(tmp_path / "other" / getattr(other, kind), tmp_path / "data" / getattr(manifest.samples[100], kind))
    samples = list(manifest.samples)
    hashes = {"image_sha256": other.image_sha256, "label_sha256": other.label_sha256}
    samples[100] = dataclasses.replace(samples[100], height=other.height, width=other.width, **hashes)
    return manifest, dataclasses.replace(manifest, samples=samples)


def test_a_replaced_image_is_computed_with_its_shard_and_no_other(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, changed = replace_sample(make_manifest, tmp_path)
    preprocess(changed, tmp_path / "fresh.zarr")
    for sample in (*manifest.samples[:64], *manifest.samples[128:]):  # looked at, it would be quarantined
        (Path(manifest.root) / sample.image_path).unlink()
    job = run.prepare(changed, tmp_path / "s.zarr")
    assert [task.shard for task in job.plan.tasks] == [1]
    assert job.plan.samples_to_compute == 64
    report = run.execute(job, SyncExecutor(), progress=False)
    assert (report.samples_computed, report.shards_computed, report.quarantine) == (64, 1, ())
    assert_same_bytes(tmp_path / "fresh.zarr", tmp_path / "s.zarr")


@pytest.mark.parametrize("fault", ["flipped bit", "other settings", "status gone", "record damaged"])
def test_a_replaced_image_in_a_shard_that_is_not_as_it_should_be(
    make_manifest: MakeManifest, tmp_path: Path, fault: str
) -> None:
    _, changed = replace_sample(make_manifest, tmp_path)
    store = tmp_path / "s.zarr"
    settings = {"canny": {"low": 30}} if fault == "other settings" else {}
    file = store / {"flipped bit": "canny/c/1/0/0", "record damaged": commit_path(1)}.get(fault, "status/c/1")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    if fault == "status gone":
        file.unlink()
    elif fault != "other settings":
        file.write_bytes(data)
    report = preprocess(changed, store, settings=settings)
    assert report.samples_computed == (130 if fault == "other settings" else 64)
    preprocess(changed, tmp_path / "fresh.zarr", settings=settings)
    assert_same_bytes(tmp_path / "fresh.zarr", store)


def test_bad_samples_are_quarantined_by_name_and_never_read(manifest: Manifest, tmp_path: Path) -> None:
    truncate(manifest, 70)
    (Path(manifest.root) / manifest.samples[3].label_path).unlink()
    report = preprocess(manifest, tmp_path / "s.zarr")
    assert [(entry.index, entry.sample_id) for entry in report.quarantine] == [(3, "003"), (70, "070")]
    assert "003.png" in report.quarantine[0].reason
    assert "sha256" in report.quarantine[1].reason and "070.jpg" in report.quarantine[1].reason
    reader = StoreReader(tmp_path / "s.zarr", ARRAYS)
    assert reader.status[3] == reader.status[70] == QUARANTINED
    assert 128 == len(reader.usable) == (reader.status == DONE).sum()
    with pytest.raises(StoreIncompleteError, match=r"sample 70 \(070\) is quarantined"):
        reader.read(70)


def test_quarantined_samples_can_be_tried_again(manifest: Manifest, tmp_path: Path) -> None:
    preprocess(manifest, tmp_path / "good.zarr")
    label = Path(manifest.root) / manifest.samples[3].label_path
    content = label.read_bytes()
    label.unlink()
    assert len(preprocess(manifest, tmp_path / "s.zarr").quarantine) == 1
    label.write_bytes(content)
    assert len(preprocess(manifest, tmp_path / "s.zarr").quarantine) == 1, "a resume does not touch what is committed"
    report = preprocess(manifest, tmp_path / "s.zarr", retry_quarantined=True)
    assert (report.samples_computed, report.quarantine) == (64, ())
    assert_same_bytes(tmp_path / "good.zarr", tmp_path / "s.zarr")


def test_rows_that_the_manifest_quarantined_stay_rows(manifest: Manifest, tmp_path: Path) -> None:
    samples = list(manifest.samples)
    samples[5] = dataclasses.replace(samples[5], problem="labels/005.png: ids 99 are not in the vocabulary")
    report = preprocess(dataclasses.replace(manifest, samples=samples), tmp_path / "s.zarr")
    assert report.num_samples == 130
    assert report.quarantine[0].reason == "labels/005.png: ids 99 are not in the vocabulary"


def test_more_than_255_classes_keep_their_ids(make_manifest: MakeManifest, tmp_path: Path) -> None:
    small = make_manifest(2)
    classes = tuple(f"class {i}" for i in range(847))
    ids = {0: 300, 1: 256, 2: 846, 3: 255, 4: 0}
    manifest = dataclasses.replace(
        small, vocabulary=Vocabulary(name="many", classes=classes), raw_to_class=ids, raw_ignore=(255,)
    )
    preprocess(manifest, tmp_path / "s.zarr")
    planes = StoreReader(tmp_path / "s.zarr", ("labels", "cell_classes")).read(0)
    assert planes["labels"].dtype == planes["cell_classes"].dtype == np.uint16
    assert set(np.unique(planes["labels"])) <= {*ids.values(), 65535}
    assert 300 in planes["labels"] and 65535 in planes["labels"]


def test_a_task_that_fails_is_named_and_what_is_committed_stays(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sync.compute_shard

    def full_disk(task: ShardTask, on_sample: Callable[[int], None]) -> ShardReport:
        if task.shard == 1:
            raise OSError(28, "No space left on device")
        return real(task, on_sample)

    monkeypatch.setattr(sync, "compute_shard", full_disk)
    with pytest.raises(ShardFailedError, match=r"shard 1 .*No space left"):
        preprocess(manifest, tmp_path / "s.zarr")
    assert (tmp_path / "s.zarr" / commit_path(0)).exists()
    monkeypatch.undo()
    assert preprocess(manifest, tmp_path / "s.zarr").shards_computed == 2


def test_a_second_writer_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    preprocess(manifest, store)
    with locked(open_storage(store)), pytest.raises(StoreError, match="another process is writing"):
        preprocess(manifest, store)


def test_wrong_stores_and_manifests_are_refused(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest(3)
    store = tmp_path / "s.zarr"
    preprocess(manifest, store)
    with pytest.raises(StoreError, match="holds 3 samples, the manifest has 2"):
        preprocess(dataclasses.replace(manifest, samples=manifest.samples[:2]), store)
    words = dataclasses.replace(manifest.vocabulary, classes=("a", "b", "c", "d", "e"))
    with pytest.raises(StoreError, match="vocabulary"):
        preprocess(dataclasses.replace(manifest, vocabulary=words), store)
    with pytest.raises(StoreError, match="was made with"):
        preprocess(manifest, store, frame=Frame())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/diary.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists and is not a store"):
        preprocess(manifest, tmp_path / "notes")
    assert (tmp_path / "notes/diary.txt").read_text() == "mine"
    with pytest.raises(StoreError, match="no samples"):
        preprocess(dataclasses.replace(manifest, samples=()), tmp_path / "empty.zarr")
    assert not (tmp_path / "empty.zarr").exists()


def test_the_reader_names_what_a_store_lacks(make_manifest: MakeManifest, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    preprocess(make_manifest(3), store, structures=["canny"])
    with pytest.raises(StoreIncompleteError, match="has no array sift"):
        StoreReader(store, ("sift",))
    with pytest.raises(StoreError, match="no store here"):
        StoreReader(tmp_path / "nothing.zarr", ())
    (store / "canny/c/0/0/0").unlink()
    with pytest.raises(StoreIncompleteError, match="shard is missing although"):
        StoreReader(store, ("canny",)).read(0)


def test_schema_survives_its_attributes(make_manifest: MakeManifest, tmp_path: Path) -> None:
    schema = run.prepare(make_manifest(3), tmp_path / "s.zarr", frame=FRAME).schema
    assert StoreSchema.from_attributes(schema.group_metadata()["attributes"], "here") == schema
    assert schema.to_attributes()["vocabulary"].keys() == {"name", "classes"}, "stores without a fold keep their bytes"
    attributes = schema.group_metadata()["attributes"]
    attributes["physseg"]["frame"]["short_edge"] = 31
    with pytest.raises(StoreError, match="do not match their checksum"):
        StoreSchema.from_attributes(attributes, "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("num_samples",), 10**15),
        (("num_samples",), "many"),
        (("samples_per_shard",), 10**9),
        (("frame", "canvas"), 10**6),
        (("arrays", 4, "slots"), 10**6),
        (("arrays", 2, "name"), "../../etc"),
        (("arrays", 2, "name"), "labels"),
        (("arrays", 2, "name"), "status"),
        (("arrays", 2, "layer"), "hog"),
        (("arrays", 2, "dims"), ["x", "y"]),
        (("arrays",), ["labels", "frame_size"]),
        (("layers",), {}),
        (("arrays", 2, "fill"), 256),
        (("arrays", 2, "fill"), -1),
        (("cell_px",), 0),
        (("vocabulary",), ["cat"]),
    ],
)
def test_a_store_that_claims_what_no_run_writes_is_refused(
    path: tuple[str, ...], value: object, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    """With a checksum that holds: it comes from somebody who means it."""
    attributes = run.prepare(make_manifest(2), tmp_path / "s.zarr").schema.group_metadata()["attributes"]
    place = attributes["physseg"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    attributes["physseg_digest"] = digest_of_json(attributes["physseg"])
    with pytest.raises(StoreError, match="not those of a store"):
        StoreSchema.from_attributes(attributes, "here")


@pytest.mark.parametrize("version", [True, 2.0, "2", 0, 4, None])
def test_another_schema_version_is_said(version: object, make_manifest: MakeManifest, tmp_path: Path) -> None:
    """True is 1 and 2.0 is 2 for Python, and would be taken for them."""
    attributes = run.prepare(make_manifest(1), tmp_path / "s.zarr").schema.group_metadata()["attributes"]
    attributes["physseg"]["schema_version"] = version
    attributes["physseg_digest"] = digest_of_json(attributes["physseg"])
    with pytest.raises(StoreError, match=f"schema version {version!r}, this physseg reads 1 to 3"):
        StoreSchema.from_attributes(attributes, "here")


def test_a_document_of_very_many_arrays_is_refused_at_once(make_manifest: MakeManifest, tmp_path: Path) -> None:
    attributes = run.prepare(make_manifest(1), tmp_path / "s.zarr").schema.group_metadata()["attributes"]
    arrays = attributes["physseg"]["arrays"]
    arrays += [arrays[2] | {"name": f"a{number}"} for number in range(50_000)]
    attributes["physseg_digest"] = digest_of_json(attributes["physseg"])
    started = time.monotonic()
    with pytest.raises(StoreError, match="expected number of arrays from 1 to 256"):
        StoreSchema.from_attributes(attributes, "here")
    assert time.monotonic() - started < 10, "comparing each with each took over a minute"
