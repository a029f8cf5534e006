"""Each structure extractor against the bare library call that it wraps, on the same image in one process.

    python benchmarks/extractors.py [--image PHOTO.jpg] [--labels MAP.png] [--superpoint WEIGHTS] [--out FILE.json]

Without a photograph it takes a generated texture, whose times differ from a photograph's (SIFT's with the keypoints).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from physseg.structure_extractors.interface import Extractor
from physseg.structure_extractors.registry import DEFAULT, build
from PIL import Image

from common import report, time_calls

SIZE = (480, 640)  # height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--superpoint", type=Path, help="weights; without, SuperPoint is left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    cv2.setNumThreads(args.threads)
    image = load_image(args.image) if args.image else textured_image()
    labels = load_labels(args.labels) if args.labels else blocky_labels()
    names = list(DEFAULT)
    settings: dict[str, dict[str, Any]] = {}
    if args.superpoint:
        import torch

        torch.set_num_threads(args.threads)
        names.append("superpoint")
        settings["superpoint"] = {"weights": args.superpoint}
    bare = bare_calls(image, labels)
    rows = []
    for extractor in build(names, settings):
        calls: dict[str, Callable[[], object]] = {"ours": call_of(extractor, image, labels)}
        if extractor.name in bare:
            calls["bare"] = bare[extractor.name]
        timings = time_calls(calls, repeats=args.repeats)
        ratio = timings["bare"].median_s / timings["ours"].median_s if "bare" in timings else None
        rows.append(
            {
                "extractor": extractor.name,
                "ours": timings["ours"],
                "bare call": timings.get("bare", "-"),
                "share of bare speed": ratio if ratio is not None else "-",
            }
        )
    report(
        "Structure extractors, median (10th-90th percentile) per image",
        rows,
        out=args.out,
        size=f"{SIZE[1]}x{SIZE[0]}",
        threads=args.threads,
        image=args.image.name if args.image else "generated",
        opencv=cv2.__version__,
    )


def call_of(extractor: Extractor, image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: extractor(image, labels, ignore_index=255)


def bare_calls(image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> dict[str, Callable[[], object]]:
    """The least that any program pays for the same structure with the same settings."""
    sift = cv2.SIFT.create(enable_precise_upscale=True)
    square = np.ones((3, 3), np.uint8)
    cell = np.add.outer(np.arange(SIZE[0]) // 8 * (SIZE[1] // 8), np.arange(SIZE[1]) // 8)

    def grey() -> Any:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

    return {
        "canny": lambda: cv2.Canny(grey(), 100, 200),
        "mask_edges": lambda: cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, square) > 0,
        "sift": lambda: sift.detect(grey(), None),
        "patch_counts": lambda: np.bincount((cell * 256 + labels).ravel(), minlength=(int(cell.max()) + 1) * 256),
    }


def load_image(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB").resize(SIZE[::-1], Image.Resampling.BOX), np.uint8)


def load_labels(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path).resize(SIZE[::-1], Image.Resampling.NEAREST), np.uint8)


def textured_image() -> npt.NDArray[np.uint8]:
    """Noise at four scales."""
    rng = np.random.default_rng(0)
    total = np.zeros((*SIZE, 3))
    for sigma in (2, 6, 18, 54):
        noise = cv2.GaussianBlur(rng.standard_normal((*SIZE, 3)), (0, 0), sigma)
        total += noise / noise.std()
    return np.clip(128 + 35 * total, 0, 255).astype(np.uint8)


def blocky_labels() -> npt.NDArray[np.uint8]:
    """Twelve random rectangles of classes."""
    rng = np.random.default_rng(1)
    labels = np.zeros(SIZE, np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1])
        labels[y : y + rng.integers(40, 240), x : x + rng.integers(40, 320)] = rng.integers(171)
    return labels


if __name__ == "__main__":
    main()
