"""Stores of other people: whatever their files hold, every way into them answers or refuses in one line."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from physseg.common.documents import digest_of_json
from physseg.pipeline.inspect.summary import summarise
from physseg.pipeline.run.prepare import prepare
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.errors import StoreCorruptError, StoreError
from physseg.pipeline.store.layout import MANIFEST_FILE, open_schema, read_manifest
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.shard_codec import decode_index

from ...conftest import write_shapes
from ...fuzzing import as_json, mutants, mutated, survives
from .test_store import preprocess

RECORD, ROOT, COPY = "provenance/commits/000000.json", "zarr.json", "provenance/store.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    preprocess(write_shapes(folder / "data", 3), folder / "s.zarr", structures=["canny"])
    return folder / "s.zarr"


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "s.zarr"))


def sealed(content: Any, kind: str) -> bytes:
    """A document with a checksum of its own: nothing but its values says that it is foreign."""
    if kind == "record":
        return as_json({"commit": content, "digest": digest_of_json(content)})
    attributes = {"physseg": content, "physseg_digest": digest_of_json(content)}
    return as_json({"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def read_all(store: Path) -> None:
    reader = StoreReader(store, open_schema(store).array_names)
    for index in reader.usable:
        reader.read(int(index))


def replan(store: Path) -> None:
    prepare(read_manifest(store, open_schema(store)), store)


WAYS: dict[str, Callable[[Path], object]] = {
    "verify": lambda store: verify(store, progress=False),
    "read": read_all,
    "inspect": summarise,
    "preprocess": replan,
}


def attempt(store: Path, what: str) -> int:
    return sum(survives(lambda way=way: way(store), f"{name}, {what}") for name, way in WAYS.items())


@pytest.mark.parametrize("path", [ROOT, COPY, RECORD, MANIFEST_FILE, "canny/zarr.json", "canny/c/0/0/0", "status/c/0"])
def test_files_of_any_bytes_are_read_or_refused(path: str, store: Path) -> None:
    good = (store / path).read_bytes()
    read = 0
    for number, data in enumerate(mutants(good, seed=len(path), count=50)):
        (store / path).write_bytes(data)
        read += attempt(store, f"{path}, mutant {number}")
    assert read


@pytest.mark.parametrize(("path", "kind"), [(ROOT, "root"), (RECORD, "record")])
def test_sealed_documents_of_any_values_are_read_or_refused(path: str, kind: str, store: Path) -> None:
    document = json.loads((store / path).read_bytes())
    content = document["commit"] if kind == "record" else document["attributes"]["physseg"]
    draw = random.Random(0)
    read = 0
    for number in range(200):
        foreign = mutated(content, draw)
        (store / path).write_bytes(sealed(foreign, kind))
        if kind == "root":
            (store / COPY).write_bytes(sealed(foreign, kind))
        read += attempt(store, f"{path}, values {number}: {str(foreign)[:3000]}")
    assert 0 < read < 200 * len(WAYS) - 100


@pytest.mark.parametrize(
    "path", [ROOT, COPY, RECORD, "canny/zarr.json", "canny/c/0/0/0", "provenance/manifest.parquet"]
)
def test_a_folder_or_a_fifo_in_a_files_place_is_named(path: str, store: Path) -> None:
    (store / path).unlink()
    (store / path).mkdir()
    attempt(store, f"{path}, a folder")
    (store / path).rmdir()
    os.mkfifo(store / path)
    attempt(store, f"{path}, a FIFO")
    assert path in str(verify(store, progress=False).faults)


def test_sizes_that_a_store_claims_are_compared_before_anything_is_taken(store: Path) -> None:
    """10^8 samples, which took hours to look for; and a record of 10^12, whose status would take 931 GiB."""
    content = json.loads((store / ROOT).read_bytes())["attributes"]["physseg"] | {"num_samples": 10**8}
    for path in (ROOT, COPY):
        (store / path).write_bytes(sealed(content, "root"))
    assert attempt(store, "10^8 samples") == 1  # `verify`, which names it
    assert "expected the 100000000 samples" in str(verify(store, progress=False).faults)


@pytest.mark.parametrize("name", ["labels", "frame_size", "cell_classes", "cell_counts", "cell_dropped"])
def test_a_store_without_an_array_that_all_have_is_refused(name: str, store: Path) -> None:
    content = json.loads((store / ROOT).read_bytes())["attributes"]["physseg"]
    for change in ({"name": "other"}, {"dtype": "uint8", "dims": ["edge"]}):
        arrays = [array | change if array["name"] == name else array for array in content["arrays"]]
        for path in (ROOT, COPY):
            (store / path).write_bytes(sealed(content | {"arrays": arrays}, "root"))
        with pytest.raises(StoreError, match=f"no array '{name}'"):
            open_schema(store)
        attempt(store, f"{name}: {change}")


def test_a_record_of_a_trillion_samples_is_a_fault(store: Path) -> None:
    content = json.loads((store / RECORD).read_bytes())["commit"] | {"samples": [0, 10**12]}
    (store / RECORD).write_bytes(sealed(content, "record"))
    attempt(store, "10^12 samples")
    assert "expected 3 samples as it has inputs, got 0..1000000000000" in str(verify(store, progress=False).faults)


@pytest.mark.parametrize(("offset", "length"), [(2**64 - 8, 16), (2**63, 2**63), (8, 2**64 - 4), (0, 65), (65, 0)])
def test_an_extent_beyond_the_data_is_refused_even_where_its_sum_overflows(offset: int, length: int) -> None:
    raw = np.array([[0, 64], [offset, length]], "<u8").tobytes()
    raw += struct.pack("<I", google_crc32c.value(raw))
    with pytest.raises(StoreCorruptError, match="beyond the data"):
        decode_index(raw, 2, 64 + len(raw), "here")


def test_a_path_of_5000_characters_quarantines_its_sample_and_no_other(tmp_path: Path) -> None:
    manifest = write_shapes(tmp_path / "data", 3)
    samples = [replace(manifest.samples[0], label_path="x" * 5000), *manifest.samples[1:]]
    report = preprocess(replace(manifest, samples=samples), tmp_path / "s.zarr")
    assert [entry.sample_id for entry in report.quarantine] == ["000"]
    assert "File name too long" in report.quarantine[0].reason
