"""Labels for pictures that have none: a trained detector's own answers, averaged over many homographies."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ...common.atomic import atomic_write
from ...common.settings import to_dict
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.keypoints import Scores, best_points
from ...structure_extractors.superpoint.adaptation import SPREAD_PX
from ...structure_extractors.superpoint.inference import infer, read_detector, read_weights
from ..model.device import choose_device
from .labels import Labelled
from .pictures.files import Grey, find_pictures, picture_digest, read_grey
from .pictures.textures import draw_texture
from .settings import chosen_precision

SAVE_EVERY_S = 60.0
RANK = "probability times strength"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSettings:
    """Everything that labels depend on besides the pictures and the weights."""

    adaptation: int = 100  # number of homographies per picture
    threshold: float = 0.015  # keypoints are more probable than this
    radius_px: int = 4  # keypoints are further apart than this, and from the edge
    max_points: int = 600  # number of keypoints that are kept of each picture, the best ones
    size: tuple[int, int] = (240, 320)  # height and width that the pictures are resized to
    precision: str = "auto"  # of the convolutions: bfloat16, float32, or auto, which keeps that of labels begun before


def write_textures(folder: Path, *, number: int, seed: int, size: tuple[int, int]) -> int:
    """Write generated textures texture_00000.png, ... of `size` (h, w) that are not there yet; returns how many."""
    names = [f"texture_{index:05d}.png" for index in range(number)]
    missing = [(index, folder / name) for index, name in enumerate(names) if not (folder / name).exists()]
    for index, path in missing:
        data = io.BytesIO()
        Image.fromarray(draw_texture(np.random.default_rng([seed, index]), size)).save(data, format="png")
        atomic_write(path, data.getvalue())
    return len(missing)


def label(
    folder: Path,
    out: Path,
    weights: Path,
    settings: LabelSettings,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Labelled:
    """Label every picture of a folder, searched to any depth, resuming a label file that was interrupted.

    Raises:
        ExtractorError: The label file was made with other settings or weights, or a picture cannot be read.
    """
    before = Labelled.read(out) if out.exists() else None
    precision = chosen_precision(settings.precision, device, before.precision if before else None)
    recorded = to_dict(replace(settings, precision=precision)) | {"spread_px": SPREAD_PX, "rank": RANK}
    made_by = json.dumps({"weights": hashlib.sha256(read_weights(weights)).hexdigest()} | recorded)
    if before and before.made_by != made_by:
        raise ExtractorError(
            f"{out}: labels made with other settings are here: {before.made_by}, now {made_by}",
            hint="name another file, or remove this one",
        )
    digests = {name: picture_digest(folder / name) for name in find_pictures(folder)}
    done: dict[str, npt.NDArray[np.float32]] = {}
    for at, name in enumerate(before.names if before else ()):  # another picture of the same name is labelled anew
        if before and name in digests and (not before.digests or before.digests[at] == digests[name]):
            done[name] = before.keypoints(at)
    network = read_detector(weights, precision=precision, device=str(choose_device(device))).network
    saved = started = time.monotonic()
    for index, name in enumerate(digests):
        if name in done:
            continue
        grey = read_grey(folder / name, settings.size, digests[name])
        points, probable = best_points(
            infer(network, grey, settings.adaptation),
            number=None,
            radius_px=settings.radius_px,
            border_px=settings.radius_px,
            threshold=settings.threshold,
        )
        x, y = points.astype(int).T
        order = np.argsort(-probable * corner_strength(grey)[y, x], kind="stable")
        done[name] = points[order[: settings.max_points]]
        if time.monotonic() - saved > SAVE_EVERY_S:
            _pack(done, digests, settings.size, made_by).write(out)
            saved = time.monotonic()
            say(f"{index + 1} of {len(digests)} pictures, {saved - started:.0f} s")
    labelled = _pack({name: done[name] for name in digests}, digests, settings.size, made_by)
    labelled.write(out)
    return labelled


def corner_strength(grey: Grey) -> Scores:
    """Strength of the strongest corner within 2 px of each pixel of a picture (H, W) uint8 (Shi and Tomasi 1994).

    Among corners that are all as probable, as in fine texture, a detector's order is chance. The order by strength
    changes less with angle, light and compression.
    """
    soft = cv2.GaussianBlur(grey.astype(np.float32) / 255, (0, 0), 1.0)
    return np.asarray(cv2.dilate(cv2.cornerMinEigenVal(soft, 5, ksize=3), np.ones((5, 5), np.uint8)), np.float32)


def _pack(
    done: dict[str, npt.NDArray[np.float32]], digests: dict[str, str], size: tuple[int, int], made_by: str
) -> Labelled:
    return Labelled(
        names=tuple(done),
        digests=tuple(digests[name] for name in done),
        size=size,
        points=np.concatenate([np.zeros((0, 2), np.float32), *done.values()]),
        offsets=np.cumsum([0, *map(len, done.values())]),
        made_by=made_by,
    )
