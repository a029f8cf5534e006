"""Stores of other people: whatever their files hold, every way into them answers or refuses in one line."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from physseg.pipeline.inspect.summary import summarise
from physseg.pipeline.run.prepare import prepare
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.layout import open_schema, read_manifest
from physseg.pipeline.store.reader import StoreReader
from physseg.pipeline.store.schema import digest_of_json

from ...conftest import write_shapes
from ...fuzzing import as_json, mutants, mutated, survives
from .test_store import preprocess

RECORD, ROOT, COPY = "provenance/commits/000000.json", "zarr.json", "provenance/store.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("malformed")
    preprocess(write_shapes(folder / "data", 3), folder / "s.zarr")
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


@pytest.mark.parametrize("path", [ROOT, COPY, RECORD, "canny/zarr.json", "canny/c/0/0/0", "status/c/0"])
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
