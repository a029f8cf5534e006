"""Fixtures that several packages' tests share: small data sets made in code, and stores computed from them."""

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports torch, and for every process that a test starts: models here are so small that threads cost
# more than they save, and as many tests run at a time as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import pytest
from physseg.common import plugins
from physseg.common.documents import digest_of_json
from physseg.common.progress import ProgressBar
from physseg.manifests.manifest import Manifest, Sample, Vocabulary
from physseg.pipeline.run import run
from physseg.pipeline.store.schema import to_json
from PIL import Image

NUM_CLASSES = 5


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands keep text features in the cache: not in the one of whoever runs the tests."""
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes many minutes or unusual packages runs only where it is asked for by name."""
    if "torture" not in config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("torture"):
                item.add_marker(pytest.mark.skip(reason="long, or of unusual packages: make torture"))


def draw_sample(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy RGB image of rectangles and discs, and its label map (0 background, 1..4 shapes, 255 a void strip)."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for class_id in range(1, NUM_CLASSES):
        x, y = rng.integers(0, width), rng.integers(0, height)
        size = int(rng.integers(height // 6, height // 3))
        if class_id % 2:
            cv2.rectangle(labels, (x, y), (x + size, y + size), class_id, -1)
        else:
            cv2.circle(labels, (x, y), size, class_id, -1)
    colours = rng.integers(40, 216, (NUM_CLASSES, 3))
    noise = rng.normal(0, 12, (height, width, 3))
    image = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    labels[:, : width // 20] = 255
    return image, labels


def write_shapes(root: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((48, 64), (64, 48))) -> Manifest:
    """Write JPEGs and label PNGs of these sizes (h, w) in turn; returns their manifest."""
    samples = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        image, labels = draw_sample(index, height, width)
        paths = root / f"images/{index:03d}.jpg", root / f"labels/{index:03d}.png"
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(paths[0], quality=92)
        Image.fromarray(labels).save(paths[1])
        samples.append(
            Sample(
                sample_id=f"{index:03d}",
                image_path=f"images/{index:03d}.jpg",
                label_path=f"labels/{index:03d}.png",
                height=height,
                width=width,
                image_sha256=hashlib.sha256(paths[0].read_bytes()).hexdigest(),
                label_sha256=hashlib.sha256(paths[1].read_bytes()).hexdigest(),
                split="train",
            )
        )
    return Manifest(
        root=str(root),
        dataset="shapes",
        vocabulary=Vocabulary(name="shapes", classes=("ground", "box", "disc", "square", "ball")),
        raw_to_class={raw: raw for raw in range(NUM_CLASSES)},
        raw_ignore=(255,),
        samples=samples,
    )


def forget_fold(store: Path) -> None:
    """Make the documents of a store those of the versions before: what is folded is known to its manifest alone."""
    for document in (store / "zarr.json", store / "provenance/store.json"):
        root = json.loads(document.read_bytes())
        del root["attributes"]["physseg"]["vocabulary"]["fold_from"]
        root["attributes"]["physseg_digest"] = digest_of_json(root["attributes"]["physseg"])
        document.write_bytes(to_json(root))


@pytest.fixture
def make_manifest(tmp_path: Path) -> Callable[..., Manifest]:
    """``make_manifest(count, name="data")``: writes JPEGs and label PNGs of mixed sizes, returns their manifest."""

    def make(count: int, name: str = "data", *, sizes: tuple[tuple[int, int], ...] = ((48, 64), (64, 48))) -> Manifest:
        return write_shapes(tmp_path / name, count, sizes)

    return make


@pytest.fixture
def bar_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every number of samples that the bar of preprocess stands at from now on."""

    class Recorded(ProgressBar):
        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            positions.append(self.n)
            return moved

    positions: list[int] = []
    monkeypatch.setattr(run, "ProgressBar", Recorded)
    return positions


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Put a distribution on the path: its metadata, and a module of the given source. Returns its folder."""
    site = tmp_path_factory.mktemp("site")

    def install(package: str, entries: str, source: str = "thing = 1", kind: str = "extractors") -> Path:
        module = package.replace("-", "_")
        info = site / f"{module}-1.5.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[physseg.{kind}]\n{entries}\n")
        (site / f"{module}.py").write_text(source)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        plugins.offers.cache_clear()
        return site

    monkeypatch.syspath_prepend(site)
    yield install
    plugins.offers.cache_clear()
