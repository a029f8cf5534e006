"""Labels for pictures that have none: a trained detector's own answers, averaged over many homographies."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.adaptation import SPREAD_PX, adapted_probabilities
from ...structure_extractors.superpoint.network import CELL_PX, fold_normalisation, grey_tensor
from ...structure_extractors.superpoint.weights import load_detector
from .detectors import best_points
from .labels import Labelled
from .loop import check_device, chosen_precision, dtype_of
from .sources import find_pictures, read_grey
from .textures import draw_texture


def write_textures(folder: Path, *, number: int, seed: int, size: tuple[int, int]) -> None:
    """Write generated textures texture_00000.png, ... of ``size`` (h, w); those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        path = folder / f"texture_{index:05d}.png"
        if not path.exists():
            partial = path.with_suffix(".partial")
            Image.fromarray(draw_texture(np.random.default_rng([seed, index]), size)).save(partial, format="png")
            partial.replace(path)


def label(
    folder: Path,
    out: Path,
    weights: Path,
    *,
    size: tuple[int, int] = (240, 320),
    adaptation: int = 100,
    threshold: float = 0.015,
    radius_px: int = 4,
    max_points: int = 600,
    precision: str = "auto",
    device: str = "cpu",
    save_every_s: float = 60.0,
    say: Callable[[str], None] = lambda _: None,
) -> Labelled:
    """Label every picture below ``folder``, resized to ``size`` (h, w), and write ``out``; goes on where it stopped.

    A label file that other settings, or other weights, made is an :class:`ExtractorError`.
    """
    if size[0] % CELL_PX or size[1] % CELL_PX:
        raise ExtractorError(f"size: expected multiples of {CELL_PX}, got {size}", option="size")
    data = weights.read_bytes()
    settings: dict[str, object] = {"weights": hashlib.sha256(data).hexdigest(), "adaptation": adaptation}
    settings |= {"threshold": threshold, "radius_px": radius_px, "max_points": max_points, "size": list(size)}
    before = Labelled.read(out) if out.exists() else None
    precision = chosen_precision(precision, device, before.precision if before else None)
    settings |= {"precision": precision, "spread_px": SPREAD_PX}
    made_by = json.dumps(settings)
    done = _done(before, out, made_by)
    network = fold_normalisation(load_detector(data, where=str(weights)).network)
    network.to(device=check_device(device), dtype=dtype_of(precision), memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = find_pictures(folder)
    saved = started = time.monotonic()
    for index, name in enumerate(names):
        if name in done:
            continue
        images = grey_tensor(read_grey(folder / name, size)[None], network.logits.conv.weight.device)
        probability = adapted_probabilities(network, images, adaptation)[0].cpu().numpy()
        probability[probability <= threshold] = 0
        done[name], _ = best_points(probability, number=max_points, radius_px=radius_px, border_px=radius_px)
        if time.monotonic() - saved > save_every_s:
            _pack(done, size, made_by).write(out)
            saved = time.monotonic()
            say(f"{index + 1} of {len(names)} pictures, {saved - started:.0f} s")
    labelled = _pack({name: done[name] for name in names}, size, made_by)
    labelled.write(out)
    return labelled


def _done(labelled: Labelled | None, out: Path, made_by: str) -> dict[str, npt.NDArray[np.float32]]:
    if labelled is None:
        return {}
    if labelled.made_by != made_by:
        raise ExtractorError(
            f"{out}: labels made with other settings are here: {labelled.made_by}, now {made_by}",
            hint="name another file, or remove this one",
            expected=labelled.made_by,
            got=made_by,
        )
    return {name: labelled.keypoints(index) for index, name in enumerate(labelled.names)}


def _pack(done: dict[str, npt.NDArray[np.float32]], size: tuple[int, int], made_by: str) -> Labelled:
    lengths = [len(points) for points in done.values()]
    return Labelled(
        names=tuple(done),
        size=size,
        points=np.concatenate([np.zeros((0, 2), np.float32), *done.values()]),
        offsets=np.cumsum([0, *lengths]),
        made_by=made_by,
    )
