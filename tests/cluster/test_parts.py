"""Parts of one store that come at awkward moments: while it is made, and after others have begun to compute."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from physseg.common.storage.location import open_storage
from physseg.common.text import Part
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.store import leases
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.locks import locked

from .commands import Shapes, assert_same_tree
from .s3 import Bucket

pytestmark = pytest.mark.cluster
FRAME = Frame(short_edge=192, max_long_edge=384, canvas=384)
PARTS = [Part.parse(f"{number}/3") for number in (1, 2, 3)]


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "s.zarr")
    bucket: Bucket = request.getfixturevalue("s3")
    return bucket.url("s.zarr")


@pytest.fixture
def jobs(store: str, shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> list[run.Job]:
    """All parts, planned before there was a store."""
    monkeypatch.setattr(run, "INITIALISE_SECONDS", 5.0)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.5)
    manifest = Manifest.read(shapes.manifest)
    return [run.prepare(manifest, store, frame=FRAME, part=part) for part in PARTS]


def execute(job: run.Job) -> None:
    run.execute(job, SyncExecutor(), progress=False)


def files(store: str) -> dict[str, bytes]:
    return {name: open_storage(store).get(name) for name in open_storage(store).list()}


def test_a_part_that_was_planned_before_the_store_was_there(jobs: list[run.Job], store: str, shapes: Shapes) -> None:
    """Others compute for hours; who comes late must not wait until they are done."""
    execute(jobs[0])
    with locked(open_storage(store), shared=True):
        execute(jobs[1])
        execute(jobs[2])
    assert_same_tree(files(store), shapes.files)


def test_a_part_that_comes_while_another_makes_the_store(jobs: list[run.Job], store: str, shapes: Shapes) -> None:
    """Planned before the store was there, or just after: both wait for the maker, who is done in seconds."""
    execute(jobs[0])
    after = run.prepare(jobs[0].manifest, store, frame=FRAME, part=PARTS[2])
    with ThreadPoolExecutor(2) as pool:
        with locked(open_storage(store)):
            late = [pool.submit(execute, job) for job in (jobs[1], after)]
            time.sleep(1.5)
        for part in late:
            part.result()
    assert_same_tree(files(store), shapes.files)
