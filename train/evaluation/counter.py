"""Everything that is counted of predictions, image by image: what an evaluation is made of, whoever predicted."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .boundary_iou import boundary_counts
from .image_counts import ImageCounts
from .metrics import ConfusionMatrix, Counts, Integers
from .object_size import SIZES, size_counts


@dataclass(slots=True)
class PredictionCounter:
    """Counts of predictions against labels; `counts` are fields of an `Evaluation`.

    Examples:
        >>> counter = PredictionCounter(num_classes=2, ignore_index=255)
        >>> counter.update("a", prediction=np.array([[0, 1]]), labels=np.array([[0, 255]]))
        >>> counter.counts()["num_images"], counter.counts()["boundary"].miou()
        (1, 1.0)
    """

    num_classes: int
    """Number of classes C; labels and predictions are 0..C-1."""
    ignore_index: int
    """Label of pixels that belong to no class."""
    by_size: bool = False
    """Whether to count by the size of the ground truth's regions as well."""
    confusion: ConfusionMatrix = field(init=False)
    _images: dict[str, tuple[Counts, Counts, Counts]] = field(init=False, default_factory=dict)
    _bands: dict[str, tuple[Counts, Counts, Counts]] = field(init=False, default_factory=dict)
    _sizes: Counts | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.confusion = ConfusionMatrix(self.num_classes, self.ignore_index)
        if self.by_size:
            self._sizes = np.zeros((len(SIZES), 3, self.num_classes), dtype=np.int64)

    def update(self, sample_id: str, prediction: Integers, labels: Integers) -> None:
        """Count a prediction and labels (H, W). Raises ShapeError, and counts nothing, as `ConfusionMatrix.update`."""
        self._images[sample_id] = self.confusion.update(prediction, labels)
        self._bands[sample_id] = boundary_counts(prediction, labels, self.num_classes, self.ignore_index)
        if self._sizes is not None:
            self._sizes += size_counts(prediction, labels, self.num_classes, self.ignore_index)

    def counts(self) -> dict[str, Any]:
        """The fields of an `Evaluation` that say what was counted."""
        return {
            "confusion": self.confusion,
            "num_images": len(self._images),
            "images": ImageCounts.stack(self._images, self.num_classes),
            "boundary": ImageCounts.stack(self._bands, self.num_classes),
            "sizes": self._sizes,
        }
