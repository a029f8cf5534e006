"""Scores of an ablation to tables: means, their spread over seeds, and paired differences to another row.

Two things make a difference uncertain, and each has its interval of 95 %. Other seeds would give other models:
Student's t over the per-seed differences, of runs that share initial weights, sample order and augmentation. Other test
images would give another score of the same models: the bootstrap over images, the same sample of them for both rows.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.atomic import atomic_json, atomic_write
from ...common.text import counted, latex_table, markdown_table, percent
from ...pipeline.inspect.drawing.figures import Bar, Figure, bars
from ..errors import AnalysisError
from ..evaluation.image_counts import bootstrap_weights, normal_interval
from ..evaluation.protocol import environment_note, merged_environment, protocol_differences
from .ablation import Score

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the last, the last (wider than the truth).
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)

_PROTOCOL_OF_ROWS = ("protocol.templates", "protocol.synonyms", "protocol.preselected_classes")
"""What of the protocol the settings of a row may change."""

_NOT_KNOWN = "Boundary IoU is not known: a result is of an earlier version. Without seed_*/evaluations it is made anew."


Interval = tuple[float, float]
Float64 = npt.NDArray[np.float64]
_Measured = tuple[Float64, Float64]
"""mIoU of one row on one data set: of each seed, and of each seed on every sample of images (seeds, samples)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row on one data set, as `ablation.json` has it; fractions 0..1."""

    row: str
    data: str
    """Name of the data set."""
    miou: tuple[float, ...]
    """mIoU of each seed; Boundary IoU in a table of that."""
    mean: float
    deviation: float | None
    """Sample standard deviation over seeds, or None with one seed."""
    difference: float | None = None
    """Mean over seeds of this row minus the one that it is compared with, or None for that one itself."""
    difference_over_seeds: Interval | None = None
    """95 % interval of the difference over seeds, or None with one seed."""
    difference_over_images: Interval | None = None
    """95 % interval of the difference over images."""
    against: str | None = None
    """Name of the row that this one is compared with."""


def cells(
    scores: Sequence[Score], against: Mapping[str, str] | None = None, harmonic: Sequence[tuple[str, str]] = ()
) -> list[Cell]:
    """All cells by data set, rows in the order of first scores.

    Args:
        against: Name of the row that each is compared with; the first one of those that are not in it.
        harmonic: Pairs of data sets whose scores' harmonic mean has cells, too.

    Raises AnalysisError where protocols differ.
    """
    rows = list(dict.fromkeys(score.row for score in scores))
    references = dict.fromkeys(rows, rows[0]) | dict(against or {})
    measured: dict[str, dict[str, _Measured]] = {}
    for number, data in enumerate(dict.fromkeys(score.data for score in scores)):
        measured[data] = _on_one_set([score for score in scores if score.data == data], rows, number)
    for one, other in harmonic:
        both = {row: _harmonic(measured[one][row], measured[other][row]) for row in rows}
        measured[f"harmonic mean of {one} and {other}"] = both
    return [
        _cell(row, data, of_rows[row], references[row], of_rows[references[row]])
        for data, of_rows in measured.items()
        for row in rows
    ]


def _on_one_set(scores: Sequence[Score], rows: Sequence[str], seed: int) -> dict[str, _Measured]:
    """Each row's scores on a data set; `seed` is that of its samples of images, the same for all rows."""
    by_run = {(score.row, score.seed): score for score in scores}
    seeds = sorted({each for _, each in by_run})
    for row in rows:
        first = by_run[row, seeds[0]]
        _require_same_protocol(by_run[rows[0], seeds[0]], first, of_rows=_PROTOCOL_OF_ROWS)
        for each in seeds:
            _require_same_protocol(first, by_run[row, each])
    weights = bootstrap_weights(len(scores[0].images.image_ids), 2000, seed)
    return {row: _measured([by_run[row, each] for each in seeds], weights) for row in rows}


def _measured(scores: Sequence[Score], weights: Float64) -> _Measured:
    drawn = np.stack([score.images.resampled_miou(weights) for score in scores])
    return np.array([score.miou for score in scores]), drawn


def _harmonic(one: _Measured, other: _Measured) -> _Measured:
    """0 where both are."""
    means = [2 * a * b / np.where(a + b == 0, 1.0, a + b) for a, b in zip(one, other, strict=True)]
    return means[0], means[1]


def _cell(row: str, data: str, own: _Measured, reference: str, other: _Measured) -> Cell:
    miou, drawn = own
    deviation = float(miou.std(ddof=1)) if len(miou) > 1 else None
    scored = (row, data, tuple(miou.tolist()), float(miou.mean()), deviation)
    if row == reference:
        return Cell(*scored)
    pairs = miou - other[0]
    difference = float(pairs.mean())
    over_images = normal_interval(difference, (drawn - other[1]).mean(axis=0))
    return Cell(*scored, difference, student_interval(pairs), over_images, reference)


def student_interval(values: npt.NDArray[np.float64]) -> Interval | None:
    """95 % of the mean of normal values by Student's t; None for a single one.

    >>> low, high = student_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < 2:
        return None
    quantile = _T975[min(len(values) - 1, len(_T975)) - 1]
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def markdown(title: str, found: Sequence[Cell], score: str = "mIoU") -> str:
    """A table for each data set, and a line that says what they hold."""
    legend = (
        f"{score} over the classes of the ground truth, mean ± standard deviation over "
        f"{counted(len(found[0].miou), 'seed')}; difference to {found[0].row}, or to the row named, in percentage "
        "points with 95 % intervals: over seeds by Student's t, over images by bootstrap."
    )
    return "\n\n".join([f"## {title}", *map(markdown_table, _tables(found, score)), legend]) + "\n"


def _tables(found: Sequence[Cell], score: str) -> list[list[tuple[str, ...]]]:
    """Rows of the table of each data set, the heading first."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for cell in found:
        heading = (cell.data, score, "difference in points", "over seeds", "over images")
        tables.setdefault(cell.data, [heading]).append((_name(cell, found[0].row), *texts(cell)))
    return list(tables.values())


def _name(cell: Cell, first: str) -> str:
    return cell.row if cell.against in (None, first) else f"{cell.row} (against {cell.against})"


def figure(title: str, found: Sequence[Cell]) -> Figure:
    """The differences of mIoU with their intervals, in points, data set by data set."""
    several = len({cell.data for cell in found}) > 1
    rows = [
        Bar(
            _name(cell, found[0].row) + (f", {cell.data}" if several else ""),
            cell.difference,
            f"{100 * cell.difference:+.2f}",
            (cell.difference_over_seeds, cell.difference_over_images),
        )
        for cell in found
        if cell.difference is not None
    ]
    note = f"points of mIoU against {found[0].row}; lines: 95 % over seeds (upper), over images (lower)"
    return bars(title, note, rows, 100)


def write_table(out: Path, title: str, scores: Sequence[Score], **compared: Any) -> str:
    """Write `ablation.md`, .tex, .svg, .png, .json into a folder; returns the first's text. `compared`: see `cells`."""
    found, environment = cells(scores, **compared), merged_environment(score.source for score in scores)
    note = environment_note(environment)
    text, boundary = markdown(title, found), _boundary_cells(scores, **compared)
    known = markdown(f"{title}: Boundary IoU", boundary, "Boundary IoU") if boundary else f"{_NOT_KNOWN}\n"
    text += f"\n{known}" + (f"\n{note}\n" if note else "")
    atomic_write(out / "ablation.md", text.encode())
    tables = [*_tables(found, "mIoU"), *_tables(boundary or (), "Boundary IoU")]
    latex = "\n\n".join(latex_table(table, right=range(1, 5)) for table in tables)
    atomic_write(out / "ablation.tex", f"{latex}\n".encode())
    figure(title, found).save(out / "ablation")
    facts = {"title": title, "unit": "fraction", "miou_over": "ground_truth", **environment}
    facts["boundary_iou_cells"] = boundary and [
        {"boundary_iou" if name == "miou" else name: value for name, value in asdict(cell).items()} for cell in boundary
    ]
    atomic_json(out / "ablation.json", {**facts, "cells": [asdict(cell) for cell in found]})
    return text


def _boundary_cells(scores: Sequence[Score], **compared: Any) -> list[Cell] | None:
    """The cells with Boundary IoU in place of mIoU; None where any score lacks it."""
    bands = [replace(each, miou=each.boundary.miou(), images=each.boundary) for each in scores if each.boundary]
    return cells(bands, **compared) if len(bands) == len(scores) else None


def _require_same_protocol(ours: Score, theirs: Score, *, of_rows: Collection[str] = ()) -> None:
    different = [key for key in protocol_differences(ours.source, theirs.source) if key not in of_rows]
    if different:
        first, second = (f"{score.row}, seed {score.seed}" for score in (ours, theirs))
        fault = f"{first} and {second} were evaluated on {ours.data} by protocols that differ in {', '.join(different)}"
        folders = " or ".join(dict.fromkeys(f"{score.source['run']}/evaluations" for score in (ours, theirs)))
        raise AnalysisError(fault, hint=f"Move away {folders} and re-run the command: it evaluates again.")


def texts(cell: Cell) -> tuple[str, str, str, str]:
    """Its mean over seeds in percent; its difference in points with both intervals, or three empty texts."""
    mean = percent(cell.mean) + ("" if cell.deviation is None else f" ± {percent(cell.deviation)}")
    if cell.difference is None:
        return mean, "", "", ""
    intervals = _interval(cell.difference_over_seeds), _interval(cell.difference_over_images)
    return mean, f"{100 * cell.difference:+.2f}", *intervals


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
