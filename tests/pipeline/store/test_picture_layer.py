"""The layer `image`: what plain Zarr readers and Pillow find in it, and that nothing else of a store changes."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import physseg
import pytest
import xarray
import zarr
from physseg.common.errors import PhyssegError
from physseg.manifests.errors import ContentError
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.run.verify import repair, verify
from physseg.pipeline.store.errors import StoreCorruptError
from physseg.pipeline.store.shard_codec import compress, encode_shard
from physseg.structure_extractors import registry
from PIL import Image

from .test_store import FRAME, preprocess

MakeManifest = Callable[..., Manifest]
JPEG = {"image": {"form": "jpeg"}}


def on_frame(manifest: Manifest, index: int) -> np.ndarray:
    """The photograph by Pillow's JPEG decoder, and the frame's size by its rule: short edge 32 px of 48 to 64."""
    with Image.open(Path(manifest.root) / manifest.samples[index].image_path) as file:
        pixels = np.asarray(file)
    width, height = (round(edge * 32 / min(file.size)) for edge in file.size)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def test_any_zarr_reader_finds_the_pixels(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, path = make_manifest(3), tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["image"])
    array = zarr.open_group(path, mode="r")["image"]
    assert (array.shape, array.dtype) == ((3, 64, 64, 3), np.uint8)
    opened = xarray.open_zarr(path, consolidated=False)["image"]
    assert opened.dims == ("sample", "y", "x", "channel")
    for index in range(3):
        expected = on_frame(manifest, index)
        canvas = np.zeros((64, 64, 3), np.uint8)
        canvas[: expected.shape[0], : expected.shape[1]] = expected
        np.testing.assert_array_equal(array[index], canvas)
        np.testing.assert_array_equal(opened.sel(sample=f"{index:03d}").values, canvas)
        np.testing.assert_array_equal(physseg.open_store(path).image(index), expected)
        np.testing.assert_array_equal(physseg.open_store(path)[index].arrays["image"], expected)


def test_any_zarr_reader_finds_a_jpeg(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, path = make_manifest(2), tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["image"], settings=JPEG)
    assert xarray.open_zarr(path, consolidated=False)["image"].dims == ("sample", "byte")
    for index, stored in enumerate(zarr.open_group(path, mode="r")["image"][:]):
        stream, zeros = stored.tobytes().rsplit(b"\xff\xd9", 1)
        assert len(stored) == 64 * 64 and stream.startswith(b"\xff\xd8") and not any(zeros)
        with Image.open(io.BytesIO(stored.tobytes())) as file:
            pixels = np.asarray(file)
        assert np.abs(pixels - on_frame(manifest, index).astype(int)).mean() < 8  # noise, at half the colours
        np.testing.assert_array_equal(physseg.open_store(path).image(f"{index:03d}"), pixels)
        np.testing.assert_array_equal(physseg.open_store(path)[index].arrays["image"], pixels)


def test_a_better_jpeg_is_nearer(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, errors = make_manifest(1), []
    for options in ({}, {"chroma": "444"}, {"chroma": "444", "quality": 100}):
        preprocess(manifest, tmp_path / "s.zarr", structures=["image"], settings={"image": {"form": "jpeg"} | options})
        errors.append(
            np.abs(physseg.open_store(tmp_path / "s.zarr").image(0) - on_frame(manifest, 0).astype(int)).mean()
        )
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_adding_it_changes_no_other_array(make_manifest: MakeManifest, tmp_path: Path) -> None:
    """Of a store without it, all arrays are compressed and described as in the releases before."""
    manifest, path = make_manifest(2), tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["canny"])
    others = [
        file for name in ("labels", "canny", "cell_counts") for file in path.glob(f"{name}/**/*") if file.is_file()
    ]
    arrays = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in others}
    before = json.loads((path / "zarr.json").read_text())["attributes"]["physseg"]
    assert before["schema_version"] == 2
    preprocess(manifest, path, structures=["image"])
    assert len(arrays) == 6
    assert all((file.stat().st_mtime_ns, file.read_bytes()) == was for file, was in arrays.items())
    after = json.loads((path / "zarr.json").read_text())["attributes"]["physseg"]
    assert [array for array in after["arrays"] if array["layer"] != "image"] == before["arrays"]
    assert after["schema_version"] == 3  # which releases before refuse in one line
    levels = {}
    for name in ("canny", "image"):
        (sharding,) = json.loads((path / name / "zarr.json").read_text())["codecs"]
        levels[name] = sharding["configuration"]["codecs"][1]["configuration"]["level"]
    assert levels == {"canny": 3, "image": -1}


def test_a_flipped_byte_is_found_and_mended(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, path = make_manifest(2), tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["image"])
    file = path / "image/c/0/0/0/0"
    sound = file.read_bytes()
    file.write_bytes(sound[:1000] + bytes([sound[1000] ^ 1]) + sound[1001:])
    store = physseg.open_store(path)
    with pytest.raises(StoreCorruptError, match=r"image/c/0/0/0/0, sample 0: a chunk does not match its checksum"):
        store.image(0)
    report = verify(path, progress=False)
    assert [(fault.path, fault.layers) for fault in report.faults] == [("image/c/0/0/0/0", ("image",))]
    repair(path, report, lambda of: run.execute(run.prepare(of, path), SyncExecutor(), progress=False))
    assert file.read_bytes() == sound
    assert not verify(path, progress=False).faults


def test_a_jpeg_larger_than_the_canvas_is_quarantined(make_manifest: MakeManifest, tmp_path: Path) -> None:
    """Noise of 64 x 64 px takes more than its 4096 bytes at quality 100; a plain picture does not."""
    manifest, path = make_manifest(2, sizes=((64, 64),)), tmp_path / "s.zarr"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    frame = dataclasses.replace(FRAME, short_edge=64)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=100, subsampling=0)
    (Path(manifest.root) / "images/000.jpg").write_bytes(buffer.getvalue())
    Image.new("RGB", (64, 64), "teal").save(Path(manifest.root) / "images/001.jpg")
    files = [(Path(manifest.root) / sample.image_path).read_bytes() for sample in manifest.samples]
    hashes = [hashlib.sha256(data).hexdigest() for data in files]
    samples = [dataclasses.replace(old, image_sha256=new) for old, new in zip(manifest.samples, hashes, strict=True)]
    manifest = dataclasses.replace(manifest, samples=samples)
    settings = {"image": {"form": "jpeg", "quality": 100, "chroma": "444"}}
    report = preprocess(manifest, path, structures=["image"], settings=settings, frame=frame)
    (entry,) = report.quarantine
    assert entry.index == 0
    assert re.fullmatch(r"image: expected at most 4096 bytes, .* got \d{4,5}; lower image\.quality", entry.reason)
    assert physseg.open_store(path).image(1).shape == (64, 64, 3)


def test_a_root_means_the_files(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, path = make_manifest(1), tmp_path / "s.zarr"
    preprocess(manifest, path, structures=["image"], settings=JPEG)
    files = physseg.open_store(path, images=manifest.root)
    np.testing.assert_array_equal(files.image(0), on_frame(manifest, 0))
    assert (files.image(0) != physseg.open_store(path).image(0)).any()
    Path(manifest.root).rename(tmp_path / "moved")
    assert physseg.open_store(path).image(0).shape == (32, 43, 3)
    with pytest.raises(ContentError, match=r"images/000\.jpg"):
        files.image(0)


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "cannot be decoded"), (None, r"expected a JPEG of 32 x 43 pixels .* got \(8, 9\)")]
)
def test_what_is_no_jpeg_of_the_frame_is_said(
    data: bytes | None, message: str, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    """With a true checksum: another program wrote it."""
    path = tmp_path / "s.zarr"
    preprocess(make_manifest(1), path, structures=["image"], settings=JPEG)
    if data is None:
        data = cv2.imencode(".jpg", np.zeros((8, 9, 3), np.uint8))[1].tobytes()
    chunk = np.frombuffer(data.ljust(64 * 64, b"\0"), np.uint8)[None]
    (path / "image/c/0/0").write_bytes(encode_shard([compress(chunk)], 64))
    with pytest.raises(StoreCorruptError, match=rf"image/c/0/0, sample 0: {message}"):
        physseg.open_store(path).image(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "png"}, "image.form: expected 'lossless' or 'jpeg', got 'png'"),
        ({"quality": "0"}, "image.quality: expected a whole number in 1..100, got 0"),
        ({"quality": "101"}, "image.quality: expected a whole number in 1..100, got 101"),
        ({"chroma": "422"}, "image.chroma: expected '420' or '444', got '422'"),
    ],
)
def test_bad_settings(options: dict[str, str], message: str) -> None:
    with pytest.raises(PhyssegError) as caught:
        registry.build(["image"], {"image": options})
    assert caught.value.args[0] == message


def test_the_other_form_takes_its_place(make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest, path = make_manifest(1), tmp_path / "s.zarr"
    for settings in ({}, JPEG, {"image": {"form": "lossless"}}):
        preprocess(manifest, path, structures=["image"], settings=settings)
        assert not verify(path, progress=False).faults
    np.testing.assert_array_equal(physseg.open_store(path).image(0), on_frame(manifest, 0))


def test_lossless_images_know_no_quality(make_manifest: MakeManifest, tmp_path: Path) -> None:
    preprocess(make_manifest(1), tmp_path / "s.zarr", structures=["image"])
    settings = {"image": {"quality": 50}}
    assert not run.prepare(make_manifest(1), tmp_path / "s.zarr", structures=["image"], settings=settings).todo.tasks
