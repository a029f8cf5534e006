"""A canvas for drawing at twice the wanted size, so that edges are smooth and corners lie between pixels.

Points on the canvas are (x, y) in its own pixels, float; `Canvas.finish` halves both.
"""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
SCALE = 2  # canvas pixels per pixel of the finished image
VISIBLE = 3e-4  # smaller eigenvalue of the gradients about a point; 95% of the corners of single polygons have more
GROWTH_PX = 0.65  # by which OpenCV's smooth filling goes beyond each edge of a polygon, in pixels of the canvas
_SHIFT = 4  # OpenCV takes coordinates as integers of 1/16 px


def as_grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Values cut off at black and white, fractions dropped."""
    return np.asarray(np.clip(values, 0, 255).astype(np.uint8))


def directions(angles: npt.NDArray[np.float64]) -> Points:
    """Unit vectors (N, 2) at angles (N,) in radians."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rotation(angle: float) -> npt.NDArray[np.float64]:
    """The matrix (2, 2) that points (N, 2) are multiplied by from the right to turn by an angle in radians."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


class Canvas:
    """A grey canvas (H, W) uint8 with a random smooth background; greys are drawn so that they stand out from it."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size[0] * SCALE, size[1] * SCALE
        self.extent = float(min(self.height, self.width))
        self.level = int(rng.integers(0, 256))
        amplitude, cells = float(rng.choice([0, 8, 16, 25])), int(rng.integers(2, 12))
        self.image = as_grey(self.level + amplitude * self.smooth_noise(cells))

    def smooth_noise(self, cells: int, size: tuple[int, ...] = ()) -> npt.NDArray[np.float32]:
        """Noise in [-1, 1] of about `cells` hills along each side, of `size` (h, w) or as large as the canvas."""
        coarse = self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        height, width = size or (self.height, self.width)
        return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)

    def grey(self, *others: int, contrast: int = 40) -> int:
        """A grey that differs from the background's level and from `others`: the best of a few tries."""
        tries = self.rng.integers(0, 256, 12)
        distance = np.abs(tries[:, None] - np.array([self.level, *others])).min(axis=1)
        enough = tries[distance >= contrast]
        return int(enough[0] if len(enough) else tries[distance.argmax()])

    def point(self, margin: float = 0.05) -> Points:
        """A random point (2,), at least `margin` of the shorter side inside."""
        edge = margin * self.extent
        return self.rng.uniform([edge, edge], [self.width - edge, self.height - edge])

    def fill(self, polygon: Points, grey: int, *, textured: bool = False) -> None:
        """Fill a polygon (N, 2); a texture is noise, fine or coarse, too weak to hide the polygon's edges."""
        outline = [_fixed(_shrunk(polygon, GROWTH_PX))]
        if not textured:
            cv2.fillPoly(self.image, outline, grey, cv2.LINE_AA, _SHIFT)
            return
        x, y, width, height = cv2.boundingRect(polygon.astype(np.float32))
        box = np.s_[max(y - 2, 0) : max(y + height + 2, 0), max(x - 2, 0) : max(x + width + 2, 0)]
        covered = np.zeros_like(self.image)
        cv2.fillPoly(covered, outline, 255, cv2.LINE_AA, _SHIFT)
        alpha = covered[box].astype(np.float32) / 255
        if not alpha.size:
            return
        cells = max(2, int(alpha.shape[0] / self.rng.choice([3, 6, 20, 60])))
        texture = self.smooth_noise(cells, alpha.shape)
        painted = np.clip(grey + self.rng.uniform(5, 25) * texture, 0, 255)
        self.image[box] = (self.image[box] * (1 - alpha) + painted * alpha).astype(np.uint8)

    def stamp(self, numbers: npt.NDArray[np.uint8], polygon: Points, number: int) -> None:
        """Write `number` on the pixels of a map (H, W) that a polygon covers."""
        cv2.fillPoly(numbers, [_fixed(polygon)], number, cv2.LINE_8, _SHIFT)

    def visible(self, points: Points) -> Points:
        """Those of the points (N, 2) where the picture has a corner at all: neighbours may be of one grey by chance."""
        corner = cv2.cornerMinEigenVal(self.image.astype(np.float32) / 255, 5 * SCALE, ksize=3)
        corner = cv2.dilate(corner, np.ones((5, 5), np.uint8))
        return np.asarray(points[corner[self.pixels(points)] > VISIBLE])

    def pixels(self, points: Points) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Rows and columns of the pixels nearest to points (N, 2), which may lie outside."""
        x, y = np.clip(np.rint(points.T).astype(np.intp), 0, [[self.width - 1], [self.height - 1]])
        return y, x

    def line(self, start: Points, end: Points, grey: int, thickness: int) -> None:
        """Draw a segment between two points (2,)."""
        (x0, y0), (x1, y1) = (point.tolist() for point in _fixed(np.stack([start, end])))
        cv2.line(self.image, (x0, y0), (x1, y1), grey, thickness, cv2.LINE_AA, _SHIFT)

    def ellipse(self, centre: Points, axes: Points, degrees: float, grey: int) -> None:
        """Fill an ellipse with half-axes (2,)."""
        (x, y), (a, b) = (point.tolist() for point in _fixed(np.stack([centre, axes])))
        cv2.ellipse(self.image, (x, y), (a, b), degrees, 0, 360, grey, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def finish(self, keypoints: Points) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """The picture at its final size, uint8 (H, W), and those keypoints (N, 2) that lie in it, float32."""
        soft = cv2.GaussianBlur(self.image, (0, 0), float(self.rng.uniform(0.3, 1.5)))
        size = (self.width // SCALE, self.height // SCALE)
        image = np.asarray(cv2.resize(soft, size, interpolation=cv2.INTER_AREA), np.uint8)
        points = (keypoints.reshape(-1, 2) + 0.5) / SCALE - 0.5
        inside = ((points >= -0.5) & (points < np.array(size) - 0.5)).all(axis=1)
        return image, points[inside].astype(np.float32)


def _shrunk(polygon: Points, by: float) -> Points:
    """A polygon (N, 2) with each edge moved inwards; corners move twice as far at most, however sharp."""
    following = np.roll(polygon, -1, axis=0)
    along = following - polygon
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    area = (polygon[:, 0] * following[:, 1] - polygon[:, 1] * following[:, 0]).sum()
    inwards = np.sign(area) * np.stack([-along[:, 1], along[:, 0]], axis=1)
    both = inwards + np.roll(inwards, 1, axis=0)
    return np.asarray(polygon + by * both / np.maximum((both**2).sum(axis=1, keepdims=True) / 2, 0.5))


def _fixed(points: Points) -> npt.NDArray[np.int32]:
    return np.asarray(np.rint(points * (1 << _SHIFT)), np.int32)
