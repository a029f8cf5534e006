"""Runs every benchmark and writes benchmarks/RESULTS.md: `make bench`.

python benchmarks/run_all.py [--manifest M.parquet] [--quick] [--only store,plan] [--loaders M.parquet]
                             [--sequence DIR] [--photographs DIR]
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import memory_growth
import plan_accuracy
import preprocess
import read
from data import Samples, open_samples, write_store
from physseg.common.processes import available_cpus

from common import Goal, Section, machine

RESULTS = Path(__file__).parent / "RESULTS.md"
PHOTOGRAPHS = "Training data out of a DataLoader, photographs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, help="Measure on your own data; default: generated pictures.")
    parser.add_argument("--sequence", type=Path, action="append", default=[], help="For quality; repeatable.")
    parser.add_argument("--photographs", type=Path, help="For quality: a folder of pictures to warp.")
    parser.add_argument("--loaders", type=Path, help="Photographs on which the loaders are measured once more.")
    parser.add_argument("--quick", action="store_true", help="Few samples and rounds: whether it runs, not how fast.")
    parser.add_argument("--only", help=f"Measure these again and keep the others: {', '.join(BENCHMARKS)}.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"--only: expected some of {', '.join(BENCHMARKS)}, got {', '.join(unknown)}")
    sections = kept(args.out)
    if not args.only:  # what this run cannot measure again stays
        import superpoint_quality

        absent = {superpoint_quality.TITLE: not (args.sequence or args.photographs), PHOTOGRAPHS: not args.loaders}
        sections = {title: section for title, section in sections.items() if absent.get(title)}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            open_samples(args.manifest, 64 if args.quick else 256, Path(folder)),
            Path(folder),
            args.quick,
            args.sequence,
            args.photographs,
            args.loaders,
        )
        for name in names:
            conditions, start, environment = machine(), time.monotonic(), dict(os.environ)
            for section in BENCHMARKS[name](bench):
                sections[section.title] = replace(section, measured=in_words(conditions))
                print(sections[section.title].markdown(), flush=True)
                write(args.out, list(sections.values()))  # after each, so that an interrupted run leaves what it has
            os.environ.clear()
            os.environ.update(environment)  # Dask leaves its workers' settings behind: one thread for everybody
            print(f"{name}: {(time.monotonic() - start) / 60:.1f} min\n", flush=True)
    print(f"written to {args.out}")


def in_words(conditions: dict[str, Any]) -> str:
    described = ", ".join(f"{key} {value}" for key, value in conditions.items() if value is not None)
    return f"{date.today().isoformat()}: {described}"


def kept(out: Path) -> dict[str, Section]:
    """The sections of an earlier run by title."""
    if not out.with_suffix(".json").exists():
        return {}
    found = json.loads(out.with_suffix(".json").read_text())["sections"]
    sections = [Section(**(section | {"goals": [Goal(**goal) for goal in section["goals"]]})) for section in found]
    return {section.title: section for section in sections}


def write(out: Path, sections: list[Section]) -> None:
    head = "# Results\n\nWritten by `make bench`; each section says when it was measured, and on what.\n"
    out.write_text("\n".join([head, *(section.markdown() for section in sections)]))
    content = {"sections": [asdict(section) for section in sections]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1, default=str) + "\n")


@dataclass(frozen=True, slots=True)
class Bench:
    """What the benchmarks share.

    They import PyTorch where they need it: Dask's workers run this script's imports, and are as large as a user's.
    """

    samples: Samples
    folder: Path
    quick: bool
    sequences: list[Path]
    photographs: Path | None
    loaders: Path | None

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def store(self) -> Path:
        """The store that reading and training are measured on."""
        path = self.folder / "store.zarr"
        return path if path.exists() else write_store(self.samples.manifest, path)


def _store(bench: Bench) -> Iterator[Section]:
    yield preprocess.measure(bench.samples, bench.folder)


def _plan(bench: Bench) -> Iterator[Section]:
    data = {bench.samples.description: bench.samples.manifest}
    yield plan_accuracy.measure(data, bench.folder, rounds=1 if bench.quick else 3, workers=available_cpus())


def _memory(bench: Bench) -> Iterator[Section]:
    yield memory_growth.measure(640 if bench.quick else 12_000, available_cpus())


def _reading(bench: Bench) -> Iterator[Section]:
    yield read.measure(
        bench.store(), bench.samples.manifest, bench.samples.description, repeats=3 if bench.quick else 9
    )


def _loading(bench: Bench) -> Iterator[Section]:
    import loading  # needs the peers' packages

    rounds, passes = (1, 1) if bench.quick else (5, 2)
    yield loading.measure(bench.samples, bench.store(), bench.folder / "forms", rounds=rounds, passes=passes)
    if bench.loaders:
        photographs = open_samples(bench.loaders, 64 if bench.quick else 256, bench.folder)
        store = write_store(photographs.manifest, bench.folder / "photographs.zarr")
        folder = bench.folder / "photographs"
        yield loading.measure(photographs, store, folder, rounds=rounds, passes=passes, title=PHOTOGRAPHS)


def _superpoint(bench: Bench) -> Iterator[Section]:
    import superpoint

    yield superpoint.measure(repeats=3 if bench.quick else 9)


def _quality(bench: Bench) -> Iterator[Section]:
    if not (bench.sequences or bench.photographs):
        print("quality: not measured without --sequence or --photographs; what RESULTS.md says of it stays")
        return
    import superpoint_quality

    yield superpoint_quality.measure(bench.sequences, bench.photographs, per_kind=5 if bench.quick else 50)


def _training(bench: Bench) -> Iterator[Section]:
    if not bench.quick:
        import sliding_window
        import train_step

        yield train_step.measure(bench.store(), bench.device, steps=4, batch=None)
        yield sliding_window.measure(bench.device, ("1GiB", "4GiB"))


def _backbones(bench: Bench) -> Iterator[Section]:
    if not bench.quick:
        import backbones

        yield backbones.measure(bench.samples, bench.store(), 2, backbones.BASE, backbones.LARGE)


BENCHMARKS: dict[str, Callable[[Bench], Iterator[Section]]] = {
    "store": _store,
    "plan": _plan,
    "memory": _memory,
    "reading": _reading,
    "loading": _loading,
    "superpoint": _superpoint,
    "quality": _quality,
    "training": _training,
    "backbones": _backbones,
}


if __name__ == "__main__":
    main()
