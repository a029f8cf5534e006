"""The parts of the kit in order of worth, and what each is given to run: no heavy imports, for the runner reads it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from common import Section


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part: a process of its own."""

    what: str
    """What it finds out, in a few words for the page."""
    seconds: float
    """Time limit of the process, imports included."""
    command: tuple[str, ...]
    """The program; the options of `Kit` are appended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kit:
    """What a part is told."""

    device: str
    """ "cuda" or "cpu"; on a CPU everything is small, to see whether it runs."""
    folder: Path
    """Folder that all parts of one run share, for stores and the like; empty at the beginning."""
    out: Path
    """File that the part writes its sections to, again and again."""
    seconds: float
    """Time limit of the part."""

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def write(self, section: Section) -> None:
        """Keep what has been found so far: whatever happens next, it is on the page."""
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(section), default=str))
        partial.replace(self.out)


def _part(name: str, seconds: float, what: str) -> Part:
    return Part(what=what, seconds=seconds, command=(sys.executable, "-m", "gpu.part", name))


PARTS: Mapping[str, Part] = {
    "tests": _part("tests", 80, "the tests that need a GPU"),
    "step": _part("agreement", 40, "a step against the CPU's"),
    "speed": _part("speed", 80, "step time and peak memory beside the plan, share of the matmul rate"),
    "data": _part("data_wait", 30, "what a training waits for data"),
    "windows": _part("windows", 30, "prediction among 847 classes"),
    "superpoint": _part("superpoint_rate", 20, "SuperPoint images/s"),
    "demo": _part("demo", 40, "a short demo training"),
    "ddp": _part("ddp", 45, "ranks with NCCL"),
    "compiled": _part("compiled", 120, "step time with torch.compile"),
}
"""Name -> part, in the order in which they run. `compiled` is last, for it takes what is left."""

TOTAL_SECONDS = 290.0
"""What all parts have together."""
