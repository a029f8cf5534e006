"""The page the demo ends with: one HTML file that holds its pictures and needs nothing from outside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.html import render
from ...common.text import format_duration
from .results import Results, describe

_PLOT = {"width": 260, "height": 180, "left": 46, "right": 248, "top": 30, "bottom": 152}
"""Size of a chart, and where its axes begin and end, in px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the chain, as it ran."""

    title: str
    """Name of the step."""
    command: str
    """What a user would type. A step without a command of its own has the call in words."""
    seconds: float
    """Duration of the step."""


def render_page(
    *, stages: Sequence[Stage], results: Results, losses: Mapping[str, Sequence[tuple[int, float]]], **shown: Any
) -> str:
    """The whole page as HTML text.

    Args:
        stages: Steps of the chain in order.
        results: Scores of the validation split.
        losses: (step, value) pairs of each loss part.
        shown: What the template shows as it is. `settings`, and whether the demo was `resumed`, so that the times are
            not those of the whole. `structures` are pictures with a `url` and a `caption`; `scenes` and `predictions`
            are rows of `pictures` with a `legend` of names and RGB colours.
    """
    things = [name.split(" ") for name in results.classes if " " in name]
    return render(
        Path(__file__).with_name("page") / "demo.html",
        **shown,
        stages=stages,
        results=results,
        words=describe(results.seen, results.unseen, results.gone),
        total=format_duration(sum(stage.seconds for stage in stages)),
        classes=_class_rows(results),
        stuff=[name for name in results.classes if " " not in name],
        colours=list(dict.fromkeys(colour for colour, _ in things)),
        shapes=list(dict.fromkeys(shape for _, shape in things)),
        charts=[_chart(title, points) for title, points in losses.items()],
        plot=_PLOT,
    )


def _class_rows(results: Results) -> list[dict[str, Any]]:
    """What the table says of each class, those that were never trained at the end."""
    unseen = results.unseen_classes
    columns = zip(results.classes, results.pixels.tolist(), results.iou.tolist(), strict=True)
    rows = [
        {"name": name, "unseen": name in unseen, "pixels": pixels, "iou": None if math.isnan(iou) else iou}
        for name, pixels, iou in columns
    ]
    return sorted(rows, key=lambda row: row["name"] in unseen)


def _chart(title: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """One loss over the steps: each value, and a running mean on top; the axis starts at zero."""
    if not points:
        return {"title": title, "raw": ""}
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    highest = max(float(np.nanmax(values)), 1e-9)
    x = _PLOT["left"] + (_PLOT["right"] - _PLOT["left"]) * (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    raw, smooth = (
        _PLOT["bottom"] - (_PLOT["bottom"] - _PLOT["top"]) * heights / highest
        for heights in (values, _running_mean(values))
    )
    return {
        "title": title,
        "highest": highest,
        "first_step": points[0][0],
        "last_step": points[-1][0],
        "raw": _path(x, raw),
        "smooth": _path(x, smooth),
    }


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a window of a twentieth of all values, cut at the ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def _path(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
