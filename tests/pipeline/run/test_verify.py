"""Verify finds every kind of damage, and repair computes exactly what is damaged."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from physseg.common.errors import StorageError
from physseg.common.storage.location import open_storage
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.verify import repair, summary, verify
from physseg.pipeline.store import commits
from physseg.pipeline.store.errors import StoreError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import open_schema, read_manifest

from ..store.test_store import assert_same_bytes, preprocess


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Set by the first test that needs it: a store of three shards and its data, to be copied and damaged."""
    return tmp_path_factory.mktemp("pristine")


@pytest.fixture
def store(pristine: Path, make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    if not (pristine / "s.zarr").exists():
        manifest = make_manifest(130)
        shutil.copytree(manifest.root, pristine / "data")
        manifest.write(pristine / "m.parquet")
        preprocess(Manifest.read(pristine / "m.parquet", root=str(pristine / "data")), pristine / "s.zarr")
    shutil.copytree(pristine / "s.zarr", tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def mend(store: Path) -> list[int]:
    """Repair; returns the shards that were computed."""
    computed: list[int] = []

    def recompute(manifest: Manifest) -> None:
        job = run.prepare(manifest, store)
        computed.extend(task.shard for task in job.plan.tasks)
        run.execute(job, SyncExecutor(), progress=False)

    repair(store, verify(store, progress=False), recompute)
    return computed


def test_a_sound_store_has_no_fault(store: Path) -> None:
    report = verify(store, progress=False)
    assert report.faults == ()
    assert report.files_checked == 3 * 10
    assert summary(report)[0].endswith("no fault")


def test_a_flipped_bit_in_any_file_is_found_and_mended(store: Path, pristine: Path) -> None:
    """One random bit of each file in turn, metadata, manifest copy and commit records included."""
    draw = random.Random(0)
    files = sorted(path for path in store.rglob("*") if path.is_file())
    assert len(files) >= 40
    for file in files:
        original = file.read_bytes()
        data = bytearray(original or b"\0")  # the lock files are empty
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        path = file.relative_to(store).as_posix()
        faults = verify(store, progress=False).faults
        if path.endswith("manifest.parquet"):
            if faults:
                with pytest.raises((StoreError, ValueError)):
                    mend(store)
            else:  # Parquet has bytes that mean nothing to a reader
                assert Manifest.read(file) == Manifest.read(pristine / "s.zarr" / path)
            file.write_bytes(original)  # only its owner can bring it back
            continue
        assert any(fault.path == path for fault in faults), f"{path}: not found among {faults}"
        mend(store)
        assert_same_bytes(pristine / "s.zarr", store)


def test_a_record_with_other_white_space_is_a_fault_although_a_resume_takes_it(store: Path, pristine: Path) -> None:
    record = store / commits.commit_path(1)
    record.write_bytes(record.read_bytes().replace(b'",', b'" ,', 1))
    assert commits.read_commit(open_storage(store), 1) == commits.read_commit(open_storage(pristine / "s.zarr"), 1)
    assert [fault.path for fault in verify(store, progress=False).faults] == [commits.commit_path(1)]
    assert mend(store) == [1]
    assert_same_bytes(pristine / "s.zarr", store)


def test_exactly_the_damaged_shard_is_computed(store: Path, pristine: Path) -> None:
    (store / "sift/c/1/0/0").unlink()
    assert mend(store) == [1]
    assert_same_bytes(pristine / "s.zarr", store)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda s: (s / "canny/c/2/0/0").write_bytes(b""), "canny/c/2/0/0"),
        (lambda s: (s / "status/c/0").unlink(), "status/c/0"),
        (lambda s: shutil.copy(s / "canny/c/0/0/0", s / "canny/c/1/0/0"), "canny/c/1/0/0"),
        (lambda s: shutil.copy(s / "provenance/commits/000000.json", s / "provenance/commits/000001.json"), "000001"),
        (lambda s: (s / "provenance/commits/000002.json").unlink(), "not committed"),
        (lambda s: (s / "canny/zarr.json").unlink(), "canny/zarr.json: metadata file is missing"),
        (lambda s: (s / "zarr.json").write_bytes(b"{"), "zarr.json: damaged"),
        (lambda s: shutil.copy(s / "canny/c/0/0/0", s / "canny/c/stray"), "does not belong"),
        (lambda s: shutil.rmtree(s / "canny/c"), "canny/c/0/0/0: shard file is missing"),
    ],
)
def test_other_damage_is_found_and_mended(
    damage: Callable[[Path], object], found: str, store: Path, pristine: Path
) -> None:
    damage(store)
    report = verify(store, progress=False)
    assert found in "\n".join(summary(report))
    mend(store)
    assert_same_bytes(pristine / "s.zarr", store)


def test_only_the_damaged_layer_is_computed(store: Path, pristine: Path) -> None:
    """The others may be impossible to compute here: SuperPoint without its weights."""
    (store / "canny/c/1/0/0").write_bytes(b"")
    (store / "status/c/2").write_bytes(b"")
    plan: list[tuple[int, list[str], bool]] = []

    def recompute(manifest: Manifest) -> None:
        job = run.prepare(manifest, store)
        plan.extend((task.shard, [e.name for e in task.extractors], task.with_labels) for task in job.plan.tasks)
        run.execute(job, SyncExecutor(), progress=False)

    repair(store, verify(store, progress=False), recompute)
    assert plan == [(1, ["canny"], False), (2, [], False)]
    assert_same_bytes(pristine / "s.zarr", store)


def test_files_that_cannot_be_read_are_faults_among_others(store: Path) -> None:
    for path in ("canny/c/1/0/0", "provenance/commits/000002.json"):
        (store / path).unlink()
        (store / path).mkdir()  # reading fails as on a bad disk
    report = verify(store, progress=False)
    assert [fault.path for fault in report.faults] == ["canny/c/1/0/0", "provenance/commits/000002.json"]
    assert all("cannot be read" in fault.problem for fault in report.faults)
    reasons = run.prepare(read_manifest(store, open_schema(store)), store).plan.reasons
    assert reasons == {"files missing: canny": 1, "commit record damaged": 1}


def test_a_store_that_lacks_a_layer_says_so_once_a_shard(
    pristine: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that changes settings was cut off before its first shard."""
    manifest = Manifest.read(pristine / "m.parquet", root=str(pristine / "data"))
    monkeypatch.setattr(SyncExecutor, "run", lambda *_, **__: iter(()))
    run.execute(run.prepare(manifest, store, settings={"canny": {"low": 3}}), SyncExecutor(), progress=False)
    monkeypatch.undo()
    problems = [fault.problem for fault in verify(store, progress=False).faults]
    assert problems == ["layer canny was computed with other settings than the store's", "shard file is missing"] * 3
    commits.invalidate_layers(open_storage(store), 0, ["canny"])
    assert verify(store, progress=False).faults[0].problem == "layer canny is not computed"
    assert not any("none in the record" in fault.problem for fault in verify(store, progress=False).faults)


def test_files_of_somebody_else_are_named_and_left_alone(store: Path) -> None:
    (store / "notes.txt").write_text("mine")
    (fault,) = verify(store, progress=False).faults
    assert "notes.txt: does not belong" in str(fault)
    mend(store)
    assert (store / "notes.txt").read_text() == "mine"


def test_a_record_of_other_inputs_is_stale(store: Path, make_manifest: Callable[..., Manifest]) -> None:
    """A commit record copied from a store of other images is whole, and wrong."""
    other = make_manifest(130, "other", sizes=((40, 40),))
    preprocess(other, store.parent / "other.zarr")
    shutil.copy(store.parent / "other.zarr/provenance/commits/000001.json", store / "provenance/commits/000001.json")
    text = "\n".join(summary(verify(store, progress=False)))
    assert "was computed from other inputs" in text


def test_no_store_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store here"):
        verify(tmp_path / "nothing.zarr", progress=False)


def test_a_store_without_settings_is_not_sent_round_in_circles(store: Path) -> None:
    for name in ("zarr.json", "provenance/store.json"):
        (store / name).write_text("{")
    with pytest.raises(StoreError, match="not a Zarr group") as caught:
        verify(store, progress=False)
    assert "new store" in str(caught.value) and "--repair" not in str(caught.value)


def other_settings(store: Path, make_manifest: Callable[..., Manifest]) -> Path:
    """A store of the same data in another frame and with other edges."""
    other = store.parent / "other.zarr"
    frame = Frame(short_edge=16, max_long_edge=32, canvas=32)
    preprocess(make_manifest(130), other, frame=frame, settings={"canny": {"low": 3}})
    return other


@pytest.mark.parametrize("document", ["zarr.json", "provenance/store.json"])
def test_a_whole_document_of_another_store_is_outvoted_by_the_commit_records(
    document: str, store: Path, pristine: Path, make_manifest: Callable[..., Manifest]
) -> None:
    shutil.copy(other_settings(store, make_manifest) / document, store / document)
    faults = {fault.path: fault.problem for fault in verify(store, progress=False).faults}
    assert set(faults) == {document}
    assert mend(store) == []  # nothing is computed
    assert_same_bytes(pristine / "s.zarr", store)


def test_settings_that_nothing_in_the_store_speaks_for_change_nothing(
    store: Path, make_manifest: Callable[..., Manifest]
) -> None:
    other = other_settings(store, make_manifest)
    for copy_too in (False, True):  # the copy is damaged, then as foreign as the root
        shutil.copy(other / "zarr.json", store / "zarr.json")
        (store / "provenance/store.json").write_bytes((other / "zarr.json").read_bytes() if copy_too else b"{")
        before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
        assert any("holds settings of another store" in str(fault) for fault in verify(store, progress=False).faults)
        with pytest.raises(StoreError, match=r"in doubt: of 15 layers .* zarr.json is spoken for by 0"):
            mend(store)
        assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_without_a_vote_both_sides_are_named(store: Path, make_manifest: Callable[..., Manifest]) -> None:
    shutil.copy(other_settings(store, make_manifest) / "zarr.json", store / "zarr.json")
    for record in (store / "provenance/commits").iterdir():
        record.write_bytes(b"{")
    with pytest.raises(StoreError, match=r"zarr.json is spoken for by 0; provenance/store.json is spoken for by 0"):
        mend(store)


def test_files_that_changed_after_the_store_are_found_by_their_hash(store: Path, pristine: Path) -> None:
    """Two images of one size change places, and one pixel of a label map: the store itself is whole."""
    data = store.parent / "copied"
    shutil.copytree(pristine / "data", data)
    first, third = data / "images/000.jpg", data / "images/002.jpg"
    content = first.read_bytes(), third.read_bytes()
    label = data / "labels/005.png"
    assert verify(store, images=True, root=str(data), progress=False).faults == ()
    first.write_bytes(content[1])
    third.write_bytes(content[0])
    label.write_bytes(label.read_bytes()[:-1] + b"x")
    (data / "images/007.jpg").unlink()
    assert verify(store, root=str(data), progress=False).faults == ()
    report = verify(store, images=True, root=str(data), progress=False)
    changed = [fault.path.removeprefix(f"{data}/") for fault in report.faults]
    assert changed == ["images/000.jpg", "images/002.jpg", "labels/005.png", "images/007.jpg"]
    assert "got No such file or directory; restore it" in report.faults[-1].problem
    assert "260 images and label files" in summary(report)[0]


def test_links_and_stray_folders_are_found_and_nothing_is_written_through_a_link(store: Path, pristine: Path) -> None:
    elsewhere = store.parent / "elsewhere"
    (store / "canny").rename(elsewhere)
    (store / "canny").symlink_to(elsewhere)
    (store / "sift/c/7/0").mkdir(parents=True)
    (store / "lost").symlink_to("nowhere")
    faults = {fault.path: fault.problem for fault in verify(store, progress=False).faults}
    assert set(faults) == {"canny", "sift/c/7/0", "lost"}
    assert str(elsewhere) in faults["canny"] and "an empty folder" in faults["sift/c/7/0"]
    (elsewhere / "zarr.json").write_bytes(b"theirs")
    with pytest.raises(StorageError, match=f"a link to {elsewhere}"):
        mend(store)
    assert (elsewhere / "zarr.json").read_bytes() == b"theirs"
