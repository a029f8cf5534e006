"""Where training pictures come from: drawn shapes, or photographs and textures with labels that a detector gave them.

A source is a pure function of the step, so a run that resumes sees what an uninterrupted one would have seen.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...common.errors import PhyssegError
from ...common.processes import end_with_parent
from ...structure_extractors.errors import ExtractorError
from .labels import Labelled
from .shapes import draw_shape

Size = tuple[int, int]  # height, width
PICTURES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp")


class Source(Protocol):
    """Training pictures, of any size that is asked for."""

    def describe(self) -> str:
        """What the pictures are, in words that change if they change."""

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """One picture (H, W) uint8 and its keypoints (N, 2) float32 x, y."""


class Shapes:
    """Synthetic shapes."""

    def describe(self) -> str:
        return "shapes"

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        return draw_shape(rng, size)


@dataclass(frozen=True)
class LabelledImages:
    """Pictures of a folder with the keypoints of a label file: a random part of one of them."""

    folder: Path
    labels: Labelled

    def describe(self) -> str:
        return f"{len(self.labels.names)} labelled pictures, {len(self.labels.points)} points, by {self.labels.made_by}"

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        index = int(rng.integers(len(self.labels.names)))
        image = _read_grey(self.folder / self.labels.names[index], self.labels.size)
        corner = [int(rng.integers(0, have - want + 1)) for have, want in zip(image.shape, size, strict=True)]
        part = image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
        return part, self.labels.keypoints(index) - np.array(corner[::-1], np.float32)


@dataclass(frozen=True)
class Mixed:
    """Shapes among labelled pictures, so that what was learnt on them is not lost."""

    labelled: LabelledImages
    shapes: float  # share of the shapes, 0..1

    def describe(self) -> str:
        return f"{self.labelled.describe()}; shapes: {self.shapes}"

    def draw(self, rng: np.random.Generator, size: Size) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        return (Shapes() if rng.random() < self.shapes else self.labelled).draw(rng, size)


def find_pictures(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted; none is an :class:`ExtractorError`."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise ExtractorError(f"{folder}: expected pictures ({', '.join(PICTURES)}), found none")
    return found


@lru_cache(maxsize=1024)  # 80 MB of 240x320, in each process that draws
def _read_grey(path: Path, size: Size) -> npt.NDArray[np.uint8]:
    return read_grey(path, size)


def read_grey(path: Path, size: Size) -> npt.NDArray[np.uint8]:
    """Read a picture as grey (H, W) uint8, resized to ``size`` (h, w) by area."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ExtractorError(f"{path}: expected a picture, got: {error.strerror or error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None
    if image is None:
        raise ExtractorError(f"{path}: expected a picture, got a file that cannot be decoded")
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def draw_batch(source: Source, seed: int, step: int, *, batch_size: int, size: Size) -> tuple[Tensor, Tensor]:
    """Pictures (B, 1, H, W) float32 in [0, 1] and keypoints (B, N, 2), short lists filled up with infinity."""
    drawn = [source.draw(np.random.default_rng([seed, step, index]), size) for index in range(batch_size)]
    longest = max(1, *(len(points) for _, points in drawn))
    keypoints = np.full((batch_size, longest, 2), np.inf, np.float32)
    for row, (_, points) in zip(keypoints, drawn, strict=True):
        row[: len(points)] = points
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    return images[:, None].float() / 255, torch.from_numpy(keypoints)


def drawn_batches(
    source: Source, seed: int, steps: range, *, batch_size: int, size: Size, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """What :func:`draw_batch` gives for each of the steps, in their order, drawn ahead by ``workers`` processes.

    Raises what a worker met, and :class:`ExtractorError` if one dies. Workers end with this process, however it ends.
    """
    if not steps:
        return
    processes: dict[str, Any] = {}
    if workers:
        # Copies of a process that has computed can hang; copies of one that has only imported this cannot.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        processes = {"multiprocessing_context": context, "worker_init_fn": _start_worker}
    loader = DataLoader(
        _Steps(source, seed, steps, batch_size, size),
        batch_size=None,
        num_workers=min(workers, len(steps)),
        collate_fn=_as_is,
        # Of its own: the loader draws a seed from it, which would otherwise move the process's generator.
        generator=torch.Generator().manual_seed(0),
        **processes,
    )
    try:
        for drawn in loader:
            if isinstance(drawn, PhyssegError):
                raise drawn
            yield drawn
    except (RuntimeError, ConnectionError, EOFError) as error:
        # PyTorch's own error, or the broken connection over which a batch was coming; what a worker raised itself
        # says "in DataLoader worker process", and what comes without workers is of this process.
        died = "DataLoader worker (pid" if isinstance(error, RuntimeError) else ""
        if not workers or died not in str(error) or "in DataLoader worker process" in str(error):
            raise
        raise ExtractorError(
            f"a process that drew training pictures died: {type(error).__name__} {error}",
            hint="usually memory: take fewer --workers, or 0 to draw in the training process",
        ) from error


@dataclass(frozen=True)
class _Steps(Dataset[tuple[Tensor, Tensor] | PhyssegError]):
    """The batches of some steps of a training; an error is returned, for raised it would lose its class on the way."""

    source: Source
    seed: int
    steps: range
    batch_size: int
    size: Size

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | PhyssegError:
        try:
            return draw_batch(self.source, self.seed, self.steps[index], batch_size=self.batch_size, size=self.size)
        except PhyssegError as error:
            return error


def _as_is(drawn: Any) -> Any:
    return drawn


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's, which ends its workers
    end_with_parent()
    cv2.setNumThreads(1)
