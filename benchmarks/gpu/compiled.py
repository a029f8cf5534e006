"""The steps of speed.py with torch.compile: a minute or more for the first step of each, so the most useful first."""

from collections.abc import Iterator

from common import Section
from gpu.parts import Kit
from gpu.speed import Case, table


def measure(kit: Kit) -> Iterator[Section]:
    if kit.on_gpu:
        cases = [
            Case(clip, losses, precision, batch)
            for losses in (True, False)
            for batch in (4, 1, 16)
            for precision in ("bf16", "tf32")
            for clip in ("B/16", "L/14")
        ]
    else:
        cases = [Case("demo", False, "tf32", 1)]
    yield from table(kit, cases, compiled=True)
