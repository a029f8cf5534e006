"""Pairs of pictures with a known homography between them: sequences on disk, and pictures that we warp."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ....common.documents import parsing, read_text
from ....structure_extractors.errors import ExtractorError
from ....structure_extractors.superpoint.homography import HomographySettings, random_homographies
from ..pictures.files import SUFFIXES, Grey, read_grey
from ..pictures.photometric import PhotometricSettings, augmented, jpeg

PHOTO_SIZE = (240, 320)  # h, w
SEED = 2**31  # of warps and changes
MILD = HomographySettings(patch=0.85, perspective=0.12, scale=0.12, rotation=0.5, shift=0.05)


@dataclass(frozen=True)
class Pair:
    """Two pictures of a plane, or of a far scene, and the homography (3, 3) from pixels of the first to the second."""

    one: Grey
    other: Grey
    homography: npt.NDArray[np.float64]


def read_sequences(folders: Sequence[Path]) -> dict[str, list[Pair]]:
    """The pairs of several sequences by the names of their folders. Raises ExtractorError if two have one name."""
    pairs = {folder.name: sequence_pairs(folder) for folder in folders}
    if len(pairs) < len(folders):
        raise ExtractorError(f"expected sequences of different names, got {', '.join(map(str, folders))}")
    return pairs


def sequence_pairs(folder: Path) -> list[Pair]:
    """The pairs of the first picture with each other one of a sequence: img1.EXT .. img6.EXT and H1to2p .. H1to6p."""
    if not folder.is_dir():
        raise ExtractorError(f"{folder}: expected a folder of img1, img2, ... and H1to2p, ..., found none")
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    first = pictures.get("img1")
    files = sorted(folder.glob("H1to*p"))
    if first is None or not files:
        raise ExtractorError(f"{folder}: expected img1 and homographies H1to2p, ..., got {sorted(pictures)}")
    if missing := [name for file in files if (name := "img" + file.name[4:-1]) not in pictures]:
        raise ExtractorError(f"{folder}: expected a picture for each homography, found none for {', '.join(missing)}")
    one, scale_one = _resized(first)
    pairs = []
    for file in files:
        other, scale_other = _resized(pictures["img" + file.name[4:-1]])
        homography = scale_other @ _homography(file) @ np.linalg.inv(scale_one)
        pairs.append(Pair(one, other, homography))
    return pairs


def photograph_sets(greys: Sequence[Grey]) -> dict[str, list[Pair]]:
    """Pairs of photographs (H, W) uint8 with themselves, warped and changed, by what was done to them."""
    sets = {"viewpoint": viewpoint_pairs(greys)}
    return sets | {name: changed_pairs(greys, change) for name, change in CHANGES.items()}


def viewpoint_pairs(greys: Sequence[Grey]) -> list[Pair]:
    """Two pairs of each picture (H, W) uint8 with itself, warped."""
    pairs = []
    for number, grey in enumerate(greys):
        size = (grey.shape[0], grey.shape[1])
        drawn = random_homographies(2, size, MILD, torch.Generator().manual_seed(SEED + number))
        for homography in drawn.double().numpy():
            other = cv2.warpPerspective(grey, homography, size[::-1], flags=cv2.INTER_LINEAR)
            pairs.append(Pair(grey, np.asarray(other, np.uint8), homography))
    return pairs


def changed_pairs(greys: Sequence[Grey], change: Callable[[Grey, int], Grey]) -> list[Pair]:
    """Two pairs of each picture (H, W) uint8 with itself in place, changed by random numbers of a seed."""
    seeds = [SEED + number * 1000 + index for number in range(len(greys)) for index in range(2)]
    return [Pair(greys[at // 2], change(greys[at // 2], seed), np.eye(3)) for at, seed in enumerate(seeds)]


def compressed(grey: Grey, seed: int) -> Grey:
    """As a JPEG of quality 10 to 40, with its blocks of 8x8 pixels in any place."""
    rng = np.random.default_rng(seed)
    return jpeg(grey, int(rng.integers(10, 41)), (int(rng.integers(8)), int(rng.integers(8))))


CHANGES: dict[str, Callable[[Grey, int], Grey]] = {
    "light": partial(augmented, settings=PhotometricSettings(probability=1, noise=0, speckle=0, motion_blur_px=1)),
    "light+noise": partial(augmented, settings=PhotometricSettings()),
    "compressed": compressed,
}
"""Changes of a photograph (H, W) uint8 in place by a seed, by name. Light is shadows, contrast and brightness alone."""


def _homography(file: Path) -> npt.NDArray[np.float64]:
    expected = "a homography, three lines of three numbers"
    text = read_text(file, ExtractorError, expected)
    with parsing(ExtractorError, f"{file}: expected {expected}"):
        return np.array(text.split(), np.float64).reshape(3, 3)


def _resized(path: Path) -> tuple[Grey, npt.NDArray[np.float64]]:
    """A picture at `PHOTO_SIZE`, and the map of its pixel coordinates to the resized ones (centres at integers)."""
    grey = read_grey(path)
    sy, sx = PHOTO_SIZE[0] / grey.shape[0], PHOTO_SIZE[1] / grey.shape[1]
    scale = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    return np.asarray(cv2.resize(grey, PHOTO_SIZE[::-1], interpolation=cv2.INTER_AREA), np.uint8), scale
