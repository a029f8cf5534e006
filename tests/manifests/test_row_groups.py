"""Manifests of several groups of rows: read group by group, each column of a group by its own digest."""

import hashlib
import multiprocessing
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.manifests import manifest as manifests
from physseg.manifests import row_groups, sample_table
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest
from physseg.manifests.row_groups import ParquetRows, column_digest
from physseg.manifests.sample_table import COLUMNS, SampleTable

from .conftest import sample
from .test_manifest import manifest


def rows_of(count):
    """Rows that differ in every column where columns may differ."""
    return [
        sample(
            f"s{i:03}ü" if i % 2 else f"s{i:03}",
            height=24 + i,
            split="ab"[i % 2],
            orientation=1 + i % 8,
            problem="size mismatch: x" if i % 5 == 3 else "",
            note="n" * (i % 3),
        )
        for i in range(count)
    ]


@pytest.fixture
def grouped(monkeypatch):
    """Four rows a group."""
    monkeypatch.setattr(sample_table, "ROWS_PER_GROUP", 4)
    monkeypatch.setattr(manifests, "ROWS_PER_GROUP", 4)


def table_of(rows, size):
    return SampleTable(SampleTable.of(rows)._group.table, rows_per_group=size)


def written(folder, rows, size=4, **changes):
    ours = manifest(samples=table_of(rows, size), **changes)
    ours.write(folder / "m.parquet")
    return ours


def said_by(table, at):
    """Answers of all kinds, about rows near the ends and in the middle."""
    count = len(table)
    return (
        [table[i] for i in (0, -1, *at)],
        [table.image_facts(i) for i in at],
        [table.value(name, i) for i in at for name in COLUMNS],
        [table.values(name) for name in COLUMNS],
        table.values("sample_id", at[0], at[-1]),
        [table.find(text) for text in ("s000", f"s{count - 1:03}", f"s{count - 1:03}ü", "none")],
        table.pixels.tolist(),
        table.usable.tolist(),
        list(table.quarantined),
        list(table.take(np.array(at[::-1]))),
        list(table),
        table.repeated,
        [table.row_digests(i, min(i + 7, count), "m") for i in at],
    )


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 16), size=st.integers(2, 9), at=st.lists(st.integers(0, 15), min_size=1, max_size=3))
def test_a_file_answers_as_memory_does(count, size, at, tmp_path_factory):
    folder, rows, at = tmp_path_factory.mktemp("m"), rows_of(count), [i % count for i in at]
    ours = written(folder, rows, size)
    read = Manifest.read(folder / "m.parquet")
    assert (read.table.file is None) == (count <= size), "one group is read whole"
    assert pq.ParquetFile(folder / "m.parquet").metadata.num_row_groups == -(-count // size)
    assert said_by(read.table, at) == said_by(SampleTable.of(rows), at) == said_by(read.table.loaded(), at)
    assert (
        read == ours and read.fingerprint == ours.fingerprint == replace(read, samples=read.table.loaded()).fingerprint
    )
    assert read.to_bytes() == ours.to_bytes() == (folder / "m.parquet").read_bytes()
    assert read.sha256 == hashlib.sha256(ours.to_bytes()).hexdigest()
    elsewhere = replace(read, root="/elsewhere")
    elsewhere.write(folder / "other.parquet")
    assert Manifest.read(folder / "other.parquet") == replace(ours, root="/elsewhere")
    assert elsewhere.fingerprint == ours.fingerprint and elsewhere.sha256 != ours.sha256
    spooled = SampleTable.spooled(iter(rows))
    assert spooled == read.table and list(spooled) == rows


def test_one_group_keeps_its_bytes_and_its_digest(monkeypatch):
    """By the code of before: pyarrow's writer for whole tables, and JSON of whole columns."""
    ours = manifest(*rows_of(9))
    expected = hashlib.sha256()
    for name in COLUMNS:
        expected.update(sample_table.json.dumps([name, ours.table.values(name)]).encode())
    assert ours.table.digest == expected.hexdigest()
    table = ours.table._group.table
    metadata = pq.ParquetFile(row_groups.io.BytesIO(ours.to_bytes())).schema_arrow.metadata
    sink = row_groups.pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    assert sink.getvalue().to_pybytes() == ours.to_bytes()
    assert sample_table.ROWS_PER_GROUP == 131_072, "COCO's 118,287 rows are one group"


def test_a_large_file_of_before_keeps_its_digest(tmp_path, grouped):
    """Versions before this one wrote any number of rows under one digest, in groups that pyarrow chose."""
    ours = written(tmp_path, rows_of(10), size=10)
    table = pq.read_table(tmp_path / "m.parquet")
    pq.write_table(table, tmp_path / "m.parquet", compression="zstd", row_group_size=3)
    read = Manifest.read(tmp_path / "m.parquet")
    assert read == ours and read.fingerprint == ours.fingerprint and not read.table.is_grouped
    assert read.fingerprint != Manifest.fingerprint.func(replace(ours, samples=rows_of(10))), "groups have another"


def test_spooled_rows_lie_in_a_file_that_goes_with_them(grouped, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = SampleTable.spooled(iter(rows_of(10)))
    assert table.file is not None and len(list(tmp_path.rglob("*.parquet"))) == 1
    manifest(samples=table).write(tmp_path / "m.parquet")
    assert list(Manifest.read(tmp_path / "m.parquet").samples) == rows_of(10)
    del table
    assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
    assert SampleTable.spooled(iter(rows_of(4))).file is None


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_group_is_named(column, tmp_path):
    written(tmp_path, rows_of(10))
    path = tmp_path / "m.parquet"
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[5] = "other" if isinstance(values[5], str) else 7
    index = table.column_names.index(column)
    changed = table.set_column(index, column, row_groups.pa.array(values, table.schema.field(column).type))
    pq.write_table(changed, path, row_group_size=4)
    if column == "sample_id":
        with pytest.raises(ManifestError, match=r"m\.parquet: rows 4 to 8: .*digest of sample_id differs"):
            Manifest.read(path)
        return
    read = Manifest.read(path)
    assert read.samples[3] and read.samples[8] == rows_of(10)[8], "other groups are read"
    for ask in (
        lambda: read.samples[4],
        lambda: read.row_digests(0, 10),
        lambda: read.table.values(column),
        read.table.check,
    ):
        with pytest.raises(ManifestError, match=rf"m\.parquet: rows 4 to 8: .*digest of {column} differs"):
            ask()


def test_wrong_digests_and_groups_are_refused(tmp_path):
    path = tmp_path / "m.parquet"
    written(tmp_path, rows_of(10))
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=3)
    with pytest.raises(ManifestError, match=r"m\.parquet: expected 3 groups of equal size, got \[3, 3, 3, 1\]"):
        Manifest.read(path)
    metadata = table.schema.metadata[row_groups.METADATA_KEY]
    digest = column_digest(table.column("note").slice(0, 4)).encode()
    assert metadata.count(digest) == 1
    forged = metadata.replace(digest, b"0" * 64)
    pq.write_table(table.replace_schema_metadata({row_groups.METADATA_KEY: forged}), path, row_group_size=4)
    with pytest.raises(ManifestError, match=r"m\.parquet: .*its digest differs"):
        Manifest.read(path)
    for groups in (b'"groups": 3', b'"groups": [[1], [2], [3]]', b'"groups": null'):
        broken = row_groups.METADATA_KEY, metadata.split(b'"groups"')[0] + groups + b"}"
        pq.write_table(table.replace_schema_metadata(dict([broken])), path, row_group_size=4)
        with pytest.raises(ManifestError, match=r"m\.parquet"):
            Manifest.read(path)


def test_impossible_rows_are_refused_when_their_group_is_read(tmp_path):
    """A digest says what was written, not that it is harmless."""
    table = SampleTable.of(rows_of(10))._group.table
    paths = table.column("image_path").to_pylist()
    paths[6] = "../secret.jpg"
    column = row_groups.pa.array(paths)
    bad = SampleTable(table.set_column(1, table.schema.field("image_path"), column), rows_per_group=4)
    manifest(samples=bad).write(tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet")
    for ask in (lambda: read.samples[5], lambda: read.table.values("image_path")):
        with pytest.raises(ManifestError, match=r"m\.parquet: rows 4 to 8: .*inside the manifest's root"):
            ask()


def test_ids_that_are_repeated_far_apart_are_found(tmp_path):
    rows = rows_of(10)
    with pytest.raises(ManifestError, match="'s000' stands in 2 rows"):
        manifest(samples=table_of([*rows, rows[0]], 4))
    twice = SampleTable(table_of([*rows, rows[0]], 4)._group.table, rows_per_group=4)
    parts = manifest(samples=table_of(rows, 4))
    object.__setattr__(parts, "samples", twice)
    parts.write(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"m\.parquet: .*'s000' stands in 2 rows"):
        Manifest.read(tmp_path / "m.parquet")


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    written(tmp_path, rows_of(40))
    read, asked = Manifest.read(tmp_path / "m.parquet"), []
    inner = ParquetRows.read
    monkeypatch.setattr(
        ParquetRows,
        "read",
        lambda self, columns, groups: (asked.append((tuple(columns), *groups)), inner(self, columns, groups))[1],
    )
    assert [read.samples[i].sample_id for i in (20, 21, 23)] == [*read.table.values("sample_id", 20, 22), "s023ü"]
    assert read.row_digests(20, 24) and read.table.image_facts(22)
    assert asked == [(COLUMNS, 5)]
    asked.clear()
    assert len(read.table.pixels) == 40
    assert asked == [(("height", "width"), group) for group in (*range(5), *range(6, 10))], "group 5 is at hand"


def test_another_thread_may_ask_for_other_rows_meanwhile(tmp_path):
    written(tmp_path, rows_of(10))
    table = Manifest.read(tmp_path / "m.parquet").table

    class Slow:
        """The group at hand, while somebody else asks for a row of another one."""

        def __init__(self, group):
            self.group = group

        @property
        def start(self):
            table._group = self.group
            table._at(9)
            return self.group.start

        def __getattr__(self, name):
            return getattr(self.group, name)

    assert table[1] == rows_of(10)[1]
    table._group = Slow(table._group)
    assert table.values("sample_id", 0, 2) == [row.sample_id for row in rows_of(10)[:2]]


def test_a_file_that_is_replaced_by_another_is_noticed(tmp_path):
    written(tmp_path, rows_of(10))
    read = Manifest.read(tmp_path / "m.parquet")
    written(tmp_path, [replace(row, note="other") for row in rows_of(10)])
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        read.table.check()


def _ids(table):
    return table.values("sample_id"), table[7]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_tables_travel_to_other_processes(method, tmp_path):
    written(tmp_path, rows_of(10))
    table = Manifest.read(tmp_path / "m.parquet").table
    assert table[1] and b"images/s001" not in pickle.dumps(table), "their rows do not"
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(_ids, (table,)) == _ids(table)
    loaded = table.loaded()
    assert pickle.loads(pickle.dumps(loaded)).digest == loaded.digest == table.digest


def test_reading_starts_no_thread(tmp_path):
    """A process aborts that ends while a thread of pyarrow's is starting."""
    written(tmp_path, rows_of(10))
    code = (
        "import os, sys; from physseg.manifests.manifest import Manifest\n"
        "before = len(os.listdir('/proc/self/task')); table = Manifest.read(sys.argv[1]).table; table.check()\n"
        "assert len(os.listdir('/proc/self/task')) == before"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.parquet")], check=True)
