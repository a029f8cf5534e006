"""HTML pages from jinja2 templates: text is escaped, and a name that nobody gave a value is an error; charts for them.

    page = render(Path(__file__).with_name("page") / "page.html", title="a < b", rows=[...])

Templates include their neighbours (`{% include "page.css" %}`) and what pages share: the style `base.css`, light and
dark, and the macros of `parts.html`. They write values for scripts by `{{ value | tojson }}`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, **values: Any) -> str:
    """The text of a template file with the values it names; `markupsafe.Markup` among them is not escaped."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).with_name("page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template(template.name).render(values)


_PLOT = {"width": 260, "height": 180, "left": 56, "right": 248, "top": 30, "bottom": 152}
"""Size of a chart, and where its axes begin and end, in px."""
_MOST_POINTS = 500
"""Points of a line: two for each pixel across."""


def chart(title: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """What the macro `chart` of `parts.html` draws: values over steps, and a running mean on top.

    The axis holds zero. The mean is over a twentieth of the values; of fewer than 40 it is the values themselves.
    `points` are step and value of each, in order; without any the chart says so.
    """
    if not points:
        return {"title": title, "raw": ""}
    steps, values = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    lowest, highest = min(float(values.min()), 0.0), max(float(values.max()), 1e-9)
    x = _PLOT["left"] + (_PLOT["right"] - _PLOT["left"]) * (steps - steps[0]) / max(steps[-1] - steps[0], 1)
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(np.intp))
    lines = {}
    for name, heights in (("raw", values), ("smooth", _running_mean(values))):
        y = _PLOT["bottom"] - (_PLOT["bottom"] - _PLOT["top"]) * (heights - lowest) / (highest - lowest)
        line = [f"{a:.1f},{b:.1f}" for a, b in zip(x[shown], y[shown], strict=True)]
        lines[name] = " ".join(line * (2 if len(line) == 1 else 1))  # of one point a line would be nothing
    ends = {"lowest": lowest, "highest": highest, "first_step": points[0][0], "last_step": points[-1][0]}
    return {"title": title, **_PLOT, **ends, **lines}


def _running_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over a window of a twentieth of all values, cut at the ends."""
    half = len(values) // 40
    sums = np.concatenate(([0.0], np.cumsum(values)))
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))
