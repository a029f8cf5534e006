"""Runs side by side on the same images: image, ground truth and each run's label map (the paper's Fig. 5 and 6).

The samples are chosen by id, or are those that changed most: where the shares of correct pixels of the first and the
last run differ most, for better or worse. A choice by change shows extremes, not the typical image: the sheet says how
many images got better and worse in all.
"""

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.atomic import atomic_json, atomic_write
from ...common.html import render
from ...common.images import encode_png
from ...common.progress import ProgressBar
from ...common.text import counted, percent
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import Vocabulary
from ..errors import AnalysisError
from ..evaluation.evaluate import load_each, usable_samples
from ..model.inference import PUBLISHED, InferenceSettings, class_texts, segment_image
from ..model.segmenter import Segmenter
from ..report.pictures import map_row

UInt8 = npt.NDArray[np.uint8]
Ids = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Correct pixels of every run on one image."""

    sample_id: str
    labelled: int
    """Number of pixels of the ground truth that count."""
    correct: tuple[int, ...]
    """Number of pixels that each run has right."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Pixel accuracy by run, in [0, 1]."""
        return tuple(hits / self.labelled for hits in self.correct)

    @property
    def change(self) -> float:
        """Accuracy of the last run minus that of the first, in [-1, 1]."""
        return self.shares[-1] - self.shares[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictured:
    """A chosen sample with all that is shown of it."""

    scored: Scored
    image: UInt8
    """(H, W, 3) RGB."""
    labels: Ids
    """(H, W) class ids of the ground truth, or the ignore index."""
    predictions: tuple[Ids, ...]
    """(H, W) class ids that each run predicts."""


def score(labels: Ids, predictions: Sequence[Ids], *, sample_id: str, ignore_index: int) -> Scored:
    """Count the pixels that each prediction (H, W) has right, of those whose label is not ignored."""
    counted = labels != ignore_index
    correct = tuple(int(((predicted == labels) & counted).sum()) for predicted in predictions)
    return Scored(sample_id=sample_id, labelled=int(counted.sum()), correct=correct)


def find_samples(manifest: Manifest, sample_ids: Sequence[str]) -> list[int]:
    """Indices of samples by id. Raises AnalysisError for one that is not there or quarantined."""
    good = set(usable_samples(manifest))
    found = []
    for text in sample_ids:
        index = manifest.table.find(text)
        if index is None or index not in good:
            fault = "no sample of this id" if index is None else f"quarantined: {manifest.samples[index].problem}"
            example = manifest.samples[min(good)].sample_id
            raise AnalysisError(f"{manifest.dataset}, {text!r}: {fault}", hint=f"for example {example!r}")
        found.append(index)
    return found


def compare_runs(
    models: Mapping[str, Segmenter],
    manifest: Manifest,
    *,
    sample_ids: Sequence[str] = (),
    most_changed: int = 8,
    max_images: int | None = None,
    settings: InferenceSettings = PUBLISHED,
    texts: Mapping[str, Tensor] | None = None,
) -> tuple[list[Pictured], list[Scored]]:
    """Predict with every run and choose what to show.

    Args:
        models: The runs' models by name, the baseline first.
        sample_ids: Samples to show, in this order.
        most_changed: Number of samples to show if none are named: those whose accuracy changed most.
        max_images: Number of samples to look at if none are named. Default: all.
        texts: Each run's text features of the manifest's classes, where they are known.

    Returns:
        The samples to show, the largest change first unless they are named; and the scores of all samples.

    Raises:
        AnalysisError: There are fewer than two runs, or an id is unknown.
    """
    if len(models) < 2:
        raise AnalysisError(f"expected two runs or more to compare, got {len(models)}")
    indices = find_samples(manifest, sample_ids) if sample_ids else usable_samples(manifest, max_images)
    vocabulary = manifest.vocabulary
    texts = texts or {name: class_texts(model, vocabulary.classes) for name, model in models.items()}
    kept: list[tuple[float, int, Pictured]] = []  # a heap, the least changed on top; the index decides between equals
    scores: list[Scored] = []
    for number, (image, labels) in enumerate(ProgressBar(load_each(manifest, indices), total=len(indices), unit="img")):
        predictions = tuple(
            vocabulary.fold(segment_image(model, image, texts[name], settings)) for name, model in models.items()
        )
        sample_id = manifest.samples[indices[number]].sample_id
        scored = score(labels, predictions, sample_id=sample_id, ignore_index=vocabulary.ignore_index)
        if scored.labelled:
            scores.append(scored)
        elif not sample_ids:
            continue
        pictured = Pictured(scored=scored, image=image, labels=labels, predictions=predictions)
        heapq.heappush(kept, (0.0 if sample_ids else abs(scored.change), -number, pictured))
        if len(kept) > most_changed and not sample_ids:
            heapq.heappop(kept)
    return [entry[2] for entry in sorted(kept, key=lambda entry: (-entry[0], -entry[1]))], scores


def picture(shown: Pictured, runs: Sequence[str], vocabulary: Vocabulary) -> UInt8:
    """Image, ground truth and each run's map in a row, with one legend of all classes in any of them."""
    maps = [(shown.labels, "ground truth")]
    for name, predicted, hits in zip(runs, shown.predictions, shown.scored.correct, strict=True):
        right = f": {percent(hits / shown.scored.labelled, digits=1)} right" if shown.scored.labelled else ""
        maps.append((predicted, name + right))
    return map_row("image", shown.image, maps, vocabulary).tiled(_title(shown.scored))


def write_comparison(
    out: Path, pictured: Sequence[Pictured], scores: Sequence[Scored], runs: Mapping[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Write `NN_ID.png` for every sample, `index.html` that shows them all, and `compare.json`; returns the latter.

    `runs` says where each run's model comes from, by name, for the records.
    """
    names, vocabulary = list(runs), manifest.vocabulary
    files: dict[str, Scored] = {}
    for number, shown in enumerate(pictured, start=1):
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", shown.scored.sample_id)[:100]
        drawn = picture(shown, names, vocabulary)
        file = f"{number:02d}_{safe}.png"
        atomic_write(out / file, encode_png(drawn))
        files[file] = shown.scored
    images = [asdict(item) | {"correct": dict(zip(names, item.correct, strict=True))} for item in scores]
    document = {
        "unit": "fraction",
        "dataset": manifest.dataset,
        "manifest": manifest.fingerprint,
        "runs": dict(runs),
        "summary": summary(scores),
        "shown": [{"file": file, "sample_id": scored.sample_id} for file, scored in files.items()],
        "images": images,
    }
    atomic_json(out / "compare.json", document)
    html = render(
        Path(__file__).with_name("page") / "compare.html",
        runs=names,
        dataset=manifest.dataset,
        summary=in_words(scores),
        figures=[(file, _title(scored)) for file, scored in files.items()],
    )
    atomic_write(out / "index.html", html.encode())
    return document


def summary(scores: Sequence[Scored]) -> dict[str, Any]:
    """How many images got better and worse from the first run to the last, and the mean change of their accuracy."""
    changes = [item.change for item in scores]
    return {
        "images": len(changes),
        "better": sum(change > 0 for change in changes),
        "worse": sum(change < 0 for change in changes),
        "mean_change": float(np.mean(changes)) if changes else None,
    }


def in_words(scores: Sequence[Scored]) -> str:
    """`summary` as a line."""
    found = summary(scores)
    if not found["images"]:
        return "no labelled pixel in any image"
    return (
        f"{counted(found['images'], 'image')}: {found['better']} better, {found['worse']} worse, "
        f"mean change {100 * found['mean_change']:+.2f} points of pixel accuracy"
    )


def _title(scored: Scored) -> str:
    return scored.sample_id + (f"   ({100 * scored.change:+.1f} points)" if scored.labelled else "")
