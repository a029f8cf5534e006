"""Rows of a manifest, one by one and as columns."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from physseg.manifests.errors import ManifestError
from physseg.manifests.sample_table import SampleTable

from .conftest import sample


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_id": ""},
        {"image_path": "/etc/passwd"},
        {"label_path": "labels/../../x.png"},
        {"label_path": ""},
        {"orientation": 0},
        {"orientation": 9},
        {"height": 0},
    ],
)
def test_impossible_samples_are_refused(changes):
    with pytest.raises(ManifestError):
        sample(**({"sample_id": "a"} | changes))


def test_an_unreadable_image_may_have_no_size():
    assert sample(height=0, width=0, problem="unreadable image: x").problem


def test_rows_behave_as_a_tuple():
    rows = [sample(f"s{i}") for i in range(5)]
    table = SampleTable.of(rows)
    assert len(table) == 5
    assert table[1] == rows[1]
    assert table[-1] == rows[4]
    assert table[np.int64(2)] == rows[2]
    assert table[1:4] == tuple(rows[1:4])
    assert list(table) == rows
    assert table == rows
    with pytest.raises(IndexError):
        table[5]


def test_columns():
    rows = [sample("a", height=70_000, width=70_000), sample("ü", problem="size mismatch: x"), sample("c", note="grey")]
    table = SampleTable.of(rows)
    assert table.value("sample_id", 1) == "ü" and table.value("height", -1) == 24
    assert table.values("note") == ["", "", "grey"]
    assert (table.find("c"), table.find("d"), SampleTable.of([]).find("a")) == (2, None, None)
    assert table.pixels.tolist() == [4_900_000_000, 24 * 32, 24 * 32], "more than 32 bits hold"
    assert list(table.take(np.array([2, 0]))) == [rows[2], rows[0]]
    assert list(table.quarantined) == [rows[1]]
    assert table.image_facts(0) == ("images/a.jpg", 1, (70_000, 70_000)) and table.image_facts(1) is None
    assert pickle.loads(pickle.dumps(table)) == table and hash(table) == hash(SampleTable.of(rows))


@given(st.lists(st.sampled_from("abcde"), max_size=8))
def test_repeated_ids_are_found(ids):
    repeated = SampleTable.of([sample(i) for i in ids]).repeated
    assert (repeated is None) == (len(set(ids)) == len(ids))
    if repeated is not None:
        assert ids.count(repeated[0]) == repeated[1] > 1
