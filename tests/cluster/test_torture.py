"""Many faults at random moments on one store, and a storage service that is killed itself; `make torture` runs these.

Seeds are fixed, so a run that fails can be repeated; moments are the processes' own and differ from run to run.
"""

import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from physseg.common.processes import available_cpus

from ..forked import Forked, calling, wait_until
from . import radosgw
from .commands import SETTINGS, SHORT_LEASES, Shapes, assert_same_tree, command, physseg
from .flaky_proxy import Fault, FlakyProxy, randomly
from .radosgw import Gateway
from .s3 import Bucket

pytestmark = pytest.mark.torture

STORE = "s.zarr"
NUM_KILLS = 8
NUM_SHORT_RUNS = 200


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    if reason := radosgw.missing():
        pytest.skip(f"Ceph's radosgw: {reason}")
    with tempfile.TemporaryDirectory(prefix="physseg-ceph-") as name:
        try:
            serving = radosgw.serving(Path(name))
            running = serving.__enter__()
        except RuntimeError as error:
            pytest.skip(f"Ceph's radosgw cannot start here: {error}")
        try:
            running.bucket.create()
            yield running
        finally:
            serving.__exit__(None, None, None)


@pytest.fixture(params=["moto", "radosgw"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """An empty bucket of either server, and the environment set that clients read."""
    monkeypatch.chdir(tmp_path)  # where the runs' logs go
    if request.param == "moto":
        found: Bucket = request.getfixturevalue("s3")
        return found
    found = request.getfixturevalue("gateway").bucket
    for key in found.keys(""):
        found.delete(key)
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    return found


def assert_is_whole(bucket: Bucket, shapes: Shapes) -> None:
    assert "no fault" in physseg("verify", bucket.url(STORE))
    assert_same_tree(bucket.tree(STORE), shapes.files)


@pytest.mark.parametrize("seed", [1, 2])
def test_clients_killed_again_and_again_on_a_bad_network(
    bucket: Bucket, shapes: Shapes, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each client is killed at some write; one request in eight meets a fault meanwhile."""
    words = ("preprocess", shapes.manifest, bucket.url(STORE), "--scheduler", "sync", *SETTINGS)
    chance = random.Random(seed)
    faults = (Fault.CUT_REQUEST, Fault.CUT_RESPONSE, Fault.SLOW_DOWN, Fault.STALL)
    with FlakyProxy(bucket.endpoint, stall_seconds=0.5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.choose = randomly(1 / 8, *faults, seed=seed)
        kills = 0
        for _ in range(NUM_KILLS):
            last_write = proxy.requests["PUT"] + chance.randrange(1, 25)
            with Forked(calling(*words, before=SHORT_LEASES), Path("client.txt")) as process:
                wait_until(lambda: proxy.requests["PUT"] >= last_write or process.poll() is not None)  # noqa: B023
                kills += process.poll() is None
                process.kill()
        assert kills >= 3, "it was done too early to be tested"
        completed = Forked(calling(*words, before=SHORT_LEASES), Path("completed.txt"))
        assert completed.wait(300) == 0, completed.text()
        assert set(proxy.faults) == set(faults)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    assert_is_whole(bucket, shapes)


@pytest.mark.parametrize("bucket", ["radosgw"], indirect=True)
def test_a_storage_service_that_is_killed_in_the_middle_of_writes(
    bucket: Bucket, gateway: Gateway, shapes: Shapes
) -> None:
    words = command("preprocess", shapes.manifest, bucket.url(STORE), "--workers", 2, *SETTINGS)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        for commits in (1, 3):
            wait_until(lambda: len(bucket.keys(f"{STORE}/provenance/commits/")) >= commits or run.poll() is not None)  # noqa: B023
            assert run.poll() is None, run.stdout
            gateway.restart()
        output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert_is_whole(bucket, shapes)


@pytest.mark.parametrize("name", ["inspect", "verify", "manifest"])
def test_short_commands_end_as_they_should(name: str, shapes: Shapes, tmp_path: Path) -> None:
    """Twice as many at a time as there are processors: threads that free memory while Python ends abort a process.

    One to six of twenty runs of `inspect` ended so, with everything printed: a thread of Arrow's did it.
    """
    (tmp_path / "classes.txt").write_text("ground\nbox\ndisc\nsquare\nball\n")
    folder = ("folder", "--root", shapes.root, "--classes-file", tmp_path / "classes.txt", "--out")

    def run(number: int) -> tuple[int, str]:
        words = (*folder, tmp_path / f"{number}.parquet") if name == "manifest" else (shapes.store,)
        done = subprocess.run(command(name, *words), capture_output=True, text=True, check=False)
        return done.returncode, done.stderr[-400:] if done.returncode else ""

    with ThreadPoolExecutor(2 * available_cpus()) as pool:
        assert Counter(pool.map(run, range(NUM_SHORT_RUNS))) == {(0, ""): NUM_SHORT_RUNS}
