"""Charts for pages, papers and slides, as SVG and PNG: bars with intervals, and tables of shares.

A figure is boxes and texts alone, so that both forms are drawn from the same. The macro `figure` of
`common/page/parts.html` draws the SVG; in pages their style colours it.
"""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ....common.atomic import atomic_write
from ....common.html import render
from ....common.images import encode_png
from ....common.text import percent
from .lettering import shorten, text_size, write
from .palette import Colour, blend

COLOURS: Final[dict[str, Colour]] = {"bar": (37, 99, 168), "rule": (220, 223, 227), "ink": (30, 35, 41)}
"""Colours of the kinds of boxes, on white."""
TEXT_PX, ROW_PX, PLOT_PX, TOP_PX, MARGIN_PX, NAME_PX = 12, 18, 360, 62, 8, 220
PNG_SCALE = 2


class Box(NamedTuple):
    """A rectangle of a kind of `COLOURS`: x, y, width and height in px; `tip` is what a browser says of it."""

    place: tuple[float, float, float, float]
    kind: str
    opacity: float = 1.0
    tip: str = ""


class Text(NamedTuple):
    """A line of text around a height y; `anchor` says where in it x is: 0 its begin, 0.5 its middle, 1 its end."""

    x: float
    y: float
    text: str
    anchor: float = 0.0


class Bar(NamedTuple):
    """One row of a chart: `text` is its value in words, `intervals` are lines over the bar, None an empty place."""

    name: str
    value: float
    text: str
    intervals: Sequence[tuple[float, float] | None] = ()
    faint: bool = False


class Figure:
    """A chart under a heading and a line that explains it; at least so wide and high, px."""

    def __init__(self, title: str, note: str, width: float, height: float) -> None:
        self.boxes: list[Box] = []
        self.texts = [Text(MARGIN_PX, 14, title), Text(MARGIN_PX, 32, note)]
        self.width, self.height = max(width, *(_width(text) + 2 * MARGIN_PX for text in (title, note))), height
        self.colours = COLOURS

    def png(self) -> bytes:
        """On white, at twice the size."""
        canvas = np.full((math.ceil(PNG_SCALE * self.height), math.ceil(PNG_SCALE * self.width), 3), 255, np.uint8)
        for (x, y, width, height), kind, opacity, _ in self.boxes:
            top, bottom, left, right = (round(PNG_SCALE * edge) for edge in (y, y + height, x, x + width))
            part = canvas[top:bottom, left:right]
            part[:] = blend(part, np.full_like(part, COLOURS[kind]), opacity)
        size = PNG_SCALE * TEXT_PX
        for x, y, text, anchor in self.texts:
            height, width = text_size(text, size)
            write(canvas, text, round(PNG_SCALE * x - anchor * width), round(PNG_SCALE * y - height / 2), size)
        return encode_png(canvas)

    def save(self, stem: Path) -> None:
        """Write STEM.svg and STEM.png."""
        svg = render(Path(__file__).parents[1] / "page" / "figure.svg", figure=self)
        atomic_write(stem.with_name(f"{stem.name}.svg"), svg.encode())
        atomic_write(stem.with_name(f"{stem.name}.png"), self.png())


def bars(title: str, note: str, rows: Sequence[Bar], scale: float = 1.0) -> Figure:
    """Horizontal bars from zero, named at the left, over an axis of round numbers, `scale` times what is known."""
    rows = [row if math.isfinite(row.value) else row._replace(value=0.0, intervals=()) for row in rows]
    ends = [0.0, *chain.from_iterable((row.value, *chain(*filter(None, row.intervals))) for row in rows)]
    low, span = scale * min(ends), scale * (max(ends) - min(ends)) or 1.0
    names = [shorten(row.name, TEXT_PX, NAME_PX) for row in rows]
    left, bottom = 2 * MARGIN_PX + max(map(_width, names), default=0), TOP_PX + ROW_PX * len(rows)
    right = left + PLOT_PX + 2 * MARGIN_PX
    figure = Figure(
        title, note, right + max((_width(row.text) for row in rows), default=0) + MARGIN_PX, bottom + 2 * ROW_PX
    )

    def x(value: float) -> float:
        return left + PLOT_PX * (scale * value - low) / span

    power = 10.0 ** math.floor(math.log10(span / 6))
    step = power * next(factor for factor in (1, 2, 5, 10) if span <= 6 * factor * power)
    for number in range(math.ceil(low / step - 1e-9), math.floor((low + span) / step + 1e-9) + 1):
        figure.boxes.append(Box((x(number * step / scale), TOP_PX, 1, bottom - TOP_PX), "rule"))
        figure.texts.append(Text(x(number * step / scale), bottom + TEXT_PX, f"{number * step:g}", 0.5))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = TOP_PX + ROW_PX * (number + 0.5)
        start, stop = sorted((x(0), x(row.value)))
        figure.boxes.append(Box((start, y - 6, stop - start, 12), "bar", 0.5 if row.faint else 1, row.name))
        for place, interval in enumerate(row.intervals):
            if interval:
                (start, stop), below = map(x, interval), 6 * (place - (len(row.intervals) - 1) / 2)
                figure.boxes.append(Box((start, y + below - 1, stop - start, 2), "ink"))
        figure.texts += [Text(left - MARGIN_PX, y, name, 1), Text(right, y, row.text)]
    return figure


def share_table(title: str, note: str, names: Sequence[str], shares: npt.NDArray[np.float64]) -> Figure:
    """Shares (N, N) in [0, 1], each a box as strong as its square root; columns have the numbers of the rows."""
    rows = [shorten(name, TEXT_PX, NAME_PX) for name in names]
    left, side = 6 * MARGIN_PX + max(map(_width, rows), default=0), ROW_PX * len(names)
    figure = Figure(title, note, left + side + MARGIN_PX, TOP_PX + side + MARGIN_PX)
    for number, name in enumerate(rows):
        start = ROW_PX * number
        y, numbered = TOP_PX + start + ROW_PX / 2, str(number + 1)
        figure.texts += [Text(left - 5 * MARGIN_PX, y, name, 1), Text(left - MARGIN_PX, y, numbered, 1)]
        figure.texts.append(Text(left + start + ROW_PX / 2, TOP_PX - TEXT_PX / 2, numbered, 0.5))
        figure.boxes.append(Box((left, TOP_PX + start, side, 1), "rule"))
    for row, column in np.argwhere(shares >= 0.001).tolist():
        tip = f"{names[row]} called {names[column]}: {percent(shares[row, column], digits=1)}"
        place = left + ROW_PX * column, TOP_PX + ROW_PX * row, ROW_PX - 1, ROW_PX - 1
        figure.boxes.append(Box(place, "bar", math.sqrt(shares[row, column]), tip))
    return figure


def _width(text: str) -> int:
    """Width of a line in px, with room for the fonts of browsers, which are wider."""
    return math.ceil(1.2 * text_size(text, TEXT_PX)[1])
