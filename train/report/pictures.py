"""What a model predicts beside what it should, of a few samples: for TensorBoard while it trains, and for pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.images import data_url, encode_jpeg
from ...common.text import percent
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import Vocabulary
from ...pipeline.inspect.drawing.label_maps import class_shares, overlay
from ...pipeline.inspect.drawing.layers import (
    CLASS_EDGES,
    DENSITY,
    KINDS,
    Layer,
    class_edge_layer,
    structure_layer,
)
from ...pipeline.inspect.drawing.layout import tile
from ...pipeline.inspect.drawing.palette import STRUCTURE_COLOURS, Colour, UInt8, dim, palette
from ...pipeline.store.open_store import cut_sample
from ...pipeline.store.reader import StoreReader
from ..model.inference import InferenceSettings, segment_image
from ..model.segmenter import Segmenter
from .structure_maps import structure_maps

SHOWN = 4
"""Number of samples that are shown: evenly spread, the same at every step of a run."""
LARGEST_PX = 440
"""Longest edge of a picture."""

Sample = tuple[str, UInt8, npt.NDArray[Any]]
"""Id, image (H, W, 3) RGB and label map (H, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The pictures of one sample."""

    title: str
    panels: Sequence[tuple[UInt8, str]]
    """Pictures (H, W, 3) RGB, each with its caption."""
    legend: Sequence[tuple[str, Colour]] = ()
    """Names of classes and their colours."""

    def tiled(self) -> UInt8:
        """All pictures side by side."""
        return tile([(_shrunk(image), caption) for image, caption in self.panels], columns=len(self.panels))

    def on_page(self) -> dict[str, Any]:
        """What the macro `row` of a page takes (common/html.py)."""
        pictures = [
            {"url": data_url(encode_jpeg(_shrunk(image)), "jpeg"), "caption": text} for image, text in self.panels
        ]
        return {"pictures": pictures, "legend": self.legend}


def few(indices: Sequence[int]) -> list[int]:
    """At most `SHOWN` of them, evenly spread.

    >>> few(range(10)), few([7])
    ([0, 2, 5, 8], [7])
    """
    number = min(SHOWN, len(indices))
    return [indices[round(place * len(indices) / number)] for place in range(number)]


def labelled(manifest: Manifest, indices: Sequence[int]) -> Iterator[Sample]:
    """Samples of a manifest, labels folded."""
    for index in indices:
        image, labels = manifest.load(index)
        yield manifest.table.value("sample_id", index), image, manifest.vocabulary.fold(labels)


def prediction_rows(
    model: Segmenter, samples: Iterator[Sample], vocabulary: Vocabulary, texts: Tensor, settings: InferenceSettings
) -> Iterator[Row]:
    """Image, ground truth and prediction of each sample; `texts` are the text features of the vocabulary."""
    for sample_id, image, labels in samples:
        predicted = vocabulary.fold(segment_image(model, image, texts, settings))
        yield prediction_row(sample_id, image, labels, predicted, vocabulary)


def prediction_row(
    title: str, image: UInt8, labels: npt.NDArray[Any], predicted: npt.NDArray[Any], vocabulary: Vocabulary
) -> Row:
    """Image, label map and what was predicted (H, W)."""
    counted = labels != vocabulary.ignore_index
    right = percent(float(np.mean(predicted[counted] == labels[counted])) if counted.any() else np.nan, digits=1)
    maps = ((labels, "ground truth"), (predicted, f"prediction: {right} of the pixels right"))
    return map_row(title, image, maps, vocabulary)


def map_row(title: str, image: UInt8, maps: Sequence[tuple[npt.NDArray[Any], str]], vocabulary: Vocabulary) -> Row:
    """An image and label maps (H, W) of it, each with its caption, drawn alike, with the classes of all."""
    names, ignore_index = vocabulary.class_names, vocabulary.ignore_index
    panels = [
        (overlay(image, plane, names, ignore_index=ignore_index, alpha=0.7, max_legend=0), text) for plane, text in maps
    ]
    present = [i for i, _ in class_shares(np.stack([plane for plane, _ in maps])) if i != ignore_index]
    colours = palette(len(names)).tolist()
    legend = [(names[index], tuple(colours[index])) for index in present]
    return Row(title=title, panels=[(image, title), *panels], legend=legend)


def structure_rows(model: Segmenter, reader: StoreReader, indices: Sequence[int], window_px: int) -> Iterator[Row]:
    """The cached maps of samples of a store, each beside the structure head's.

    Args:
        reader: Reads the labels and all structures of the model.
        window_px: Side of the training crop.
    """
    drawn = {spec.name: spec.drawn for spec in reader.schema.arrays}
    for index in indices:
        stored, image = cut_sample(reader, index), _frame(reader, index)
        dark, panels = dim(image), [(image, stored.id)]
        maps = structure_maps(model, image, window_px)
        for position, (name, found) in enumerate(zip(model.config.structures, maps, strict=True)):
            if drawn[name] in KINDS:
                colour = STRUCTURE_COLOURS[position % len(STRUCTURE_COLOURS)]
                cached = _cached(stored.arrays[name], drawn[name], colour, stored.arrays["labels"], reader.vocabulary)
                predicted = structure_layer(np.rint(255 * found).astype(np.uint8), DENSITY, colour)
                panels += [(cached.over(dark), f"{name}, cached"), (predicted.over(dark), f"{name}, predicted")]
        yield Row(title=stored.id, panels=panels)


def stored_samples(reader: StoreReader, indices: Sequence[int]) -> Iterator[Sample]:
    """Samples of a store on its frames."""
    for index in indices:
        stored = cut_sample(reader, index)
        yield stored.id, _frame(reader, index), stored.arrays["labels"]


def _frame(reader: StoreReader, index: int) -> UInt8:
    return reader.schema.frame.resize_image(reader.manifest.load_image(index, verify=True))


def _cached(
    planes: npt.NDArray[Any], kind: str, colour: Colour, labels: npt.NDArray[Any], vocabulary: Vocabulary
) -> Layer:
    if kind == CLASS_EDGES:
        return class_edge_layer(planes, labels, vocabulary.num_classes, ignore_index=vocabulary.ignore_index)
    return structure_layer(planes, kind, colour)


def _shrunk(image: UInt8) -> UInt8:
    scale = LARGEST_PX / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
