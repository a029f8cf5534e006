"""Bands by hand, against the paper's erosions of one padded mask per class, and what must hold of any picture."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.train.evaluation.boundary_iou import band_width, bands, boundary_counts
from physseg.train.evaluation.metrics import ConfusionMatrix

IGNORE = 255
Ids = npt.NDArray[np.int64]


def eroded_band(mask: npt.NDArray[np.bool_], width_px: int) -> npt.NDArray[np.bool_]:
    """The mask minus `width_px` erosions of it, in a frame of zeros: the outside is no mask."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width_px)[1:-1, 1:-1]
    return mask & (eroded == 0)


def slow_counts(prediction: Ids, labels: Ids, classes: int, width_px: int) -> list[list[int]]:
    counted = labels != IGNORE
    pairs = [
        (eroded_band((labels == index) & counted, width_px), eroded_band((prediction == index) & counted, width_px))
        for index in range(classes)
    ]
    rows = [(int((true & found).sum()), int(true.sum()), int(found.sum())) for true, found in pairs]
    return [list(row) for row in zip(*rows, strict=True)]


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Ids, Ids]:
    """Label and prediction of blobs of any shape, some of the labels ignored."""
    height, width, seed = draw(st.integers(1, 160)), draw(st.integers(1, 160)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)

    def blobs(most: int) -> Ids:
        coarse = rng.integers(0, most, rng.integers(1, 12, 2)).astype(np.uint8)
        return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST).reshape(height, width).astype(int)

    labels = blobs(4)
    labels[blobs(5) == 4] = IGNORE
    return blobs(4), labels


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 10, 1), (300, 400, 10), (512, 512, 14), (400, 500, 13), (375, 500, 12), (1500, 2000, 50)],
)
def test_convention_a_band_is_2_percent_of_the_diagonal(height: int, width: int, expected: int) -> None:
    """Rounded to the nearest: 12.8 is 13, and 12.5 is 12 as Python rounds it."""
    assert band_width(height, width) == expected


def test_convention_the_border_of_the_picture_is_outside() -> None:
    """A class that fills a 60x80 picture has a band along all four sides: 2 px, 2 % of the diagonal of 100."""
    _, true, _ = boundary_counts(np.zeros((60, 80), int), np.zeros((60, 80), int), 1, IGNORE)
    assert true.tolist() == [60 * 80 - 56 * 76]


def test_a_square_moved_by_hand() -> None:
    """A 20x20 square in 60x80, predicted 1 px to the right: bands are square rings 2 px wide, of 400 - 256 pixels."""
    labels, prediction = np.zeros((2, 60, 80), int)
    labels[20:40, 20:40] = prediction[20:40, 21:41] = 1
    hits, true, predicted = boundary_counts(prediction, labels, 2, IGNORE)
    assert (true[1], predicted[1]) == (144, 144)
    assert hits[1] == 4 * 19 + 2 * 16  # above and below 2 rows of 19, at each side 1 column of 16
    # Around it, class 0 has its frame of 4800 - 56 * 76 and a ring of 24 * 24 - 400 outside of the square.
    assert (true[0], predicted[0]) == (544 + 176, 544 + 176)
    assert hits[0] == 544 + 4 * 23 + 2 * 20


def test_the_value_of_an_id_does_not_matter() -> None:
    """Unlike in detectron2's form, where a band lies on the side of the higher id and counts as their difference."""
    rng = np.random.default_rng(0)
    labels, prediction = (np.kron(rng.integers(0, 3, (6, 6)), np.ones((15, 15), int)) for _ in range(2))
    names = np.array([600, 7, 65000])
    plain = boundary_counts(prediction, labels, 3, IGNORE)
    named = boundary_counts(names[prediction], names[labels], 65001, 65535)
    assert [part.tolist() for part in plain] == [part[names].tolist() for part in named]


@pytest.mark.parametrize("classes", [255, 256, 300])
def test_predictions_of_8_bits_with_any_number_of_classes(classes: int) -> None:
    """What stands for ignored pixels in between is no class, though it does not fit into 8 bits."""
    prediction = np.array([[254] * 3 + [7] * 3] * 3, np.uint8)
    labels = prediction.astype(np.uint16)
    labels[1, 1] = labels[0, 5] = 65535
    hits, true, predicted = boundary_counts(prediction, labels, classes, 65535)
    assert (hits == true).all() and (true == predicted).all()
    assert np.flatnonzero(hits).tolist() == [7, 254]


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_bands_are_those_of_eroded_masks(picture: tuple[Ids, Ids]) -> None:
    """Also pictures of one row, and classes that touch ignored pixels."""
    prediction, labels = picture
    fast = boundary_counts(prediction, labels, 4, IGNORE)
    assert [part.tolist() for part in fast] == slow_counts(prediction, labels, 4, band_width(*labels.shape))


@settings(max_examples=20, deadline=None)
@given(pictures(), st.integers(1, 40))
def test_bands_of_any_width(picture: tuple[Ids, Ids], width_px: int) -> None:
    ids, found = picture[0], bands(picture[0], width_px)
    for index in range(4):
        np.testing.assert_array_equal(found & (ids == index), eroded_band(ids == index, width_px))


@settings(max_examples=20, deadline=None)
@given(pictures())
def test_convention_ignored_pixels_have_no_band(picture: tuple[Ids, Ids]) -> None:
    """A perfect prediction scores 1 whatever it says under ignored pixels."""
    anything, labels = picture
    prediction = np.where(labels == IGNORE, anything, labels)
    hits, true, predicted = boundary_counts(prediction, labels, 4, IGNORE)
    assert hits.tolist() == true.tolist() == predicted.tolist()


@settings(max_examples=20, deadline=None)
@given(pictures(), st.data())
def test_a_band_that_covers_everything_gives_the_iou(picture: tuple[Ids, Ids], data: st.DataObject) -> None:
    """Where no pixel is 2 px away from others, as in pictures of two rows."""
    row = data.draw(st.integers(0, picture[0].shape[0] - 1))
    prediction, labels = (np.repeat(ids[row : row + 1], 2, axis=0) for ids in picture)
    expected = ConfusionMatrix(4, IGNORE).update(prediction, labels)
    for ours, theirs in zip(boundary_counts(prediction, labels, 4, IGNORE), expected, strict=True):
        assert ours.tolist() == theirs.tolist()
