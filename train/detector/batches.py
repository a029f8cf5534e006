"""Batches of training pictures, changed as a photograph is on its way to us, with the classes of their cells.

A batch is a pure function of settings and step. So other processes may draw it, ahead of the step that needs it, and a
run that resumes sees what an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...common.loader import load_batches
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.homography import random_homographies, valid_pixels, warp, warp_points
from .pictures.photometric import as_from_file, augment
from .pictures.sources import Source
from .settings import TrainSettings
from .targets import cell_classes, valid_cells

Batch = tuple[Tensor, Tensor, Tensor]
"""Pictures (B, 1, H, W) float32 in [0, 1], classes (B, H/8, W/8) int64, which cells (B, H/8, W/8) bool are valid."""


def draw_batch(source: Source, settings: TrainSettings, step: int) -> Batch:
    """The batch of a step, 0-based.

    Pictures are compressed before the warp, which turns the blocks of JPEG, and after it, behind the noise.
    """
    rngs = [np.random.default_rng([settings.seed, step, index]) for index in range(settings.batch_size)]
    drawn, points = zip(*(source.draw(rng, settings.size) for rng in rngs), strict=True)
    generator = torch.Generator().manual_seed(int(np.random.default_rng([settings.seed, step]).integers(2**63)))
    homographies = random_homographies(settings.batch_size, settings.size, settings.homography, generator)
    bent = torch.rand(settings.batch_size, generator=generator) < settings.warped
    homographies[~bent] = torch.eye(3)
    images = torch.from_numpy(np.stack(drawn))[:, None].float() / 255
    images = as_from_file(images, settings.photometric, generator)
    images[bent] = warp(images[bent], homographies[bent])
    images = as_from_file(augment(images, settings.photometric, generator), settings.photometric, generator)
    # Short lists end in points that no homography brings into a picture.
    keypoints = pad_sequence([torch.from_numpy(some).float() for some in points], True, torch.inf)
    keypoints = warp_points(keypoints, homographies)
    valid = valid_cells(valid_pixels(homographies, settings.size))
    return images, cell_classes(keypoints, settings.size, generator), valid


def drawn_batches(
    source: Source, settings: TrainSettings, steps: range, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """What `draw_batch` gives for each step, in order, drawn ahead by `workers` processes; raises what they met."""
    return load_batches(
        partial(draw_batch, source, settings),
        steps,
        num_workers=min(workers, len(steps)),
        pin_memory=pin_memory,
        start_worker=_start_worker,
        death=ExtractorError(
            "a process that drew training pictures died",
            hint="usually memory: take fewer --workers, or 0 to draw in the training process",
        ),
    )


def _start_worker() -> None:
    cv2.setNumThreads(1)
