"""A package of another author: built as a wheel, installed beside physseg, used by every command, and taken away.

The package is the example of docs/plugins.md. Nobody but the processes started here has it on their path.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import physseg as package
import pytest
from physseg.common import plugins
from PIL import Image

from ..conftest import write_shapes
from ..train.conftest import MODEL, to_toml
from .commands import assert_same_tree, physseg, tree

pytestmark = pytest.mark.cluster
PAGE = (Path(package.__file__).parent / "docs/plugins.md").read_text(encoding="utf-8")
SOURCE = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Sobel" in code)
PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "physseg-sobel"
version = "0.1.0"

[project.entry-points."physseg.extractors"]
sobel = "physseg_sobel:Sobel"

[tool.setuptools]
py-modules = ["physseg_sobel"]
"""
SETTINGS = ("--structures", "canny,sobel", "--short-edge", "96", "--max-long-edge", "192", "--canvas", "192")
GONE = "layer sobel has to be computed again, and no package installed here offers it"
NUM_SAMPLES = 130


@dataclass(frozen=True, slots=True)
class Installed:
    """Commands as they are with the package, in its folder `site`."""

    site: Path

    @property
    def path(self) -> str:
        return os.pathsep.join([str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def __call__(self, *words: object, code: int = 0) -> str:
        before = f"import sys; sys.path.insert(0, {str(self.site)!r})"
        return physseg(*words, code=code, before=before, PYTHONPATH=self.path)


def python(*words: object, path: str | None = None) -> subprocess.Popen[str]:
    """A process of the interpreter that nobody has prepared: the path alone says what is installed."""
    environment = {**os.environ, **({} if path is None else {"PYTHONPATH": path})}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def command(*words: object, path: str | None = None, code: int = 0) -> str:
    """`physseg WORDS` as a shell runs it."""
    process = python("-m", "physseg.cli", *words, path=path)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == code, printed
    return printed


def pip(*words: object) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words), *quiet], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sobel(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The package, built as a wheel and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    (folder / "source/pyproject.toml").write_text(PROJECT)
    (folder / "source/physseg_sobel.py").write_text(SOURCE)
    pip("wheel", folder / "source", "--no-build-isolation", "--wheel-dir", folder)
    (wheel,) = folder.glob("*.whl")
    pip("install", wheel, "--target", folder / "site")
    return Installed(folder / "site")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of pictures, in `m.parquet`."""
    folder = tmp_path_factory.mktemp("shapes")
    sizes = ((100, 140), (240, 160), (96, 96), (80, 230))
    write_shapes(folder / "data", NUM_SAMPLES, sizes).write(folder / "m.parquet")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path, sobel: Installed) -> Path:
    """Their store; not to be changed."""
    sobel("preprocess", folder / "m.parquet", folder / "made.zarr", "--scheduler", "sync", *SETTINGS)
    return folder / "made.zarr"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(made, tmp_path / "s.zarr")


@pytest.fixture
def version(sobel: Installed, tmp_path: Path) -> Callable[..., Installed]:
    """``version("0.1.1", "revision = 1", "revision = 2")``: another version, with a change of its text."""

    def version(number: str, old: str = "", new: str = "") -> Installed:
        other = Installed(shutil.copytree(sobel.site, tmp_path / f"site{number}"))
        (info,) = other.site.glob("*.dist-info")
        text = (info / "METADATA").read_text()
        (info / "METADATA").write_text(text.replace("Version: 0.1.0", f"Version: {number}"))
        info.rename(info.with_name(f"physseg_sobel-{number}.dist-info"))
        assert old in SOURCE
        (other.site / "physseg_sobel.py").write_text(SOURCE.replace(old, new))
        return other

    return version


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def test_the_table_names_the_package(sobel: Installed) -> None:
    (row,) = (row for row in json.loads(sobel("plugins", "--json", "-")) if row["name"] == "sobel")
    assert (row["kind"], row["package"], row["version"]) == ("extractors", "physseg-sobel", "0.1.0")
    assert (row["target"], row["problem"]) == ("physseg_sobel:Sobel", "")
    assert "sobel" not in plugins.names("extractors")


def test_what_is_stored_is_the_gradient(made: Path, folder: Path) -> None:
    """By a convolution written out, in a process without the package."""
    sample = package.open_store(made)[2]  # 96 x 96 px: the frame is the picture
    red, green, blue = np.moveaxis(np.asarray(Image.open(folder / "data/images/002.jpg"), np.float64), 2, 0)
    grey = np.pad(np.rint(0.299 * red + 0.587 * green + 0.114 * blue), 1, mode="reflect")
    smooth, steps = (1, 2, 1), (-1, 0, 1)
    gradient = [np.zeros((96, 96)), np.zeros((96, 96))]
    for y in range(3):
        for x in range(3):
            part = grey[y : y + 96, x : x + 96]
            gradient[0] += smooth[y] * steps[x] * part
            gradient[1] += steps[y] * smooth[x] * part
    length = np.hypot(*gradient)
    sure = abs(length - 100) > 10  # grey values are rounded, one up or down
    np.testing.assert_array_equal(sample.arrays["sobel"][sure] == 255, length[sure] > 100)
    assert 0.01 < (length > 100).mean() < 0.99


def test_without_it_the_store_verifies_and_is_drawn_alike(made: Path, sobel: Installed, tmp_path: Path) -> None:
    assert "no fault" in physseg("verify", made)
    table = physseg("inspect", made)
    assert table == sobel("inspect", made)
    assert "physseg-sobel 0.1.0" in table
    for run, name in ((sobel, "with"), (physseg, "without")):
        run("inspect", made, "--sample", "3", "--out", tmp_path / name, "--html", tmp_path / name / "page.html")
    assert_same_tree(tree(tmp_path / "without"), tree(tmp_path / "with"))
    page = (tmp_path / "without/page.html").read_text()
    assert "sobel" in page
    (picture,) = (tmp_path / "without").rglob("*sobel*.png")
    drawn = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(drawn, axis=0)) > 1


def test_without_it_other_layers_are_mended(folder: Path, made: Path, store: Path) -> None:
    assert "nothing: every shard is committed" in physseg("preprocess", folder / "m.parquet", store)
    assert_same_tree(tree(store), tree(made))
    (store / "canny/c/1/0/0").unlink()
    physseg("preprocess", folder / "m.parquet", store, "--scheduler", "sync")
    assert_same_tree(tree(store), tree(made))
    damage(store / "labels/c/2/0/0")
    physseg("verify", store, "--repair", "--scheduler", "sync")
    assert_same_tree(tree(store), tree(made))


def test_what_needs_it_says_so(folder: Path, store: Path, sobel: Installed, made: Path) -> None:
    manifest = folder / "m.parquet"
    for words in (("--structures", "sobel"), ("--set", "sobel.threshold=9")):
        assert "unknown structure extractor 'sobel'" in physseg("preprocess", manifest, store, *words, code=1)
    (store / "sobel/c/1/0/0").unlink()
    printed = physseg("preprocess", manifest, store, code=1)
    assert GONE in printed and "physseg-sobel 0.1.0" in printed and "Traceback" not in printed
    assert "sobel/c/1/0/0: shard file is missing" in physseg("verify", store, code=1)
    assert GONE in physseg("verify", store, "--repair", code=1)
    sobel("verify", store, "--repair", "--scheduler", "sync")
    assert_same_tree(tree(store), tree(made))


def test_a_patch_computes_nothing_and_a_revision_that_layer(
    folder: Path, store: Path, made: Path, version: Callable[..., Installed]
) -> None:
    printed = version("0.1.1")("preprocess", folder / "m.parquet", store)
    assert "nothing: every shard is committed" in printed
    assert "begun with physseg-sobel 0.1.0, this is 0.1.1" in printed
    assert_same_tree(tree(store), tree(made))
    # As a test of this test: other bytes under the old revision are not noticed, which is why there are revisions.
    other = "np.uint8(255), np.uint8(0)", "np.uint8(254), np.uint8(0)"
    assert "nothing" in version("0.1.2", *other)("preprocess", folder / "m.parquet", store)
    newer = version("0.2.0", "revision = 1", "revision = 2")
    assert "3 shards: settings changed: sobel" in newer(
        "preprocess", folder / "m.parquet", store, "--scheduler", "sync"
    )
    found, before = tree(store), tree(made)
    changed = {name.split("/")[0] for name in found if found[name] != before.get(name)}
    assert changed <= {"zarr.json", "provenance"}  # this revision makes the same bytes
    assert {path.split("/")[0] for path in found} == {path.split("/")[0] for path in before}


def test_an_extractor_that_fails_is_named_with_its_package(
    folder: Path, tmp_path: Path, version: Callable[..., Installed]
) -> None:
    broken = version("0.1.3", "        grey =", "        if len(image) > 96: {}['no\\nsuch key']\n        grey =")
    words = ("preprocess", folder / "m.parquet", tmp_path / "s.zarr", *SETTINGS)
    printed = broken(*words, "--scheduler", "sync", code=1)
    (error,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert "sample 001: structure extractor sobel of the package physseg-sobel 0.1.3: KeyError: 'no" in error
    assert "Traceback" not in printed


# As a shell and other machines run it.


@pytest.mark.torture
def test_two_local_workers(folder: Path, made: Path, sobel: Installed, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    command("preprocess", folder / "m.parquet", store, *SETTINGS, "--workers", "2", path=sobel.path)
    assert_same_tree(tree(store), tree(made))


@pytest.mark.torture
def test_parts(folder: Path, made: Path, sobel: Installed, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    for part in ("2/2", "1/2"):
        words = ("preprocess", folder / "m.parquet", store, *SETTINGS, "--part", part, "--workers", "1")
        command(*words, path=sobel.path)
    assert_same_tree(tree(store), tree(made))


@contextmanager
def running(*words: object, path: str | None = None) -> Iterator[subprocess.Popen[str]]:
    process = python(*words, path=path)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.torture
def test_workers_of_others(folder: Path, made: Path, sobel: Installed, tmp_path: Path) -> None:
    """A scheduler, a worker with the package, and then one without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    words = ("preprocess", folder / "m.parquet", tmp_path / "s.zarr", *SETTINGS, "--scheduler", address)
    worker = ("-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    scheduler = ("-m", "distributed.cli.dask_scheduler", "--port", address.rpartition(":")[2], "--no-dashboard")
    with running(*scheduler):  # which needs no package
        time.sleep(3)
        with running(*worker):
            printed = command(*words, path=sobel.path, code=1)
        (error,) = (line for line in printed.splitlines() if line.startswith("error: "))
        assert f"{socket.gethostname()}: sobel of physseg-sobel 0.1.0 cannot be made here" in error
        assert "install physseg-sobel 0.1.0 on every machine" in printed
        with running(*worker, path=sobel.path):
            command(*words, path=sobel.path)
    assert_same_tree(tree(tmp_path / "s.zarr"), tree(made))


@pytest.mark.torture
@pytest.mark.parametrize("present", [True, False], ids=["with", "without"])
def test_training_on_it(made: Path, sobel: Installed, tmp_path: Path, present: bool) -> None:
    """Two steps with L^p on the layer; the same numbers without the package."""
    run, config = tmp_path / "run", tmp_path / "config.toml"
    values = {"run": str(run), "steps": 2, "batch_size": 2, "seed": 5, "log_every": 1, "device": "cpu"}
    tables = {"data": {"store": str(made), "crop": 96, "num_workers": 0}, "model": MODEL | {"structures": ["sobel"]}}
    config.write_text("\n".join(to_toml(values | tables)) + "\n")
    command("train", config, path=sobel.path if present else None)
    losses = [
        step["loss/structure/sobel"]
        for step in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "loss/structure/sobel" in step
    ]
    assert len(losses) == 2 and all(0 < loss < 2 for loss in losses)
    TRAINED[present] = losses
    assert len({tuple(losses) for losses in TRAINED.values()}) == 1


TRAINED: dict[bool, list[float]] = {}
