"""For people: sizes, durations, percent, the first few of many names, and the I-th of N parts."""

import difflib
import math
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import TypeVar

from .errors import ConfigError

T = TypeVar("T")
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def format_bytes(size: float) -> str:
    """Bytes in decimal units.

    >>> format_bytes(999), format_bytes(6_000_000)
    ('999 B', '6.0 MB')
    """
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def parse_bytes(text: str) -> int:
    """Bytes of a size as people write it: a number, and a unit of 1000s or 1024s, in any case. Raises ConfigError.

    >>> parse_bytes("2GiB"), parse_bytes("1.5 kB"), parse_bytes("1e9"), parse_bytes("64")
    (2147483648, 1500, 1000000000, 64)
    """
    found = re.fullmatch(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:e\+?\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    size = float(found[1]) * _BYTES[(found[2] or "").lower()] if found else math.inf
    if size >= 2**63:
        raise ConfigError(f"expected a size such as 2GiB, got {text!r}")
    return int(size)


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in s.

    >>> counted(1, "shard"), counted(0, "sample"), counted(2, "class")
    ('1 shard', '0 samples', '2 classes')
    """
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def format_duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> format_duration(8), format_duration(300), format_duration(9000)
    ('8 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def between(low: float, high: float, *, core: bool = False) -> str:
    """A range of seconds in a unit that suits it.

    >>> between(6480, 7560), between(100, 130, core=True)
    ('1.8 to 2.1 hours', '1.7 to 2.2 core-minutes')
    """
    name, unit = ("hours", 3600) if high >= 5400 else ("minutes", 60) if high >= 90 else ("seconds", 1)
    texts = [f"{value / unit:.{0 if low >= 10 * unit else 1}f}" for value in (low, high)]
    return f"{' to '.join(dict.fromkeys(texts))} {'core-' if core else ''}{name}"


LEAST_SPREAD, MOST_SPREAD = 0.07, 0.5
"""Share by which the same work takes longer or shorter another time, however often it was measured, or how seldom."""


def spread_of(seconds: Sequence[float]) -> float:
    """Two standard errors of the mean as a share of it; of one measurement nobody knows how far others are."""
    if len(seconds) < 2:
        return MOST_SPREAD
    error = stdev(seconds) / math.sqrt(len(seconds))
    return min(max(2 * error / fmean(seconds), LEAST_SPREAD), MOST_SPREAD)


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction in percent; NaN is a dash, and what would round to none is told from none.

    >>> percent(0.1234), percent(0.0004), percent(0.00004), percent(0.124, digits=1), percent(float("nan"))
    ('12.34%', '0.04%', '<0.01%', '12.4%', '-')
    """
    if math.isnan(fraction):
        return "-"
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f}%" if 0 < 100 * fraction < smallest else f"{100 * fraction:.{digits}f}%"


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spread and in order.

    >>> evenly([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]


def align(rows: Sequence[Sequence[str]], *, right: Container[int]) -> list[str]:
    """Rows of cells as lines, with columns two spaces apart.

    Args:
        right: Indices of the columns whose cells end, not begin, at the same place.

    >>> align([("class", "IoU"), ("cat", "7.5")], right={1})
    ['class  IoU', 'cat    7.5']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return ["  ".join(cells).rstrip() for cells in aligned]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    r"""Rows of cells, the heading first, as a table in Markdown.

    >>> print(markdown_table([("class", "IoU"), ("cat|dog", "7.5")]))
    | class | IoU |
    | --- | --- |
    | cat\|dog | 7.5 |
    """
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in ruled)


_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "[": "{[}",
    }
)


def latex_table(rows: Sequence[Sequence[str]], *, right: Container[int]) -> str:
    """Rows of cells, the heading first, as a table in LaTeX with the package booktabs; `right` as for `align`."""
    minus = partial(re.sub, r"(^| )-(?=\d)", r"\1$-$")  # no hyphen
    written = [" & ".join(minus(cell.translate(_LATEX)) for cell in row) + r" \\" for row in rows]
    columns = "".join("r" if index in right else "l" for index in range(len(rows[0])))
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", written[0], r"\midrule"]
    return "\n".join([*head, *written[1:], r"\bottomrule", r"\end{tabular}"])


def preview(names: Iterable[object], limit: int = 5) -> str:
    """The first few names of many, in the given order.

    >>> preview("abcdefg"), preview([])
    ('a, b, c, d, e and 2 more', 'none')
    """
    texts = [str(name) for name in names]
    rest = len(texts) - limit
    return (", ".join(texts[:limit]) or "none") + (f" and {rest} more" if rest > 0 else "")


def did_you_mean(text: str, known: Sequence[str]) -> str:
    """A hint with what the user may have meant: what contains the text, else what looks like it.

    >>> did_you_mean("squre", ["box", "square"]), did_you_mean("ox", ["box", "square"])
    ("did you mean 'square'?", "did you mean 'box'?")
    """
    close = [name for name in known if text and text in name][:5]
    close = close or difflib.get_close_matches(text, known[:20_000], n=5, cutoff=0.5)  # all of them would take seconds
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    return f"there are, for example, {', '.join(map(repr, known[:5]))}"


CONTROL = r"[\x00-\x1f\x7f-\x9f" + "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
"""Control characters, line ends of Unicode, and marks that change the direction of writing, as a regular expression.

They make a terminal or a page show another name than the one that is there.
"""


def control_character(text: str) -> str | None:
    """The first such character of a text by its number; None where there is none.

    >>> control_character("table\\u202etop"), control_character("Schrank, \\u0634\\u062c\\u0631\\u0629")
    ('the control character U+202E', None)
    """
    found = re.search(CONTROL, text)
    return f"the control character U+{ord(found[0]):04X}" if found else None


@dataclass(frozen=True, slots=True)
class Part:
    """One of several jobs that share a piece of work, written I/N on the command line.

    >>> Part.parse("2/3").of("abcdefg")
    ['b', 'e']
    """

    number: int
    """Which of the parts, from 1."""
    parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise self._mismatch(self)

    @classmethod
    def parse(cls, text: str) -> "Part":
        """ "3/8" as the third of eight. Raises ConfigError."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not found:
            raise cls._mismatch(repr(text))
        return cls(int(found[1]), int(found[2]))

    @staticmethod
    def _mismatch(got: object) -> ConfigError:
        hint = "in an array job: --part $SLURM_ARRAY_TASK_ID/8 with sbatch --array=1-8"
        return ConfigError.mismatch("part", "I/N with I from 1 to N", got, hint)

    def owns(self, index: int) -> bool:
        """Whether the item of that index belongs to this part: every `parts`-th does."""
        return index % self.parts == self.number - 1

    def of(self, items: Sequence[T]) -> list[T]:
        return list(items[self.number - 1 :: self.parts])

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"
