"""The demo's numbers by hand, and sentences that follow from them whichever way they fall."""

import numpy as np
import pytest
from physseg.train.demo.results import (
    GroupScore,
    Results,
    describe,
    most_frequent_iou,
    score_group,
    uniform_iou,
)
from physseg.train.evaluation.metrics import ConfusionMatrix


def confusion_of(counts: np.ndarray) -> ConfusionMatrix:
    confusion = ConfusionMatrix(len(counts), ignore_index=255)
    confusion.matrix += counts
    return confusion


CLASSES = ("sand", "red circle", "blue star", "red star", "blue circle")


def test_iou_by_hand():
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(confusion_of(confusion).iou(), [6 / 9, 3 / 6, np.nan])


def test_chance_levels_equal_guessing_on_many_pixels():
    pixels = np.array([500_000, 300_000, 150_000, 50_000])
    truth = np.repeat(np.arange(4), pixels)
    guesses = np.random.default_rng(0).integers(0, 4, len(truth))
    confusion = np.bincount(truth * 4 + guesses, minlength=16).reshape(4, 4)
    np.testing.assert_allclose(confusion_of(confusion).iou(), uniform_iou(pixels), atol=2e-3)
    always_first = np.zeros((4, 4), np.int64)
    always_first[:, 0] = pixels
    np.testing.assert_array_equal(confusion_of(always_first).iou(), most_frequent_iou(pixels))


def test_a_group_averages_its_own_classes_and_leaves_out_absent_ones():
    confusion = confusion_of(np.array([[8, 2, 0], [0, 0, 0], [4, 0, 6]]))
    score = score_group(confusion, [1, 2])
    assert score.miou == pytest.approx(6 / 10)
    assert score.most_frequent == 0
    assert np.isnan(score_group(confusion, [1]).miou)


def model(seen: float, unseen: float) -> Results:
    groups = [GroupScore(miou=value, uniform=0.02, most_frequent=0.04) for value in (seen, unseen)]
    nothing = {"classes": CLASSES, "unseen_classes": (), "iou": np.zeros(0), "pixels": np.zeros(0, np.int64)}
    return Results(**nothing, seen=groups[0], unseen=groups[1])


def words(seen: float, unseen: float, before: float = 0.2) -> str:
    return " ".join(describe({"zero-shot": model(0.3, before), "both losses": model(seen, unseen)}))


@pytest.mark.parametrize(
    ("seen", "unseen", "expected"),
    [
        (0.05, 0.05, "has not learned its training classes"),
        (0.50, 0.03, "below chance"),
        (0.50, 0.05, "No transfer"),
        (0.50, 0.10, "some transfer"),
        (0.50, 0.40, "Much of the score"),
        (0.50, 0.50, "about as well as trained ones"),
    ],
)
def test_the_words_follow_the_numbers(seen: float, unseen: float, expected: str):
    text = words(seen, unseen)
    assert expected in text
    assert f"mIoU {100 * unseen:.1f}% on unseen" in text and f"mIoU {100 * seen:.1f}% on seen" in text
    assert "chance 4.0%" in text


def test_words_without_an_unseen_class():
    assert "no pixel of an unseen class" in words(0.5, float("nan"))


def test_words_on_what_fine_tuning_has_cost():
    assert "both losses has 40.0%, zero-shot 40.1%: fine-tuning has cost" in words(0.5, 0.4, before=0.401)
    assert "zero-shot 39.9%: fine-tuning on other classes has helped" in words(0.5, 0.4, before=0.399)
