"""Crop geometry against counting the cropped pixels by brute force, mirror images included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.train.data.crop import IMAGE_FILL, CropWindow

CANVAS, SIZE = 64, 24


@pytest.fixture(scope="module")
def canvas() -> np.ndarray:
    """Label canvas whose every pixel is one of 5 classes, in blobs that cells cut through."""
    rows, columns = np.mgrid[:CANVAS, :CANVAS]
    return ((rows // 5 + columns // 3) % 5).astype(np.uint8)


def cells_of(labels: np.ndarray) -> np.ndarray:
    """Pixels of each class in each 8-px cell, (5, h / 8, w / 8), one pixel at a time."""
    counts = np.zeros((5, labels.shape[0] // 8, labels.shape[1] // 8), np.int64)
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            counts[labels[row, column], row // 8, column // 8] += 1
    return counts


def test_convention_crop_by_hand() -> None:
    window = CropWindow.draw(np.array([0.5, 0.99, 0.7]), (40, 64), size=24, flip_probability=0.5)
    # rows: 16 px to spare = offsets 0, 8, 16; 0.5 picks the second. columns: 0, 8, ..., 40; 0.99 picks the last.
    assert window == CropWindow(top=8, left=40, size=24, flip=False)
    assert CropWindow.draw(np.array([0.0, 0.0, 0.49]), (40, 64), size=24, flip_probability=0.5).flip


def test_convention_flip_mirrors_columns() -> None:
    plane = np.arange(64).reshape(8, 8)
    assert CropWindow(top=0, left=0, size=8, flip=True).cut(plane)[0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


@settings(max_examples=40, deadline=None)
@given(
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
    frame=st.tuples(st.integers(1, CANVAS), st.integers(1, CANVAS)),
)
def test_cells_of_the_crop_equal_counting_the_crop(
    canvas: np.ndarray, draws: tuple[float, float, float], frame: tuple[int, int]
) -> None:
    """Guards the patch weights: an offset off the grid, or cells mirrored inside out, would show here."""
    window = CropWindow.draw(np.array(draws), frame, size=SIZE, flip_probability=0.5)
    np.testing.assert_array_equal(window.cut_cells(cells_of(canvas)), cells_of(window.cut(canvas)))


@settings(max_examples=40, deadline=None)
@given(
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
    frame=st.tuples(st.integers(1, CANVAS), st.integers(1, CANVAS)),
)
def test_image_labels_and_mask_stay_together(draws: tuple[float, float, float], frame: tuple[int, int]) -> None:
    """Guards alignment: an image that holds its own coordinates must agree with a plane of coordinates."""
    rows, columns = np.mgrid[:CANVAS, :CANVAS].astype(np.uint8)
    image = np.stack([rows, columns, rows], axis=-1)[: frame[0], : frame[1]]
    window = CropWindow.draw(np.array(draws), frame, size=SIZE, flip_probability=0.5)
    cropped, inside = window.cut_image(image), window.inside(frame)
    np.testing.assert_array_equal(cropped[0][inside], window.cut(rows)[inside])
    np.testing.assert_array_equal(cropped[1][inside], window.cut(columns)[inside])
    assert (cropped[:, ~inside] == IMAGE_FILL).all()
    assert inside.sum() == min(frame[0], SIZE) * min(frame[1], SIZE)  # never padding where there is image to show


def test_every_offset_is_drawn() -> None:
    values = (np.array([value, value, 1.0]) for value in np.linspace(0, 0.999, 50))
    windows = [CropWindow.draw(value, (47, 47), size=24, flip_probability=1.0) for value in values]
    assert {window.top for window in windows} == {window.left for window in windows} == {0, 8, 16}
