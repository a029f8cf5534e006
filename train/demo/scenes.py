"""A small generated data set in COCO-Stuff form, for the demo and for anyone who wants to try the chain without data.

A scene is a landscape of two or three textured regions ("stuff": sand, grass, water) with overlapping, turned, shaded
balls on it ("things"), each named by its colour and by the shapes painted on it: "red dots". Some colour-shape pairs
never occur in the training split, although each of their words does; the validation split has them all. So a model that
reads class names can be asked for words it was never trained on, and the answer measured.

The shapes are small and repeated because a few minutes on a CPU must be enough to learn them: a small transformer from
scratch tells dots from stripes within a hundred steps, and stars from triangles not within a thousand.

The files look like COCO-Stuff's: JPEG photographs and stuffthingmap-like PNGs (mode L, one id per pixel, 255 = not
labelled), with unlabelled pixels where real data have them: along some borders, and on objects that have no class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...common.images import encode_jpeg
from ...common.progress import ProgressBar

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

IGNORE_INDEX = 255

STUFF = ("sand", "grass", "water")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (204, 44, 40),
    "yellow": (236, 202, 44),
    "blue": (40, 64, 196),
    "white": (232, 232, 230),
}
SHAPES = ("plain", "stripes", "dots", "checks")

UNSEEN_THINGS = tuple(f"{colour} {shape}" for colour, shape in zip(COLOURS, SHAPES, strict=True))
"""Never in the training split: one pair per colour and per shape, so that each word still occurs in three others."""
SEEN_THINGS = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in UNSEEN_THINGS)

SEEN_CLASSES = STUFF + SEEN_THINGS
ALL_CLASSES = SEEN_CLASSES + UNSEEN_THINGS
"""Label ids are places in this tuple, so the training vocabulary is a prefix of it."""

SIZES = ((240, 320), (320, 240), (256, 384), (384, 288), (320, 320), (320, 512), (384, 512))
"""Heights and widths that occur, in px: landscape, portrait, square and wide."""

_SUPERSAMPLING = 4


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
        folders.images(split).mkdir(parents=True, exist_ok=True)
        folders.labels(split).mkdir(parents=True, exist_ok=True)
        names = SEEN_CLASSES if split == "train" else ALL_CLASSES
        things = _deal(names[len(STUFF) :], np.random.default_rng([seed, number]))
        folders.classes(split).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        for index in ProgressBar(range(count), desc=f"scenes {split}", unit="image"):
            rng = np.random.default_rng([seed, number, index])
            image, labels = draw_scene([next(things) for _ in range(3 + index % 4)], rng)
            stem = f"{index:012d}"
            (folders.images(split) / f"{stem}.jpg").write_bytes(encode_jpeg(image, quality=92))
            _, label_file = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
            (folders.labels(split) / f"{stem}.png").write_bytes(label_file.tobytes())
    return folders


def draw_scene(things: Sequence[str], rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Draw one scene with these things, the first at the back.

    Returns the image, uint8 (H, W, 3) RGB, and the label map, uint8 (H, W), places in `ALL_CLASSES` or 255. Edges of
    the image are anti-aliased; a pixel has a thing's label where the thing covers at least half of it.
    """
    height, width = SIZES[rng.integers(len(SIZES))]
    canvas, labels = _landscape(height, width, rng)
    if rng.random() < 0.4:  # an object that nobody labelled, as in real data
        plain = np.ones(labels.shape, np.float32)
        _place(canvas, labels, _pebble(rng), plain, colour=(120, 114, 108), label=IGNORE_INDEX, rng=rng)
    for name in things:
        colour, shape = name.split(" ")
        label = ALL_CLASSES.index(name)
        painted = _painted(shape, labels.shape, rng)
        _place(canvas, labels, _polar(np.full(64, 0.9)), painted, colour=COLOURS[colour], label=label, rng=rng)
    canvas *= rng.uniform(0.85, 1.1)  # exposure
    canvas += np.asarray(rng.normal(0, rng.uniform(2, 7), canvas.shape), np.float32)  # sensor noise
    return np.clip(canvas, 0, 255).astype(np.uint8), labels


def _deal(things: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Endless shuffled decks: every thing comes up equally often, to within one."""
    while True:
        yield from (things[i] for i in rng.permutation(len(things)))


def _landscape(height: int, width: int, rng: np.random.Generator) -> tuple[Float32, UInt8]:
    """Two or three textured regions, parted by wavy lines; some of the borders are unlabelled."""
    kinds = rng.permutation(len(STUFF))[: rng.integers(2, 4)]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.25 else 0)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    across = across + 0.04 * height * np.sin(along * rng.uniform(0.02, 0.05) + rng.uniform(0, 6))
    cuts = np.quantile(across, np.cumsum(rng.dirichlet(np.full(len(kinds), 6.0)))[:-1])
    region = np.searchsorted(cuts, across.ravel()).reshape(height, width)
    labels = kinds[region].astype(np.uint8)
    canvas = np.zeros((height, width, 3), np.float32)
    for kind in kinds:
        canvas[labels == kind] = _TEXTURES[STUFF[kind]](height, width, rng)[labels == kind]
    if rng.random() < 0.5:
        labels[np.min(np.abs(across[..., None] - cuts), axis=-1) < rng.uniform(1, 4)] = IGNORE_INDEX
    return np.asarray(cv2.GaussianBlur(canvas, (3, 3), 0.6), np.float32), labels


def _sand(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Beige, with fine grains and soft dunes."""
    grain = rng.normal(0, 13, (height, width)) + 60 * _smooth_noise(height, width, 24, 24, rng)
    return _tint(grain, (206, 178, 132), rng)


def _grass(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Green, with short upright blades."""
    blades = 150 * _smooth_noise(height, width, 3.0, 0.6, rng) + 60 * _smooth_noise(height, width, 20, 20, rng)
    return _tint(blades, (82, 120, 56), rng)


def _water(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Blue-green, with waves across and light crests."""
    y = np.arange(height, dtype=np.float32)[:, None]
    phase = y * rng.uniform(0.35, 0.6) + 60 * _smooth_noise(height, width, 10, 30, rng)
    crests = np.maximum(np.sin(phase), 0.2) * 45
    return _tint(crests - 20, (84, 140, 158), rng)


_TEXTURES = {"sand": _sand, "grass": _grass, "water": _water}


def _smooth_noise(height: int, width: int, sigma_y: float, sigma_x: float, rng: np.random.Generator) -> Float32:
    """Gaussian noise smoothed by `sigma_y` and `sigma_x` px, of unit-like strength: float32 (H, W), mean near 0."""
    noise = rng.normal(0, 1, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(0.25 * smooth / max(float(smooth.std()), 1e-6), dtype=np.float32)


def _tint(brightness: npt.NDArray[Any], base: tuple[int, int, int], rng: np.random.Generator) -> Float32:
    """Add a brightness texture (H, W) to a slightly varied base colour: float32 (H, W, 3)."""
    colour = np.array(base) + rng.uniform(-12, 12, 3)
    return np.asarray(colour + brightness[..., None], dtype=np.float32)


def _painted(shape: str, size: tuple[int, int], rng: np.random.Generator) -> Float32:
    """Where a thing has its full colour: float32 (H, W) in 0..1, one shape repeated on a turned grid; 1 for "plain"."""
    height, width = size
    period = min(size) * rng.uniform(0.042, 0.06)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / period
    u = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 1)
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(0, 1)
    across, along = np.abs(u % 1 - 0.5), np.abs(v % 1 - 0.5)  # distance to the middle of the grid's cell, in periods
    if shape == "stripes":
        inside = 0.25 - across
    elif shape == "dots":
        inside = 0.32 - np.hypot(across, along)
    elif shape == "checks":
        inside = np.where((np.floor(u) + np.floor(v)) % 2 == 0, 1, -1) * (0.5 - np.maximum(across, along))
    else:
        return np.ones(size, np.float32)
    return np.asarray(np.clip(inside * period + 0.5, 0, 1), np.float32)  # one px wide transitions


def _pebble(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A lumpy round outline."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radii = np.full(len(angles), 0.8)
    for waves in (2, 3, 5):
        radii += rng.uniform(0.03, 0.1) * np.sin(waves * angles + rng.uniform(0, 6))
    return _polar(radii)


def _polar(radii: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Corners (K, 2), x and y, of an outline round the origin: a circle where all radii are equal."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


def _place(
    canvas: Float32,
    labels: UInt8,
    outline: npt.NDArray[np.float64],
    painted: Float32,
    *,
    colour: tuple[int, int, int],
    label: int,
    rng: np.random.Generator,
) -> None:
    """Paint one thing, of random scale, place, turn, squeeze and light, over image and label map, in place.

    It is dark between the shapes `painted` (H, W) on it, and all of it carries the label.
    """
    height, width = labels.shape
    radius = min(height, width) * np.exp(rng.uniform(np.log(0.14), np.log(0.30)))
    turn, squeeze = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0.75, 1.33))
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    centre = np.array((width, height)) * rng.uniform(0.1, 0.9, 2)
    corners = outline @ rotation * (squeeze, 1 / squeeze) * radius + centre
    covered = _coverage(corners, height, width)

    right, down = rng.uniform(-6, 6, 2)
    shadow = cv2.warpAffine(covered, np.array([(1, 0, right), (0, 1, down)], np.float32), (width, height))
    shadow = cv2.GaussianBlur(shadow, (0, 0), 4)
    canvas *= 1 - 0.35 * shadow[..., None]
    surface = (colour + rng.uniform(-16, 16, 3)) * _light(labels.shape, centre, radius, rng)[..., None]
    surface *= 0.28 + 0.72 * painted[..., None]
    canvas += covered[..., None] * (surface.astype(np.float32) - canvas)
    if rng.random() < 0.3:  # annotators often leave the border open
        around = cv2.dilate(covered, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
        labels[around >= 0.5] = IGNORE_INDEX
    labels[covered >= 0.5] = label


def _coverage(corners: npt.NDArray[np.float64], height: int, width: int) -> Float32:
    """Share of each pixel that lies inside a polygon: float32 (H, W) in 0..1, from 4 x 4 sample points per pixel.

    `corners` (K, 2) are x, y in px with pixel edges at whole numbers. Even-odd rule, one scan line per
    row of samples. (OpenCV's fillPoly also fills what its border line touches, which makes every shape a little too
    large.)
    """
    scan = (np.arange(height * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING
    (x0, y0), (x1, y1) = corners.T[..., None], np.roll(corners, -1, axis=0).T[..., None]
    edge, row = np.nonzero((y0 <= scan) != (y1 <= scan))
    slope = ((x1 - x0) / np.where(y1 == y0, 1, y1 - y0)).ravel()
    crossing = x0.ravel()[edge] + (scan[row] - y0.ravel()[edge]) * slope[edge]
    first_inside = np.clip(np.ceil(crossing * _SUPERSAMPLING - 0.5), 0, width * _SUPERSAMPLING).astype(np.intp)
    toggles = np.zeros((len(scan), width * _SUPERSAMPLING + 1), np.uint8)
    np.add.at(toggles, (row, first_inside), 1)
    inside = np.cumsum(toggles[:, :-1], axis=1, dtype=np.uint8) & 1
    shares = cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(shares, np.float32)


def _light(shape: tuple[int, ...], centre: npt.NDArray[np.float64], radius: float, rng: np.random.Generator) -> Float32:
    """Brightness of a mottled surface lit from one side, 1 being its own colour: float32 (H, W), about 0.6 to 1.3."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / radius
    shade = rng.uniform(0.8, 1.05) + 0.16 * np.clip(slope, -1.2, 1.2) + 0.2 * _smooth_noise(height, width, 3, 3, rng)
    return np.asarray(shade, dtype=np.float32)
