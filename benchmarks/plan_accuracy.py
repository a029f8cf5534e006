"""What `physseg plan` says against what the run then takes: time, bytes, files and memory.

    python benchmarks/plan_accuracy.py [--manifest M.parquet] [--samples 384] [--rounds 3] [--workers N]

Each round plans, then computes a whole store with Dask's local cluster, as `physseg preprocess` does. Without a
manifest there are two data sets: generated pictures of one size, and the same ones in mixed sizes, a few of them large.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from data import UInt8, draw, open_samples, write_pictures
from physseg.common.processes import available_cpus
from physseg.manifests.manifest import Manifest
from physseg.pipeline.cost.estimate import Estimate, estimate_job
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.local import LocalExecutor

from common import Goal, Section, machine, spread

ALLOWED = 0.2
"""Of what is planned above or below what comes."""
SIZES = ((480, 640), (640, 480), (333, 500), (768, 1024), (427, 640), (512, 512), (1200, 1600), (600, 400))
"""Height and width of the mixed data set's pictures, in turn; every hundredth is LARGE."""
LARGE = (2400, 3200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cpus())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = data_sets(args.manifest, args.samples, Path(folder))
        section = measure(sets, Path(folder), rounds=args.rounds, workers=args.workers)
    print(section.markdown())
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "tables": section.tables}, indent=2, default=str) + "\n")


def data_sets(manifest: Path | None, count: int, folder: Path) -> dict[str, Manifest]:
    samples = open_samples(manifest, count, folder)
    sets = {samples.description: samples.manifest}
    if manifest is None:
        sets[f"{count} of them in mixed sizes, {SIZES[2][0]}x{SIZES[2][1]} to {LARGE[0]}x{LARGE[1]} px"] = mixed(
            folder / "mixed", count
        )
    return sets


def measure(sets: dict[str, Manifest], folder: Path, *, rounds: int, workers: int) -> Section:
    rows, goals = [], []
    for name, manifest in sets.items():
        ratios: dict[str, list[float]] = {}
        plans, runs = [], []
        for number in range(rounds):
            store = folder / f"plan{len(rows)}_{number}.zarr"
            planned, planning, actual = plan_and_run(manifest, store, workers)
            plans.append(planning)
            runs.append(actual["wall time"])
            for what, value in actual.items():
                ratios.setdefault(what, []).append(planned[what] / value)
        rows.append({"data": name} | {what: spread(values) for what, values in ratios.items()})
        worst = max(abs(ratio - 1) for values in ratios.values() for ratio in values)
        typical = max(abs(float(np.median(values)) - 1) for values in ratios.values())
        goals.append(
            Goal(
                text=f"planned within {100 * ALLOWED:.0f} % of what came, in the median of rounds ({name})",
                measured=f"{100 * typical:.0f} % off, {100 * worst:.0f} % in the worst round; planning took "
                f"{spread(plans)} s, the run {spread(runs)} s",
                met=typical <= ALLOWED,
            )
        )
    return Section(
        title="Planning a run",
        text=f"Planned / actual: median (smallest-largest) of {rounds} rounds, each a plan and then a run on {workers} "
        "workers with the default structures. Wall time is the whole run's, the start of its cluster included; core "
        "time the sum of what its tasks took; memory the most that any worker held.",
        tables=[rows],
        goals=goals,
    )


def plan_and_run(manifest: Manifest, store: Path, workers: int) -> tuple[dict[str, float], float, dict[str, float]]:
    """What was planned, the seconds that planning took, and what came."""
    job = run.prepare(manifest, store)
    start = time.perf_counter()
    estimate = estimate_job(job, workers=workers)
    planning = time.perf_counter() - start
    if estimate is None:
        raise SystemExit("no image of this manifest can be computed")
    log = store.with_suffix(".jsonl")
    with watched_memory() as peaks:
        start = time.perf_counter()
        run.execute(job, LocalExecutor(workers=workers), progress=False, log=log)
        wall = time.perf_counter() - start
    events = [json.loads(line) for line in log.read_text().splitlines()]
    files = [file.stat().st_size for file in store.rglob("*") if file.is_file()]
    actual = {
        "wall time": wall,
        "core time": sum(sum(event["seconds"].values()) for event in events if event["event"] == "shard"),
        "bytes": float(sum(files)),
        "files": float(len(files)),
        "memory": float(max(peaks.values())),
    }
    return _planned(estimate), planning, actual


def _planned(estimate: Estimate) -> dict[str, float]:
    return {
        "wall time": estimate.wall_seconds,
        "core time": estimate.core_seconds,
        "bytes": float(estimate.store_bytes),
        "files": float(estimate.files),
        "memory": float(estimate.memory_bytes),
    }


@contextmanager
def watched_memory() -> Iterator[dict[int, int]]:
    """Process id -> peak resident bytes of every process started below this one meanwhile (Linux alone)."""
    import psutil

    peaks: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for child in psutil.Process().children(recursive=True):
                try:
                    status = Path(f"/proc/{child.pid}/status").read_text()
                except OSError:
                    continue
                for line in status.splitlines():
                    if line.startswith("VmHWM:"):
                        peaks[child.pid] = max(peaks.get(child.pid, 0), int(line.split()[1]) * 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def mixed(root: Path, count: int) -> Manifest:
    """The generated pictures, each brought to another size."""

    def picture(index: int) -> tuple[UInt8, UInt8]:
        height, width = LARGE if index % 100 == 50 else SIZES[index % len(SIZES)]
        image, labels = draw(np.random.default_rng([7, index]))
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        return resized, cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)

    return write_pictures(root, (picture(index) for index in range(count)))


if __name__ == "__main__":
    main()
