"""The page of `physseg inspect --html`: one file with a contact sheet and a large view with layers.

It asks nothing of the network: pictures are data URLs, script and style stand inside. Sample ids and class names come
from other people, so every text is escaped, and the script puts names into the page as text alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ... import __version__
from ...common.atomic import atomic_write
from ...common.html import render
from ...common.images import data_url, encode_jpeg, shrink
from ...common.progress import ProgressBar
from ...common.storage.content_cache import ContentCache
from ...common.storage.location import Location
from ...common.text import evenly, format_bytes
from .drawing.figures import Bar, bars
from .drawing.label_maps import class_shares
from .drawing.layers import Layer, weight_layer
from .drawing.palette import IGNORED, UInt8, class_colours, css_colour, heat_colours, palette
from .errors import InspectError
from .pictures import map_layers, structure_colour
from .sample_view import MOVED_HINT, PATCH_PX, SampleView, SampleViews
from .summary import StoreSummary, summarise
from .table import NUMBERS, array_rows, facts, keypoint_histograms, layer_rows, measured_note

JPEG_QUALITY: Final = 82
THUMBNAIL_PX: Final = (170, 260)
"""Largest height and width of a contact sheet's picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageReport:
    """What was written."""

    path: Path
    num_bytes: int
    samples: int
    image_problems: tuple[str, ...]
    """Faults of the images that could not be read; their samples are shown on grey."""


def write_page(
    store: Location,
    path: Path,
    *,
    samples: Sequence[int] | None = None,
    max_samples: int = 200,
    root: str | None = None,
    cache: ContentCache | None = None,
    progress: bool = False,
) -> PageReport:
    """Write the page of these samples, or of `max_samples`, evenly spread. Raises InspectError if none can be shown."""
    views = SampleViews(store, root=root, cache=cache)
    usable = views.reader.usable.tolist()
    chosen = list(samples) if samples is not None else evenly(usable, max_samples)
    if not chosen:
        raise InspectError(
            f"{store}: no sample to show: {len(usable)} of {len(views.reader)} are done, asked for {max_samples}",
            hint="run `physseg preprocess MANIFEST STORE` first, or raise --num-images",
        )
    summary = summarise(store, root=root)
    cards, scripts = [], []
    for index in ProgressBar(chosen, unit="img", disable=not progress):
        view = views.view(index, need_image=False)
        layers = map_layers(view)
        cards.append(_card(view, layers["labels"][0]))
        scripts.append(_sample(view, layers))
    problems = tuple(script["problem"] for script in scripts if script["problem"])
    if len(problems) == len(chosen):
        raise InspectError(f"none of the {len(chosen)} images could be read; the first: {problems[0]}", hint=MOVED_HINT)
    text = render(
        Path(__file__).parent / "page" / "page.html",
        summary=summary,
        tiles=_tiles(summary),
        arrays=array_rows(summary),
        numbers=NUMBERS,
        measured_note=measured_note(summary),
        keypoints=[
            bars(f"{name}: keypoints per image", "number of images", [Bar(label, n, str(n)) for label, n in counts])
            for name, counts in keypoint_histograms(summary).items()
        ],
        facts=facts(summary),
        layers=layer_rows(summary),
        quarantine_listed=100,
        num_usable=len(usable),
        cards=cards,
        settings=_settings(views, sorted({class_id for script in scripts for class_id, _ in script["classes"]})),
        samples=scripts,
        version=__version__,
    )
    data = text.encode()
    atomic_write(path, data)
    return PageReport(path=path, num_bytes=len(data), samples=len(chosen), image_problems=problems)


def _tiles(summary: StoreSummary) -> list[tuple[str, str, bool]]:
    """The large figures at the top: name, value, and whether it is a warning."""
    return [
        ("samples done", f"{summary.done:,}", False),
        ("missing", f"{summary.missing:,}", summary.missing > 0),
        ("quarantined", f"{summary.quarantined:,}", summary.quarantined > 0),
        ("classes", f"{summary.num_classes:,}", False),
        ("bytes per image", "-" if summary.bytes_per_image is None else format_bytes(summary.bytes_per_image), False),
        ("on disk", format_bytes(summary.disk_bytes), False),
    ]


def _card(view: SampleView, labels: Layer) -> dict[str, Any]:
    names = view.vocabulary.class_names
    classes = [names[class_id] for class_id, _ in view.shares]
    return {
        "id": view.sample.sample_id,
        "search": "\n".join([view.sample.sample_id, *classes]).lower(),
        "classes": ", ".join(classes) or "nothing labelled",
        "pictures": {"coloured": _thumbnail(labels.over(view.image)), "photo": _thumbnail(view.image)},
    }


def _sample(view: SampleView, layers: Mapping[str, tuple[Layer, str]]) -> dict[str, Any]:
    weights = {class_id: weight_layer(view.patch_weights(class_id)) for class_id, _ in view.shares}
    return {
        "id": view.sample.sample_id,
        "index": view.index,
        "split": view.sample.split,
        "note": view.sample.note,
        "problem": view.image_problem,
        "size": [view.sample.height, view.sample.width],
        "frame": view.labels.shape,
        "image": data_url(encode_jpeg(view.image, JPEG_QUALITY), "jpeg"),
        "layers": {
            name: {"src": data_url(layer.to_png(), "png"), "about": amount} for name, (layer, amount) in layers.items()
        },
        "classes": [[class_id, round(share, 6)] for class_id, share in view.shares],
        "ignored": dict(class_shares(view.labels)).get(view.vocabulary.ignore_index, 0.0),
        "weights": {class_id: data_url(layer.to_png(), "png") for class_id, layer in weights.items()},
        "patches": view.patches,
    }


def _settings(views: SampleViews, present: Sequence[int]) -> dict[str, Any]:
    """What all samples share: layers from bottom to top, and the names and colours of the classes that occur."""
    vocabulary = views.vocabulary
    names = vocabulary.class_names
    colours = class_colours(names)
    ramp = ", ".join(css_colour(colour) for colour in heat_colours(np.linspace(0, 1, 9)))
    shown = [
        ("labels", "labels", css_colour(palette(1)[0]), 0.6),
        ("weights", "patch weights", f"linear-gradient(90deg, {ramp})", 0.8),
        *((spec.name, spec.name, css_colour(structure_colour(i)), 1) for i, spec in enumerate(views.drawn)),
    ]
    return {
        "layers": [dict(zip(("name", "title", "colour", "opacity"), layer, strict=True)) for layer in shown],
        "classes": {i: {"name": names[i], "colour": css_colour(colours[i])} for i in present},
        "ignored": css_colour(IGNORED),
        "patch": PATCH_PX,
    }


def _thumbnail(image: UInt8) -> str:
    return data_url(encode_jpeg(shrink(image, *THUMBNAIL_PX), 75), "jpeg")
