"""Runs the parts one after the other: `make gpu`, or `python -m gpu` with benchmarks/ and physseg on PYTHONPATH.

Every part is a process of its own under its own time limit, and RESULTS_GPU.md and RESULTS_GPU.json are written after
each: a part that fails, hangs or takes the interpreter with it costs itself alone. Parts that are not run again keep
what an earlier run wrote.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common import machine
from gpu.page import Entry, read, write
from gpu.parts import PARTS, TOTAL_SECONDS, Kit, Part
from gpu.supervise import supervise

LOGS = Path(__file__).parents[2] / "build" / "gpu_logs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"Which ones, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, required=True, help="Folder of RESULTS_GPU.md and RESULTS_GPU.json.")
    parser.add_argument("--minutes", type=float, default=5, help="All limits are for 5 and grow with this.")
    args = parser.parse_args()
    names = [name for name in args.parts.split(",") if name]
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    run = {name: part for name, part in PARTS.items() if name in names}
    entries = run_parts(run, device=args.device, out=args.out, scale=args.minutes / 5, say=print)
    sys.exit(any(not entries[name].is_well for name in run))


def run_parts(
    parts: Mapping[str, Part],
    *,
    device: str,
    out: Path,
    scale: float = 1.0,
    order: Sequence[str] = tuple(PARTS),
    say: Callable[[str], None],
) -> dict[str, Entry]:
    """Run the parts and write the pages after each; returns all that the pages hold.

    Args:
        parts: Name -> part, in the order in which they run.
        device: "cuda" or "cpu".
        out: Folder of the pages.
        scale: What all limits are multiplied by.
        order: Names in the order of the page.
        say: Takes a line for the terminal.
    """
    out.mkdir(parents=True, exist_ok=True)
    entries, facts = read(out), machine()
    deadline = time.monotonic() + scale * TOTAL_SECONDS
    with tempfile.TemporaryDirectory(prefix="physseg_gpu_") as folder:
        for name, part in parts.items():
            limit = min(scale * part.seconds, deadline - time.monotonic())
            say(f"{name}: {part.what}, at most {max(limit, 0):.0f} s")
            kit = Kit(device=device, folder=Path(folder), out=Path(folder) / f"{name}.json", seconds=limit)
            log = LOGS / f"{name}.log"
            entry = supervise(part, kit, log, facts)
            if entry.status == "not started" and name in entries:
                say(f"{name}: no time left; what an earlier run found stays")
                continue
            entries[name] = entry
            write(out, entries, order)
            say(f"{name}: {entry.in_short()}" + ("" if entry.is_well else f"; all it said: {log}"))
    say(f"written to {out / 'RESULTS_GPU.md'} and {out / 'RESULTS_GPU.json'}")
    return entries


if __name__ == "__main__":
    main()
