"""What a run's structure head has learnt: its maps against cached ones, and against the boundaries that people draw.

Maps are scored as boundary_score.py says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ...common import plugins
from ...common.progress import ProgressBar
from ...common.regular_files import read_regular
from ...common.storage.location import Location
from ...common.text import percent
from ...manifests.errors import DecodeError
from ...manifests.labels.mat_file import read_cells
from ...pipeline.inspect.drawing.layers import CLASS_EDGES, EDGES, KEYPOINTS
from ...pipeline.store.frame import Frame
from ...pipeline.store.layout import open_schema
from ...pipeline.store.open_store import cut_sample
from ...pipeline.store.reader import StoreReader
from ...structure_extractors import registry
from ...structure_extractors.canny import Canny
from ..errors import AnalysisError
from ..model.segmenter import Segmenter
from ..prediction.trained_model import as_rgb
from ..report.structure_maps import structure_maps
from ..runs.run_folder import RunFolder
from .boundary_score import BoundaryScore, edge_maps, keypoint_maps, thin, tolerance_of

UInt8 = npt.NDArray[np.uint8]

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Thresholds of predicted probabilities, 0.05 to 0.95."""
CANNY_HIGHS = tuple(float(round(25 * 2 ** (step / 2))) for step in range(12))
"""Upper thresholds of the Canny sweep, 25 to 1131; the lower one is half of it, as in the extractor's default."""


def training_crop(run: Path | None) -> int:
    """The side in px of the crops a run was trained on; the published one without a run, or if it does not say."""
    folder = RunFolder(run) if run else None
    training = folder.read()["training"] if folder and folder.exists() else None
    return int((training or {}).get("data", {}).get("crop", 384))


def match_store(
    model: Segmenter,
    store: Location,
    *,
    window_px: int,
    max_images: int | None = None,
    tolerance_px: float | None = None,
    thinned: bool = True,
    root: str | None = None,
) -> dict[str, BoundaryScore]:
    """The head's maps against a store's, for every structure that both have, on the store's frames.

    Cached edges and keypoints count where the map is not 0. Edges of classes count whatever the classes are: the head's
    map is then the highest probability over them.

    Args:
        max_images: Number of samples to look at. Default: all.
        tolerance_px: Distance within which pixels match. Default: a share of the frame's diagonal.
        thinned: Whether edges are thinned to one pixel on both sides.
        root: Folder of the images, if they moved; it is read even where the store has the layer `image`.

    Raises:
        AnalysisError: There is nothing to compare.
    """
    specs = {spec.name: spec for spec in open_schema(store).arrays}
    drawn = {name: spec.drawn for name, spec in specs.items()}
    names = _predicted(model, drawn, (EDGES, KEYPOINTS, CLASS_EDGES))
    reader = StoreReader(store, names, root=root, images=True)
    scores = {name: BoundaryScore(THRESHOLDS) for name in names}
    indices = reader.usable[:max_images].tolist()
    if not indices:
        raise AnalysisError(f"{store}: no computed sample", hint="run `physseg preprocess MANIFEST STORE` again")
    for index in ProgressBar(indices, unit="img"):
        image = reader.image(index)
        stored = cut_sample(reader, index)
        predicted = dict(zip(model.config.structures, structure_maps(model, image, window_px), strict=True))
        tolerance = tolerance_of(*stored.size, tolerance_px)
        for name, plane in stored.arrays.items():
            true = (plane.reshape(-1, *stored.size) != reader.schema.fill(specs[name])).any(axis=0)
            if drawn[name] != KEYPOINTS:
                maps = edge_maps(predicted[name], THRESHOLDS, thinned=thinned)
                scores[name].add(maps, [thin(true) if thinned else true], tolerance)
            else:
                scores[name].add(keypoint_maps(predicted[name], THRESHOLDS), [true], tolerance)
    return scores


def match_bsds(
    images: Sequence[tuple[Path, Path]],
    model: Segmenter | None,
    *,
    window_px: int = 384,
    tolerance_px: float | None = None,
    canny_blur: float = 0.0,
) -> dict[str, BoundaryScore]:
    """Canny (at its default and over a sweep), and the edge maps of a model's head, against people's boundaries.

    "people" sets each person against the others of the same image: about as well as one can do.
    For the head an image is brought to a short edge of `window_px`, and its maps back to the image's own size.
    """
    heads = _predicted(model, _installed(), (EDGES, CLASS_EDGES)) if model else []
    scores = {"canny 100/200": BoundaryScore((200.0,)), "canny, swept": BoundaryScore(CANNY_HIGHS)}
    swept = dict(scores)
    scores["people"] = BoundaryScore((1.0,))
    scores |= {f"head: {name}": BoundaryScore(THRESHOLDS) for name in heads}
    for image_file, truth_file in ProgressBar(images, unit="img"):
        image, boundaries = read_bsds(image_file, truth_file)
        tolerance = tolerance_of(image.shape[0], image.shape[1], tolerance_px)
        for number, person in enumerate(boundaries):
            if others := boundaries[:number] + boundaries[number + 1 :]:
                scores["people"].add([person], others, tolerance)
        for score in swept.values():
            extractors = (Canny(low=high / 2, high=high, blur_sigma=canny_blur) for high in score.thresholds)
            score.add([thin(extractor.edges(image) > 0) for extractor in extractors], boundaries, tolerance)
        if model is not None:
            maps = dict(zip(model.config.structures, _at_own_size(model, image, window_px), strict=True))
            for name in heads:
                scores[f"head: {name}"].add(edge_maps(maps[name], THRESHOLDS), boundaries, tolerance)
    return {name: score for name, score in scores.items() if score.counts}  # one person alone has no others


def find_bsds(root: Path, split: str, max_images: int | None = None) -> list[tuple[Path, Path]]:
    """Image and ground truth of a split of BSDS500: `images/SPLIT/ID.jpg`, `groundTruth/SPLIT/ID.mat`.

    The archive's own top folders (`BSR/BSDS500/data`) may be left out. Raises AnalysisError where anything is missing.
    """
    for top in (root, root / "data", root / "BSDS500/data", root / "BSR/BSDS500/data"):
        images, truths = top / "images" / split, top / "groundTruth" / split
        if images.is_dir() and truths.is_dir():
            break
    else:
        hint = "unpack BSR_bsds500.tgz (Berkeley), and name its folder data; splits: train, val, test"
        raise AnalysisError.mismatch(root, f"images/{split} and groundTruth/{split} of BSDS500", "neither", hint)
    pairs = [(image, truths / f"{image.stem}.mat") for image in sorted(images.glob("*.jpg"))]
    missing = [truth for _, truth in pairs if not truth.is_file()]
    if missing or not pairs:
        fault = f"{len(missing)} of {len(pairs)} images have no ground truth ({missing[0]})" if missing else "no image"
        raise AnalysisError(f"{top}, {split}: {fault}", hint="unpack the archive again")
    return pairs[:max_images]


def read_bsds(image_file: Path, truth_file: Path) -> tuple[UInt8, list[npt.NDArray[np.bool_]]]:
    """An image (H, W, 3) RGB of BSDS500, and each person's boundaries (H, W). Raises AnalysisError, naming the file."""
    file = image_file
    try:
        image = as_rgb(file)
        file = truth_file
        drawn = read_cells(read_regular(file), "groundTruth", "Boundaries")
    except DecodeError as error:
        raise AnalysisError(f"{file}: {error.args[0]}", hint=error.hint) from error
    except OSError as error:
        raise AnalysisError(
            f"{file}: {error.strerror}", hint="restore the file, or unpack the archive again"
        ) from error
    sizes = {boundary.shape for boundary in drawn}
    if sizes != {image.shape[:2]}:
        raise AnalysisError.mismatch(truth_file, f"boundaries of {image.shape[:2]} px", sorted(sizes) or "none")
    return image, [boundary > 0 for boundary in drawn]


def table(scores: dict[str, BoundaryScore]) -> list[tuple[str, ...]]:
    """The table, its heading first: for each map the best point of its curve."""
    rows: list[tuple[str, ...]] = [("", "threshold", "precision", "recall", "F (ODS)", "F (OIS)", "F mirrored")]
    for name, score in scores.items():
        best = score.best
        shares = (best["precision"], best["recall"], best["f"], score.ois, best["f_mirrored"])
        rows.append((name, f"{best['threshold']:g}", *map(percent, shares)))
    return rows


def _installed() -> dict[str, str]:
    """How the arrays of the structures that are installed are drawn, by name."""
    return {spec.name: spec.drawn for one in registry.build(plugins.names("extractors")) for spec in one.arrays}


def _predicted(model: Segmenter, drawn: Mapping[str, str], kinds: Sequence[str]) -> list[str]:
    """Structures that a model predicts and that are drawn in one of these ways. Raises AnalysisError for none."""
    structures = model.config.structures
    names = [name for name in structures if drawn.get(name) in kinds]
    if not names:
        raise AnalysisError(
            f"the model predicts {', '.join(structures) or 'no structure'}: no map of {' or '.join(kinds)}",
            hint="name a run that was trained with such model.structures; an exported model has no structure head",
        )
    return names


def _at_own_size(model: Segmenter, image: UInt8, window_px: int) -> npt.NDArray[np.float32]:
    frame = Frame(short_edge=window_px, max_long_edge=2 * window_px, canvas=2 * window_px)
    maps = torch.from_numpy(structure_maps(model, frame.resize_image(image), window_px))[None]
    resized = F.interpolate(maps, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
    return np.asarray(resized)
