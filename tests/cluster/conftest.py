"""Fixtures that start real components: Slurm, an object store. Each skips, with a reason, where it cannot be had."""

import importlib.util
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import write_shapes
from . import s3 as s3_server
from . import slurm as slurm_server
from .commands import NUM_SAMPLES, SETTINGS, Shapes, physseg, tree
from .flaky_proxy import FlakyProxy


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Six shards' worth of small pictures, and the store that every run here must equal."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder / "data", NUM_SAMPLES).write(folder / "m.parquet")
    physseg("preprocess", folder / "m.parquet", folder / "s.zarr", "--scheduler", "sync", *SETTINGS)
    return Shapes(folder / "data", folder / "m.parquet", folder / "s.zarr", tree(folder / "s.zarr"))


@pytest.fixture(scope="session")
def slurm_folder() -> Iterator[Path]:
    """The folder of a running Slurm with three nodes of one processor each; see slurm.py."""
    if reason := slurm_server.missing():
        pytest.skip(f"Slurm: {reason}")
    with tempfile.TemporaryDirectory(prefix="physseg-slurm-") as name:  # short: sockets' paths have 108 bytes at most
        try:
            slurm_server.start(Path(name), nodes=3)
        except RuntimeError as error:
            pytest.skip(f"Slurm cannot start here: {error}")
        try:
            yield Path(name)
        finally:
            slurm_server.stop(Path(name))


@pytest.fixture
def slurm(slurm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with the environment set that sbatch, squeue and others need."""
    for name, value in slurm_server.environment(slurm_folder).items():
        monkeypatch.setenv(name, value)
    return slurm_folder


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for module in ("moto", "obstore"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    with s3_server.serving(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> s3_server.Bucket:
    """An empty bucket, and the environment set that clients read, here and in processes started from here."""
    bucket = s3_server.Bucket(f"test-{uuid.uuid4().hex[:12]}", s3_endpoint)
    bucket.create()
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def proxy(s3: s3_server.Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy in front of the bucket, through which clients' environment leads them; harmless until told otherwise."""
    with FlakyProxy(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between
