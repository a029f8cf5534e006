"""Where training pictures come from: drawn shapes, or pictures with labels that a detector gave them."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....structure_extractors.errors import ExtractorError
from ..labels import Labelled
from .files import read_grey
from .shapes import draw_shape

Size = tuple[int, int]  # height, width


class Shapes:
    """Synthetic shapes."""

    def describe(self) -> str:
        """What the pictures are, in words that change if they change."""
        return "shapes and tiles"

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """One picture (H, W) uint8 and its keypoints (N, 2) float32 x, y."""
        return draw_shape(rng, size)


@dataclass(frozen=True)
class LabelledImages:
    """Pictures of a folder with the keypoints of a label file: a random part of one of them.

    Shapes among them keep what was learnt on shapes from being lost.
    """

    folder: Path
    labels: Labelled
    shapes: float  # share of the shapes, 0..1

    def describe(self) -> str:
        labels = self.labels
        named = f"{len(labels.names)} labelled pictures, {len(labels.points)} points, by {labels.made_by}"
        return f"{named}; shapes and tiles: {self.shapes}{labels.fingerprint}"

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        if rng.random() < self.shapes:
            return draw_shape(rng, size)
        index = int(rng.integers(len(self.labels.names)))
        digest = self.labels.digests[index] if self.labels.digests else None
        image = _read_grey(self.folder / self.labels.names[index], self.labels.size, digest)
        corner = [int(rng.integers(0, have - want + 1)) for have, want in zip(image.shape, size, strict=True)]
        part = image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        return part, self.labels.keypoints(index) - np.array(corner[::-1], np.float32)


Source = Shapes | LabelledImages


def labelled_source(folder: Path, labels: Path, shapes: float, size: Size) -> LabelledImages:
    """Labelled pictures of a folder, with a share of shapes. Raises ExtractorError if they are smaller than `size`."""
    labelled = Labelled.read(labels)
    if labelled.size[0] < size[0] or labelled.size[1] < size[1]:
        raise ExtractorError(f"{labels}: labels of pictures of {labelled.size}, smaller than {size} to train on")
    return LabelledImages(folder, labelled, shapes)


_read_grey = lru_cache(maxsize=1024)(read_grey)  # 80 MB of 240x320, in each process that draws
