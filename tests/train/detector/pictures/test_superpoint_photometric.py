"""Photometric changes one at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from physseg.train.detector.pictures import photometric
from physseg.train.detector.pictures.photometric import (
    PhotometricSettings,
    _gaussian_kernels,
    _motion_kernels,
    as_from_file,
    augment,
    augmented,
    jpeg,
)

NOTHING = PhotometricSettings(
    probability=1.0,
    brightness=0,
    contrast=(1, 1),
    noise=0,
    speckle=0,
    shade=0,
    blur_px=0.3,
    motion_blur_px=1,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_change_leaves_pictures_as_they_are():
    images = torch.rand(3, 1, 24, 32, generator=generator())
    torch.testing.assert_close(augment(images, NOTHING, generator()), images, atol=1e-2, rtol=0)  # blur of .3 px
    off = PhotometricSettings(probability=0.0)
    assert torch.equal(augment(images, off, generator()), images)


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        ({"noise": 0.1}, 0.001, 0.11),
        ({"brightness": 0.2}, 0.001, 0.21),
        ({"speckle": 0.1}, 0.01, 0.3),
        ({"shade": 0.6}, 0.001, 0.31),
    ],
)
def test_each_change_alone_is_as_strong_as_said(change, low, high):
    images = torch.full((16, 1, 48, 64), 0.5)
    out = augment(images, replace(NOTHING, **change), generator(1))
    differences = (out - images).square().mean(dim=(1, 2, 3)).sqrt()
    assert differences.min() < differences.max()  # each picture in its own way
    assert low < differences.mean() < high
    assert out.min() >= 0 and out.max() <= 1


def test_contrast_keeps_the_mean():
    images = 0.4 + 0.2 * torch.rand(8, 1, 24, 32, generator=generator())
    out = augment(images, replace(NOTHING, contrast=(0.5, 1.5), blur_px=0.3), generator(1))
    torch.testing.assert_close(out.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-3, rtol=0)
    spread = out.std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 0.4 < spread.min() < 0.9
    assert 1.1 < spread.max() < 1.6


def test_blurs_spread_a_point_and_keep_its_light():
    gaussian = _gaussian_kernels(torch.tensor([0.5, 1.5]), 7)
    motion = _motion_kernels(torch.tensor([0.0, math.pi / 2]), torch.tensor([7.0, 7.0]), 7)
    for kernels in (gaussian, motion):
        torch.testing.assert_close(kernels.sum(dim=(1, 2)), torch.ones(2))
    assert gaussian[0, 3, 3] > gaussian[1, 3, 3]
    assert motion[0, 3].sum() > 0.99  # along the row
    torch.testing.assert_close(motion[0], motion[1].T, atol=1e-6, rtol=0)


def test_random_numbers_follow_from_the_generator():
    images = torch.rand(4, 1, 24, 32, generator=generator())
    one, two = (augment(images, PhotometricSettings(), generator(5)) for _ in range(2))
    assert torch.equal(one, two)
    picture = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    first, again, other = (augmented(picture, seed, PhotometricSettings()) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_blocks_of_jpeg_begin_where_they_are_told_to():
    """A slope is constant within a block of the lowest quality and jumps at its edges."""
    slope = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    for offset in range(8):
        rows, columns = jpeg(slope.T, 1, (offset, 3)).mean(axis=1), jpeg(slope, 1, (3, offset)).mean(axis=0)
        for line in (rows, columns):
            jumps = np.flatnonzero(np.abs(np.diff(line)) > 4) + 1
            assert len(jumps) > 4 and set((jumps + offset) % 8) == {0}
    assert np.abs(jpeg(slope, 100, (3, 5)).astype(int) - slope).max() <= 1


def test_processing_keeps_places_and_clean_pictures_some_of_the_time():
    """A soft blob stays in the middle, whatever is done to it."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((x - 31.5) ** 2 + (y - 23.5) ** 2) / 72)[None, None].expand(64, -1, -1, -1)
    out = as_from_file(blob, PhotometricSettings(processed=1.0, jpeg_quality=(50, 95)), generator())
    for axis, middle in ((x, 31.5), (y, 23.5)):
        torch.testing.assert_close(
            (out * axis).sum((1, 2, 3)) / out.sum((1, 2, 3)), torch.full((64,), middle), atol=0.3, rtol=0
        )
    assert (out.std(dim=(1, 2, 3)) - blob.std(dim=(1, 2, 3))).abs().max() < 0.05
    blob = (255 * blob).round() / 255  # as a file has it
    untouched = [
        torch.equal(*pair) for pair in zip(as_from_file(blob, PhotometricSettings(), generator()), blob, strict=True)
    ]
    assert 0.2 < np.mean(untouched) < 0.5  # 0.34: of three steps, each with probability 0.3
    assert as_from_file(blob, PhotometricSettings(processed=0), generator()) is blob


def test_processing_keeps_places_off_the_middle():
    """There a wrong scale moves them, too. All pictures of a batch are resampled alike, hence several batches."""
    places = torch.tensor([[12.0, 10.0], [50.0, 12.0], [14.0, 36.0], [51.0, 35.0]])
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    # No brighter than 0.6: sharpening does not clip them.
    blobs = torch.stack([0.6 * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) for a, b in places])[:, None]
    for seed in range(8):
        out = as_from_file(blobs, PhotometricSettings(processed=1.0, jpeg_quality=(90, 95)), generator(seed))
        found = torch.stack([(out * axis).sum((1, 2, 3)) / out.sum((1, 2, 3)) for axis in (x, y)], dim=1)
        torch.testing.assert_close(found, places, atol=0.05, rtol=0)


def test_all_qualities_and_all_places_of_blocks_are_drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(photometric, "jpeg", lambda image, *drawn_for_it: drawn.append(drawn_for_it) or image)
    as_from_file(torch.rand(1000, 1, 8, 8, generator=generator()), PhotometricSettings(processed=1.0), generator())
    qualities, offsets = zip(*drawn, strict=True)
    assert set(offsets) == {(y, x) for y in range(8) for x in range(8)}  # each 16 times, on average
    assert set(qualities) == set(range(5, 96))  # each 11 times


def test_sharpening_raises_gradients():
    edge = (0.5 + 0.3 * torch.tanh(torch.arange(32.0) - 15.5)).expand(32, 1, 24, 32)

    def steepest(sharpen: float) -> torch.Tensor:
        settings = PhotometricSettings(processed=1.0, resample=1.0, sharpen=sharpen, jpeg_quality=(100, 100))
        return as_from_file(edge, settings, generator()).diff(dim=3).amax(dim=(1, 2, 3))

    gain = steepest(1.0) / steepest(0.0)
    assert gain.min() > 0.95 and gain.mean() > 1.1
