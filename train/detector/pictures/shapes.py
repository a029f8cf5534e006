"""Synthetic shapes with exact keypoints, which teach a detector from nothing (DeTone et al. 2017, 2018).

Corners, line ends, line crossings and the junctions where one polygon covers another are keypoints; the outline of an
ellipse and pure noise have none. Everything is drawn by the code below from one random generator per picture.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from .drawing import SCALE, Canvas, Points, as_grey, directions, rotation

NONE: Points = np.zeros((0, 2))


def draw_shape(
    rng: np.random.Generator, size: tuple[int, int], kind: str | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Draw a picture (H, W) uint8 of `size` (h, w) with its keypoints (N, 2) float32 x, y, in no special order.

    `kind` is a key of `TRAINED`; None draws one by its share.
    """
    if kind is None:
        kind = str(rng.choice(list(TRAINED), p=_SHARES / _SHARES.sum()))
    canvas = Canvas(rng, size)
    return canvas.finish(TRAINED[kind][0](canvas))


def _lines(canvas: Canvas) -> Points:
    """Segments that do not touch each other; their ends are keypoints."""
    rng = canvas.rng
    taken = np.zeros((canvas.height, canvas.width), np.uint8)
    ends: list[Points] = []
    for _ in range(rng.integers(1, 11)):
        start, end = canvas.point(0.02), canvas.point(0.02)
        thickness = int(rng.integers(2, 9))
        wanted = np.zeros_like(taken)
        cv2.line(wanted, start.astype(int).tolist(), end.astype(int).tolist(), 1, thickness + 12)
        if np.hypot(*(end - start)) < 0.1 * canvas.extent or (wanted & taken).any():
            continue
        taken |= wanted
        canvas.line(start, end, canvas.grey(), thickness)
        ends += [start, end]
    return np.array(ends)


def _polygon(canvas: Canvas) -> Points:
    corners = random_polygon(canvas.rng, canvas.point(0.2), canvas.extent * canvas.rng.uniform(0.2, 0.6))
    canvas.fill(corners, canvas.grey(), textured=canvas.rng.random() < 0.3)
    return corners


def _polygons(canvas: Canvas) -> Points:
    """Few or many polygons over each other: visible corners, and the junctions where an outline goes below another.

    Which polygon is on top is kept per pixel; an outline is visible at a point if its polygon is on top beside it.
    """
    rng = canvas.rng
    many = rng.random() < 0.3
    smallest, largest = (0.05, 0.3) if many else (0.08, rng.uniform(0.12, 0.45))
    on_top = np.zeros((canvas.height, canvas.width), np.uint8)
    points, starts, ends, owners = NONE, NONE, NONE, np.zeros(0, np.uint8)
    last = canvas.level
    for number in range(1, 1 + rng.integers(*((16, 50) if many else (2, 16)))):
        radius = canvas.extent * np.exp(rng.uniform(np.log(smallest), np.log(largest)))
        corners = random_polygon(rng, canvas.point(0), radius)
        junctions, below = _crossings(corners, np.roll(corners, -1, axis=0), starts, ends)
        junctions = junctions[(_windows(on_top, junctions) == owners[below, None]).any(axis=1)]
        last = canvas.grey(last, *canvas.image[canvas.pixels(corners)].tolist())
        canvas.fill(corners, last, textured=rng.random() < 0.5)
        canvas.stamp(on_top, corners, number)
        covered = (_windows(on_top, points) == number).all(axis=1)
        points = np.concatenate([points[~covered], corners, junctions])
        starts, ends = np.concatenate([starts, corners]), np.concatenate([ends, np.roll(corners, -1, axis=0)])
        owners = np.concatenate([owners, np.full(len(corners), number, np.uint8)])
    return _apart(canvas.visible(points), 3.0 * SCALE)


def _star(canvas: Canvas) -> Points:
    """Rays from a centre; centre and tips are keypoints."""
    rng = canvas.rng
    rays = int(rng.integers(3, 7))
    centre = canvas.point(0.25)
    angles = rng.uniform(0, 2 * np.pi) + (np.arange(rays) + rng.uniform(-0.3, 0.3, rays)) * 2 * np.pi / rays
    length = canvas.extent * rng.uniform(0.15, 0.6, rays)
    tips = centre + length[:, None] * directions(angles)
    grey, thickness = canvas.grey(), int(rng.integers(2, 9))
    for tip in tips:
        canvas.line(centre, tip, grey, thickness)
    return np.concatenate([centre[None], tips])


def _checkerboard(canvas: Canvas) -> Points:
    """A board in perspective, each cell of its own grey, neighbours of two groups that differ."""
    rng = canvas.rng
    rows, columns = rng.integers(2, 8, 2)
    one = canvas.grey()
    other = canvas.grey(one)
    x, y = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    grid = _in_perspective(canvas, np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(rows + 1, columns + 1, 2)
    for row in range(rows):
        for column in range(columns):
            cell = grid[[row, row, row + 1, row + 1], [column, column + 1, column + 1, column]]
            grey = (one, other)[(row + column) % 2] + rng.integers(-12, 13)
            canvas.fill(cell, int(np.clip(grey, 0, 255)))
    return grid.reshape(-1, 2)


def _stripes(canvas: Canvas) -> Points:
    """A quadrilateral cut into stripes of uneven width; the ends of the cuts are keypoints."""
    rng = canvas.rng
    widths = rng.uniform(0.4, 1, rng.integers(3, 12))
    cuts = np.concatenate([[0], np.cumsum(widths)]) / widths.sum()
    upper = _in_perspective(canvas, np.stack([cuts, np.zeros_like(cuts)], axis=1))
    lower = upper + _across(canvas, upper)
    last = canvas.level
    for index in range(len(widths)):
        last = canvas.grey(last)
        canvas.fill(np.stack([upper[index], upper[index + 1], lower[index + 1], lower[index]]), last)
    return np.concatenate([upper, lower])


def _cube(canvas: Canvas) -> Points:
    """A box seen from anywhere, without perspective: the seven visible corners of its three visible faces."""
    rng = canvas.rng
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    half = canvas.extent * rng.uniform(0.12, 0.35, 3)
    centre = canvas.point(0.25)
    last, corners = canvas.level, []
    for axis in range(3):
        towards = turn[:, axis] * np.sign(turn[2, axis])
        first, second = (turn[:, other] * half[other] for other in range(3) if other != axis)
        signs = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
        face = (towards * half[axis] + signs @ np.stack([first, second]))[:, :2] + centre
        last = canvas.grey(last)
        canvas.fill(face, last)
        corners.append(face)
    return _apart(np.concatenate(corners), 3.0 * SCALE)


def draw_tiles(canvas: Canvas) -> Points:
    """Fine repetition in perspective: 12 to 75 bricks or leaves of one size; corners that show and are 3 px apart."""
    rng = canvas.rng
    columns = int(rng.integers(4, 15))
    rows = int(rng.integers(3, 75 // columns + 1))  # more corners than that are nearer than a detector can tell apart
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    places = np.stack([x + rng.choice([0, 0.5]) * (y % 2), y], axis=-1).reshape(-1, 1, 2) + 0.5
    half = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * rng.uniform(0.6, 0.95, 2)
    tiles = np.broadcast_to(half, (len(places), 4, 2))
    if rng.random() < 0.5:  # leaves: turned, each in its own way
        angles = rng.normal(0, rng.uniform(0.1, 2), len(places))
        tiles = np.stack([0.7 * half @ rotation(angle) for angle in angles])
    corners = _in_perspective(canvas, ((places + tiles) / [columns + 0.5, rows]).reshape(-1, 2)).reshape(-1, 4, 2)
    grey, spread = canvas.grey(), rng.uniform(0, 30)
    for tile, own in zip(corners, rng.normal(grey, spread, len(corners)), strict=True):
        canvas.fill(tile, int(np.clip(own, 0, 255)))
    return _apart(canvas.visible(corners.reshape(-1, 2)), 3.0 * SCALE)


def _ellipses(canvas: Canvas) -> Points:
    """No keypoints: outlines without corners. They do not touch, so that there are no junctions either."""
    rng = canvas.rng
    taken = np.zeros((canvas.height, canvas.width), np.uint8)
    for _ in range(rng.integers(1, 20)):
        centre, axes = canvas.point(0), canvas.extent * rng.uniform(0.02, 0.25, 2)
        wanted = np.zeros_like(taken)
        cv2.circle(wanted, centre.astype(int).tolist(), int(axes.max()) + 6, 1, cv2.FILLED)
        if not (wanted & taken).any():
            taken |= wanted
            canvas.ellipse(centre, axes, float(rng.uniform(0, 180)), canvas.grey())
    return NONE


def _noise(canvas: Canvas) -> Points:
    """No keypoints: grains of one size all over."""
    rng = canvas.rng
    grain = int(rng.integers(1, 5))
    shape = (canvas.height // grain, canvas.width // grain)
    noise = rng.standard_normal(shape, np.float32) * rng.uniform(5, 60) + canvas.level
    size = (canvas.width, canvas.height)
    canvas.image = np.asarray(cv2.resize(as_grey(noise), size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return NONE


# What draws each kind, and its share in training: the rich and the hard ones come oftener.
TRAINED: dict[str, tuple[Callable[[Canvas], Points], float]] = {
    "lines": (_lines, 2),
    "polygon": (_polygon, 1),
    "polygons": (_polygons, 4),
    "star": (_star, 1.5),
    "checkerboard": (_checkerboard, 2),
    "stripes": (_stripes, 1.5),
    "cube": (_cube, 2),
    "ellipses": (_ellipses, 1),
    "noise": (_noise, 0.5),
    "tiles": (draw_tiles, 2),
}
KINDS = tuple(kind for kind in TRAINED if kind != "tiles")
"""The kinds that detectors are judged by. Corners of tiles are nearer than the suppression of neighbours spares."""
_SHARES = np.array([share for _, share in TRAINED.values()])


def random_polygon(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    """Three to six corners (N, 2) around `centre`, none flatter than 150 or sharper than 20 degrees."""
    for _ in range(20):
        number = int(rng.integers(3, 7))
        angles = rng.uniform(0, 2 * np.pi) + (np.arange(number) + rng.uniform(-0.35, 0.35, number)) * 2 * np.pi / number
        corners = centre + (radius * rng.uniform(0.4, 1, number))[:, None] * directions(angles)
        before, after = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
        cosine = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        if (cosine > np.cos(np.radians(150))).all() and (cosine < np.cos(np.radians(20))).all():
            return corners
    return centre + radius * directions(np.arange(3) * 2 * np.pi / 3)


def _in_perspective(canvas: Canvas, unit: Points) -> Points:
    """Points (N, 2) of the unit square onto a random quadrilateral of the canvas, by one homography."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    half = canvas.extent * rng.uniform(0.25, 0.7, 2)
    corners = (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + rng.uniform(-0.3, 0.3, (4, 2))) * half
    target = (corners @ rotation(angle) + canvas.point(0.3)).astype(np.float32)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    return np.asarray(cv2.perspectiveTransform(unit[None], cv2.getPerspectiveTransform(square, target))[0], np.float64)


def _across(canvas: Canvas, upper: Points) -> Points:
    """From each upper end of a cut to its lower end: the direction across the stripes, longer at one side."""
    along = upper[-1] - upper[0]
    normal = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1.0)
    slant = canvas.rng.uniform(-0.3, 0.3) * along
    length = canvas.extent * canvas.rng.uniform(0.2, 0.8) * np.linspace(1, canvas.rng.uniform(0.6, 1.6), len(upper))
    return np.asarray(length[:, None] * normal + slant)


def _crossings(p: Points, p_end: Points, q: Points, q_end: Points) -> tuple[Points, npt.NDArray[np.intp]]:
    """Where segments p (N, 2) cross segments q (M, 2): the points (K, 2) and which of q that were (K,)."""
    r, s, gap = (p_end - p)[:, None], (q_end - q)[None], q[None] - p[:, None]
    cross = r[..., 0] * s[..., 1] - r[..., 1] * s[..., 0]
    cross = np.where(np.abs(cross) < 1e-9, np.nan, cross)  # parallel: comparisons with nan are false
    t = (gap[..., 0] * s[..., 1] - gap[..., 1] * s[..., 0]) / cross
    u = (gap[..., 0] * r[..., 1] - gap[..., 1] * r[..., 0]) / cross
    hit = (t > 0) & (t < 1) & (u > 0) & (u < 1)
    return (p[:, None] + t[..., None] * r)[hit], np.nonzero(hit)[1]


def _windows(values: npt.NDArray[np.uint8], points: Points) -> npt.NDArray[np.uint8]:
    """The 5x5 pixels around each point (N, 2), as (N, 25); outside the picture, the edge's."""
    height, width = values.shape
    x, y = np.rint(points.T).astype(int)
    x, y = np.clip(x[:, None] + _DX, 0, width - 1), np.clip(y[:, None] + _DY, 0, height - 1)
    return np.asarray(values[y, x])


_DY, _DX = (axis.ravel() - 2 for axis in np.indices((5, 5)))


def _apart(points: Points, distance: float) -> Points:
    """Drop each point that lies closer than `distance` to an earlier one that is kept."""
    near = ((points[:, None] - points[None]) ** 2).sum(axis=-1) < distance**2
    kept = np.zeros(len(points), bool)
    for index in range(len(points)):
        kept[index] = not near[index, kept].any()
    return np.asarray(points[kept])
