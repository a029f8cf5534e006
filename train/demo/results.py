"""What the demo's numbers say: chance levels beside them, and plain sentences.

Everything here is computed from one confusion matrix of the validation split, so that the words on the page follow the
run that was made and not the one that was hoped for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.text import percent
from ..evaluation.metrics import ConfusionMatrix

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupScore:
    """Mean IoU over some classes, beside what two ways of not looking at the image would reach on the same pixels."""

    miou: float
    uniform: float
    """Expected mean IoU when every pixel gets a class drawn evenly from the whole vocabulary."""
    most_frequent: float
    """Mean IoU when every pixel gets the class with most pixels."""

    @property
    def chance(self) -> float:
        return max(self.uniform, self.most_frequent)


def uniform_iou(pixels: Int64) -> Float64:
    """Expected IoU of each class when each pixel's class is drawn evenly, from the pixels (T,) of each class.

    Of n pixels of a class n/T are hit, and of all N pixels N/T are called that class: (n/T) / (n + N/T - n/T).

    >>> uniform_iou(np.array([50, 50]))
    array([0.33333333, 0.33333333])
    """
    count, total = len(pixels), pixels.sum()
    hits = pixels / count
    return np.asarray(hits / np.maximum(pixels + total / count - hits, 1e-12))


def most_frequent_iou(pixels: Int64) -> Float64:
    """IoU of each class when every pixel is called the class that has most: its share of all pixels, 0 for the others.

    >>> most_frequent_iou(np.array([30, 70]))
    array([0. , 0.7])
    """
    iou = np.zeros(len(pixels))
    iou[np.argmax(pixels)] = pixels.max() / max(int(pixels.sum()), 1)
    return iou


def score_group(confusion: ConfusionMatrix, members: Sequence[int]) -> GroupScore:
    """Mean IoU and chance levels of the classes with these indices that have pixels in the labels."""
    pixels = confusion.matrix.sum(axis=1)
    present = [index for index in members if pixels[index]]
    if not present:
        return GroupScore(miou=float("nan"), uniform=float("nan"), most_frequent=float("nan"))
    levels = (confusion.iou(), uniform_iou(pixels), most_frequent_iou(pixels))
    miou, uniform, most_frequent = (float(np.mean(level[present])) for level in levels)
    return GroupScore(miou=miou, uniform=uniform, most_frequent=most_frequent)


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What the demo's page and its last lines say of the validation split."""

    classes: Sequence[str]
    """Names of the T classes."""
    unseen_classes: Sequence[str]
    iou: Float64
    """(T,) IoU of each class, nan where a class has no pixel."""
    pixels: Int64
    """(T,) labelled pixels of each class."""
    seen: GroupScore
    unseen: GroupScore


def measure(confusion: ConfusionMatrix, classes: Sequence[str], unseen_classes: Sequence[str]) -> Results:
    unseen = [index for index, name in enumerate(classes) if name in unseen_classes]
    seen = [index for index in range(len(classes)) if index not in unseen]
    return Results(
        classes=classes,
        unseen_classes=[classes[index] for index in unseen],
        iou=confusion.iou(),
        pixels=confusion.matrix.sum(axis=1),
        seen=score_group(confusion, seen),
        unseen=score_group(confusion, unseen),
    )


def describe(models: Mapping[str, Results]) -> list[str]:
    """Sentences on how well the last model did, and beside the first: each follows from the numbers that it quotes."""
    titles, found = list(models), list(models.values())
    seen, unseen = found[-1].seen, found[-1].unseen
    if np.isnan(unseen.miou):
        return [_on_seen(seen), "The validation split has no pixel of an unseen class."]
    return [_on_seen(seen), _on_unseen(seen, unseen), _on_change(titles[0], found[0].unseen, titles[-1], unseen)]


def _on_change(first: str, before: GroupScore, last: str, after: GroupScore) -> str:
    quoted = f"On unseen classes {last} has {percent(after.miou, digits=1)}, {first} {percent(before.miou, digits=1)}"
    if after.miou < before.miou:
        return f"{quoted}: fine-tuning has cost some of what the pretrained model knew."
    return f"{quoted}: fine-tuning on other classes has helped there, too."


def _on_seen(seen: GroupScore) -> str:
    quoted = f"mIoU {percent(seen.miou, digits=1)} on seen classes, chance {percent(seen.chance, digits=1)}"
    if seen.miou < 1.5 * seen.chance:
        return f"{quoted}: the model has not learned its training classes; what follows means little."
    return f"{quoted}: {seen.miou / seen.chance:.1f} times the better chance level."


def _on_unseen(seen: GroupScore, unseen: GroupScore) -> str:
    quoted = f"mIoU {percent(unseen.miou, digits=1)} on unseen classes, chance {percent(unseen.chance, digits=1)}"
    if unseen.miou < unseen.chance:
        return f"{quoted}: below chance. The model does not recognise names that it was never trained on."
    if unseen.miou < 1.5 * unseen.chance:
        return f"{quoted}: about chance. No transfer to new pairs of known words is to be seen in this run."
    share = unseen.miou / seen.miou
    transfer = f"{quoted}: {unseen.miou / unseen.chance:.1f} times chance and {share:.0%} of the seen classes' score"
    if share < 0.5:
        return f"{transfer}. There is some transfer to new pairs of known words, and most is lost."
    if share < 0.9:
        return f"{transfer}. Much of the score, not all, transfers to new pairs of known words."
    return f"{transfer}. New pairs of known words do about as well as trained ones."
