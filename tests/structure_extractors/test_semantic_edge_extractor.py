"""Class-aware edges: hand-made maps, sets of classes as a reference, mirror images, ignored pixels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.mask_edges import MaskEdges
from physseg.structure_extractors.semantic_edges import SemanticEdges
from PIL import Image

MAPS = Path(__file__).parents[2].parent / "shared" / "data"
needs_maps = pytest.mark.skipif(not MAPS.is_dir(), reason="no shared folder with label maps beside the repository")
IMAGE = np.zeros((1, 1, 3), np.uint8)


def semantic_edges(labels: np.ndarray, *, ignore_index: int = 255, radius_px: int = 1) -> np.ndarray:
    return SemanticEdges(radius_px=radius_px)(IMAGE, labels, ignore_index=ignore_index)["semantic_edges"]


def by_sets(labels: np.ndarray, ignore_index: int, radius: int) -> np.ndarray:
    """The set of classes in each pixel's square, read pixel by pixel."""
    height, width = labels.shape
    out = np.full((2, height, width), ignore_index, labels.dtype)
    for y in range(height):
        for x in range(width):
            window = labels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            classes = sorted(set(window.ravel().tolist()) - {ignore_index})
            if labels[y, x] != ignore_index and len(classes) > 1:
                out[:, y, x] = classes[0], classes[-1]
    return out


def test_two_classes_give_a_line_two_pixels_wide_with_the_lower_id_in_plane_0():
    labels = np.full((4, 6), 7, np.uint8)
    labels[:, 3:] = 2
    got = semantic_edges(labels)
    assert got.dtype == np.uint8
    assert got.shape == (2, 4, 6)
    assert got[0].tolist() == [[255, 255, 2, 2, 255, 255]] * 4
    assert got[1].tolist() == [[255, 255, 7, 7, 255, 255]] * 4


def test_convention_where_three_classes_meet_the_pair_is_the_lowest_and_the_highest():
    labels = np.array([[3, 3, 9, 9], [3, 3, 9, 9], [5, 5, 5, 5]], np.uint8)
    low, high = semantic_edges(labels)
    assert low.tolist() == [[255, 3, 3, 255], [3, 3, 3, 5], [3, 3, 3, 5]]
    assert high.tolist() == [[255, 9, 9, 255], [5, 9, 9, 9], [5, 9, 9, 9]]


@pytest.mark.parametrize("ignored_id", [0, 4, 255])
def test_ignored_pixels_neither_are_nor_cause_edges_whatever_their_id(ignored_id):
    apart = np.array([[3, 3, 3, ignored_id, ignored_id, 5, 5, 5]] * 3, np.uint8)
    assert (semantic_edges(apart, ignore_index=ignored_id) == ignored_id).all()
    touching = np.array([[3, 3, 5, 5], [ignored_id] * 4], np.uint8)
    low, high = semantic_edges(touching, ignore_index=ignored_id)
    assert low.tolist() == [[ignored_id, 3, 3, ignored_id], [ignored_id] * 4]
    assert high.tolist() == [[ignored_id, 5, 5, ignored_id], [ignored_id] * 4]


def test_a_larger_radius_reaches_over_an_ignored_gap():
    row = [3] * 4 + [255] * 3 + [5] * 4  # the nearest pixels of the two classes are 4 px apart
    low, high = semantic_edges(np.array([row], np.uint8), radius_px=4)
    assert low[0].tolist() == [255] * 3 + [3] + [255] * 3 + [3] + [255] * 3
    assert high[0].tolist() == [255] * 3 + [5] + [255] * 3 + [5] + [255] * 3


label_maps = st.tuples(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16]),
)


@settings(max_examples=40, deadline=None)
@given(label_maps, st.integers(1, 3))
def test_equals_sets_of_classes_and_commutes_with_mirroring(case, radius):
    height, width, seed, dtype = case
    ids = np.array([0, 1, 2, np.iinfo(dtype).max], dtype)  # extreme ids: neither may act as a neutral element
    labels = np.random.default_rng(seed).choice(ids, (height, width), p=[0.4, 0.3, 0.1, 0.2])
    for ignore_index in (0, 1, int(ids[-1])):
        got = semantic_edges(labels, ignore_index=ignore_index, radius_px=radius)
        np.testing.assert_array_equal(got, by_sets(labels, ignore_index, radius))
        for axis in (0, 1):
            mirrored = semantic_edges(np.flip(labels, axis), ignore_index=ignore_index, radius_px=radius)
            np.testing.assert_array_equal(mirrored, np.flip(got, axis + 1))


@needs_maps
@pytest.mark.parametrize("folder", ["msrc/labels", "voc/SegmentationClassAug", "coco_stuff/stuffthingmaps"])
def test_on_real_label_maps_equals_a_map_of_each_class(folder):
    """Each class by itself is widened by a pixel all around; which ones reach a pixel says what meets there."""
    for path in sorted((MAPS / folder).glob("*.png"))[:3]:
        labels = np.array(Image.open(path))
        classes = np.setdiff1d(labels, [255])
        padded = np.pad(labels, 1, constant_values=255)
        views = [padded[y : y + labels.shape[0], x : x + labels.shape[1]] for y in range(3) for x in range(3)]
        near = np.stack([np.any([view == number for view in views], axis=0) for number in classes])
        on = (near.sum(axis=0) > 1) & (labels != 255)
        low, high = semantic_edges(labels)
        np.testing.assert_array_equal(low, np.where(on, classes[near.argmax(axis=0)], 255))
        np.testing.assert_array_equal(high, np.where(on, classes[::-1][near[::-1].argmax(axis=0)], 255))


def test_edges_are_those_of_mask_edges_without_ignored_borders():
    labels = np.random.default_rng(3).choice(np.array([0, 1, 7, 255], np.uint8), (40, 60))
    on = MaskEdges(ignore_borders=False)(IMAGE, labels, ignore_index=255)["mask_edges"] > 0
    low, high = semantic_edges(labels)
    np.testing.assert_array_equal(low != 255, on)
    np.testing.assert_array_equal(high != 255, on)
    assert (low[on] < high[on]).all()


def test_wrong_inputs_are_named():
    with pytest.raises(ExtractorError, match=r"semantic_edges.*got int64 \(4, 4\)"):
        SemanticEdges()(IMAGE, np.zeros((4, 4), np.int64), ignore_index=255)
    with pytest.raises(ExtractorError, match=r"semantic_edges\.radius_px"):
        SemanticEdges(radius_px=0)
