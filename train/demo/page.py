"""The page the demo ends with: one HTML file that holds its pictures and needs nothing from outside."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .results import Destinations, GroupScore, describe

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the chain, as it ran."""

    title: str
    command: str
    """What a user would type; for the step that has no command of its own, the call in words."""
    seconds: float
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image, uint8 (H, W, 3) RGB, with the words under it."""

    image: UInt8
    caption: str
    lossless: bool = False
    """PNG instead of JPEG: for flat colours and for overlays of thin lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Pictures of one scene that belong side by side, and the colours in them."""

    pictures: Sequence[Picture]
    legend: Sequence[tuple[str, tuple[int, int, int]]]
    """Names and RGB colours, the largest class first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoReport:
    """All that the page shows; `render_page` adds the words."""

    settings: Mapping[str, str]
    stages: Sequence[Stage]
    resumed: bool
    """Whether this call went on with an earlier one's work, so that the times are not those of the whole."""
    classes: Sequence[str]
    unseen: Sequence[str]
    iou: npt.NDArray[np.float64]
    pixels: npt.NDArray[np.int64]
    seen_score: GroupScore
    unseen_score: GroupScore
    gone: Destinations
    losses: Mapping[str, Sequence[tuple[int, float]]]
    """Per loss part its (step, value) pairs."""
    scenes: Sequence[Row]
    """Image and label map."""
    structures: Sequence[Picture]
    predictions: Sequence[Row]
    """Image, label map and prediction."""


def render_page(report: DemoReport) -> str:
    """The whole page as HTML text."""
    sections = (
        _headline(report),
        _section("Predictions on the validation split", _FIRST_ONES + "".join(map(_row, report.predictions))),
        _section("IoU of every class", _iou_table(report)),
        _section("What was generated", _vocabulary(report) + "".join(map(_row, report.scenes))),
        _section("Structures, computed once and cached", _figures(report.structures)),
        _section("Training", "".join(_chart(name, points) for name, points in report.losses.items())),
        _section("What was run", _stages(report.stages)),
        _section("Settings", _settings(report.settings)),
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>physseg demo</title><style>{_STYLE}</style></head><body><main>
<h1>physseg demo</h1>
{"".join(sections)}
</main></body></html>
"""


_FIRST_ONES = "<p>The first scenes of the split, not chosen ones. Grey regions are unlabelled and do not count.</p>"

_NO_CLAIM = (
    "This is a tiny model, trained from random weights on generated pictures: the figures say that the chain works, "
    "and nothing about how good the method is on photographs."
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: #1d2329; background: #f5f6f7; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { margin: 0 0 8px; } h2 { margin: 40px 0 12px; border-bottom: 2px solid #d5dade; padding-bottom: 4px; }
.tiles { display: flex; flex-wrap: wrap; gap: 16px; margin: 16px 0; }
.tile { background: #fff; border: 1px solid #d5dade; border-radius: 8px; padding: 12px 20px; flex: 1 1 240px; }
.tile b { display: block; font-size: 40px; line-height: 1.2; } .tile small, figcaption, .muted { color: #5a6570; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0; align-items: flex-start; }
.row { margin: 0 0 24px; } .row .figures { display: grid; grid-template-columns: repeat(3, 1fr); margin-bottom: 4px; }
.row img { max-height: 380px; }
.chip { display: inline-block; font-size: 14px; margin-right: 14px; white-space: nowrap; }
.chip i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 5px; }
figure { margin: 0; flex: 0 1 auto; } figure img { display: block; max-width: 100%; border-radius: 4px; }
figcaption { font-size: 14px; max-width: 520px; }
table { border-collapse: collapse; background: #fff; width: 100%; } th { text-align: left; }
th, td { border: 1px solid #d5dade; padding: 4px 10px; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; }
code { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.unseen { background: #fdf0dc; } .bar { background: #3d77b6; height: 12px; border-radius: 2px; }
.unseen .bar { background: #d98518; } table.pairs { width: auto; } svg { background: #fff;
border: 1px solid #d5dade; border-radius: 8px; max-width: 100%; margin: 0 8px 8px 0; }
svg text { font: 12px system-ui, sans-serif; fill: #5a6570; }
svg .title { font-weight: 600; fill: #1d2329; }
"""


def _headline(report: DemoReport) -> str:
    total = _duration(sum(stage.seconds for stage in report.stages))
    what = "this call, which went on with an earlier one's work" if report.resumed else "whole chain"
    tiles = (
        _score_tile("mIoU on seen classes", report.seen_score)
        + _score_tile("mIoU on unseen classes", report.unseen_score)
        + f'<div class="tile">{what}<b>{total}</b><small>{len(report.stages)} steps, one seed</small></div>'
    )
    words = [*describe(report.seen_score, report.unseen_score, report.gone), _NO_CLAIM]
    return f'<div class="tiles">{tiles}</div>' + "".join(f"<p>{html.escape(text)}</p>" for text in words)


def _score_tile(title: str, score: GroupScore) -> str:
    return (
        f'<div class="tile">{title}<b>{score.miou:.3f}</b><small>chance: {score.uniform:.3f} guessing evenly, '
        f"{score.most_frequent:.3f} always naming the most frequent class</small></div>"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{content}\n"


def _stages(stages: Sequence[Stage]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(stage.title)}</td><td><code>{html.escape(stage.command)}</code>"
        f"{f'<br><small>{html.escape(stage.note)}</small>' if stage.note else ''}</td>"
        f'<td class="number">{stage.seconds:.1f} s</td></tr>'
        for stage in stages
    )
    return f"<table><tr><th>step</th><th>command</th><th>time</th></tr>{rows}</table>"


def _vocabulary(report: DemoReport) -> str:
    """The grid of colours and shapes with the pairs that training never shows, and the other classes."""
    things = [name for name in report.classes if " " in name]
    stuff = [name for name in report.classes if " " not in name]
    colours, shapes = (list(dict.fromkeys(name.split(" ")[part] for name in things)) for part in (0, 1))
    head = "".join(f"<th>{html.escape(shape)}</th>" for shape in shapes)
    rows = "".join(
        f"<tr><th>{html.escape(colour)}</th>"
        + "".join(
            '<td class="unseen">never trained</td>' if f"{colour} {shape}" in report.unseen else "<td>trained</td>"
            for shape in shapes
        )
        + "</tr>"
        for colour in colours
    )
    return (
        f"<p>Background classes: {html.escape(', '.join(stuff))}. Things are named by colour and shape; training never "
        f"shows the marked pairs and its vocabulary does not name them, validation has them all.</p>"
        f'<table class="pairs"><tr><th></th>{head}</tr>{rows}</table>'
    )


def _figures(pictures: Sequence[Picture]) -> str:
    return f'<div class="figures">{"".join(map(_figure, pictures))}</div>'


def _row(row: Row) -> str:
    chips = "".join(
        f'<span class="chip"><i style="background:rgb({red},{green},{blue})"></i>{html.escape(name)}</span>'
        for name, (red, green, blue) in row.legend
    )
    return f'<div class="row">{_figures(row.pictures)}{chips}</div>'


def _figure(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    return (
        f'<figure><img src="{data_url(picture.image, lossless=picture.lossless)}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def data_url(image: UInt8, *, lossless: bool) -> str:
    """An image, uint8 (H, W, 3) RGB, as the text of a ``data:`` address."""
    suffix, options, kind = (".png", [], "png") if lossless else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88], "jpeg")
    _, data = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]), options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def _iou_table(report: DemoReport) -> str:
    rows = []
    for index in sorted(range(len(report.classes)), key=lambda i: (report.classes[i] in report.unseen, i)):
        name, value = report.classes[index], float(report.iou[index])
        unseen = name in report.unseen
        css = "unseen" if unseen else "seen"
        shown, width = ("no pixel", 0.0) if np.isnan(value) else (f"{value:.3f}", 100 * value)
        rows.append(
            f'<tr class="{css}"><td>{html.escape(name)}</td>'
            f"<td>{'never trained' if unseen else 'trained'}</td>"
            f'<td class="number">{report.pixels[index]:,}</td><td class="number">{shown}</td>'
            f'<td style="width:40%"><div class="bar" style="width:{width:.1f}%"></div></td></tr>'
        )
    head = "<tr><th>class</th><th></th><th>labelled pixels</th><th>IoU</th><th></th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _settings(settings: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><code>{html.escape(value)}</code></td></tr>"
        for name, value in settings.items()
    )
    return f"<table>{rows}</table>"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds >= 60 else f"{seconds:.1f} s"


_CHART = (260, 180)
_MARGIN = (46, 12, 30, 28)  # left, right, top, bottom


def _chart(title: str, points: Sequence[tuple[int, float]]) -> str:
    """One loss over the steps as an SVG: each value faint, a running mean on top; the axis starts at zero."""
    width, height = _CHART
    left, right, top, bottom = _MARGIN
    if not points:
        return f"<p>{html.escape(title)}: nothing was logged.</p>"
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    highest = max(float(np.nanmax(values)), 1e-9)
    x = left + (width - left - right) * (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    y = height - bottom - (height - top - bottom) * values / highest
    smooth = height - bottom - (height - top - bottom) * _running_mean(values) / highest
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f'<text class="title" x="{left}" y="18">{html.escape(title)}</text>'
        f'<line x1="{left}" y1="{height - bottom}" x2="{width - right}" y2="{height - bottom}" stroke="#9aa5ae"/>'
        f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{highest:.3g}</text>'
        f'<text x="{left - 6}" y="{height - bottom}" text-anchor="end">0</text>'
        f'<text x="{left}" y="{height - 10}">step {steps[0]:.0f}</text>'
        f'<text x="{width - right}" y="{height - 10}" text-anchor="end">{steps[-1]:.0f}</text>'
        f'<polyline points="{_path(x, y)}" fill="none" stroke="#b9cde3"/>'
        f'<polyline points="{_path(x, smooth)}" fill="none" stroke="#1f5c99" stroke-width="2"/></svg>'
    )


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a window of a twentieth of all values, cut at the ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def _path(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
