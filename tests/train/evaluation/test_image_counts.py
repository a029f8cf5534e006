"""Intervals over images: hand values of resampling, the order of images, the ends of the range."""

import numpy as np
import pytest
from physseg.train.evaluation.image_counts import ImageCounts, bootstrap_weights
from physseg.train.evaluation.metrics import ConfusionMatrix

CLASSES = 5


def images(names: list[str], seed: int = 0, absent: int = 4) -> dict[str, ImageCounts]:
    """One image by each name, of random labels without the class `absent` and of random predictions."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in names:
        labels, prediction = rng.integers(0, absent, 60), rng.integers(0, CLASSES, 60)
        found[name] = ImageCounts.stack({name: ConfusionMatrix(CLASSES, 255).update(prediction, labels)}, CLASSES)
    return found


def test_a_sample_is_averaged_over_the_classes_of_its_ground_truth() -> None:
    """Image a: class 0 half right, the rest called class 1, which only image b has, all right there."""
    counts = ImageCounts(
        image_ids=("a", "b"),
        hits=np.array([[2, 0, 0], [0, 4, 0]]),
        true=np.array([[4, 0, 0], [0, 4, 0]]),
        predicted=np.array([[2, 2, 0], [0, 4, 0]]),
    )
    weights = np.array([[1.0, 1], [2, 0], [0, 2]])
    assert counts.resampled_miou(weights) == pytest.approx([(2 / 4 + 4 / 6) / 2, 2 / 4, 1.0])


def test_the_order_of_the_parts_changes_no_bit_of_the_interval() -> None:
    names = [f"{(7 * index) % 40:03d}" for index in range(40)]  # a manifest need not be sorted
    each = images(names)
    single = ImageCounts.joined([each[name] for name in names])
    strided = ImageCounts.joined([ImageCounts.joined([each[n] for n in names[part::3]]) for part in (2, 0, 1)])
    contiguous = ImageCounts.joined([ImageCounts.joined([each[n] for n in names[i : i + 8]]) for i in range(0, 40, 8)])
    assert single.image_ids == strided.image_ids == contiguous.image_ids == tuple(sorted(names))
    assert single.interval() == strided.interval() == contiguous.interval()
    unsorted = single.resampled_miou(bootstrap_weights(40, 1000, 0)[:, [int(name) for name in names]])
    assert np.nanstd(unsorted) != np.nanstd(single.resampled_miou(bootstrap_weights(40, 1000, 0)))  # order matters


def test_an_interval_stays_between_none_and_all() -> None:
    def interval(*right: int) -> tuple[float, float]:
        true = np.full((len(right), 1), 100)
        hits = np.array(right)[:, None]
        names = tuple("abcdefgh"[: len(right)])
        return ImageCounts(image_ids=names, hits=hits, true=true, predicted=true).interval()

    assert interval(0, 0, 0, 1)[0] == 0.0 < interval(0, 0, 0, 1)[1]
    assert interval(100, 100, 100, 1)[1] == 1.0 > interval(100, 100, 100, 1)[0] > 0
