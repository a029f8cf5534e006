"""One sample's pictures: a layer for each of its maps, and PNG files of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.atomic import atomic_write
from ...common.images import encode_png
from ...common.text import counted, percent
from ..store.schema import StoredArray
from .drawing.label_maps import overlay
from .drawing.layers import CLASS_EDGES, EDGES, KEYPOINTS, Layer, label_layer, map_layer, weight_layer
from .drawing.layout import tile
from .drawing.palette import STRUCTURE_COLOURS, Colour, class_colours, dim
from .sample_view import PATCH_PX, SampleView


def structure_colour(position: int) -> Colour:
    return STRUCTURE_COLOURS[position % len(STRUCTURE_COLOURS)]


def map_layers(view: SampleView) -> dict[str, tuple[Layer, str]]:
    """Layers of the label map and of each structure by array name, with how much each holds."""
    colours, ignore_index = class_colours(view.vocabulary.class_names), view.vocabulary.ignore_index
    labels = label_layer(view.labels, colours, ignore_index=ignore_index)
    layers = {"labels": (labels, f"{counted(len(view.shares), 'class')}")}
    for position, (name, (spec, plane)) in enumerate(view.structures.items()):
        layer = map_layer(plane, spec.drawn, structure_colour(position), view.labels, colours, ignore_index)
        held = (plane != ignore_index).any(axis=0) if spec.drawn == CLASS_EDGES else plane
        layers[name] = layer, _amount(spec, held)
    return layers


def write_sample(view: SampleView, out: Path, class_ids: Sequence[int] = ()) -> Path:
    """Write a sample's pictures as PNG files below `out/ID`, and all of them together as `out/ID.png`.

    `class_ids` are classes whose patch weights are drawn, by default the most present one. Returns the path of the
    picture that shows all.
    """
    names, present = view.vocabulary.class_names, dict(view.shares)
    height, width = view.labels.shape
    grey = dim(view.image)
    labelled = overlay(view.image, view.labels, names, ignore_index=view.vocabulary.ignore_index)
    size = f"{view.sample.width} x {view.sample.height} px, frame {width} x {height}"
    panels = {"image": (view.image, f"image ({size})"), "labels": (labelled[:height, :width], "labels")}
    for name, (layer, amount) in map_layers(view).items():
        if name != "labels":
            panels[name] = layer.over(grey), f"{name} ({amount})"
    for class_id in class_ids or list(present)[:1]:
        caption = f"patch weights: {names[class_id]}{'' if class_id in present else ' (not in this image)'}"
        weights = weight_layer(view.patch_weights(class_id)).over(grey, side=PATCH_PX)
        panels[f"weights_{_safe(names[class_id])}"] = weights, caption
    folder = _safe(view.sample.sample_id)
    if folder != view.sample.sample_id:
        folder = f"{folder}-{view.index}"  # two ids may be alike once made safe for a file name
    for stem, (picture, _) in panels.items():
        atomic_write(out / folder / f"{stem}.png", encode_png(labelled if stem == "labels" else picture))
    title = f"{view.sample.sample_id}   (sample {view.index})"
    atomic_write(out / f"{folder}.png", encode_png(tile(list(panels.values()), columns=3, title=title)))
    return out / f"{folder}.png"


def _amount(spec: StoredArray, plane: npt.NDArray[Any]) -> str:
    if spec.drawn == KEYPOINTS:
        return f"{np.count_nonzero(plane):,} keypoints"
    if spec.drawn in (EDGES, CLASS_EDGES):
        return f"{percent(np.count_nonzero(plane) / plane.size, digits=1)} of the pixels"
    return f"highest {(plane.max() / 255) ** 2:.2f}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:120] or "_"
