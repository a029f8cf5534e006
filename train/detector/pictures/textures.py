"""Generated textures, unlabelled pictures that no photographer owns: what a detector is taught further on.

Scenes of opaque things over each other have the edges, junctions and sizes of photographs (the "dead leaves" model of
Matheron 1968; sizes by a power law, Lee, Mumford, Huang 2001); the others add what leaves lack: slopes without edges,
strokes, and repetition.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from .drawing import Canvas, Points, as_grey, directions, rotation
from .files import Grey
from .shapes import draw_tiles, random_polygon


def draw_texture(rng: np.random.Generator, size: tuple[int, int], kind: str | None = None) -> Grey:
    """Draw one picture (H, W) uint8 of `size` (h, w); `kind` is a key of `TEXTURES`, None draws one."""
    canvas = Canvas(rng, size)
    TEXTURES[kind or str(rng.choice(list(TEXTURES), p=_SHARES))](canvas)
    canvas.image = _photographed(canvas)
    return canvas.finish(np.zeros((0, 2)))[0]


def _leaves(canvas: Canvas) -> None:
    """Polygons and ellipses, textured or plain, few large and many small, until the background is nearly gone."""
    rng = canvas.rng
    for _ in range(int(rng.integers(80, 400))):
        radius = canvas.extent * min(0.5, 0.025 * rng.pareto(1.5) + 0.02)
        grey = int(rng.integers(0, 256))
        outline = random_polygon if rng.random() < 0.6 else _oval
        canvas.fill(outline(rng, canvas.point(0), radius), grey, textured=rng.random() < 0.4)


def _grains(canvas: Canvas) -> None:
    """Fine texture, as of gravel, grass and plaster: leaves of about one size, all over unless they are very fine."""
    rng = canvas.rng
    side, aspect = canvas.extent * np.exp(rng.uniform(np.log(0.012), np.log(0.05))), rng.uniform(0.25, 1)
    grey, spread, turn = int(rng.integers(40, 216)), rng.uniform(8, 50), rng.uniform(0.1, 2)
    outline = random_polygon(rng, np.zeros(2), 1.0) * [1, aspect]
    for _ in range(min(4000, int(1.5 * canvas.height * canvas.width / side**2 / aspect))):
        leaf = canvas.point(0) + side * rng.uniform(0.6, 1.4) * outline @ rotation(rng.normal(0, turn))
        canvas.fill(leaf, int(np.clip(rng.normal(grey, spread), 0, 255)))


def _clouds(canvas: Canvas) -> None:
    """Noise at all scales, falling off as in photographs; half of the pictures are cut into flat levels."""
    rng = canvas.rng
    total = _fractal(canvas)
    if rng.random() < 0.5:
        total = np.rint(total * np.float32(rng.uniform(0.7, 2))).astype(np.float32) / 2
    canvas.image = as_grey(128 + rng.uniform(20, 60) * total)


def _mosaic(canvas: Canvas) -> None:
    """Cells around random points, with or without seams."""
    rng = canvas.rng
    subdivision = cv2.Subdiv2D((0, 0, canvas.width, canvas.height))
    for point in rng.uniform([1, 1], [canvas.width - 1, canvas.height - 1], (int(rng.integers(20, 200)), 2)):
        subdivision.insert(tuple(point.tolist()))
    cells, _ = subdivision.getVoronoiFacetList([])
    seam = int(rng.integers(0, 256)) if rng.random() < 0.5 else None
    for cell in cells:
        corners = np.asarray(cell, np.float64)
        if seam is not None:
            centre = corners.mean(axis=0)
            canvas.fill(corners, seam)
            corners = centre + (corners - centre) * rng.uniform(0.7, 0.95)
        canvas.fill(corners, int(rng.integers(0, 256)), textured=rng.random() < 0.4)


def _strokes(canvas: Canvas) -> None:
    """Short strokes in bundles, as in writing, grass and hair, over leaves."""
    rng = canvas.rng
    _leaves(canvas)
    for _ in range(int(rng.integers(3, 15))):
        start, direction = canvas.point(0), rng.uniform(0, np.pi)
        grey, thickness = canvas.grey(), int(rng.integers(2, 6))
        length, spread = canvas.extent * rng.uniform(0.03, 0.2), rng.uniform(0.02, 1.0)
        step = canvas.extent * rng.uniform(0.02, 0.08) * np.array([np.sin(direction), -np.cos(direction)])
        for index in range(int(rng.integers(4, 20))):
            angle = direction + rng.normal(0, spread)
            middle = start + index * step + rng.normal(0, 0.01, 2) * canvas.extent
            half = length * rng.uniform(0.5, 1) * np.array([np.cos(angle), np.sin(angle)]) / 2
            canvas.line(middle - half, middle + half, grey, thickness)


TEXTURES: dict[str, Callable[[Canvas], object]] = {
    "leaves": _leaves,
    "grains": _grains,
    "tiles": draw_tiles,
    "clouds": _clouds,
    "mosaic": _mosaic,
    "strokes": _strokes,
}
_SHARES = (0.35, 0.2, 0.1, 0.1, 0.1, 0.15)


def _oval(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    axes = radius * np.array([1, rng.uniform(0.3, 1)])
    outline = directions(np.linspace(0, 2 * np.pi, 24, endpoint=False)) * axes
    return np.asarray(centre + outline @ rotation(rng.uniform(0, np.pi)))


def _fractal(canvas: Canvas) -> npt.NDArray[np.float32]:
    """Noise (H, W) at all scales, mean 0 and standard deviation 1, rough or smooth."""
    total = np.zeros((canvas.height, canvas.width), np.float32)
    roughness = canvas.rng.uniform(0.4, 1.0)
    for octave in range(2, 8):
        total += canvas.smooth_noise(2**octave) * np.float32(2 ** (-octave * roughness))
    return np.asarray((total - total.mean()) / total.std())


def _photographed(canvas: Canvas) -> Grey:
    """As a camera would see it: rough surfaces, uneven light, a lens more or less in focus, haze, grain."""
    rng = canvas.rng
    scene = canvas.image + rng.uniform(0, 30) * _fractal(canvas)
    scene *= 1 + rng.uniform(0, 0.4) * canvas.smooth_noise(int(rng.integers(2, 5)))
    scene = cv2.GaussianBlur(scene, (0, 0), float(np.exp(rng.uniform(np.log(0.5), np.log(5)))))
    scene = 128 + rng.uniform(0.4, 1) * (scene - 128) + rng.uniform(-30, 30)
    scene += rng.standard_normal(scene.shape, np.float32) * rng.uniform(0, 10)
    return as_grey(scene)
