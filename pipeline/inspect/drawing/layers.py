"""One sample's maps as layers over its photograph: labels, structures and patch weights, in few colours each.

The page shows them as PNGs that it stacks and fades. `Layer.over` lays one on the photograph for good.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import DrawError
from .label_maps import outlines
from .palette import Colour, Floats, UInt8, blend, colour_labels, heat_colours

EDGES, KEYPOINTS, DENSITY, CLASS_EDGES = "edges", "keypoints", "density", "class_edges"
"""Kinds of structure: 0 or 255; coded confidences at keypoints; a coded confidence everywhere; classes that meet."""
KINDS: Final = (EDGES, KEYPOINTS, DENSITY, CLASS_EDGES)
LEVELS: Final = 16
"""Steps of opacity and of weights: 4 bits a pixel, half the bytes of 8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A picture of few colours, each more or less opaque."""

    pixels: npt.NDArray[np.integer[Any]]
    """Index into `colours` of each pixel, (h, w)."""
    colours: UInt8
    """RGB colours, (N, 3)."""
    opacity: UInt8
    """Opacity of each colour from 0 to 255, (N,)."""
    alpha: float = 1.0
    """Opacity of the whole layer on a photograph, from 0 to 1."""

    def over(self, image: UInt8, *, side: int = 1) -> UInt8:
        """The layer on a photograph (H, W, 3) uint8 RGB. Raises DrawError where it does not cover that.

        `side` is the edge in image px of one of the layer's pixels; the last ones may reach over the image's border.
        """
        height, width = image.shape[:2]
        pixels = np.repeat(np.repeat(self.pixels, side, axis=0), side, axis=1)[:height, :width]
        if pixels.shape != (height, width):
            size = f"{self.pixels.shape} pixels, {side} px each"
            raise DrawError(f"a layer of {size}, does not cover an image of {height} x {width}")
        return blend(image, self.colours[pixels], self.alpha * self.opacity[pixels] / np.float32(255))

    def to_png(self) -> bytes:
        """The layer without `alpha`, in as few bits a pixel as its colours need."""
        buffer = BytesIO()
        if len(self.colours) > 256:  # more than a palette holds; such are opaque label maps
            Image.fromarray(self.colours[self.pixels]).save(buffer, "PNG", optimize=True)
            return buffer.getvalue()
        picture = Image.fromarray(self.pixels.astype(np.uint8), "P")
        picture.putpalette(self.colours.tobytes())
        bits = next(bits for bits in (1, 2, 4, 8) if len(self.colours) <= 1 << bits)
        picture.save(buffer, "PNG", optimize=True, bits=bits, transparency=self.opacity.tobytes())
        return buffer.getvalue()


def label_layer(labels: npt.NDArray[np.integer[Any]], colours: UInt8, *, ignore_index: int) -> Layer:
    """A label map (h, w) in its classes' colours, with a dark outline one pixel wide between regions."""
    ids, local = np.unique(labels, return_inverse=True)
    pixels = local.reshape(labels.shape)
    pixels[outlines(labels)] = len(ids)
    coloured = colour_labels(ids, colours, ignore_index=ignore_index)
    colours = np.concatenate([coloured, np.array([(20, 22, 26)], np.uint8)])
    return Layer(pixels=pixels, colours=colours, opacity=np.full(len(colours), 255, np.uint8), alpha=0.6)


def map_layer(
    planes: npt.NDArray[Any], kind: str, colour: Colour, labels: npt.NDArray[Any], colours: UInt8, ignore_index: int
) -> Layer:
    """A structure of any kind: `structure_layer` of one in a colour, `class_edge_layer` of one in its classes'."""
    if kind == CLASS_EDGES:
        return class_edge_layer(planes, labels, colours, ignore_index=ignore_index)
    return structure_layer(planes, kind, colour)


def structure_layer(plane: UInt8, kind: str, colour: Colour) -> Layer:
    """A structure map (h, w) uint8, as the store has it, in one colour. Raises DrawError for an unknown kind.

    The kinds are `edges` (every pixel that is not 0 is opaque), `keypoints` (a dot each, larger and more opaque the
    more confident) and `density` (more opaque the more confident).
    """
    alpha = structure_alpha(plane, kind)
    pixels = np.rint(alpha * (LEVELS - 1)).astype(np.uint8)
    pixels[(pixels == 0) & (alpha > 0)] = 1
    opacity = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    if kind == EDGES:
        pixels, opacity = np.minimum(pixels, 1), np.array([0, 255], np.uint8)
    return Layer(pixels=pixels, colours=np.full((len(opacity), 3), colour, np.uint8), opacity=opacity)


def class_edge_layer(
    planes: npt.NDArray[np.integer[Any]], labels: npt.NDArray[np.integer[Any]], colours: UInt8, *, ignore_index: int
) -> Layer:
    """Planes (P, h, w) of the classes that meet at a pixel: each side of a line in the colour of its own class.

    That is the one of a pixel's classes which is its label (h, w), or where none is, the one in plane 0.
    """
    own = ((planes == labels) & (planes != ignore_index)).any(axis=0)
    ids, pixels = np.unique(np.where(own, labels, planes[0]), return_inverse=True)
    colours = colour_labels(ids, colours, ignore_index=ignore_index)
    opacity = np.where(ids == ignore_index, 0, 255).astype(np.uint8)
    return Layer(pixels=pixels.reshape(labels.shape), colours=colours, opacity=opacity)


def structure_alpha(plane: UInt8, kind: str) -> npt.NDArray[np.float32]:
    """Opacity (h, w) in [0, 1] with which a structure map is drawn; see `structure_layer`."""
    if kind == EDGES:
        return np.asarray(plane > 0, np.float32)
    if kind == DENSITY:
        return np.asarray(plane / np.float32(255), np.float32)
    if kind != KEYPOINTS:
        raise DrawError(f"unknown kind of structure {kind!r}, expected {EDGES}, {KEYPOINTS} or {DENSITY}")
    dots = np.zeros(plane.shape, np.uint8)
    y, x = np.nonzero(plane)
    codes = plane[y, x].astype(np.float64) / 255  # square roots of the confidences
    radius = max(3.0, min(plane.shape) / 85) * (0.1 + 0.9 * codes)
    for i in np.argsort(codes, kind="stable"):  # the strong ones last, on top
        # OpenCV takes centre and radius as fixed-point numbers with `shift` fractional bits.
        centre = (int(x[i]) * 16, int(y[i]) * 16)
        level = round(255 * (0.3 + 0.7 * codes[i]))
        cv2.circle(dots, centre, round(16 * radius[i]), level, -1, cv2.LINE_AA, shift=4)
    return np.asarray(dots / np.float32(255), np.float32)


def weight_layer(weights: Floats) -> Layer:
    """Patch weights (rows, columns) in [0, 1], a pixel per patch, dark to bright; 0 is clear."""
    pixels = np.ceil(weights * (LEVELS - 1) - 1e-6).astype(np.uint8)
    opacity = np.array([0] + [255] * (LEVELS - 1), np.uint8)
    return Layer(pixels=pixels, colours=heat_colours(np.linspace(0, 1, LEVELS)), opacity=opacity, alpha=0.8)
