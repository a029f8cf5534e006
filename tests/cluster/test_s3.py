"""Stores on an object store: the same bytes as on a disk, whatever happens to the network and to the writers."""

import contextlib
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray
from physseg.common.storage.interface import Storage
from physseg.common.storage.location import open_storage
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.commits import read_commit

from ..conftest import write_shapes
from ..forked import Forked, calling, wait_until
from .commands import QUICK_BEATS, SETTINGS, SHORT_LEASES, Shapes, assert_same_tree, physseg, tree
from .flaky_proxy import Fault, FlakyProxy, every
from .s3 import Bucket

pytestmark = pytest.mark.cluster

STORE = "s.zarr"
COMMITS = f"{STORE}/provenance/commits/"
SYNC = ("--scheduler", "sync", *SETTINGS)
FEW_RETRIES = "from physseg.common.storage import objects; objects._RETRIES['max_retries'] = 2"
"""So that a test need not wait three minutes until a service is known down."""


@pytest.fixture(autouse=True)
def _logs_go_to_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's log is beside its store, and where that is a bucket, in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stored(s3: Bucket, shapes: Shapes) -> Bucket:
    """A bucket with the finished store, put there without the product."""
    s3.upload(shapes.store, STORE)
    return s3


@contextlib.contextmanager
def running(*words: object, before: str = "") -> Iterator[Forked]:
    """A command as a process that does not outlive the test."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Forked(calling(*words, before=before), Path(folder, "output.txt")) as process,
    ):
        yield process


def finish(process: Forked) -> tuple[int, str]:
    return process.wait(120), process.text()


def assert_is_whole(bucket: Bucket, shapes: Shapes) -> None:
    assert "no fault" in physseg("verify", bucket.url(STORE))
    assert_same_tree(bucket.tree(STORE), shapes.files)
    assert bucket.keys(f"{STORE}.locks/") == [], "no writer holds it any more"


def test_manifest_images_and_store_by_url(s3: Bucket, tmp_path: Path) -> None:
    """Two processes, all of it on S3, against one process on this disk; the images' place is in the store, too."""
    write_shapes(tmp_path / "data", 100).write(tmp_path / "m.parquet")
    s3.upload(tmp_path / "data", "data")
    s3.write("m.parquet", (tmp_path / "m.parquet").read_bytes())
    there, root, store = s3.url("m.parquet"), ("--root", s3.url("data")), s3.url(STORE)
    physseg("preprocess", there, store, *root, *SETTINGS, "--workers", 2)
    assert "no fault" in physseg("verify", store)
    physseg("preprocess", there, tmp_path / STORE, *root, *SYNC)
    assert_same_tree(s3.tree(STORE), tree(tmp_path / STORE))
    assert "nothing: every shard is committed" in physseg("preprocess", there, store, *root, *SYNC)
    assert json.loads(physseg("inspect", store, "--json", "-"))["done"] == 100
    physseg("inspect", store, "--sample", "017", "--out", tmp_path / "pictures")
    assert (tmp_path / "pictures").is_dir()


def test_parts_that_start_at_once(s3: Bucket, shapes: Shapes) -> None:
    words = ("preprocess", shapes.manifest, s3.url(STORE), *SYNC, "--part")
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(running(*words, f"{number}/3")) for number in (1, 2, 3)]
        for code, output in map(finish, parts):
            assert code == 0, output
    assert_is_whole(s3, shapes)


def test_a_killed_client_resumes(s3: Bucket, shapes: Shapes) -> None:
    words = ("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    with running(*words) as client:
        wait_until(lambda: s3.keys(COMMITS))
        client.kill()
    assert 1 <= len(s3.keys(COMMITS)) < 6
    assert s3.keys(f"{STORE}.locks/") != [], "it had no time to say farewell"
    with running(*words, before=SHORT_LEASES) as client:
        code, output = finish(client)
    assert code == 0, output
    assert_is_whole(s3, shapes)


def test_of_two_clients_the_second_is_refused(s3: Bucket, shapes: Shapes) -> None:
    words = ("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    with running(*words, before=QUICK_BEATS) as first:
        wait_until(lambda: s3.keys(COMMITS))
        with running(*words, before=QUICK_BEATS) as second:
            code, output = finish(second)
        assert code == 1 and "is writing this store" in output
        code, output = finish(first)
    assert code == 0, output
    assert_is_whole(s3, shapes)


def test_two_clients_that_start_at_once_do_not_mix(s3: Bucket, shapes: Shapes) -> None:
    """One may win, or both may be refused; what is there afterwards is a store to go on with."""
    words = ("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    with running(*words, before=QUICK_BEATS) as first, running(*words, before=QUICK_BEATS) as second:
        ends = [finish(first), finish(second)]
    assert sorted(code for code, _ in ends) in ([0, 1], [1, 1]), ends
    assert all(code == 0 or "is writing this store" in output for code, output in ends), ends
    physseg("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    assert_is_whole(s3, shapes)


def test_a_bad_network_changes_no_byte(s3: Bucket, proxy: FlakyProxy, shapes: Shapes) -> None:
    """Every fifth request breaks or is put off; one whose answer got lost was done."""
    methods = ("PUT", "GET", "HEAD", "POST", "DELETE")
    proxy.choose = every(5, Fault.CUT_REQUEST, Fault.CUT_RESPONSE, Fault.SLOW_DOWN, methods=methods)
    physseg("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    assert "no fault" in physseg("verify", s3.url(STORE))
    assert min(proxy.faults[fault] for fault in (Fault.CUT_REQUEST, Fault.CUT_RESPONSE, Fault.SLOW_DOWN)) >= 3
    proxy.choose = lambda method, count: None
    assert_is_whole(s3, shapes)


OPERATIONS: dict[str, Callable[[Storage], object]] = {
    "write": lambda storage: storage.put("b", b"new"),
    "read": lambda storage: storage.get("a"),
    "read a part": lambda storage: storage.open("a").read_at(100, 1000),
    "exists": lambda storage: storage.exists("a"),
    "list": lambda storage: storage.list(),
    "remove": lambda storage: storage.delete(["a", "b"]),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_lost_answer_is_no_error(s3: Bucket, proxy: FlakyProxy, operation: str) -> None:
    s3.write("x/a", bytes(100_000))
    answered = OPERATIONS[operation](open_storage(s3.url("x")))
    s3.write("x/a", bytes(100_000))
    proxy.choose = lambda method, count: None if proxy.faults else Fault.CUT_RESPONSE
    assert OPERATIONS[operation](open_storage(s3.url("x"))) == answered
    assert proxy.faults == {Fault.CUT_RESPONSE: 1}


def test_an_outage_is_waited_for(s3: Bucket, proxy: FlakyProxy, shapes: Shapes) -> None:
    with running("preprocess", shapes.manifest, s3.url(STORE), *SYNC) as client:
        wait_until(lambda: s3.keys(COMMITS))
        with proxy.outage(), pytest.raises(subprocess.TimeoutExpired):
            client.wait(timeout=4)
        code, output = finish(client)
    assert code == 0, output
    assert_is_whole(s3, shapes)


def test_a_service_that_stays_down_is_named_and_the_run_resumes(s3: Bucket, proxy: FlakyProxy, shapes: Shapes) -> None:
    words = ("preprocess", shapes.manifest, s3.url(STORE), *SYNC)
    with running(*words, before=FEW_RETRIES) as client:
        wait_until(lambda: s3.keys(COMMITS))
        proxy.choose = every(1, Fault.SLOW_DOWN, methods=("PUT", "GET", "HEAD", "POST", "DELETE"))
        code, output = finish(client)
    assert code == 1 and "Traceback" not in output, output
    assert "error: " in output and s3.url(STORE) in output and "503" in output, output
    proxy.choose = lambda method, count: None
    with running(*words, before=SHORT_LEASES) as client:
        code, output = finish(client)
    assert code == 0, output
    assert_is_whole(s3, shapes)


def test_verify_finds_and_mends_every_damage(stored: Bucket, shapes: Shapes) -> None:
    """A flipped bit, a truncated object, a deleted one, two that changed places, and a record of older files."""
    keys = [f"{STORE}/{name}" for name in ("canny/c/0/0/0", "sift/c/1/0/0", "labels/c/2/0/0")]
    flipped, truncated, deleted = keys
    content = bytearray(stored.read(flipped))
    content[len(content) // 2] ^= 1
    stored.write(flipped, bytes(content))
    stored.write(truncated, stored.read(truncated)[:-1])
    stored.delete(deleted)
    swapped = [f"{STORE}/mask_edges/c/{shard}/0/0" for shard in (3, 4)]
    contents = [stored.read(key) for key in swapped]
    for key, other in zip(swapped, reversed(contents), strict=True):
        stored.write(key, other)
    record = read_commit(open_storage(stored.url(STORE)), 5)
    assert record is not None
    layer = record.layers["canny"]
    stale = dataclasses.replace(layer, files=dict.fromkeys(layer.files, "0" * 64))
    stale_record = dataclasses.replace(record, layers={**record.layers, "canny": stale})
    stored.write(f"{COMMITS}000005.json", stale_record.to_bytes())
    damaged = [key.removeprefix(f"{STORE}/") for key in (*keys, *swapped, f"{STORE}/canny/c/5/0/0")]
    report = verify(stored.url(STORE))
    assert sorted(fault.path for fault in report.faults) == sorted(damaged)
    output = physseg("verify", stored.url(STORE), code=1)
    assert all(name in output for name in damaged)
    physseg("verify", stored.url(STORE), "--repair", "--scheduler", "sync")
    assert_is_whole(stored, shapes)


def test_other_readers_open_it(stored: Bucket, shapes: Shapes) -> None:
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    remote = ObjectStore(from_url(stored.url(STORE), client_options={"allow_http": True}), read_only=True)
    with (
        xarray.open_zarr(remote, consolidated=False) as found,
        xarray.open_zarr(shapes.store, consolidated=False) as expected,
    ):
        assert set(found.variables) == set(expected.variables)
        for name in ("labels", "canny", "cell_counts"):
            np.testing.assert_array_equal(found[name][60:70].values, expected[name][60:70].values)


TRAINING = """
steps = 2
batch_size = 2
log_every = 1
device = "cpu"
[data]
store = "{store}"
images = "{images}"
crop = 192
num_workers = 1
{more}
[model]
clip = "tiny"
structures = ["canny"]
"""


def test_training_reads_the_store_and_the_images(stored: Bucket, shapes: Shapes, tmp_path: Path) -> None:
    """The same losses to the last bit, read through a cache in a worker process."""
    stored.upload(shapes.root / "images", "data/images")
    places = {
        "disk": (shapes.store, shapes.root, ""),
        "s3": (stored.url(STORE), stored.url("data"), f'cache = "{tmp_path}/cache"'),
    }
    losses = {}
    for name, (store, images, more) in places.items():
        (tmp_path / f"{name}.toml").write_text(TRAINING.format(store=store, images=images, more=more))
        physseg("train", tmp_path / f"{name}.toml", "--out", tmp_path / name)
        events = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = [event["loss/total"] for event in events if event["event"] == "step"]
    assert losses["s3"] == losses["disk"] and len(losses["disk"]) == 2
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
