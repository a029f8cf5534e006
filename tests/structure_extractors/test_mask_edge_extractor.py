"""Edges of label maps: hand-made maps, a brute-force reference, mirror images, ignored pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.mask_edges import MaskEdges

IMAGE = np.zeros((1, 1, 3), np.uint8)


def mask_edges(labels: np.ndarray, *, ignore_index: int, **options: int) -> np.ndarray:
    return MaskEdges(**options)(IMAGE, labels, ignore_index=ignore_index)["mask_edges"]


def brute_force(labels: np.ndarray, ignore_index: int, radius: int, ignore_borders: bool) -> np.ndarray:
    height, width = labels.shape
    out = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            window = labels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            if not ignore_borders:
                if labels[y, x] == ignore_index:
                    continue
                window = window[window != ignore_index]
            out[y, x] = 255 * (len(np.unique(window)) > 1)
    return out


def test_two_classes_give_a_line_two_pixels_wide_and_no_outline_of_the_image():
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 7
    expected = np.zeros((6, 8), np.uint8)
    expected[:, 3:5] = 255
    got = MaskEdges()(IMAGE, labels, ignore_index=255)["mask_edges"]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)


def test_ids_that_agree_in_their_low_byte_are_different_classes():
    labels = np.full((4, 4), 1, np.uint16)
    labels[:, 2:] = 257
    assert mask_edges(labels, ignore_index=65535)[0].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize("ignored_id", [0, 9, 255])
def test_borders_of_ignored_pixels_count_unless_switched_off(ignored_id):
    # class 3, five ignored pixels as in VOC, class 5
    row = [3] * 4 + [ignored_id] * 5 + [5] * 4
    labels = np.array([row] * 3, np.uint8)
    on = mask_edges(labels, ignore_index=ignored_id)
    off = mask_edges(labels, ignore_index=ignored_id, ignore_borders=False)
    assert (on[1] // 255).tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    assert not off.any()


def test_classes_that_touch_beside_ignored_pixels_keep_their_edge():
    labels = np.array([[1, 1, 2, 2], [255, 255, 255, 255], [255, 255, 255, 255]], np.uint8)
    off = mask_edges(labels, ignore_index=255, ignore_borders=False)
    assert (off // 255).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


label_maps = st.tuples(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16]),
)


@settings(max_examples=40, deadline=None)
@given(label_maps, st.integers(1, 3), st.booleans())
def test_equals_brute_force_and_commutes_with_mirroring(case, radius, ignore_borders):
    height, width, seed, dtype = case
    ids = np.array([0, 1, np.iinfo(dtype).max], dtype)  # extreme ids: neither may act as a neutral element
    labels = np.random.default_rng(seed).choice(ids, (height, width), p=[0.45, 0.45, 0.1])
    for ignore_index in (0, int(ids[-1])):
        options = {"ignore_index": ignore_index, "radius_px": radius, "ignore_borders": ignore_borders}
        got = mask_edges(labels, **options)
        np.testing.assert_array_equal(got, brute_force(labels, ignore_index, radius, ignore_borders))
        mirrored = mask_edges(np.ascontiguousarray(labels[:, ::-1]), **options)
        np.testing.assert_array_equal(mirrored, got[:, ::-1])


def test_wrong_inputs_are_named():
    with pytest.raises(ExtractorError, match=r"got int64 \(4, 4\)"):
        MaskEdges()(IMAGE, np.zeros((4, 4), np.int64), ignore_index=255)
    with pytest.raises(ExtractorError, match="65535"):
        MaskEdges()(IMAGE, np.zeros((4, 4), np.uint8), ignore_index=65535)
    with pytest.raises(ExtractorError, match=r"mask_edges\.radius_px"):
        MaskEdges(radius_px=0)
