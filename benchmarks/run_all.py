"""Runs every benchmark and writes benchmarks/RESULTS.md: `make bench`.

python benchmarks/run_all.py [--manifest M.parquet] [--quick]
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import cluster_simulation
import loading
import plan_accuracy
import preprocess
import read
import sliding_window
import superpoint
import torch
import train_step
from common import Section, machine
from data import Samples, open_samples, write_store
from forms import write_forms
from physseg.manifests.checking import available_cpus

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="Measure on your own data; default: generated pictures.")
    parser.add_argument("--quick", action="store_true", help="Few samples and rounds: whether it runs, not how fast.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    before = machine()
    sections: list[Section] = []
    with tempfile.TemporaryDirectory() as folder:
        for section in sections_of(args.manifest, Path(folder), quick=args.quick):
            sections.append(section)
            write(args.out, sections, before)  # after each, so that an interrupted run leaves what it has
    print(f"written to {args.out}")


def write(out: Path, sections: list[Section], hardware: dict[str, Any]) -> None:
    conditions = ", ".join(f"{key} {value}" for key, value in hardware.items() if value is not None)
    head = f"# Results\n\nWritten by `make bench` on {date.today().isoformat()}: {conditions}.\n"
    out.write_text("\n".join([head, *(section.markdown() for section in sections)]))
    content = {"machine": hardware, "sections": [asdict(section) for section in sections]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1, default=str) + "\n")


def sections_of(manifest: Path | None, folder: Path, *, quick: bool) -> Iterator[Section]:
    """Every benchmark's section, printed as soon as it is there."""
    samples = open_samples(manifest, 64 if quick else 256, folder)
    for section in _sections(samples, folder, quick=quick):
        print(section.markdown(), flush=True)
        yield section


def _sections(samples: Samples, folder: Path, *, quick: bool) -> Iterator[Section]:
    environment = dict(os.environ)
    yield preprocess.measure(samples, folder)
    os.environ.clear()
    os.environ.update(environment)  # Dask leaves its workers' settings behind: one thread for everybody
    yield plan_accuracy.measure(
        {samples.description: samples.manifest}, folder, rounds=1 if quick else 3, workers=available_cpus()
    )
    yield cluster_simulation.measure(folder, validate=not quick)
    yield from _reading(samples.manifest, samples.description, folder, quick=quick)
    yield superpoint.measure(repeats=3 if quick else 9)
    if not quick:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield train_step.measure(folder / "store.zarr", device, steps=4, batch=None)
        yield sliding_window.measure(device, ("1GiB", "4GiB"))


def _reading(manifest, description: str, folder: Path, *, quick: bool) -> Iterator[Section]:  # type: ignore[no-untyped-def]
    store = write_store(manifest, folder / "store.zarr")
    yield read.measure(store, manifest, description, repeats=3 if quick else 9)
    forms = write_forms(store, folder / "forms")
    yield loading.measure(store, forms, description, rounds=1 if quick else 5, passes=1 if quick else 3)


if __name__ == "__main__":
    main()
