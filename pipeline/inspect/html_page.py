"""The page of ``physseg inspect --html``: one file with a contact sheet and a large view with layers.

It asks nothing of the network: pictures are data URIs, script and style stand inside. Sample ids and class names come
from other people, so every text is escaped, and the script puts names into the page as text alone.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ... import __version__
from ...common.atomic import atomic_write
from ...common.storage.content_cache import ContentCache
from ...common.storage.location import Location
from ...common.text import format_bytes
from ...manifests.vocabulary import Vocabulary
from .drawing import draw
from .drawing.lettering import Colour
from .errors import InspectError
from .sample_view import SampleView, SampleViews, describe, structure_colour
from .summary import StoreSummary, evenly, summarise
from .table import array_rows, facts, layer_rows, measured_note

UInt8 = npt.NDArray[np.uint8]

JPEG_QUALITY: Final = 82
THUMBNAIL_QUALITY: Final = 75
THUMBNAIL_PX: Final = (170, 260)
"""Largest height and width of a contact sheet's picture."""
LEVELS: Final = 16
"""Steps of opacity and of weights in layers: 4 bits a pixel, half the bytes of 8."""
QUARANTINE_LISTED: Final = 100
_OUTLINE: Colour = (20, 22, 26)
_ASSETS: Final = Path(__file__).parent / "page"


@dataclass(frozen=True, kw_only=True, slots=True)
class PageReport:
    """What was written."""

    path: Path
    num_bytes: int
    samples: int
    image_problems: tuple[str, ...]
    """Images that could not be read; their samples are shown on grey."""


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
    """Write the page of the given samples, or of at most ``max_samples`` done ones, evenly spread over the store.

    Raises InspectError if there is no sample to show or none of their images can be read.
    """
    views = SampleViews(store, root=root, cache=cache)
    usable = views.reader.usable.tolist()
    chosen = list(samples) if samples is not None else evenly(usable, max_samples)
    if not chosen:
        raise InspectError(
            f"{store}: no sample to show: {len(usable)} of {len(views.reader)} are done, asked for {max_samples}",
            hint="run `physseg preprocess MANIFEST STORE` first, or raise --max-samples",
        )
    summary = summarise(store, root=root)
    cards, scripts, problems = [], [], []
    present: set[int] = set()
    for position, index in enumerate(tqdm(chosen, unit="img", disable=not progress)):
        view = views.view(index, need_image=False)
        if view.image_problem:
            problems.append(view.image_problem)
        present.update(class_id for class_id, _ in view.shares)
        cards.append(_card(view))
        scripts.append(_json_script(f"sample-{position}", _sample(view)))
    if len(problems) == len(chosen):
        raise InspectError(
            f"none of the {len(chosen)} images could be read; the first: {problems[0]}",
            hint="if the data set was moved, give its folder with --root DIR",
        )
    settings = _json_script("store", _settings(views, present))
    data = _page(summary, cards, [settings, *scripts], len(usable)).encode()
    atomic_write(path, data)
    return PageReport(path=path, num_bytes=len(data), samples=len(chosen), image_problems=tuple(problems))


# --- the document ---------------------------------------------------------------------------------------------------


def _page(summary: StoreSummary, cards: Sequence[str], scripts: Sequence[str], usable: int) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    selection = "" if len(cards) == usable else f", {len(cards):,} of {usable:,} done ones"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(summary.dataset)} - physseg store</title>
<style>{(_ASSETS / "inspect.css").read_text(encoding="utf-8")}</style></head><body>
<main>
<h1>{_text(summary.dataset)}</h1>
<div class="faint">{_text(summary.path)}</div>
{_tiles(summary)}
{_tables(summary)}
<h2>Samples{selection}</h2>
<div class="bar">
<input type="search" id="search" placeholder="sample id or class; commas: all of several" aria-label="search">
<span class="choice"><button type="button" value="labels" aria-pressed="true">labels</button>
<button type="button" value="photo" aria-pressed="false">photos</button></span>
<span class="faint" id="count"></span></div>
<div class="sheet">
{"".join(cards)}
</div>
<p class="none faint" hidden>No sample has that id or such a class.</p>
<p class="faint">made by physseg {_text(__version__)}</p>
</main>
{_DIALOG}
{"".join(scripts)}
<script>{(_ASSETS / "inspect.js").read_text(encoding="utf-8")}</script>
</body></html>
"""


_DIALOG: Final = """<dialog aria-labelledby="title" autofocus>
<div class="top"><h2 id="title"></h2><span class="faint" id="about"></span>
<button type="button" id="previous" aria-label="previous sample">&larr;</button>
<button type="button" id="next" aria-label="next sample">&rarr;</button>
<button type="button" id="close">close</button></div>
<div class="view"><div class="stage"></div></div>
<div class="side"><p class="problem" id="problem" hidden></p>
<h3>Layers</h3><div id="layers"></div>
<div class="layer"><input type="checkbox" id="dim"><label for="dim" class="long">dim the photograph</label></div>
<h3>Classes</h3><ul class="legend"></ul>
<p class="keys"><kbd>&larr;</kbd> <kbd>&rarr;</kbd> other samples, <kbd>1</kbd> <kbd>2</kbd> ... layers,
<kbd>d</kbd> dim, <kbd>Esc</kbd> back. A class's button shows its patch weights.</p></div>
</dialog>"""


def _tiles(summary: StoreSummary) -> str:
    unknown = "-"
    per_image = unknown if summary.bytes_per_image is None else format_bytes(summary.bytes_per_image)
    tiles = [
        ("samples done", f"{summary.done:,}", False),
        ("missing", f"{summary.missing:,}", summary.missing > 0),
        ("quarantined", f"{summary.quarantined:,}", summary.quarantined > 0),
        ("classes", f"{summary.num_classes:,}", False),
        ("bytes per image", per_image, False),
        ("on disk", format_bytes(summary.disk_bytes), False),
    ]
    cells = (
        f'<div class="tile{" warn" if warn else ""}"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for name, value, warn in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _tables(summary: StoreSummary) -> str:
    parts = [
        _details(
            "Arrays", _table(array_rows(summary), numbers={3, 4, 5, 6}) + _faint(measured_note(summary)), is_open=True
        ),
        _details("Store", _table([("", ""), *facts(summary)], head=False)),
        _details("Layers and their settings", _table(layer_rows(summary))),
    ]
    if summary.quarantine:
        shown = summary.quarantine[:QUARANTINE_LISTED]
        rows = [("index", "sample", "why"), *((str(entry.index), entry.sample_id, entry.reason) for entry in shown)]
        rest = len(summary.quarantine) - len(shown)
        more = _faint(f"and {rest} more; `physseg inspect STORE --json` lists them all") if rest else ""
        parts.append(_details(f"Quarantined samples ({len(summary.quarantine)})", _table(rows) + more))
    if summary.damaged:
        faults = "".join(f"<li>{_text(fault)}</li>" for fault in summary.damaged)
        parts.append(_details("Damaged; see physseg verify", f"<ul>{faults}</ul>", is_open=True))
    return "".join(parts)


def _details(title: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{_text(title)}</summary><div>{content}</div></details>"


def _table(
    rows: Sequence[Sequence[str]], *, numbers: frozenset[int] | set[int] = frozenset(), head: bool = True
) -> str:
    """A table from rows of plain text, the first one its heading; the columns ``numbers`` are set flush right."""

    def cells(row: Sequence[str], tag: str) -> str:
        last = len(row) - 1
        return "".join(
            f'<{tag} class="{"number" if i in numbers else "wide" if i == last else ""}">{_text(cell)}</{tag}>'
            for i, cell in enumerate(row)
        )

    heading = f"<thead><tr>{cells(rows[0], 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return f"<table>{heading}<tbody>{body}</tbody></table>"


def _faint(text: str) -> str:
    return f'<p class="faint">{_text(text)}</p>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _json_script(element_id: str, value: Any) -> str:
    """A value as JSON that no HTML parser can mistake for markup, in an element that is never run."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{element_id}">{text}</script>\n'


# --- samples --------------------------------------------------------------------------------------------------------


def _card(view: SampleView) -> str:
    """The contact sheet's entry of one sample."""
    names = view.vocabulary.prompt_names
    sample_id = view.sample.sample_id
    classes = [names[class_id] for class_id, _ in view.shares]
    searched = "\n".join([sample_id, *classes]).lower()
    coloured = draw.blend_labels(
        view.image, view.labels, len(names), ignore_index=view.vocabulary.ignore_index, alpha=0.55
    )
    pictures = "".join(
        f'<img class="{kind}" loading="lazy" alt="" src="{_jpeg(_thumbnail(image), THUMBNAIL_QUALITY)}">'
        for kind, image in (("coloured", coloured), ("photo", view.image))
    )
    return (
        f'<button type="button" class="card" data-id="{_text(sample_id)}" data-search="{_text(searched)}" '
        f'title="{_text(sample_id)}">{pictures}<div><b>{_text(sample_id)}</b>'
        f"<span>{_text(', '.join(classes) or 'nothing labelled')}</span></div></button>\n"
    )


def _sample(view: SampleView) -> dict[str, Any]:
    """What the large view shows of one sample."""
    ignore_index = view.vocabulary.ignore_index
    layers = {
        "labels": {
            "src": _label_layer(view),
            "about": f"{len(view.shares)} class{'' if len(view.shares) == 1 else 'es'}",
        }
    }
    for position, (name, (spec, plane)) in enumerate(view.structures.items()):
        alpha = draw.structure_alpha(plane, spec.drawn)
        layers[name] = {"src": _alpha_layer(alpha, structure_colour(position)), "about": describe(spec, plane)}
    weights = {class_id: view.patch_weights(class_id) for class_id, _ in view.shares}
    height, width = view.labels.shape
    return {
        "id": view.sample.sample_id,
        "index": view.index,
        "split": view.sample.split,
        "note": view.sample.note,
        "problem": view.image_problem,
        "size": [view.sample.height, view.sample.width],
        "frame": [height, width],
        "image": _jpeg(view.image, JPEG_QUALITY),
        "layers": layers,
        "classes": [[class_id, round(share, 6)] for class_id, share in view.shares],
        "ignored": dict(draw.class_shares(view.labels)).get(ignore_index, 0.0),
        "weights": {class_id: _weight_layer(values) for class_id, values in weights.items()},
        "patches": [-(-height // view.patch_px), -(-width // view.patch_px)],
    }


def _settings(views: SampleViews, present: set[int]) -> dict[str, Any]:
    """What all samples share: layers from bottom to top, and the names and colours of the classes that occur."""
    ramp = ", ".join(_hex(colour) for colour in draw.heat_colours(np.linspace(0, 1, 9)))
    gradient = f"linear-gradient(90deg, {ramp})"
    labels = {"name": "labels", "title": "labels", "colour": _hex(draw.palette(1)[0]), "opacity": 0.6}
    weights = {"name": "weights", "title": "patch weights", "colour": gradient, "opacity": 0.8}
    structures = [
        {"name": spec.name, "title": spec.name, "colour": _hex(structure_colour(position)), "opacity": 1}
        for position, spec in enumerate(views.drawn)
    ]
    return {
        "layers": [labels, weights, *structures],
        "classes": _classes(views.vocabulary, present),
        "ignored": _hex(draw.IGNORED),
        "patch": views.patch_px,
    }


def _classes(vocabulary: Vocabulary, present: set[int]) -> Mapping[int, Mapping[str, str]]:
    colours, names = draw.palette(vocabulary.num_classes), vocabulary.prompt_names
    return {class_id: {"name": names[class_id], "colour": _hex(colours[class_id])} for class_id in sorted(present)}


# --- pictures -------------------------------------------------------------------------------------------------------


def _thumbnail(image: UInt8) -> UInt8:
    scale = min(1.0, *(limit / edge for limit, edge in zip(THUMBNAIL_PX, image.shape[:2], strict=True)))
    height, width = (max(1, round(edge * scale)) for edge in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(image: UInt8, quality: int) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, optimize=True)
    return _uri("image/jpeg", buffer.getvalue())


def _label_layer(view: SampleView) -> str:
    """The label map in its colours with outlines, opaque; the page makes it translucent."""
    ids, local = np.unique(view.labels, return_inverse=True)
    indices = local.reshape(view.labels.shape)
    indices[draw.outlines(view.labels)] = len(ids)
    colours = draw.colour_labels(ids, view.vocabulary.num_classes, ignore_index=view.vocabulary.ignore_index)
    table = np.concatenate([colours, np.array([_OUTLINE], np.uint8)])
    if len(table) > 256:  # more classes in one image than a palette holds
        return _png(Image.fromarray(table[indices]))
    return _palette_png(indices.astype(np.uint8), table, np.full(len(table), 255, np.uint8))


def _alpha_layer(alpha: npt.NDArray[np.float32], colour: Colour) -> str:
    """One colour with an opacity (h, w) in [0, 1] per pixel, in ``LEVELS`` steps; two where that is all there is."""
    levels = np.rint(alpha * (LEVELS - 1)).astype(np.uint8)
    levels[(levels == 0) & (alpha > 0)] = 1
    steps = np.linspace(0, 255, LEVELS).round().astype(np.uint8)
    if np.isin(levels, (0, LEVELS - 1)).all():
        levels, steps = np.minimum(levels, 1), np.array([0, 255], np.uint8)
    return _palette_png(levels, np.tile(np.array(colour, np.uint8), (len(steps), 1)), steps)


def _weight_layer(weights: npt.NDArray[np.float32]) -> str:
    """Patch weights (rows, columns) in [0, 1], a pixel per patch; 0 is clear."""
    levels = np.ceil(weights * (LEVELS - 1) - 1e-6).astype(np.uint8)
    opacity = np.full(LEVELS, 255, np.uint8)
    opacity[0] = 0
    return _palette_png(levels, draw.heat_colours(np.linspace(0, 1, LEVELS)), opacity)


def _palette_png(indices: UInt8, colours: UInt8, opacity: UInt8) -> str:
    """Indices (h, w) into ``colours`` (N, 3) and ``opacity`` (N,) as a PNG of as few bits a pixel as N needs."""
    picture = Image.fromarray(indices, "P")
    picture.putpalette(colours.tobytes())
    bits = next(bits for bits in (1, 2, 4, 8) if len(colours) <= 1 << bits)
    return _png(picture, bits=bits, transparency=opacity.tobytes())


def _png(picture: Image.Image, **options: Any) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True, **options)
    return _uri("image/png", buffer.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _hex(colour: UInt8 | Colour) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)
