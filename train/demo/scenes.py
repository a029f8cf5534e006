"""A small generated data set in COCO-Stuff form, for the demo and for anyone who wants to try the chain without data.

A scene is one of world.py's with few words: a landscape of two or three grounds ("stuff": sand, grass, water) with
overlapping, shaded things of any outline on it, each named by its colour and by the shapes painted on it: "red dots".
Some colour-shape pairs never occur in the training split, although each of their words does; the validation split has
them all. So a model that reads class names can be asked for words it was never trained on, and the answer measured.

The files look like COCO-Stuff's: JPEG photographs and stuffthingmap-like PNGs (mode L, one id per pixel, 255 = not
labelled), with unlabelled pixels where real data have them: along some borders, and on objects that have no class.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ...common.images import encode_jpeg
from ...common.progress import ProgressBar
from .drawing import UInt8
from .world import OUTLINES, SIZES, Thing, draw

STUFF = ("sand", "grass", "water")
COLOURS = ("red", "yellow", "blue", "white")
SHAPES = ("plain", "stripes", "dots", "checks")

UNSEEN_THINGS = tuple(f"{colour} {shape}" for colour, shape in zip(COLOURS, SHAPES, strict=True))
"""Never in the training split: one pair per colour and per shape, so that each word still occurs in three others."""
SEEN_THINGS = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in UNSEEN_THINGS)

SEEN_CLASSES = STUFF + SEEN_THINGS
ALL_CLASSES = SEEN_CLASSES + UNSEEN_THINGS
"""Label ids are places in this tuple, so the training vocabulary is a prefix of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneFolders:
    """Where `write_scenes` put things; `images(split)` and `labels(split)` hold files of the same stems."""

    root: Path

    def images(self, split: str) -> Path:
        return self.root / "images" / split

    def labels(self, split: str) -> Path:
        return self.root / "stuffthingmaps" / split

    def classes(self, split: str) -> Path:
        """One class name per line, in the order of the label ids; the training file does not name the unseen pairs."""
        return self.root / f"classes_{split}.txt"


def write_scenes(root: Path, *, num_train: int = 160, num_val: int = 40, seed: int = 0) -> SceneFolders:
    """Write both splits under `root`: JPEGs, label PNGs, a class list each. Files of those names are replaced."""
    folders = SceneFolders(root=root)
    for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
        names = SEEN_CLASSES if split == "train" else ALL_CLASSES
        things = deal(names[len(STUFF) :], np.random.default_rng([seed, number]))
        rngs = (np.random.default_rng([seed, number, index]) for index in range(count))
        drawn = (draw_scene([next(things) for _ in range(3 + index % 4)], rng) for index, rng in enumerate(rngs))
        write_split(folders, split, names, drawn, count)
    return folders


def write_split(
    folders: SceneFolders, split: str, classes: Sequence[str], drawn: Iterable[tuple[UInt8, UInt8]], count: int
) -> None:
    """Write a split: its class list, and images (H, W, 3) and label maps (H, W) by number."""
    folders.images(split).mkdir(parents=True, exist_ok=True)
    folders.labels(split).mkdir(parents=True, exist_ok=True)
    folders.classes(split).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for index, (image, labels) in enumerate(ProgressBar(drawn, total=count, desc=f"scenes {split}", unit="image")):
        stem = f"{index:012d}"
        (folders.images(split) / f"{stem}.jpg").write_bytes(encode_jpeg(image, quality=92))
        _, label_file = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        (folders.labels(split) / f"{stem}.png").write_bytes(label_file.tobytes())


def draw_scene(things: Sequence[str], rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Draw one scene with these things, the first at the back.

    Returns the image, uint8 (H, W, 3) RGB, and the label map, uint8 (H, W), places in `ALL_CLASSES` or 255.
    """
    grounds = [str(ground) for ground in rng.permutation(STUFF)[: rng.integers(2, 4)]]
    pairs = (name.split(" ") for name in things)
    drawn = [Thing(colour, shape, str(rng.choice(list(OUTLINES)))) for colour, shape in pairs]
    scene = draw(drawn, grounds, rng, size=SIZES[rng.integers(len(SIZES))])
    return scene.image, scene.labels(ALL_CLASSES)


def deal(things: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Endless shuffled decks: every thing comes up equally often, to within one."""
    while True:
        yield from (things[i] for i in rng.permutation(len(things)))
