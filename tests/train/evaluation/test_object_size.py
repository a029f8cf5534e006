"""mIoU by object size on regions drawn by hand."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.evaluation.object_size import SIZES, miou_of_sizes, size_counts

IGNORE = 255
Ids = npt.NDArray[np.int64]


def of_class(prediction: Ids, labels: Ids, index: int) -> dict[str, list[int]]:
    """Hits, true and predicted pixels of each size."""
    counts = size_counts(prediction, labels, 3, IGNORE)
    return {size: counts[place, :, index].tolist() for place, size in enumerate(SIZES)}


def test_convention_sizes_are_cocos_areas_of_connected_regions() -> None:
    """32x32 px are medium and 96x96 px large; a corner connects two halves of a region."""
    labels = np.zeros((300, 300), int)
    labels[0:31, 0:33] = 1  # 1023 px
    labels[40:72, 0:32] = 1  # 1024 px
    labels[80:112, 0:30] = labels[112:120, 30:38] = 1  # 960 + 64 px that touch at a corner
    labels[130:226, 100:196] = 1  # 9216 px
    found = of_class(labels, labels, 1)
    assert found == {"small": [1023] * 3, "medium": [2048] * 3, "large": [9216] * 3}


def test_a_false_positive_counts_for_the_size_that_its_region_overlaps_most() -> None:
    """A small object of 100 px is drawn as 40x40 px: it costs the small objects, though 1600 px are medium."""
    labels, prediction = np.zeros((2, 200, 200), int)
    labels[10:20, 10:20] = prediction[10:50, 10:50] = 1
    labels[100:150, 100:150] = prediction[100:150, 100:140] = 1  # 2500 px, 2000 found
    prediction[180:190, 180:190] = 1  # invented: 100 px that look like a small object
    prediction[100:150, 0:50] = 1  # invented: 2500 px that look like a medium one
    found = of_class(prediction, labels, 1)
    assert found == {"small": [100, 100, 1600 + 100], "medium": [2000, 2500, 2000 + 2500], "large": [0, 0, 0]}
    miou = miou_of_sizes(size_counts(prediction, labels, 3, IGNORE))
    assert miou["small"] == {"miou": pytest.approx(100 / 1700), "classes": 1}
    medium = (2000 / (2500 + 2500)), 1  # background is one large region
    assert (miou["medium"]["miou"], miou["medium"]["classes"]) == pytest.approx(medium)


def test_of_a_region_over_two_objects_the_larger_overlap_decides() -> None:
    """One region over a small object wholly and over 1000 px of a medium one, and 10 px besides."""
    labels, prediction = np.zeros((2, 100, 100), int)
    labels[0:10, 0:10] = 1
    labels[20:60, 0:40] = 1
    prediction[0:10, 0:10] = prediction[10:20, 0:1] = prediction[20:45, 0:40] = 1
    assert of_class(prediction, labels, 1)["small"] == [100, 100, 100]
    assert of_class(prediction, labels, 1)["medium"] == [1000, 1600, 1000 + 10]


def test_ignored_pixels_belong_to_no_region() -> None:
    """They divide an object of 40x40 px into two small ones, and what is predicted there does not connect them."""
    labels = np.zeros((60, 60), int)
    labels[10:50, 10:50] = 1
    prediction = labels.copy()
    labels[:, 29:31] = IGNORE
    assert of_class(prediction, labels, 1)["small"] == [40 * 38] * 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sizes_add_up_to_the_confusion_matrix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, prediction = (np.kron(rng.integers(0, 3, (5, 6)), np.ones((25, 30), int)) for _ in range(2))
    labels[rng.random(labels.shape) < 0.02] = IGNORE
    expected = ConfusionMatrix(3, IGNORE).update(prediction, labels)
    counts = size_counts(prediction, labels, 3, IGNORE)
    assert counts.sum(axis=0).tolist() == [part.tolist() for part in expected]
    assert (counts[:, 0] <= np.minimum(counts[:, 1], counts[:, 2])).all()
