"""Where against what: how good a model would be if it knew one of the two (the paper's Fig. 1).

A segmenter has to find regions ("where") and to name them ("what"). Two oracles take one task away:

* the ground truth says where: each of its regions is named as a whole, by the model (the class whose mean probability
  over the region is highest) or by CLIP's dense features (the class whose text vector has the highest cosine with the
  region's mean patch vector). What is missed is missed in naming.
* the ground truth says what: each predicted region is given the label of which most of its labelled pixels are, the
  lower id on a tie. What is missed is missed in drawing.

A region is all pixels of one class in an image ("class", the default), or one 8-connected part of them ("connected").
The second oracle favours predictions in many small parts: a model that makes every pixel a region scores 100.
Ignored pixels belong to no region of the ground truth and count nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from ...common.progress import ProgressBar
from ...common.text import percent
from ...manifests.manifest import Manifest
from ..evaluation.evaluate import load_each, usable_samples
from ..evaluation.metrics import ConfusionMatrix, Integers
from ..evaluation.regions import Regions, split_regions
from ..losses.numerics import check_choice
from ..model.inference import PUBLISHED, BestClass, InferenceSettings, class_texts, first_resize, probability_maps
from ..model.segmenter import Segmenter
from .encoders import ClipEncoder

PLAIN = "the model by itself"
NAMED = "true regions, named by the model"
DRAWN = "predicted regions, given their best true label"


@dataclass(slots=True)
class OracleRow:
    """One line of the table, with what it has counted so far."""

    name: str
    where: str
    """Who draws the regions: "model" or "truth"."""
    what: str
    """Who names the regions: "model", "truth", or the name of a CLIP."""
    confusion: ConfusionMatrix
    regions: int = 0
    """Number of regions that were named; 0 for the model by itself."""
    right: int = 0
    """Number of true regions that got their class."""

    def count(self, named: Integers, regions: npt.NDArray[np.int32], truth: Integers | None, labels: Integers) -> None:
        """Regions (H, W) with the class (R,) each was given; pixels outside of all regions are ignored ones."""
        self.regions += len(named)
        self.right += 0 if truth is None else int((named == truth).sum())
        self.confusion.update(named.astype(np.int64)[np.maximum(regions, 0)], labels)


def best_overlap(regions: npt.NDArray[np.int32], labels: Integers, num_classes: int, ignore_index: int) -> Integers:
    """The label (R,) that most of each region's labelled pixels have, the lower id on a tie; 0 for one without any."""
    counted = (labels != ignore_index) & (regions >= 0)
    number = int(regions.max()) + 1
    pairs = regions[counted].astype(np.int64) * num_classes + labels[counted]
    overlap = np.bincount(pairs, minlength=number * num_classes).reshape(number, num_classes)
    return np.asarray(overlap.argmax(axis=1))


def patch_shares(regions: npt.NDArray[np.int32], number: int, grid: int) -> npt.NDArray[np.float64]:
    """Share of each region's pixels in each patch of a grid over the whole image: (R, g, g), rows sum to 1.

    A pixel is in the patch that holds its centre.
    """
    height, width = regions.shape
    rows, columns = (((2 * np.arange(edge, dtype=np.int64) + 1) * grid) // (2 * edge) for edge in (height, width))
    cells = rows[:, None] * grid + columns[None]
    inside = regions >= 0
    pairs = regions[inside].astype(np.int64) * grid * grid + cells[inside]
    counts = np.bincount(pairs, minlength=number * grid * grid).reshape(number, grid, grid).astype(np.float64)
    return np.asarray(counts / counts.sum(axis=(1, 2), keepdims=True))


def run_oracles(
    model: Segmenter,
    manifest: Manifest,
    *,
    clips: Mapping[str, ClipEncoder] | None = None,
    regions: Regions = "class",
    max_images: int | None = None,
    settings: InferenceSettings = PUBLISHED,
) -> list[OracleRow]:
    """All rows of the table; `clips` name true regions as well. `max_images` None: all usable samples."""
    check_choice("kind of region", regions, get_args(Regions))
    indices = usable_samples(manifest, max_images)
    vocabulary, num_classes = manifest.vocabulary, len(manifest.vocabulary.class_names)
    texts = class_texts(model, vocabulary.classes)
    clips = clips or {}
    clip_texts = {name: encoder.texts(vocabulary.classes) for name, encoder in clips.items()}
    kinds = {PLAIN: ("model", "model"), NAMED: ("truth", "model")}
    kinds |= {f"true regions, named by {name}": ("truth", name) for name in clips}
    kinds[DRAWN] = ("model", "truth")
    rows = {
        name: OracleRow(name, where, what, ConfusionMatrix(num_classes, vocabulary.ignore_index))
        for name, (where, what) in kinds.items()
    }
    for image, labels in ProgressBar(load_each(manifest, indices), total=len(indices), unit="img"):
        true_regions, true_ids = split_regions(labels, regions, ignore_index=vocabulary.ignore_index)
        if not len(true_ids):  # without any labelled pixel nothing counts
            continue
        entering = first_resize(image, settings)
        predicted, named = _predict(model, entering, texts, settings, true_regions, len(true_ids))
        predicted = vocabulary.fold(predicted)
        rows[PLAIN].confusion.update(predicted.astype(np.int64), labels)
        rows[NAMED].count(vocabulary.fold(named), true_regions, true_ids, labels)
        for name, encoder in clips.items():
            features = encoder.patches(entering)
            shares = torch.from_numpy(patch_shares(true_regions, len(true_ids), features.shape[0])).to(features)
            mean = shares.flatten(1) @ features.flatten(0, 1)
            chosen = (mean @ clip_texts[name].T).argmax(dim=1).cpu().numpy()  # its length does not change the order
            rows[f"true regions, named by {name}"].count(vocabulary.fold(chosen), true_regions, true_ids, labels)
        drawn, _ = split_regions(predicted, regions)
        best = best_overlap(drawn, labels, num_classes, vocabulary.ignore_index)
        rows[DRAWN].count(best, drawn, None, labels)
    return list(rows.values())


def table(rows: Sequence[OracleRow]) -> list[tuple[str, ...]]:
    """The table, its heading first: mIoU over the ground truth's classes, and over the union where one differs."""
    cells: list[tuple[str, ...]] = [("", "mIoU", "mIoU, union", "pixels", "regions named right")]
    for row in rows:
        values = (row.confusion.miou(), row.confusion.miou("union"), row.confusion.pixel_accuracy())
        named = f"{row.right} of {row.regions}" if row.where == "truth" else ""
        cells.append((row.name, *map(percent, values), named))
    if all(mean == union for _, mean, union, *_ in cells[1:]):
        cells = [(name, mean, *rest) for name, mean, _, *rest in cells]
    return cells


def document(rows: Sequence[OracleRow], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Everything as JSON: fractions 0..1."""
    return [
        {
            "name": row.name,
            "where": row.where,
            "what": row.what,
            "regions": row.regions,
            "regions_named_right": row.right if row.where == "truth" else None,
            **row.confusion.summary(classes),
        }
        for row in rows
    ]


def _predict(
    model: Segmenter,
    image: npt.NDArray[np.uint8],
    texts: torch.Tensor,
    settings: InferenceSettings,
    regions: npt.NDArray[np.int32],
    number: int,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The label map (H, W), and for each region (R,) the class with the highest mean probability over it."""
    best, classes, means = BestClass(), [], []
    inside = torch.from_numpy(np.flatnonzero(regions >= 0)).to(texts.device)
    owner = torch.from_numpy(regions[regions >= 0].astype(np.int64)).to(texts.device)
    size = torch.bincount(owner, minlength=number)
    for ids, maps in probability_maps(model, image, texts, settings, size=regions.shape):
        best.add(ids, maps)
        classes.append(ids)
        sums = torch.zeros(len(maps), number, dtype=torch.float64, device=maps.device)
        sums.index_add_(1, owner, maps.flatten(1)[:, inside].double())
        means.append(sums / size)
    return best.label_map(len(texts)), torch.cat(classes)[torch.cat(means).argmax(dim=0).cpu()].numpy()
