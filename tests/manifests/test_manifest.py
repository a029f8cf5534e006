"""The manifest: written and read back, fingerprints, and loading what its rows describe."""

import contextlib
import hashlib
import json
import os
import pickle
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.common.text import control_character
from physseg.manifests import row_groups
from physseg.manifests.errors import ContentError, ManifestError
from physseg.manifests.manifest import Manifest
from physseg.manifests.row_groups import METADATA_KEY, ParquetRows
from physseg.manifests.vocabulary import Vocabulary

from ..fuzzing import as_json, bounded, mutants, mutated, survives
from .conftest import sample

PETS = Vocabulary(name="pets", classes=("cat, kitten", "dog"))


def manifest(*samples, **changes):
    fields = {
        "root": "/data",
        "dataset": "toys",
        "vocabulary": PETS,
        "raw_to_class": {7: 0, 9: 1},
        "raw_ignore": (255, 0),
        "samples": samples or (sample("a"), sample("b")),
    }
    return Manifest(**(fields | changes))


# --- files ------------------------------------------------------------------------------------------------------------


def test_written_and_read_back(tmp_path):
    ours = manifest(sample("a", note="grey", orientation=6), sample("ü b", problem="size mismatch: ä", height=0))
    ours.write(tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet")
    assert read == ours
    assert read.fingerprint == ours.fingerprint
    assert read.raw_to_class == {7: 0, 9: 1}
    assert read.raw_ignore == (0, 255)
    assert [row.sample_id for row in read.quarantined] == ["ü b"]
    assert pickle.loads(pickle.dumps(read)) == ours
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="/", min_codepoint=32).filter(lambda c: not control_character(c)),
    min_size=1,
    max_size=8,
).filter(lambda s: s != "..")


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(texts, min_size=1, max_size=6, unique=True),
    size=st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 99)),
    problem=st.one_of(st.just(""), texts),
    orientation=st.integers(1, 8),
)
def test_any_manifest_survives_writing(tmp_path_factory, ids, size, problem, orientation):
    rows = [
        sample(i, height=size[0], width=size[1], problem=problem, orientation=orientation, split=ids[0]) for i in ids
    ]
    path = tmp_path_factory.mktemp("any") / "m.parquet"
    ours = manifest(*rows)
    ours.write(path)
    read = Manifest.read(path)
    assert list(read.samples) == rows
    assert read.fingerprint == ours.fingerprint


def test_equal_manifests_give_equal_bytes(tmp_path):
    manifest().write(tmp_path / "a.parquet")
    manifest(raw_to_class={9: 1, 7: 0}, raw_ignore=(0, 255)).write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_plain_parquet_readers_see_the_columns(tmp_path):
    manifest().write(tmp_path / "m.parquet")
    assert pq.read_table(tmp_path / "m.parquet").column("sample_id").to_pylist() == ["a", "b"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    manifest().write(path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        manifest(sample("c")).write(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_root_can_be_replaced(tmp_path):
    manifest().write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").root == "/data"
    assert Manifest.read(tmp_path / "m.parquet", root=str(tmp_path)).root == str(tmp_path)
    assert Manifest.read(tmp_path / "m.parquet", root="s3://bucket/x").root == "s3://bucket/x"
    assert Manifest.read(tmp_path / "m.parquet", root="/x").fingerprint == manifest().fingerprint


def rewritten(path, change):
    """Write a manifest whose Parquet table was tampered with, of the time before digests."""
    manifest().write(path)
    pq.write_table(change(without_digest(pq.read_table(path))), path)
    return path


def without_digest(table):
    header = json.loads(table.schema.metadata[METADATA_KEY])
    del header["sha256"]
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(header)})


def with_value(column, value):
    def change(table):
        values = table.column(column).to_pylist()
        values[1] = value
        index = table.column_names.index(column)
        return table.set_column(index, column, pa.array(values, table.schema.field(column).type))

    return change


def with_metadata(table, **changes):
    header = json.loads(table.schema.metadata[METADATA_KEY]) | changes
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (with_value("image_path", "../secret.jpg"), "path"),
        (with_value("label_path", "/etc/x.png"), "path"),
        (with_value("label_path", "a/.."), "path"),
        (with_value("height", 0), "expected a size"),
        (with_value("orientation", 9), "orientation"),
        (with_value("sample_id", "a"), "'a' stands in 2 rows"),
        (with_value("label_path", "a\x00.png"), "path"),
        (with_value("sample_id", ""), "printable"),
        (with_value("sample_id", "a\x1b[2J"), "printable"),
        (lambda table: with_value("width", "wide")(table.set_column(4, "width", [["1", "2"]])), "another type"),
        (lambda table: with_metadata(table, vocabulary={}), "no key 'classes'"),
        (lambda table: table.drop_columns(["label_sha256"]), r"\['label_sha256'\] are missing"),
        (lambda table: table.replace_schema_metadata(None), "not a manifest of physseg"),
        (
            lambda table: table.replace_schema_metadata(
                {
                    k: v.replace(b'"format_version": 1', b'"format_version": 99')
                    for k, v in table.schema.metadata.items()
                }
            ),
            "got 99",
        ),
        (lambda table: with_metadata(table, label_form="runes"), "runes"),
        (lambda table: with_metadata(table, max_short_side_px=0), "max_short_side_px"),
        (lambda table: with_metadata(table, fold_from=2), "fold_from"),
        (lambda table: with_metadata(table, fold_from="x"), "metadata is incomplete"),
    ],
)
def test_tampered_manifests_are_refused_on_reading(change, match, tmp_path):
    path = rewritten(tmp_path / "m.parquet", change)
    with pytest.raises(ManifestError, match=match) as caught:
        Manifest.read(path)
    assert "m.parquet" in str(caught.value)


def said(path):
    """All that a manifest's file says, which its equality and its fingerprint leave out in part."""
    read = Manifest.read(path)
    return read, read.root, read.dataset, read.vocabulary.name, read.samples.digest


def test_every_flipped_bit_is_noticed(tmp_path, capsys):
    path = tmp_path / "m.parquet"
    manifest().write(path)
    good, expected, draw = path.read_bytes(), said(path), random.Random(0)
    other = []
    for _ in range(600):
        data = bytearray(good)
        place, bit = draw.randrange(len(good)), draw.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        with contextlib.suppress(ManifestError):
            other += [place] if said(path) != expected else []
    assert other == []


def test_a_manifest_of_before_opens_with_one_line(tmp_path, capsys):
    path = rewritten(tmp_path / "m.parquet", lambda table: table)
    assert Manifest.read(path).fingerprint == manifest().fingerprint
    assert capsys.readouterr().err.count("without a digest") == 1
    assert Manifest.parse(ParquetRows(path.read_bytes(), "store"), hashed=True) == manifest()
    manifest().write(path)
    Manifest.read(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("part", ["header", "rows"])
def test_what_is_changed_by_hand_is_noticed(part, tmp_path):
    path = tmp_path / "m.parquet"
    manifest().write(path)
    table = pq.read_table(path)
    change = partial(with_metadata, root="/elsewhere") if part == "header" else with_value("split", "val")
    pq.write_table(change(table), path)
    with pytest.raises(ManifestError, match=r"m\.parquet: .*digest differs"):
        Manifest.read(path)


@pytest.mark.parametrize(("rows", "length"), [(10**6 + 1, 1), (3 * 10**5, 20_000)])
def test_a_small_file_of_many_bytes_is_refused(rows, length, tmp_path, monkeypatch):
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), ["x" * length])
    table = pa.table({"sample_id": column})
    with pq.ParquetWriter(tmp_path / "bomb.parquet", table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: '{"format_version": 1}'})
    assert (tmp_path / "bomb.parquet").stat().st_size < 10**5
    monkeypatch.setattr(row_groups, "MAX_GROUP_BYTES", 10**8)  # so that the test itself takes little
    monkeypatch.setattr(row_groups, "MAX_ROWS", 10**6)
    with pytest.raises(ManifestError, match=r"bomb\.parquet: .*rows"), bounded():
        Manifest.read(tmp_path / "bomb.parquet")
    pq.write_table(table, tmp_path / "bomb.parquet")
    with pytest.raises(ManifestError, match="enumerated"), bounded():
        Manifest.read(tmp_path / "bomb.parquet")


def test_damaged_manifests_are_read_or_refused(tmp_path):
    path = tmp_path / "m.parquet"
    manifest().write(path)
    for number, data in enumerate(mutants(path.read_bytes(), seed=0, count=300)):
        path.write_bytes(data)
        survives(lambda: Manifest.read(path), f"mutant {number}")
    manifest().write(path)
    table = without_digest(pq.read_table(path))
    header, draw = json.loads(table.schema.metadata[METADATA_KEY]), random.Random(0)
    for number in range(300):
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: as_json(mutated(header, draw))}), path)
        survives(lambda: Manifest.read(path), f"header {number}")


def test_an_error_of_ours_is_not_taken_for_the_manifests(tmp_path, monkeypatch):
    manifest().write(tmp_path / "m.parquet")
    monkeypatch.setattr(row_groups.pq, "ParquetFile", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Manifest.read(tmp_path / "m.parquet")


PROTOCOL = {"label_form": "ade-full", "max_short_side_px": 512, "fold_from": 1}


def test_manifests_without_a_protocol_stay_what_they_were(tmp_path):
    """Stores and results name these hashes, and earlier versions of physseg read the file."""
    assert manifest().fingerprint == "a83fb14a147993d2c8231b310487e38a25c7f15940c2cd3dc52bd28fac208509"
    assert manifest().row_digests(0, 2) == ("db5ff51b67e2be1f", "f0110611b5045f33")
    manifest().write(tmp_path / "m.parquet")
    header = json.loads(pq.read_schema(tmp_path / "m.parquet").metadata[METADATA_KEY])
    assert header["format_version"] == 1
    assert not PROTOCOL.keys() & header.keys()


def test_a_fold_is_written_as_it_was(tmp_path):
    """The hashes are those of the version that had the fold beside the vocabulary: its results name the first."""
    ours = manifest(vocabulary=replace(PETS, fold_from=1))
    assert ours.fingerprint == "ec3686b32d82fb05a2dcbaa9a540fcf410867b1782265ebbdcb4c36f14cd0b40"
    ours.write(tmp_path / "m.parquet")
    header = pq.read_schema(tmp_path / "m.parquet").metadata[METADATA_KEY]
    words = b'"vocabulary": {"name": "pets", "classes": ["cat, kitten", "dog"]}'
    ids = b'"raw_to_class": [[7, 0], [9, 1]], "raw_ignore": [0, 255]'
    protocol = b'"label_form": "ids", "max_short_side_px": null, "fold_from": 1'
    assert header.startswith(b'{"format_version": 2, "root": "/data", "dataset": "toys"')
    assert b", ".join([words, ids, protocol]) in header
    assert Manifest.read(tmp_path / "m.parquet").vocabulary.class_names == ("cat", "background")


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_protocol_is_written_and_counts(name, tmp_path):
    folds = name == "fold_from"
    ours = manifest(**{"vocabulary": replace(PETS, fold_from=1)} if folds else {name: PROTOCOL[name]})
    ours.write(tmp_path / "m.parquet")
    assert json.loads(pq.read_schema(tmp_path / "m.parquet").metadata[METADATA_KEY])["format_version"] == 2
    read = Manifest.read(tmp_path / "m.parquet")
    assert read == ours
    assert getattr(read.vocabulary if folds else read, name) == PROTOCOL[name]
    assert read.fingerprint == ours.fingerprint != manifest().fingerprint
    stored_content_differs = read.row_digests(0, 2) != manifest().row_digests(0, 2)
    assert stored_content_differs == (not folds)


def test_empty_cells_are_refused(tmp_path):
    def change(table):
        fields = [field.with_nullable(True) for field in table.schema]
        return with_value("split", None)(table.cast(pa.schema(fields, table.schema.metadata)))

    with pytest.raises(ManifestError, match="in every cell"):
        Manifest.read(rewritten(tmp_path / "m.parquet", change))


def test_what_is_no_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such manifest"):
        Manifest.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ManifestError, match=r"expected a manifest \(Parquet\)"):
        Manifest.read(tmp_path / "text.parquet")
    with pytest.raises(ManifestError):
        Manifest.read(tmp_path)
    manifest().write(tmp_path / "m.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:-100])
    with pytest.raises(ManifestError):
        Manifest.read(tmp_path / "half.parquet")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"raw_to_class": {0: 2}}, "got 2"),
        ({"raw_to_class": {-1: 0}}, "got -1"),
        ({"raw_ignore": (70000,)}, "got 70000"),
        ({"raw_ignore": (7,)}, "raw id 7"),
        ({"samples": (sample("a"), sample("a"))}, "'a' stands in 2 rows"),
    ],
)
def test_contradictions_are_refused(changes, match):
    with pytest.raises(ManifestError, match=match):
        manifest(**changes)


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_fingerprint_covers_everything_but_the_root():
    ours = manifest()
    assert manifest(root="/elsewhere").fingerprint == ours.fingerprint
    others = [
        manifest(raw_to_class={7: 1, 9: 0}),
        manifest(raw_ignore=(255,)),
        manifest(vocabulary=Vocabulary(name="pets", classes=("dog", "cat, kitten"))),
        manifest(sample("b"), sample("a")),
        manifest(sample("a"), sample("b", note="x")),
        manifest(sample("a"), sample("b", image_path="elsewhere/b.jpg")),
    ]
    assert len({ours.fingerprint, *(other.fingerprint for other in others)}) == 7


def test_row_digest_covers_content_of_its_rows_only():
    ours = manifest(*(sample(f"s{i}") for i in range(6)))
    changed = [replace(row) for row in ours.samples]
    changed[4] = replace(changed[4], label_sha256="3" * 64)
    other = manifest(*changed)
    assert ours.row_digests(0, 4) == other.row_digests(0, 4)
    assert [a == b for a, b in zip(ours.row_digests(4, 6), other.row_digests(4, 6), strict=True)] == [False, True]
    assert ours.row_digests(0, 2) != ours.row_digests(2, 4)
    assert ours.row_digests(0, 2) != manifest(*changed, raw_ignore=(255,)).row_digests(0, 2)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"split": "val"}, True),
        ({"note": "x"}, True),
        ({"image_path": "other/a.jpg"}, True),
        ({"image_sha256": "9" * 64}, False),
        ({"label_sha256": "9" * 64}, False),
        ({"sample_id": "z"}, False),
        ({"height": 25}, False),
        ({"width": 25}, False),
        ({"orientation": 3}, False),
        ({"problem": "x"}, False),
    ],
)
def test_row_digest_depends_on_what_changes_pixels(change, same):
    assert (manifest(sample()).row_digests(0, 1) == manifest(replace(sample(), **change)).row_digests(0, 1)) is same


def test_row_digest_is_stable_over_versions():
    """A new value here makes every existing store recompute: change it only on purpose."""
    assert manifest(sample()).row_digests(0, 1) == ("db5ff51b67e2be1f",)


# --- loading ----------------------------------------------------------------------------------------------------------


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def loadable(toys):
    """One sample on disk with raw ids 7, 9, 0 and 255, and its manifest."""
    ids = np.full((24, 32), 7, np.uint8)
    ids[:, 10:20], ids[:, 20:24], ids[:, 24:] = 9, 0, 255
    image, label = toys.image("images/a.jpg"), toys.label("labels/a.png", ids, palette=True)
    return manifest(sample(image_sha256=sha(image), label_sha256=sha(label)), root=str(toys.folder))


def test_load_gives_rgb_and_class_ids(loadable, toys):
    image, labels = loadable.load(0)
    assert image.shape == (24, 32, 3)
    assert np.abs(image.astype(int) - toys.photo()).mean() < 5
    assert labels.dtype == np.uint8
    assert labels[0, [0, 10, 20, 24]].tolist() == [0, 1, 255, 255]
    assert (loadable.load_image(0) == image).all()


def test_load_from_a_url_root(loadable):
    there = replace(loadable, root=f"file://{loadable.root}")
    assert (there.load(0)[1] == loadable.load(0)[1]).all()


def test_load_turns_the_image_only(toys):
    image = toys.image("images/a.jpg", toys.photo(24, 32), orientation=6)
    label = toys.label("labels/a.png", np.full((32, 24), 7, np.uint8))
    row = sample(height=32, width=24, orientation=6, image_sha256=sha(image), label_sha256=sha(label))
    picture, labels = manifest(row, root=str(toys.folder)).load(0)
    assert picture.shape == (32, 24, 3)
    assert picture[2, 20].min() > 240  # the white mark went from the top left to the top right
    assert labels.shape == (32, 24)


def test_more_than_255_classes_use_sixteen_bits(toys):
    ids = np.full((24, 32), 300, np.uint16)
    ids[0, 0] = 65535
    image, label = toys.image("images/a.jpg"), toys.label("labels/a.png", ids)
    many = Vocabulary(name="many", classes=tuple(map(str, range(400))))
    row = sample(image_sha256=sha(image), label_sha256=sha(label))
    labels = manifest(
        row,
        root=str(toys.folder),
        vocabulary=many,
        raw_to_class={i: i for i in range(400)},
        raw_ignore=(65535,),
    ).load(0)[1]
    assert labels.dtype == np.uint16
    assert (labels[0, 0], labels[5, 5]) == (65535, 300)


@settings(max_examples=30, deadline=None)
@given(
    raw=st.lists(st.integers(0, 300), min_size=1, max_size=30),
    wide=st.booleans(),
    table=st.dictionaries(st.integers(0, 300), st.integers(0, 1), max_size=20),
)
def test_ids_are_mapped_as_by_a_dict(raw, wide, table):
    ids = np.array([raw], np.uint16 if wide else np.uint8) if wide else np.array([[r % 256 for r in raw]], np.uint8)
    ours = manifest(raw_to_class=table, raw_ignore=tuple({0, 255} - table.keys()))
    labels, unknown = ours.map_ids(ids)
    assert labels.tolist() == [[table.get(value, 255) for value in ids[0].tolist()]]
    assert bool(unknown) == any(value not in table and value not in ours.raw_ignore for value in ids[0].tolist())


def refused(loadable, match, **load):
    with pytest.raises(ContentError, match=match) as caught:
        loadable.load(0, **load)
    assert str(caught.value).startswith("sample a: ")
    return caught.value


def test_missing_file(loadable, toys):
    (toys.folder / "labels/a.png").unlink()
    refused(loadable, r"labels/a\.png: expected a readable file below .*, got No such file")


@pytest.mark.parametrize(
    ("kind", "got"), [("long", "too long"), ("FIFO", "a FIFO"), ("device", "a device"), ("folder", "Is a directory")]
)
def test_a_path_that_is_no_file_is_its_samples_fault(kind, got, loadable, toys):
    """Not the machine's: the sample is quarantined, and its shard goes on."""
    image_path = "x" * 5000 if kind == "long" else "images/other"
    if kind == "FIFO":
        os.mkfifo(toys.folder / image_path)
    elif kind == "device":
        (toys.folder / image_path).symlink_to("/dev/zero")
    elif kind == "folder":
        (toys.folder / image_path).mkdir()
    other = replace(loadable, samples=(replace(loadable.samples[0], image_path=image_path),))
    refused(other, f"expected a readable file .*{got}")
    with pytest.raises(ContentError):
        other.load_image(0)


@pytest.mark.parametrize("path", ["images/a.jpg", "labels/a.png"])
def test_changed_file(path, loadable, toys):
    with (toys.folder / path).open("ab") as file:
        file.write(b"x")
    error = refused(loadable, f"{path}: expected sha256")
    assert "make the manifest again" in str(error)
    loadable.load(0, verify=False)
    loadable.load_image(0)
    if path == "images/a.jpg":
        with pytest.raises(ContentError, match="sha256"):
            loadable.load_image(0, verify=True)


def test_undecodable_file(loadable, toys):
    (toys.folder / "images/a.jpg").write_bytes(b"no jpeg")
    refused(loadable, r"images/a\.jpg: cannot be decoded", verify=False)


def test_image_of_another_size(loadable, toys):
    toys.image("images/a.jpg", toys.photo(20, 30))
    refused(loadable, r"expected 24 x 32 pixels \(h x w\) as in the manifest, got 20 x 30", verify=False)


def test_label_of_another_size(loadable, toys):
    toys.label("labels/a.png", np.full((32, 24), 7, np.uint8))
    refused(loadable, r"labels/a\.png: expected 24 x 32 pixels \(h x w\) as the image, got 32 x 24", verify=False)


def test_unknown_id(loadable, toys):
    ids = np.full((24, 32), 7, np.uint8)
    ids[0, :3], ids[0, 3] = 44, 45
    toys.label("labels/a.png", ids)
    refused(loadable, r"got id 44 \(3 pixels\), id 45 \(1 pixel\)$", verify=False)


def test_quarantined_samples_cannot_be_loaded(loadable):
    broken = replace(loadable, samples=[replace(loadable.samples[0], problem="size mismatch: x")])
    for load in (broken.load, broken.load_image):
        with pytest.raises(ContentError, match=r"sample a .*size mismatch: x"):
            load(0)


def test_content_errors_survive_the_way_between_processes(loadable, toys):
    (toys.folder / "labels/a.png").unlink()
    with pytest.raises(ContentError) as caught:
        loadable.load(0)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.hint == caught.value.hint
