"""What a model predicts beside what it should, of a few samples: for TensorBoard while it trains, and for pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.images import data_url, encode_jpeg, shrink
from ...common.text import evenly, percent
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import Vocabulary
from ...pipeline.inspect.drawing.label_maps import class_shares, legend_entries, overlay
from ...pipeline.inspect.drawing.layers import DENSITY, KINDS, map_layer, structure_layer
from ...pipeline.inspect.drawing.layout import stack, tile
from ...pipeline.inspect.drawing.lettering import LegendEntry, legend, text_px
from ...pipeline.inspect.drawing.palette import STRUCTURE_COLOURS, UInt8, class_colours, dim
from ...pipeline.store.open_store import cut_sample
from ...pipeline.store.reader import StoreReader
from ..evaluation.evaluate import usable_samples
from ..model.inference import InferenceSettings, segment_image
from ..model.segmenter import Segmenter
from .structure_maps import structure_maps

SHOWN = 4
"""Number of samples that are shown: evenly spread, the same at every step of a run."""
LARGEST_PX = 480
"""Longest edge of a picture: four of that side fit a screen."""
MOST_CLASSES = 24

Ids = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The pictures of one sample."""

    title: str
    panels: Sequence[tuple[UInt8, str]]
    """Pictures (H, W, 3) RGB, each with its caption."""
    legend: Sequence[LegendEntry] = ()
    """Classes in the maps, the largest first, with their shares of the first map."""

    @property
    def shrunk(self) -> list[tuple[UInt8, str]]:
        """The panels, at most `LARGEST_PX` high and wide."""
        return [(shrink(image, LARGEST_PX, LARGEST_PX), text) for image, text in self.panels]

    def tiled(self, title: str = "") -> UInt8:
        """All pictures side by side under a heading, the classes below."""
        panels = self.shrunk
        page = tile(panels, columns=len(panels), title=title)
        if not self.legend:
            return page
        return stack([page, legend(self.legend, text_px(*panels[0][0].shape[:2]), width=page.shape[1])], axis=0)

    def on_page(self) -> dict[str, Any]:
        """What the macro `row` of a page takes (common/html.py)."""
        pictures = [{"url": data_url(encode_jpeg(image), "jpeg"), "caption": text} for image, text in self.shrunk]
        return {"pictures": pictures, "legend": self.legend}


def prediction_rows(
    model: Segmenter,
    source: Manifest | StoreReader,
    texts: Tensor,
    settings: InferenceSettings,
    *,
    max_images: int | None = None,
) -> Iterator[Row]:
    """Predictions of a few of a manifest's first samples, or of a store's frames, which its reader reads with labels.

    `texts` are the text features of the classes.
    """
    vocabulary = source.vocabulary
    for title, image, labels in _shown(source, max_images):
        predicted = vocabulary.fold(segment_image(model, image, texts, settings))
        yield prediction_row(title, image, vocabulary.fold(labels), predicted, vocabulary)


def _shown(source: Manifest | StoreReader, max_images: int | None) -> Iterator[tuple[str, UInt8, Ids]]:
    """Id, image (H, W, 3) and labels (H, W) of the samples that are shown."""
    if isinstance(source, Manifest):
        for index in evenly(usable_samples(source, max_images), SHOWN):
            yield source.table.value("sample_id", index), *source.load(index)
        return
    for index in evenly(source.usable.tolist(), SHOWN):
        stored = cut_sample(source, index)
        yield stored.id, source.image(index), stored.arrays["labels"]


def prediction_row(title: str, image: UInt8, labels: Ids, predicted: Ids, vocabulary: Vocabulary) -> Row:
    """Image, label map and what was predicted (H, W)."""
    counted = labels != vocabulary.ignore_index
    right = percent(float(np.mean(predicted[counted] == labels[counted])) if counted.any() else np.nan, digits=1)
    maps = ((labels, "ground truth"), (predicted, f"prediction: {right} of the pixels right"))
    return map_row(title, image, maps, vocabulary)


def map_row(title: str, image: UInt8, maps: Sequence[tuple[Ids, str]], vocabulary: Vocabulary) -> Row:
    """An image and label maps (H, W) of it, each with its caption, drawn alike, with the classes of all."""
    names, ignore_index = vocabulary.class_names, vocabulary.ignore_index
    drawn = [overlay(image, ids, names, ignore_index=ignore_index, alpha=0.7, max_legend=0) for ids, _ in maps]
    panels = [(image, title), *((picture, text) for picture, (_, text) in zip(drawn, maps, strict=True))]
    order = [index for index, _ in class_shares(np.stack([ids for ids, _ in maps]))]
    entries = legend_entries(order, dict(class_shares(maps[0][0])), names, ignore_index, MOST_CLASSES)
    return Row(title=title, panels=panels, legend=entries)


def structure_rows(model: Segmenter, reader: StoreReader, window_px: int) -> Iterator[Row]:
    """Cached maps of a few samples, each beside the structure head's, seen in crops of `window_px`.

    The reader reads labels and the model's structures.
    """
    drawn = [spec for spec in reader.schema.specs if spec.drawn in KINDS]
    known = {spec.name: (spec.drawn, colour) for spec, colour in zip(drawn, cycle(STRUCTURE_COLOURS), strict=False)}
    colours, ignore_index = class_colours(reader.vocabulary.class_names), reader.vocabulary.ignore_index
    for index in evenly(reader.usable.tolist(), SHOWN):
        stored = cut_sample(reader, index)
        image = reader.image(index)
        dark, panels = dim(image), [(image, stored.id)]
        maps = structure_maps(model, image, window_px)
        for name, found in zip(model.config.structures, maps, strict=True):
            if name in known:
                kind, colour = known[name]
                cached = map_layer(stored.arrays[name], kind, colour, stored.arrays["labels"], colours, ignore_index)
                predicted = structure_layer(np.rint(255 * found).astype(np.uint8), DENSITY, colour)
                panels += [(cached.over(dark), f"{name}, cached"), (predicted.over(dark), f"{name}, predicted")]
        yield Row(title=stored.id, panels=panels)
