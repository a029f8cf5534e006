"""The canonical frame: sizes, alignment of images and labels, the canvas."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.pipeline.store.errors import FrameError
from physseg.pipeline.store.frame import Frame


@pytest.mark.parametrize(
    ("image", "frame"),
    [
        ((480, 640), (384, 512)),
        ((640, 480), (512, 384)),
        ((384, 384), (384, 384)),
        ((192, 200), (384, 400)),
        ((200, 1000), (154, 768)),  # long edge at its limit: the short edge gives way
    ],
)
def test_sizes_by_hand(image: tuple[int, int], frame: tuple[int, int]) -> None:
    assert Frame().size(*image) == frame


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_frame_always_fits_the_canvas_and_keeps_the_aspect(height: int, width: int) -> None:
    frame = Frame()
    h, w = frame.size(height, width)
    assert 1 <= h <= frame.canvas
    assert 1 <= w <= frame.canvas
    assert min(h, w) == frame.short_edge or max(h, w) == frame.max_long_edge
    scale = max(h, w) / max(height, width)  # both edges by one factor, to the nearest pixel but at least one
    for edge, original in ((h, height), (w, width)):
        assert edge == 1 or abs(edge - original * scale) <= 0.5 + original * 0.5 / max(height, width)


def test_convention_resize_maps_borders_onto_borders() -> None:
    """Pixel centres lie at half-integers: a step edge at half the width stays at half the width."""
    frame = Frame(short_edge=16, max_long_edge=32, canvas=32)
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 7
    image = np.repeat(labels[..., None] * 30, 3, axis=2)
    small_labels, small_image = frame.resize_labels(labels), frame.resize_image(image)
    assert small_labels.shape == small_image.shape[:2] == (16, 16)
    np.testing.assert_array_equal(small_labels[0], [0] * 8 + [7] * 8)
    np.testing.assert_array_equal(small_image[..., 0], small_labels * 30)


def test_labels_come_from_the_nearest_pixel_centre() -> None:
    """3 -> 2 pixels: target centres 0.25 and 0.75 of the width lie in source pixels 0 and 2."""
    frame = Frame(short_edge=2, max_long_edge=8, canvas=8)
    labels = np.arange(9, dtype=np.uint16).reshape(3, 3) * 1000
    np.testing.assert_array_equal(frame.resize_labels(labels), [[0, 2000], [6000, 8000]])


@settings(max_examples=50, deadline=None)
@given(st.integers(5, 90), st.integers(5, 90))
def test_labels_agree_with_opencvs_exact_nearest(height: int, width: int) -> None:
    frame = Frame(short_edge=24, max_long_edge=48, canvas=48)
    labels = np.random.default_rng(height * 100 + width).integers(0, 200, (height, width)).astype(np.uint8)
    size = frame.size(height, width)
    expected = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    # A target centre that falls on a source border may go either way; nothing else may differ.
    ties = [
        ((2 * np.arange(target) + 1) * source) % (2 * target) == 0
        for source, target in zip((height, width), size, strict=True)
    ]
    free = ~(ties[0][:, None] | ties[1])
    np.testing.assert_array_equal(frame.resize_labels(labels)[free], expected[free])


def test_thin_images_are_averaged_along_their_length() -> None:
    """One row of 5000 pixels keeps its height when it shrinks; sampling every seventh pixel would be noise."""
    image = np.repeat(np.arange(5000) % 2 * 200, 3).astype(np.uint8).reshape(1, 5000, 3)
    assert Frame().size(1, 5000) == (1, 768)
    assert np.ptp(Frame().resize_image(image)) < 40


def test_labels_of_16_bits_survive_whole() -> None:
    labels = np.full((10, 10), 846, np.uint16)
    resized = Frame().resize_labels(labels)
    assert resized.dtype == np.uint16
    assert (resized == 846).all()


@pytest.mark.parametrize("bad", [{"short_edge": 0}, {"short_edge": 800}, {"canvas": 700}, {"canvas": 771}])
def test_impossible_sizes_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(FrameError, match="canvas"):
        Frame(**bad)
