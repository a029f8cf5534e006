"""Figures and LaTeX tables of an evaluation: IoU of each class, confusion, and mIoU by the size of objects."""

from pathlib import Path

import numpy as np

from ...common.atomic import atomic_write
from ...common.text import counted, latex_table, percent
from ...pipeline.inspect.drawing.figures import Bar, Figure, bars, share_table
from ..evaluation.object_size import AREA_TEXTS, miou_of_sizes
from ..evaluation.result import Evaluation

MOST_BARS, MOST_CONFUSED = 180, 40
"""Number of classes that a chart shows."""


def write_figures(found: Evaluation, result: Path) -> str:
    """Write each figure as SVG and PNG, and the tables for LaTeX, beside NAME.json: NAME.classes.svg and so on.

    Returns what was written, in words. Nothing is drawn where no class occurs.
    """
    drawn = figures(found)
    for name, figure in drawn.items():
        figure.save(result.with_suffix(f".{name}"))
    values = found.scalars()
    names = [name.removeprefix("eval/").replace("_", " ").replace("iou", "IoU") for name in values]
    averages = [["", *names], [result.stem, *map(percent, values.values())]]
    bands = found.boundary.iou() if found.boundary else np.full(len(found.classes), np.nan)
    true = found.confusion.matrix.sum(axis=1)
    rows = zip(found.classes, found.confusion.iou(), bands, true, strict=True)
    classes = [[name, percent(iou), percent(band), f"{pixels:,}"] for name, iou, band, pixels in rows if pixels]
    tables = averages, [["class", "IoU", "Boundary IoU", "true pixels"], *classes]
    text = "\n\n".join(latex_table(table, right=range(1, len(table[0]))) for table in tables)
    atomic_write(result.with_suffix(".tex"), f"{text}\n".encode())
    return f"{result.stem}.tex" + "".join(f", .{name}.svg and .png" for name in drawn)


def figures(found: Evaluation) -> dict[str, Figure]:
    """The figures by name; none where no class occurs."""
    iou, true, of = found.confusion.iou(), found.confusion.matrix.sum(axis=1), found.source.get("dataset", "")
    order = sorted(np.flatnonzero(true).tolist(), key=lambda index: -iou[index])
    if not order:
        return {}
    half, which = MOST_BARS // 2, f"the {counted(len(order), 'class')} of the ground truth"
    shown = order
    if len(order) > MOST_BARS:
        shown, which = [*order[:half], *order[-half:]], f"the {half} best and worst of {which}"
    seen, miou = found.seen or (True,) * len(found.classes), found.confusion.miou()
    rows = [Bar("mIoU", miou, percent(miou), [interval := found.miou_interval()])]
    rows += [Bar(found.classes[i], iou[i], percent(iou[i]), faint=not seen[i]) for i in shown]
    note = f"percent, {which}" + ("; line: about 95 % over images" if interval else "")
    note += "" if all(seen) else "; pale: not trained on"
    drawn = {"classes": bars(f"IoU of classes, {of}", note, rows, 100)}
    chosen = np.sort(np.argsort(-true, kind="stable")[: min(MOST_CONFUSED, len(order))])
    which = "" if len(chosen) == len(order) else f"; the {len(chosen)} classes of most pixels"
    shares = found.confusion.matrix[np.ix_(chosen, chosen)] / true[chosen, None]
    note = f"row: what pixels are, column: what they were called, stronger: a larger share of the row{which}"
    drawn["confusion"] = share_table(f"Confusion, {of}", note, [found.classes[i] for i in chosen], shares)
    if found.sizes is not None:
        sizes = {f"{size}: {AREA_TEXTS[size]}": one["miou"] for size, one in miou_of_sizes(found.sizes).items()}
        rows = [Bar(name, value or 0, "-" if value is None else percent(value)) for name, value in sizes.items()]
        drawn["sizes"] = bars(f"mIoU by the size of objects, {of}", "percent", rows, 100)
    return drawn
