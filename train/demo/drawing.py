"""What pictures are drawn of: textured grounds, shapes painted on surfaces, outlines with shade and shadow.

Every function takes what is random from its generator, so a picture follows from a seed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

IGNORE_INDEX = 255
_SUPERSAMPLING = 4


def landscape(kinds: Sequence[str], height: int, width: int, rng: np.random.Generator) -> tuple[Float32, UInt8]:
    """Textured regions of these grounds, parted by wavy lines; some of the borders are unlabelled.

    Returns the picture, float32 (H, W, 3), and places in `kinds` or 255, uint8 (H, W).
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.25 else 0)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    across = across + 0.04 * height * np.sin(along * rng.uniform(0.02, 0.05) + rng.uniform(0, 6))
    cuts = np.quantile(across, np.cumsum(rng.dirichlet(np.full(len(kinds), 6.0)))[:-1])
    region = np.searchsorted(cuts, across.ravel()).reshape(height, width).astype(np.uint8)
    canvas = np.zeros((height, width, 3), np.float32)
    for place, kind in enumerate(kinds):
        canvas[region == place] = _TEXTURES[kind](height, width, rng)[region == place]
    if rng.random() < 0.5:
        region[np.min(np.abs(across[..., None] - cuts), axis=-1, initial=np.inf) < rng.uniform(1, 4)] = IGNORE_INDEX
    return np.asarray(cv2.GaussianBlur(canvas, (3, 3), 0.6), np.float32), region


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


def _brick(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Rows of bricks, every second one shifted by half a brick, with light mortar."""
    high = rng.uniform(9, 13)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / high + np.float32(rng.uniform(0, 9))
    mortar = np.maximum(np.abs(y % 1 - 0.5), np.abs((x / 2.2 + 0.5 * np.floor(y)) % 1 - 0.5) * 2.2 - 0.6) > 0.41
    return _tint(40.0 * mortar + rng.normal(0, 9, (height, width)), (158, 84, 66), rng)


def _marble(height: int, width: int, rng: np.random.Generator) -> Float32:
    """Light, with dark veins."""
    veins = np.exp(-np.abs(_smooth_noise(height, width, 9, 9, rng)) * 25)
    return _tint(-85 * veins, (216, 212, 206), rng)


def _noisy(
    base: tuple[int, int, int], *parts: tuple[float, float, float], grain: float = 0
) -> Callable[[int, int, np.random.Generator], Float32]:
    """A ground of one colour with smooth noises of (strength, sigma_y, sigma_x) and grains."""

    def draw(height: int, width: int, rng: np.random.Generator) -> Float32:
        brightness = rng.normal(0, grain, (height, width)) if grain else np.zeros((height, width))
        for strength, sigma_y, sigma_x in parts:
            brightness += strength * _smooth_noise(height, width, sigma_y, sigma_x, rng)
        return _tint(brightness, base, rng)

    return draw


_TEXTURES: dict[str, Callable[[int, int, np.random.Generator], Float32]] = {
    "sand": _sand,
    "grass": _grass,
    "water": _water,
    "snow": _noisy((226, 232, 240), (45, 16, 24), grain=4),
    "sky": _noisy((128, 172, 222), (110, 12, 30)),
    "gravel": _noisy((128, 124, 120), (190, 2.2, 2.2), grain=6),
    "wood": _noisy((150, 106, 64), (90, 1.1, 28), (50, 6, 50)),
    "brick": _brick,
    "moss": _noisy((72, 104, 52), (150, 4, 4), grain=5),
    "mud": _noisy((96, 74, 54), (90, 8, 8), grain=7),
    "marble": _marble,
    "coal": _noisy((52, 50, 54), (120, 3, 3), grain=4),
}


def _smooth_noise(height: int, width: int, sigma_y: float, sigma_x: float, rng: np.random.Generator) -> Float32:
    """Gaussian noise smoothed by `sigma_y` and `sigma_x` px, of unit-like strength: float32 (H, W), mean near 0."""
    noise = rng.normal(0, 1, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(0.25 * smooth / max(float(smooth.std()), 1e-6), dtype=np.float32)


def _tint(brightness: npt.NDArray[Any], base: tuple[int, int, int], rng: np.random.Generator) -> Float32:
    """Add a brightness texture (H, W) to a slightly varied base colour: float32 (H, W, 3)."""
    colour = np.array(base) + rng.uniform(-12, 12, 3)
    return np.asarray(colour + brightness[..., None], dtype=np.float32)


def painted(pattern: str, size: tuple[int, int], period: float, angle: float, rng: np.random.Generator) -> Float32:
    """Where a thing has its full colour: float32 (H, W) in 0..1, one shape repeated on a grid; 1 for "plain".

    The grid's cells have a side of `period` px and are turned by `angle`, in radians.
    """
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / period
    u = x * np.cos(angle) + y * np.sin(angle) + rng.uniform(0, 1)
    v = y * np.cos(angle) - x * np.sin(angle) + rng.uniform(0, 1)
    if pattern == "plain":
        return np.ones(size, np.float32)
    inside = _PATTERNS[pattern](u, v)
    return np.asarray(np.clip(inside * period + 0.5, 0, 1), np.float32)  # one px wide transitions


def _mid(u: Any) -> Any:
    """Distance to the middle of the grid's cell, in periods."""
    return np.abs(u % 1 - 0.5)


def _star(u: Any, v: Any) -> Any:
    return 0.27 + 0.15 * np.cos(5 * np.arctan2(v % 1 - 0.5, u % 1 - 0.5)) - np.hypot(_mid(u), _mid(v))


def _plus(a: Any, b: Any) -> Any:
    return np.maximum(np.minimum(0.13 - a, 0.42 - b), np.minimum(0.13 - b, 0.42 - a))


# How far inside the shape a place (u, v) of the grid is, in periods; negative outside.
_PATTERNS: dict[str, Callable[[Any, Any], Any]] = {
    "stripes": lambda u, v: 0.25 - _mid(u),
    "dots": lambda u, v: 0.32 - np.hypot(_mid(u), _mid(v)),
    "checks": lambda u, v: (1 - 2 * ((np.floor(u) + np.floor(v)) % 2)) * (0.5 - np.maximum(_mid(u), _mid(v))),
    "stars": _star,
    "triangles": lambda u, v: 0.2 - np.maximum(0.4 - v % 1, 0.5 * (v % 1 - 0.4) + 0.87 * _mid(u)),
    "crosses": lambda u, v: _plus(_mid(u), _mid(v)),
    "rings": lambda u, v: 0.1 - np.abs(np.hypot(_mid(u), _mid(v)) - 0.32),
    "grid": lambda u, v: np.maximum(_mid(u), _mid(v)) - 0.36,
    "diamonds": lambda u, v: 0.28 - 0.7 * (_mid(u) + _mid(v)),
    "zigzag": lambda u, v: 0.25 - _mid(v + _mid(u)),
    "waves": lambda u, v: 0.25 - _mid(v + 0.25 * np.sin(2 * np.pi * u)),
}


def pebble(rng: np.random.Generator) -> Float64:
    """A lumpy round outline."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radii = np.full(len(angles), 0.8)
    for waves in (2, 3, 5):
        radii += rng.uniform(0.03, 0.1) * np.sin(waves * angles + rng.uniform(0, 6))
    return polar(radii)


def polar(radii: Float64) -> Float64:
    """Corners (K, 2), x and y, of an outline round the origin: a circle where all radii are equal."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), axis=1)


BALL = polar(np.full(64, 0.9))
"""Corners of a circle; outlines have a radius of about 1."""


class Pose(NamedTuple):
    """Where a thing is: its outline's corners (K, 2), x and y in px, its centre and its radius."""

    corners: Float64
    centre: Float64
    radius: float


def posed(outline: Float64, size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float]) -> Pose:
    """An outline at a random place, of random scale (of the shorter side), turn and squeeze."""
    height, width = size
    radius = min(height, width) * np.exp(rng.uniform(*np.log(scale)))
    turn, squeeze = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0.75, 1.33))
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    centre = np.array((width, height)) * rng.uniform(0.1, 0.9, 2)
    return Pose(outline @ rotation * (squeeze, 1 / squeeze) * radius + centre, centre, radius)


def paint(
    canvas: Float32,
    labels: UInt8,
    pose: Pose,
    paints: Float32,
    *,
    colour: tuple[int, int, int],
    label: int,
    rng: np.random.Generator,
    gap: float = 0.28,
) -> None:
    """Paint one thing, of random light, over image (H, W, 3) and label map (H, W), in place; both may be views.

    Between the shapes `paints` (H, W) on it, its colour is `gap` times as bright; all of it carries the label.
    """
    height, width = labels.shape
    covered = coverage(pose.corners, height, width)

    right, down = rng.uniform(-6, 6, 2)
    shadow = cv2.warpAffine(covered, np.array([(1, 0, right), (0, 1, down)], np.float32), (width, height))
    shadow = cv2.GaussianBlur(shadow, (0, 0), 4)
    canvas *= 1 - 0.35 * shadow[..., None]
    surface = (colour + rng.uniform(-16, 16, 3)) * _light(labels.shape, pose.centre, pose.radius, rng)[..., None]
    surface *= gap + (1 - gap) * paints[..., None]
    canvas += covered[..., None] * (surface.astype(np.float32) - canvas)
    if rng.random() < 0.3:  # annotators often leave the border open
        around = cv2.dilate(covered, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
        labels[around >= 0.5] = IGNORE_INDEX
    labels[covered >= 0.5] = label


def coverage(corners: Float64, height: int, width: int) -> Float32:
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


def _light(shape: tuple[int, ...], centre: Float64, radius: float, rng: np.random.Generator) -> Float32:
    """Brightness of a mottled surface lit from one side, 1 being its own colour: float32 (H, W), about 0.6 to 1.3."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / radius
    shade = rng.uniform(0.8, 1.05) + 0.16 * np.clip(slope, -1.2, 1.2) + 0.2 * _smooth_noise(height, width, 3, 3, rng)
    return np.asarray(shade, dtype=np.float32)
