"""Two "hosts" on one machine: network namespaces with a cable between them, Dask over TLS, and the cable is cut.

Needs root, iproute2 and openssl, and so runs with `make torture` alone. Nothing outside the namespaces is touched.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..forked import wait_until
from .commands import SETTINGS, Shapes, assert_same_tree, command, physseg, tree

pytestmark = pytest.mark.torture

ADDRESSES = ("10.77.0.1", "10.77.0.2")
SCHEDULER = f"tls://{ADDRESSES[0]}:8786"
CABLE = "cable"


def call(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr}")
    return done.stdout


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two namespaces that see each other at ADDRESSES and nothing else; their processes end with the test."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("openssl") is None:
        pytest.skip("needs root, ip and openssl")
    names = f"physseg-{os.getpid()}-a", f"physseg-{os.getpid()}-b"
    try:
        try:
            for name in names:
                call("ip", "netns", "add", name)
            call("ip", "-n", names[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", names[1])
        except RuntimeError as error:
            pytest.skip(f"no network namespaces here: {error}")
        for name, address in zip(names, ADDRESSES, strict=True):
            call("ip", "-n", name, "address", "add", f"{address}/24", "dev", CABLE)
            for device in ("lo", CABLE):
                call("ip", "-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            with contextlib.suppress(RuntimeError):
                for process in call("ip", "netns", "pids", name).split():
                    os.kill(int(process), signal.SIGKILL)
                call("ip", "netns", "delete", name)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that signs itself, for all: who does not have it is nobody."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=physseg")
    call("openssl", "req", *options, "-keyout", key, "-out", certificate)
    tls = "DASK_DISTRIBUTED__COMM__TLS"
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "True")
    monkeypatch.setenv(f"{tls}__CA_FILE", str(certificate))
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        monkeypatch.setenv(f"{tls}__{role}__KEY", str(key))
        monkeypatch.setenv(f"{tls}__{role}__CERT", str(certificate))


def start(host: str, log: Path, *words: object) -> "subprocess.Popen[str]":
    """A process on that host, its output in a file."""
    with log.open("w") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def cluster(hosts: tuple[str, str], tls: None, tmp_path: Path) -> tuple[str, str]:
    """A scheduler on the first host, and a worker on each."""
    scheduler = tmp_path / "scheduler.log"
    options = ("--host", SCHEDULER, "--no-dashboard")
    start(hosts[0], scheduler, sys.executable, "-m", "distributed.cli.dask_scheduler", *options)
    for host, address in zip(hosts, ADDRESSES, strict=True):
        worker = ("-m", "distributed.cli.dask_worker", SCHEDULER, "--host", address, "--nthreads", 1, "--no-dashboard")
        start(host, tmp_path / f"worker-{address}.log", sys.executable, *worker)
    wait_until(lambda: scheduler.read_text().count("Register worker") == 2)
    return hosts


def num_commits(store: Path) -> int:
    return len(list((store / "provenance/commits").glob("*.json")))


def test_a_cut_cable_costs_time_alone(cluster: tuple[str, str], shapes: Shapes, tmp_path: Path) -> None:
    """The far worker's shard is computed again here, once the scheduler has missed the worker for ten seconds.

    The far worker does not know of it and may still write, to the same file server: the same bytes.
    """
    store, log = tmp_path / "s.zarr", tmp_path / "client.log"
    words = command("preprocess", shapes.manifest, store, "--scheduler", SCHEDULER, *SETTINGS)
    client = start(cluster[0], log, *words)
    wait_until(lambda: num_commits(store) or client.poll() is not None)
    call("ip", "-n", cluster[1], "link", "set", CABLE, "down")
    assert client.poll() is None, "it ended before the cable was cut\n" + log.read_text()
    cut = time.monotonic()
    assert client.wait(timeout=120) == 0, log.read_text()
    assert time.monotonic() - cut > 5, "nobody was missed"
    assert "no fault" in physseg("verify", store)
    assert_same_tree(tree(store), shapes.files)


def test_who_has_no_certificate_is_refused(
    cluster: tuple[str, str], shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("DASK_DISTRIBUTED__COMM"):
            monkeypatch.delenv(name)
    log = tmp_path / "client.log"
    words = command("preprocess", shapes.manifest, tmp_path / "s.zarr", "--scheduler", SCHEDULER, *SETTINGS)
    assert start(cluster[0], log, *words).wait(timeout=120) == 1
    assert "error: " in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
