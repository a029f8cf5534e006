"""Pixel counts of every image by itself: what confidence intervals over images are made of.

The confusion matrices of thousands of images would be large; their diagonals and margins are small, and IoU needs no
more. The pixels are all labelled ones, or those in the bands of Boundary IoU.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import Counts, ratio

COUNTS = ("hits", "true", "predicted")
"""Names of what is counted of each image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCounts:
    """Pixel counts of N images by C classes; the rows are put into the order of the ids.

    So the bootstrap draws the same images however many parts an evaluation had.
    """

    image_ids: tuple[str, ...]
    """Sample ids of the rows, sorted."""
    hits: Counts
    """(N, C) number of pixels of each class that were predicted as it."""
    true: Counts
    """(N, C) number of pixels of each class."""
    predicted: Counts
    """(N, C) number of labelled pixels that were predicted as each class."""

    def __post_init__(self) -> None:
        order = sorted(range(len(self.image_ids)), key=self.image_ids.__getitem__)
        object.__setattr__(self, "image_ids", tuple(self.image_ids[index] for index in order))
        for name in COUNTS:
            object.__setattr__(self, name, getattr(self, name)[order])

    @staticmethod
    def stack(images: Mapping[str, tuple[Counts, Counts, Counts]], classes: int) -> "ImageCounts":
        """From (hits, true, predicted), each (C,), of every image by its id."""
        stacked = np.array(list(images.values()), dtype=np.int64).reshape(len(images), 3, classes)
        return ImageCounts(image_ids=tuple(images), hits=stacked[:, 0], true=stacked[:, 1], predicted=stacked[:, 2])

    @staticmethod
    def joined(parts: Sequence["ImageCounts | None"]) -> "ImageCounts | None":
        """All images of several parts; None where those of one are not known."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return ImageCounts(
            image_ids=tuple(name for part in known for name in part.image_ids),
            **{name: np.concatenate([getattr(part, name) for part in known]) for name in COUNTS},
        )

    def summed(self) -> "ImageCounts":
        """All images as if they were one."""
        totals = {name: getattr(self, name).sum(axis=0, keepdims=True) for name in COUNTS}
        return ImageCounts(image_ids=("all",), **totals)

    def iou(self) -> npt.NDArray[np.float64]:
        """IoU of each class over all images, (C,); NaN where a class has neither true nor predicted pixels."""
        hits, true, predicted = (getattr(self, name).sum(axis=0) for name in COUNTS)
        return ratio(hits, true + predicted - hits)

    def miou(self) -> float:
        """IoU averaged over the classes of the ground truth; NaN without any."""
        return float(self.resampled_miou(np.ones((1, len(self.image_ids))))[0])

    def resampled_miou(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """mIoU of samples of the images, over the classes of each sample's ground truth.

        `weights` (B, N) says how often each image is in each sample. Returns (B,), NaN for a sample without any class.
        """
        hits, true, predicted = (weights @ getattr(self, name).astype(np.float64) for name in COUNTS)
        present = true > 0
        iou = np.divide(hits, true + predicted - hits, out=np.zeros_like(hits), where=present)
        number, nothing = present.sum(axis=1), np.full(len(weights), np.nan)
        miou: npt.NDArray[np.float64] = np.divide(iou.sum(axis=1), number, out=nothing, where=number > 0)
        return miou

    def interval(self) -> tuple[float, float] | None:
        """About 95 % of the mIoU over images: the score, and 1.96 standard deviations of its bootstrap to both sides,
        within [0, 1]; None for fewer than two images.

        Approximate: samples of the images lose rare classes, which moves their mIoU as a whole, so that the usual
        percentiles would lie to one side of the score; even so it is too narrow where many classes are rare (85 % in a
        simulation of 459 classes and 500 images).
        """
        if len(self.image_ids) < 2:
            return None
        drawn = self.resampled_miou(bootstrap_weights(len(self.image_ids), 1000, seed=0))
        low, high = normal_interval(self.miou(), drawn)
        return max(low, 0.0), min(high, 1.0)


def bootstrap_weights(num_images: int, samples: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each image is drawn in each sample of `num_images` with replacement: (samples, N)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=samples).astype(np.float64)


def normal_interval(value: float, drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % around a value whose bootstrap samples are `drawn`, as of a normal distribution."""
    half = 1.96 * float(np.nanstd(drawn))
    return value - half, value + half
