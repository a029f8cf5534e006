"""The tests with the marker `gpu`, each counted as soon as it has ended."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from common import Goal, Section
from gpu.material import hardware
from gpu.parts import Kit

ROOT = Path(__file__).parents[2]
ENDED = re.compile(
    r"^\[gw\d+\] \[ *\d+%\] (?P<how>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (?:tests/)?(?P<test>\S+::.+?)\s*$"
)
"""As pytest-xdist says it."""
WHY = re.compile(r"^(?:FAILED|ERROR) (?:tests/)?(?P<test>\S+::.+?) - (?P<why>.+)$")
"""As its closing lines say it."""
PROCESSES = max(1, min(4, (os.cpu_count() or 1) // 2))
"""They share the GPU; most of a test is importing, compiling, and what the CPU computes for comparison."""


def measure(kit: Kit) -> Iterator[Section]:
    # Not all files: others import packages that need not be here.
    files = [str(file) for file in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--color=no"]
    command += ["-n", str(PROCESSES), *files]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    ended: dict[str, str] = {}
    yield section(ended, kit)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := ENDED.match(line):
            ended[found["test"]] = found["how"].lower()
            yield section(ended, kit)
        elif found := WHY.match(line):
            ended[found["test"]] = f"failed: {found['why']}"
            yield section(ended, kit)
    process.wait()
    if process.returncode not in (0, 1):  # 1: tests failed, which the page says
        sys.exit(process.returncode)


def section(ended: dict[str, str], kit: Kit) -> Section:
    ways = [how.partition(":")[0] for how in ended.values()]
    number = {how: ways.count(how) for how in sorted(set(ways))}
    goals = [
        Goal(
            text="no test fails",
            measured=", ".join(f"{count} {how}" for how, count in number.items()) or "none has ended",
            met=bool(ended) and not {"failed", "error", "xpass"}.intersection(ways),
        )
    ]
    rows = [
        {"test": test, "result": how if how == "passed" else f"**{how}**".replace("|", "/")}
        for test, how in ended.items()
    ]
    return Section(
        title="Tests on the GPU",
        text=f"`pytest -m gpu` on {hardware(kit.device)}, {PROCESSES} at a time. What needs CUDA is skipped on a CPU.",
        tables=[rows] if rows else [],
        goals=goals,
    )
