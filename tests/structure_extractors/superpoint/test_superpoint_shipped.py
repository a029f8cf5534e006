"""The weights in the package: small, ours, and good enough; `preprocess` takes them without being told to."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from physseg.cli import main
from physseg.manifests.manifest import Manifest
from physseg.pipeline.store.layout import open_schema
from physseg.pipeline.store.reader import StoreReader
from physseg.structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS, SuperPoint
from physseg.structure_extractors.superpoint.inference import read_detector
from physseg.train.detector.judging.detectors import CLASSICAL
from physseg.train.detector.judging.evaluation import (
    SHAPE_RADIUS_PX,
    measures,
    network_detector,
    shape_precision,
)
from physseg.train.detector.judging.pairs import CHANGES, PHOTO_SIZE, changed_pairs, sequence_pairs
from physseg.train.detector.pictures.files import find_pictures, read_grey
from safetensors.torch import load

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture(scope="module")
def detect():
    return network_detector(read_detector(SHIPPED_WEIGHTS).network)


def test_the_file_is_small_and_half_precision_and_has_its_card():
    assert SHIPPED_WEIGHTS.stat().st_size <= 2_000_000
    assert {value.dtype for value in load(SHIPPED_WEIGHTS.read_bytes()).values()} == {torch.float16}
    card = SHIPPED_WEIGHTS.with_suffix(".md").read_text()
    digest = hashlib.sha256(SHIPPED_WEIGHTS.read_bytes()).hexdigest()
    for word in ("licence", "seed", "physseg superpoint reproduce", "generated", digest):
        assert word.lower() in card.lower(), f"the model card says nothing of {word}"


def test_it_beats_the_classical_detectors_on_shapes_and_stands_noise(detect):
    """The card's figures on a tenth of its pictures, with room for the difference."""
    clean = shape_precision({"ours": detect} | CLASSICAL, per_kind=5, noisy=False)[SHAPE_RADIUS_PX]
    noisy = shape_precision({"ours": detect} | CLASSICAL, per_kind=5, noisy=True)[SHAPE_RADIUS_PX]
    assert clean["ours"] > 0.85
    assert noisy["ours"] > 0.8
    for name in CLASSICAL:
        assert clean["ours"] > clean[name]
        assert noisy["ours"] > noisy[name] + 0.4


def test_it_tells_its_own_threshold():
    assert SuperPoint().identity()["threshold"] == 0.04


def test_keypoints_are_at_the_corners_of_a_square():
    image = np.full((101, 133, 3), 50, np.uint8)
    image[30:71, 40:91] = 190
    heatmap = SuperPoint(max_keypoints=4)(image, np.zeros((1, 1), np.uint8), ignore_index=255)["superpoint"]
    found = np.argwhere(heatmap)  # y, x
    far = np.abs(found[:, None] - [(30, 40), (30, 90), (70, 40), (70, 90)]).max(axis=-1)
    assert sorted(far.argmin(axis=1)) == [0, 1, 2, 3] and far.min(axis=1).max() <= 2


def test_preprocess_needs_no_further_option(
    make_manifest: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_manifest(3, sizes=((96, 128),)).write(tmp_path / "m.parquet")
    words = ("preprocess", tmp_path / "m.parquet", tmp_path / "s.zarr", "--structures", "canny,superpoint")
    monkeypatch.setattr(sys, "argv", ["physseg", *map(str, words), "--scheduler", "sync", "--short-edge", "96"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    schema = open_schema(tmp_path / "s.zarr")
    assert schema.layers["superpoint"]["weights_sha256"] == SuperPoint().weights_sha256
    assert schema.layers["superpoint"]["adaptation"] == 0
    reader = StoreReader(tmp_path / "s.zarr", ["canny", "superpoint"])
    assert sum(np.count_nonzero(reader.read(index)["superpoint"]) for index in range(3)) > 8


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared folder with real photographs beside the repository")
def test_it_repeats_itself_on_photographs(detect):
    """More than the file before it (.69, .745 and .63), and where pictures are compressed more than Harris (.735)."""
    folder = SHARED / "bsds500" / "images"
    photographs = [read_grey(folder / name, PHOTO_SIZE) for name in find_pictures(folder)[:4]]
    sets = {name: sequence_pairs(SHARED / "vgg_affine" / name)[:2] for name in ("graf", "leuven")}
    sets["compressed"] = changed_pairs(photographs, CHANGES["compressed"])
    figures = {name: measures({"ours": detect}, pairs)["repeatability"]["ours"] for name, pairs in sets.items()}
    assert all(figures[name] > least for name, least in (("graf", 0.71), ("leuven", 0.76), ("compressed", 0.75)))
