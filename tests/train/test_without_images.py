"""With the layer `image`, training, inspect and analyses read no image file: here there is none any longer."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import physseg
import pytest
import torch
from physseg.manifests.manifest import Manifest
from physseg.pipeline.inspect.sample_view import SampleViews
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.reader import StoreReader
from physseg.train.analysis.structure import match_store
from physseg.train.config import TrainConfig
from physseg.train.errors import RunFolderError
from physseg.train.loop.loop import train
from physseg.train.report import pictures
from physseg.train.report.page import write_report
from physseg.train.report.pictures import prediction_rows, structure_rows

from .conftest import EchoStructures
from .loop.test_loop import differing, weights

Make = Callable[..., TrainConfig]


@pytest.fixture
def files_gone(store: Path, train_manifest: Manifest) -> Callable[..., Path]:
    """Adds the layer to the store, keeps the store without it as `files.zarr`, and moves the images away."""

    def begin(form: str = "lossless") -> Path:
        shutil.copytree(store, store.with_name("files.zarr"))
        settings = {"image": {"form": form}}
        preprocess(train_manifest, store, structures=["image"], settings=settings, scheduler="sync", progress=False)
        root = Path(train_manifest.root)
        return root.rename(root.with_name("moved"))

    return begin


@pytest.mark.parametrize("steps", [2, pytest.param(50, marks=pytest.mark.torture)])
def test_weights_are_those_of_a_run_that_decodes_the_files(
    steps: int, make_config: Make, files_gone: Callable[..., Path], tmp_path: Path
) -> None:
    moved = files_gone()
    data = {"store": str(tmp_path / "files.zarr"), "images": str(moved)}
    train(make_config(steps=steps, run=str(tmp_path / "files"), data=data), progress=False)
    assert train(make_config(steps=steps), progress=False).step == steps
    assert not differing(weights(tmp_path / "files"), weights(tmp_path / "run"))
    assert write_report(tmp_path / "run", tmp_path / "page.html", step=None, device="cpu") == []


def test_a_run_goes_over_from_files_to_lossless_images_and_not_to_jpegs(
    make_config: Make, files_gone: Callable[..., Path], train_manifest: Manifest, store: Path, tmp_path: Path
) -> None:
    moved = files_gone()
    begun = make_config(steps=2, data={"store": str(tmp_path / "files.zarr"), "images": str(moved)})
    train(begun, stop_at=1, progress=False)
    lossless = make_config(steps=2)
    assert train(lossless, stop_at=1, progress=False).step == 1
    preprocess(
        replace(train_manifest, root=str(moved)),
        store,
        structures=["image"],
        settings={"image": {"form": "jpeg"}},
        scheduler="sync",
        progress=False,
    )
    with pytest.raises(RunFolderError, match=r"store\.layers\.image: run None") as caught:
        train(lossless, progress=False)
    assert "Set data.images" in str(caught.value.hint)
    assert train(make_config(steps=2, data={"images": str(moved)}), progress=False).step == 2


def test_views_pages_and_analyses_show_the_layer(
    files_gone: Callable[..., Path], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_gone("jpeg")
    expected = [physseg.open_store(store).image(index) for index in range(7)]
    view = SampleViews(store).view(2)
    assert view.image_problem == ""
    np.testing.assert_array_equal(view.image, expected[2])

    model: Any = EchoStructures()
    model.config.structures = ("canny", "sift")
    assert match_store(model, store, window_px=96, max_images=2)["canny"].counts
    reader = StoreReader(store, ("labels", "canny", "sift"), images=True)
    (image, _), *_ = next(structure_rows(model, reader, 96)).panels
    np.testing.assert_array_equal(image, expected[0])

    monkeypatch.setattr(pictures, "segment_image", lambda _, image, *__: np.zeros(image.shape[:2], np.uint8))
    settings: Any = SimpleNamespace()
    rows = list(prediction_rows(model, StoreReader(store, ("labels",), images=True), torch.empty(0), settings))
    np.testing.assert_array_equal(rows[0].panels[0][0], expected[0])


def test_a_dataset_for_anybodys_loop(files_gone: Callable[..., Path], store: Path) -> None:
    moved = files_gone()
    ours, theirs = physseg.StoreDataset(store, crop=96), physseg.StoreDataset(store, crop=96, images=str(moved))
    for index in range(7):
        assert torch.equal(ours[index]["images"], theirs[index]["images"])
