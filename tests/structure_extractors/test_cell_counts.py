"""Class counts of 8x8 cells: by hand, against brute force, and adding up to the patches of any crop."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.patch_counts import PatchCounts, count_classes

IMAGE = np.zeros((1, 1, 3), np.uint8)


def random_labels(
    seed: int, rows: int, columns: int, *, num_classes: int, ignore_index: int, dtype: type
) -> np.ndarray:
    """Rectangles of classes over a base class, then speckle and ignored pixels; shape (8 rows, 8 columns)."""
    rng = np.random.default_rng(seed)
    labels = np.full((8 * rows, 8 * columns), rng.integers(num_classes), dtype)
    for _ in range(6):
        y, x = rng.integers(0, 8 * rows), rng.integers(0, 8 * columns)
        labels[y : y + rng.integers(1, 20), x : x + rng.integers(1, 20)] = rng.integers(num_classes)
    speckle = rng.random(labels.shape) < rng.choice([0, 0.3])
    labels[speckle] = rng.integers(0, num_classes, speckle.sum())
    labels[rng.random(labels.shape) < rng.choice([0, 0.1])] = ignore_index
    if rng.random() < 0.5:
        labels[:8, :8] = ignore_index
    return labels


def brute_force(labels: np.ndarray, ignore_index: int, k: int) -> tuple[np.ndarray, np.ndarray, int]:
    rows, columns = labels.shape[0] // 8, labels.shape[1] // 8
    classes = np.full((k, rows, columns), ignore_index, labels.dtype)
    counts = np.zeros((k, rows, columns), np.uint8)
    dropped = 0
    for r in range(rows):
        for c in range(columns):
            found = Counter(labels[8 * r : 8 * r + 8, 8 * c : 8 * c + 8].ravel().tolist())
            found.pop(ignore_index, None)
            for slot, (label, count) in enumerate(sorted(found.items(), key=lambda item: (-item[1], item[0]))):
                if slot < k:
                    classes[slot, r, c], counts[slot, r, c] = label, count
                else:
                    dropped += count
    return classes, counts, dropped


vocabularies = st.sampled_from([(3, 255, np.uint8), (171, 255, np.uint8), (847, 65535, np.uint16), (5, 2, np.uint16)])
seeds = st.integers(0, 2**32 - 1)
cells = st.integers(1, 6)


def test_counts_worked_out_by_hand():
    labels = np.full((8, 16), 4, np.uint8)
    labels[:2, :8] = 9  # 16 pixels
    labels[2:4, :8] = 1  # 16 pixels: ties with 9, lower id first
    labels[7, 7] = 255  # ignored, in no slot
    labels[:, 8:] = 255
    out = PatchCounts(max_classes=4)(IMAGE, labels, ignore_index=255)
    assert out["cell_classes"][:, 0].T.tolist() == [[4, 1, 9, 255], [255, 255, 255, 255]]
    assert out["cell_counts"][:, 0].T.tolist() == [[31, 16, 16, 0], [0, 0, 0, 0]]
    assert out["cell_dropped"] == 0
    assert {name: array.dtype for name, array in out.items()} == {
        "cell_classes": np.uint8,
        "cell_counts": np.uint8,
        "cell_dropped": np.uint32,
    }


def test_a_full_cell_counts_64_and_an_ignored_one_nothing():
    classes, counts, _ = count_classes(np.array([[7, 65535]], np.uint16).repeat(8, 0).repeat(8, 1), ignore_index=65535)
    assert classes.dtype == np.uint16
    assert classes[:, 0, 0].tolist() == [7] + [65535] * 7
    assert counts[0, 0].tolist() == [64, 0]


def test_pixels_without_a_slot_are_counted():
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    classes, counts, dropped = count_classes(labels, ignore_index=255, max_classes=8)
    assert classes[:, 0, 0].tolist() == list(range(8))
    assert counts.sum() == 8
    assert dropped == 56


@settings(max_examples=60, deadline=None)
@given(seeds, cells, cells, vocabularies, st.sampled_from([1, 2, 8, 64]))
def test_equals_brute_force(seed, rows, columns, vocabulary, k):
    num_classes, ignore_index, dtype = vocabulary
    labels = random_labels(seed, rows, columns, num_classes=num_classes, ignore_index=ignore_index, dtype=dtype)
    classes, counts, dropped = count_classes(labels, ignore_index=ignore_index, max_classes=k)
    for got, expected in zip((classes, counts, dropped), brute_force(labels, ignore_index, k), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert int(counts.sum()) + int(dropped) == np.count_nonzero(labels != ignore_index)


def dense(classes: np.ndarray, counts: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, h, w) slots to (num_classes, h, w) counts."""
    out = np.zeros((num_classes, *classes.shape[1:]), np.int64)
    for label in range(num_classes):
        out[label] = np.where(classes == label, counts, 0).sum(axis=0)
    return out


def count_patches(crop: np.ndarray, ignore_index: int, num_classes: int) -> np.ndarray:
    """Pixels of each class in each 16x16 patch of a crop."""
    patches = crop.reshape(crop.shape[0] // 16, 16, crop.shape[1] // 16, 16)
    present = (patches[None] == np.arange(num_classes)[:, None, None, None, None]) & (patches != ignore_index)
    return present.sum(axis=(2, 4))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 7), st.integers(2, 7), st.data(), st.booleans())
def test_sums_of_cells_are_the_patches_of_any_aligned_crop_and_of_its_mirror_image(seed, rows, columns, data, mirror):
    labels = random_labels(seed, rows, columns, num_classes=12, ignore_index=255, dtype=np.uint8)
    height = 2 * data.draw(st.integers(1, rows // 2))  # of the crop, in cells
    width = 2 * data.draw(st.integers(1, columns // 2))
    top = data.draw(st.integers(0, rows - height))
    left = data.draw(st.integers(0, columns - width))

    classes, counts, dropped = count_classes(labels, ignore_index=255, max_classes=12)
    window = np.s_[:, top : top + height, left : left + width]
    crop = labels[8 * top : 8 * (top + height), 8 * left : 8 * (left + width)]
    classes, counts = classes[window], counts[window]
    if mirror:
        classes, counts, crop = classes[..., ::-1], counts[..., ::-1], crop[:, ::-1]
    summed = dense(classes, counts, 12).reshape(12, height // 2, 2, width // 2, 2).sum(axis=(2, 4))

    assert dropped == 0
    np.testing.assert_array_equal(summed, count_patches(crop, 255, 12))


def test_input_is_left_alone_and_may_have_any_strides():
    labels = random_labels(5, 4, 6, num_classes=9, ignore_index=255, dtype=np.uint8)
    view = labels[::-1, ::-1]
    before = labels.copy()
    got = PatchCounts()(IMAGE, view, ignore_index=255)
    expected = PatchCounts()(IMAGE, np.ascontiguousarray(view), ignore_index=255)
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_a_map_that_is_no_whole_number_of_cells_is_an_error(shape):
    with pytest.raises(ExtractorError, match="multiples of 8") as caught:
        count_classes(np.zeros(shape, np.uint8), ignore_index=255)
    assert "fill" in (caught.value.hint or "")


@pytest.mark.parametrize("shape", [(8, 12), (13, 8)])
def test_the_extractor_fills_the_last_cells_up(shape):
    made = PatchCounts()(IMAGE, np.ones(shape, np.uint8), ignore_index=255)
    rows, columns = -(-shape[0] // 8), -(-shape[1] // 8)
    assert made["cell_counts"].shape == (8, rows, columns)
    assert made["cell_counts"].sum() == shape[0] * shape[1]
    assert made["cell_counts"][0, -1, -1] == (shape[0] - 8 * (rows - 1)) * (shape[1] - 8 * (columns - 1))
