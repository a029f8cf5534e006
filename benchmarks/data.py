"""The samples that every benchmark uses: a manifest of the user's own, or generated stand-ins for photographs.

The stand-ins are 640x480 "dead leaves": shapes of power-law sizes that occlude each other, each with shading and grain
of its own, then blur, sensor noise and JPEG. They cost what photographs cost, nearly: means of 64 of them, and in
brackets of 13 COCO-Stuff photographs: JPEG files of 139 KB (140), Canny on 5.4 % of the frame's pixels (7.0), 870 SIFT
keypoints (640), mask edges on 4.7 % (4.5), 8.6 classes a label map (8.1). They are not photographs: give
``--manifest`` for figures on your own.

SuperPoint runs with random weights, so that a fourth structure exists: up to 600 keypoints a frame, in places that mean
nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from physseg.manifests.datasets.coco_stuff import coco_stuff_vocabulary
from physseg.manifests.manifest import Manifest, Sample
from physseg.pipeline.run import run

UInt8 = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 480, 640
JPEG_QUALITY = 96
NUM_CLASSES = 171
IGNORE = 255

STRUCTURES = ("canny", "mask_edges", "sift", "superpoint")
ARRAYS = ("labels", *STRUCTURES, "cell_classes", "cell_counts")
"""What the trainer reads of a sample."""

SUPERPOINT_LAYERS = (*(f"conv{level}{half}" for level in (1, 2, 3, 4) for half in "ab"), "convPa", "convPb")
PUBLISHED_WIDTHS = (1, 64, 64, 64, 64, 128, 128, 128, 128, 256, 65)
"""Channels of the published network, from the grey image to the logits."""
SMALL_WIDTHS = (1, 8, 8, 8, 8, 16, 16, 16, 16, 32, 65)


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The manifest of a run, and what the report says of it."""

    manifest: Manifest
    description: str


def open_samples(manifest: Path | None, count: int, folder: Path) -> Samples:
    """At most ``count`` samples of a manifest, or so many generated ones below ``folder``."""
    if manifest is None:
        return Samples(
            manifest=write_samples(folder / "generated", count),
            description=f"{count} generated pictures of {WIDTH}x{HEIGHT} px (benchmarks/data.py), JPEG",
        )
    table = Manifest.read(manifest)
    whole = [sample for sample in table.samples if not sample.problem]
    used = replace(table, samples=whole[:count])
    return Samples(manifest=used, description=f"{len(used)} samples of {table.dataset}")


def write_samples(root: Path, count: int) -> Manifest:
    """Generate ``count`` JPEGs and label PNGs below ``root``; the same every time."""
    return write_pictures(root, (draw(np.random.default_rng([7, index])) for index in range(count)))


def write_pictures(root: Path, pictures: Iterable[tuple[UInt8, UInt8]]) -> Manifest:
    """Write images (H, W, 3) RGB and label maps (H, W) below ``root``, and make their manifest."""
    samples = []
    for index, (image, labels) in enumerate(pictures):
        files = {
            f"images/{index:06d}.jpg": cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]),
            f"labels/{index:06d}.png": cv2.imencode(".png", labels),
        }
        hashes = []
        for path, (_, encoded) in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(encoded.tobytes())
            hashes.append(hashlib.sha256(encoded.tobytes()).hexdigest())
        image_path, label_path = files
        samples.append(
            Sample(
                sample_id=f"{index:06d}",
                image_path=image_path,
                label_path=label_path,
                height=image.shape[0],
                width=image.shape[1],
                image_sha256=hashes[0],
                label_sha256=hashes[1],
                split="train",
            )
        )
    return Manifest(
        root=str(root.resolve()),
        dataset="generated",
        vocabulary=coco_stuff_vocabulary(),
        raw_to_class={index: index for index in range(NUM_CLASSES)},
        raw_ignore=(IGNORE,),
        samples=samples,
    )


def write_store(manifest: Manifest, store: Path) -> Path:
    """Compute the store that the reading benchmarks use: labels, four structures and cell counts."""
    weights = write_superpoint_weights(store.with_suffix(".pth"), SMALL_WIDTHS)
    run.preprocess(manifest, store, structures=STRUCTURES, settings=superpoint_settings(weights), scheduler="sync")
    return store


def superpoint_settings(weights: Path) -> dict[str, dict[str, Any]]:
    """Of random probabilities, about 1/65 each, the 600 strongest that survive suppression."""
    return {"superpoint": {"weights": str(weights), "threshold": 0.0, "max_keypoints": 600}}


def write_superpoint_weights(path: Path, widths: Sequence[int]) -> Path:
    """A detector of random weights in Magic Leap's format."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer, inputs, outputs in zip(SUPERPOINT_LAYERS, widths[:-1], widths[1:], strict=True):
        side = 1 if layer == "convPb" else 3
        scale = (2 / (inputs * side * side)) ** 0.5
        weights[f"{layer}.weight"] = scale * torch.randn(outputs, inputs, side, side, generator=generator)
        weights[f"{layer}.bias"] = torch.zeros(outputs)
    torch.save(weights, path)
    return path


# --- drawing --------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """One stand-in: image (H, W, 3) uint8 RGB and label map (H, W) uint8, class ids or 255."""
    labels = _label_map(rng)
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for region in np.unique(labels):
        _paint(canvas, labels == region, rng)
    canvas += _clutter(rng)
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.45, 0.8))
    canvas += rng.normal(0, rng.uniform(2.0, 5.0), (HEIGHT, WIDTH, 1)).astype(np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels


def _label_map(rng: np.random.Generator) -> UInt8:
    """Regions of a few classes: a landscape of wavy bands, objects of power-law sizes on it, some pixels unlabelled."""
    classes = rng.choice(NUM_CLASSES, rng.integers(4, 14), replace=False).tolist()
    rows = np.arange(HEIGHT)[:, None]
    x = np.arange(WIDTH)[None, :] / WIDTH
    labels: UInt8 = np.full((HEIGHT, WIDTH), classes[0], np.uint8)
    for class_id in classes[1:3]:
        line = HEIGHT * (rng.uniform(0.2, 0.9) + 0.03 * _waves(rng, x, terms=9))
        labels[rows > line] = class_id
    for _ in range(rng.integers(8, 30)):
        outline = _outline(rng, radius=min(160.0, 14 / rng.uniform(0.04, 1) ** 0.7))
        fill = IGNORE if rng.random() < 0.1 else classes[rng.integers(len(classes))]
        cv2.fillPoly(labels, [outline], fill)
    return labels


def _paint(canvas: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Fill a region of the canvas with a colour, its shading and its grain."""
    left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
    box = slice(top, top + height), slice(left, left + width)
    colour = rng.uniform(25, 225) + rng.normal(0, 22, 3)
    grain = np.float32(np.exp(rng.normal(2.3, 0.7))) * _grains()[rng.integers(NUM_GRAINS)][box]
    slope = rng.normal(0, 0.1, 2).astype(np.float32)
    shade = slope[0] * np.arange(height, dtype=np.float32)[:, None] + slope[1] * np.arange(width, dtype=np.float32)
    plane = colour.astype(np.float32) + (grain + shade)[..., None]
    np.copyto(canvas[box], plane, where=inside[box][..., None])


NUM_GRAINS = 16


@cache
def _grains() -> npt.NDArray[np.float32]:
    """Patterns whose amplitude falls with frequency as in photographs, finer and coarser ones: (K, H, W), spread 1."""
    rng = np.random.default_rng(3)
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    patterns = []
    for exponent in np.linspace(1.0, 1.8, NUM_GRAINS):
        spectrum = np.fft.rfft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency**exponent
        pattern = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        patterns.append(pattern / pattern.std())
    return np.asarray(patterns, np.float32)


def _clutter(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """What the label map does not know: leaves of power-law sizes in clusters, and strokes, brighter or darker."""
    leaves = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    centres = rng.uniform((0, 0), (WIDTH, HEIGHT), (5, 2))
    spread = rng.uniform(30, 160, 5)
    for _ in range(int(np.exp(rng.uniform(np.log(40), np.log(250))))):
        cluster = rng.integers(5)
        radius = min(60.0, 2.2 / rng.uniform(0.01, 1) ** 0.6)
        outline = _outline(rng, radius=radius, centre=rng.normal(centres[cluster], spread[cluster]))
        cv2.fillPoly(leaves, [outline], _shift(rng))
    for _ in range(int(np.exp(rng.uniform(np.log(20), np.log(200))))):
        start, heading = rng.uniform((0, 0), (WIDTH, HEIGHT)), rng.normal(0, 1, 2)
        steps = np.linspace(0, rng.uniform(30, 160), 12)
        stroke = start + steps[:, None] * heading + rng.normal(0, 5) * np.sin(steps / 20)[:, None] * heading[::-1]
        cv2.polylines(leaves, [np.round(stroke).astype(np.int32)], False, _shift(rng), int(rng.integers(2, 6)))
    return leaves


def _shift(rng: np.random.Generator) -> list[float]:
    """A change of colour, mostly of brightness."""
    return list(rng.normal(0, 8, 3) + rng.normal(0, 55))


def _outline(
    rng: np.random.Generator, *, radius: float, centre: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.int32]:
    """A lumpy closed outline (K, 2) x, y in px."""
    centre = rng.uniform((0, 0), (WIDTH, HEIGHT)) if centre is None else centre
    angles = np.linspace(0, 2 * np.pi, max(8, int(radius)), endpoint=False)
    radii = radius * (1 + 0.22 * _waves(rng, angles / (2 * np.pi), terms=4))
    squeeze = np.exp(rng.normal(0, 0.7))
    points = np.stack((radii * np.cos(angles) * squeeze, radii * np.sin(angles) / squeeze), axis=-1)
    return np.round(points + centre).astype(np.int32)


def _waves(rng: np.random.Generator, x: npt.NDArray[np.float64], *, terms: int) -> npt.NDArray[np.float64]:
    """A random periodic function of x in [0, 1), of spread about 1; the shape of x."""
    order = np.arange(1, terms + 1)
    strength = rng.normal(0, 1, terms) / np.sqrt(order)
    phase = rng.uniform(0, 2 * np.pi, terms)
    return np.asarray(np.sin(2 * np.pi * x[..., None] * order + phase) @ strength)
