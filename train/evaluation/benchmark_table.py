"""Results in the columns of the paper's tables."""

from collections.abc import Mapping

from .result import Evaluation

COLUMNS: Mapping[str, str] = {
    "ade20k-847": "A-847",
    "pascal-context-459": "PC-459",
    "ade20k-150": "A-150",
    "pascal-context-59": "PC-59",
    "pascal-voc-20": "PAS-20",
    "pascal-voc-20b": "PAS-20b",
}
"""Name of a data set -> its column, in the paper's order."""


def paper_table(name: str, results: Mapping[str, Evaluation]) -> str:
    """A Markdown table of one row: mIoU in percent of each data set, by the set's name.

    Over the classes that are true or predicted, as detectron2 0.6 (see ConfusionMatrix.miou); the results' files have
    the average over the ground truth's classes, too.
    """
    values = [f"{100 * results[data].confusion.miou():.1f}" if data in results else "-" for data in COLUMNS]
    rows = [["mIoU, %", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS)), [name, *values]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
