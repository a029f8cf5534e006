"""Whether a long run's workers grow: 20,000 images on two worker processes, their memory watched all the way.

python benchmarks/memory_growth.py [--images 20000] [--workers 2]
"""

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from data import write_samples
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run

from common import Goal, Section

DIFFERENT = 256
"""Pictures that are drawn; every other row of the manifest is one of them again."""
SECONDS = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(measure(args.images, args.workers).markdown())


def measure(images: int, workers: int) -> Section:
    """Resident memory of the client and of each worker in every tenth of the run, MB."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = repeated(write_samples(Path(folder) / "data", min(DIFFERENT, images)), images)
        with Watch() as watch:
            report = run.preprocess(manifest, Path(folder) / "s.zarr", workers=workers)
    tenths = watch.tenths()
    rows = [
        {"process": name}
        | {f"{n}0 %": f"{value:.0f}" for n, value in enumerate(values, 1)}
        | {"growth": f"{values[-1] - values[2]:+.0f}"}
        for name, values in tenths
    ]
    most = max(values[-1] - values[2] for _, values in tenths)
    return Section(
        title="Memory over a long run",
        text=f"{images} generated 640x480 pictures, {workers} workers, {report.seconds:.0f} s: peak resident memory "
        "in each tenth of the run, MB, and what the last tenth has more than the third.",
        tables=[rows],
        goals=[Goal(text="no growth of memory (under 20 MB a process)", met=most < 20, measured=f"{most:+.0f} MB")],
    )


def repeated(manifest: Manifest, images: int) -> Manifest:
    """A manifest of so many rows, on the files of a shorter one."""
    rows = list(manifest.samples)
    return replace(
        manifest, samples=[replace(rows[index % len(rows)], sample_id=f"{index:08d}") for index in range(images)]
    )


class Watch:
    """Samples the resident memory of this process and of its children."""

    def __enter__(self) -> "Watch":
        self.seen: dict[int, list[tuple[float, float]]] = {}
        self.ended = threading.Event()
        self.started = time.monotonic()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.seconds = time.monotonic() - self.started

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.ended.wait(SECONDS):
            for process in (me, *me.children(recursive=True)):
                try:
                    sample = (time.monotonic() - self.started, process.memory_info().rss / 1e6)
                except psutil.NoSuchProcess:
                    continue
                self.seen.setdefault(process.pid, []).append(sample)

    def tenths(self) -> list[tuple[str, list[float]]]:
        """Name and ten peaks of each process that lived through the run; Dask's helpers are left out."""
        found = []
        for samples in self.seen.values():
            times, sizes = np.array(samples).T
            part = np.minimum((times / self.seconds * 10).astype(int), 9)
            if len(set(part)) == 10 and sizes.max() > 100:
                name = "client" if not found else f"worker {len(found)}"
                found.append((name, [float(sizes[part == tenth].max()) for tenth in range(10)]))
        return found


if __name__ == "__main__":
    main()
