"""Keypoint heatmaps: where a point goes, how its confidence is coded, suppression."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.keypoints import (
    clear_border,
    encode_confidence,
    keep_strongest,
    score_map,
    suppress_neighbours,
)


def rasterise(points: np.ndarray, scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return encode_confidence(score_map(points, scores, size))


def decode_confidence(heatmap: np.ndarray) -> np.ndarray:
    return ((heatmap / 255.0) ** 2).astype(np.float32)


def random_map(seed: int, height: int, width: int, *, levels: int = 0) -> np.ndarray:
    """A third of the pixels are points; with ``levels`` their scores are so few that there are many ties."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, levels + 1, (height, width)) / levels if levels else 1 - rng.random((height, width))
    return np.where(rng.random((height, width)) < 0.34, scores, 0).astype(np.float32)


def test_convention_points_are_x_y_and_pixel_centres_are_integers():
    points = np.array([[2.0, 1.0], [4.49, 0.0], [4.5, 2.0], [-0.5, 3.0], [6.49, 3.49]])
    heatmap = rasterise(points, np.ones(5), (4, 7))
    rows, columns = np.nonzero(heatmap)
    assert list(zip(columns.tolist(), rows.tolist(), strict=True)) == [(4, 0), (2, 1), (5, 2), (0, 3), (6, 3)]


def test_convention_half_pixels_go_up_for_even_and_odd_alike():
    heatmap = rasterise(np.array([[0.5, 0.0], [1.5, 1.0], [2.5, 2.0]]), np.ones(3), (3, 5))
    assert [int(np.flatnonzero(row)[0]) for row in heatmap] == [1, 2, 3]


def test_convention_codes_are_square_roots_and_a_point_is_never_zero():
    confidence = np.array([0.0, 1e-12, 1e-6, 0.005, 0.015, 0.25, 1.0], np.float32)
    assert encode_confidence(confidence).tolist() == [0, 1, 1, 18, 31, 128, 255]


def test_code_and_back_stay_within_the_stated_error():
    confidence = np.linspace(0, 1, 20001, dtype=np.float32)
    error = np.abs(decode_confidence(encode_confidence(confidence)).astype(np.float64) - confidence)
    assert (error <= np.sqrt(confidence) / 255 + 1.6e-5).all()
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(encode_confidence(decode_confidence(codes)), codes)


def test_the_strongest_point_of_a_pixel_wins_in_any_order():
    points = np.array([[1.2, 1.0], [0.9, 1.1], [1.0, 0.8]])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        scores = np.array([0.1, 0.9, 0.4])[order]
        assert score_map(points[order], scores, (3, 3))[1, 1] == np.float32(0.9)


@pytest.mark.parametrize("point", [(-0.51, 0), (0, -0.6), (2.5, 0), (0, 2.5), (float("nan"), 0)])
def test_a_point_outside_the_image_is_an_error(point):
    with pytest.raises(ExtractorError, match="outside"):
        rasterise(np.array([point]), np.ones(1), (3, 3))


@pytest.mark.parametrize("score", [0.0, -0.1, 1.01, float("nan")])
def test_a_confidence_outside_zero_to_one_is_an_error(score):
    with pytest.raises(ExtractorError, match="confidences"):
        rasterise(np.array([[1, 1]]), np.array([score]), (3, 3))


def test_no_points_give_an_empty_map():
    assert not rasterise(np.zeros((0, 2)), np.zeros(0), (3, 3)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20))
def test_heatmap_and_points_are_the_same_thing(seed, height, width):
    heatmap = encode_confidence(random_map(seed, height, width))
    y, x = np.nonzero(heatmap)
    read = rasterise(np.stack([x, y], axis=1), decode_confidence(heatmap[y, x]), (height, width))
    np.testing.assert_array_equal(read, heatmap)


def greedy(scores: np.ndarray, radius: int) -> np.ndarray:
    """One point at a time, best first, equal ones in row-major order."""
    out = np.zeros_like(scores)
    taken = np.zeros(scores.shape, bool)
    points = [(-scores[y, x], y, x) for y, x in zip(*np.nonzero(scores), strict=True)]
    for _, y, x in sorted(points):
        if not taken[y, x]:
            out[y, x] = scores[y, x]
            taken[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(0, 4), st.sampled_from([0, 1, 3]))
def test_suppression_equals_greedy_one_by_one_with_and_without_ties(seed, height, width, radius, levels):
    scores = random_map(seed, height, width, levels=levels)
    before = scores.copy()
    np.testing.assert_array_equal(suppress_neighbours(scores, radius), greedy(scores, radius))
    np.testing.assert_array_equal(scores, before)  # the caller's map is left alone


def test_a_chain_needs_more_than_two_rounds():
    # Each point hides the next one, which would have hidden the one after it.
    chain = np.linspace(1, 0.1, 40, dtype=np.float32)[None]
    kept = np.flatnonzero(suppress_neighbours(chain, 3))
    assert kept.tolist() == list(range(0, 40, 4))


def test_border_is_cleared_on_all_four_sides():
    kept = clear_border(np.ones((7, 9), np.float32), 2)
    assert kept.sum() == 3 * 5
    assert kept[2:5, 2:7].all()
    assert clear_border(np.ones((3, 9), np.float32), 2).sum() == 0
    assert clear_border(np.ones((3, 9), np.float32), 0).all()


def test_the_strongest_are_kept_and_ties_go_to_the_first():
    scores = np.array([[0.5, 0.9, 0.5], [0.5, 0.0, 0.7]], np.float32)
    assert np.flatnonzero(keep_strongest(scores, 3)).tolist() == [0, 1, 5]
    np.testing.assert_array_equal(keep_strongest(scores, None), scores)
    np.testing.assert_array_equal(keep_strongest(scores, 5), scores)
