"""What every benchmark shares: timing with warm-up, the machine's description, one table format and one JSON format.

Figures are medians with the 10th and 90th percentile, never single runs; a comparison times all its candidates in one
process, interleaved, so that a machine that slows down slows all of them.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Wall-clock seconds of one call, over its repeats."""

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int

    def __str__(self) -> str:
        return f"{1e3 * self.median_s:.2f} ms ({1e3 * self.p10_s:.2f}-{1e3 * self.p90_s:.2f})"


def time_call(fn: Callable[[], object], *, repeats: int = 20, warmup: int = 2) -> Timing:
    """Time ``fn()`` ``repeats`` times after ``warmup`` calls that do not count."""
    return time_calls({"": fn}, repeats=repeats, warmup=warmup)[""]


def time_calls(calls: Mapping[str, Callable[[], object]], *, repeats: int = 20, warmup: int = 2) -> dict[str, Timing]:
    """Time several functions in turns, once each per round, so that drift and load hit all of them alike."""
    for fn in calls.values():
        for _ in range(warmup):
            fn()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, fn in calls.items():
            start = time.perf_counter()
            fn()
            seconds[name].append(time.perf_counter() - start)
    return {name: _summary(values) for name, values in seconds.items()}


def _summary(seconds: Sequence[float]) -> Timing:
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    return Timing(median_s=float(median), p10_s=float(p10), p90_s=float(p90), repeats=len(seconds))


def machine() -> dict[str, Any]:
    """Describe the machine and the code that produced a figure."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows of equal keys as a Markdown table; floats get three significant digits."""
    if not rows:
        return ""
    header = list(rows[0])
    lines = [header, ["---"] * len(header), *([_cell(row[key]) for key in header] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(title: str, rows: Sequence[Mapping[str, object]], *, out: Path | None = None, **conditions: object) -> None:
    """Print a benchmark's table under its conditions, and write all of it as JSON to ``out``."""
    described = machine() | conditions
    print(f"## {title}\n")
    print(", ".join(f"{key} {value}" for key, value in described.items() if value is not None) + "\n")
    print(markdown_table(rows) + "\n", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": title, "machine": described, "rows": [dict(row) for row in rows]}
        out.write_text(json.dumps(content, indent=2, default=str) + "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One target of the project, and what was measured."""

    text: str
    measured: str
    met: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What one benchmark has to say."""

    title: str
    text: str
    """How it was measured, and what limits the figures."""
    tables: Sequence[Sequence[Mapping[str, object]]]
    goals: Sequence[Goal] = ()
    measured: str = ""
    """When, and on what."""

    def markdown(self) -> str:
        measured = f"*Measured {self.measured}.*" if self.measured else ""
        parts = [f"## {self.title}", measured, self.text, *map(markdown_table, self.tables)]
        parts += [f"- {'met' if goal.met else '**missed**'}: {goal.text}: {goal.measured}" for goal in self.goals]
        return "\n\n".join(part for part in parts if part) + "\n"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and the smallest and largest of all rounds."""
    low, middle, high = (f"{value:.{digits}g}" for value in (min(values), np.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
