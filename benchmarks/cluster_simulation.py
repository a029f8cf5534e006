"""How run time, scheduler load and memory grow to 1,000 workers and 10 million images, and what gives way first.

    python benchmarks/cluster_simulation.py [--no-validation] [--out FILE.json]

A simulation (cluster_events.py), of what was measured here a moment ago: an image and a shard computed, a manifest
read, a plan made, a commit record read, a task through Dask's scheduler. Nobody has a thousand workers to try it on;
that the simulation is right is shown on one and two, against real runs.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from cluster_events import SHARD, Costs, Outcome, simulate
from data import NUM_CLASSES, write_samples
from distributed import as_completed
from physseg.common.processes import peak_bytes
from physseg.common.storage.location import open_storage
from physseg.manifests.datasets.coco_stuff import coco_stuff_vocabulary
from physseg.manifests.manifest import Manifest
from physseg.manifests.sample_table import SCHEMA, SampleTable
from physseg.pipeline.cost.estimate import CLUSTER_SECONDS
from physseg.pipeline.cost.measure import Measurement, kinds_of_work
from physseg.pipeline.cost.measure import measure as measure_images
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.clusters import connected
from physseg.pipeline.run.run import Job
from physseg.pipeline.store.commits import CommitRecord, LayerCommit, commit_path, read_commits
from physseg.pipeline.store.layout import create_store
from physseg.pipeline.store.schema import STATUS

from common import Goal, Section, machine

SCALES = ((118_287, 8), (118_287, 64), (1_000_000, 64), (1_000_000, 1000), (10_000_000, 64), (10_000_000, 1000))
"""Images and workers."""
SUPERPOINT_SECONDS = 0.3
"""What SuperPoint adds to an image, on one thread (RESULTS.md)."""
ROWS = (2_000, 20_000, 100_000)
"""Of the manifests that are planned to measure planning."""
MEMORY_OF_A_CORE = 4e9
"""Bytes that clusters commonly have for each core."""
BASE_BYTES = 3e8
"""Of a worker that has read no manifest."""
DEATHS_PER_HOUR = 0.01
"""Of each worker: one in four days."""
STAGGER_SECONDS = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-validation", action="store_true", help="Without the real runs on one and two workers.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        section = measure(Path(folder), validate=not args.no_validation)
    print(section.markdown())
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "tables": section.tables}, indent=2, default=str) + "\n")


def measure(folder: Path, *, validate: bool = True) -> Section:
    manifest = write_samples(folder / "generated", 4 * SHARD)
    planning = measure_planning(folder)
    one = measured(manifest, folder, processes=1)
    costs = costs_of(one, planning)
    tables = [[{"what": what, "measured": text} for what, text in described(one, planning, costs)]]
    goals = []
    if validate:
        rows, worst = validation(manifest, folder, planning)
        tables.append(rows)
        goals.append(
            Goal(
                text="simulated within 20 % of real runs on one and two workers",
                measured=f"{100 * worst:.0f} % off at most",
                met=worst <= 0.2,
            )
        )
    tables += [
        [row(images, workers, costs, planning) for images, workers in SCALES],
        [row(images, workers, with_superpoint(costs), planning) for images, workers in SCALES],
        [row(images, workers, costs, planning, parts=True) for images, workers in SCALES],
        [row(*SCALES[-1], replace(costs, **change), planning, what=what) for what, change in variants().items()],
    ]
    return Section(
        title="Clusters, simulated",
        text="First what was measured here, then (unless left out) simulated against real runs, then the simulation: "
        "with the default structures, with SuperPoint as well, the default structures by `--part i/n` without a "
        "scheduler, and the largest of the first under other conditions. The disk gives all workers together "
        f"{costs.disk_bytes_per_second / 1e9:g} GB/s, workers come evenly within {STAGGER_SECONDS:.0f} s, and each "
        f"dies {DEATHS_PER_HOUR} times an hour, unless said otherwise. Efficiency is undisturbed computing over all "
        "core time; loads are shares of the time while tasks run; memory is that of the client (with parts there is "
        f"none) and of each worker. What gives way first is memory, where a worker needs more than "
        f"{MEMORY_OF_A_CORE / 1e9:g} GB, and else where most of the other core time goes, if that is 5 % at least.",
        tables=tables,
        goals=goals,
    )


def variants() -> dict[str, dict[str, Any]]:
    return {
        "as above": {},
        "a disk of 20 GB/s": {"disk_bytes_per_second": 2e10},
        "that, and 0.1 ms of its metadata server per file": {
            "disk_bytes_per_second": 2e10,
            "disk_seconds_per_file": 1e-4,
        },
        "a disk of 20 GB/s, and each worker dies once an hour": {
            "disk_bytes_per_second": 2e10,
            "deaths_per_hour": 1.0,
        },
        "a disk of 20 GB/s, and tasks of 0.5 s": {
            "disk_bytes_per_second": 2e10,
            "image_seconds": 0.5 / SHARD,
        },
    }


# --- what is measured -----------------------------------------------------------------------------------------------


def measure_planning(folder: Path) -> dict[str, float]:
    """Seconds, bytes and bytes of memory per image or shard, of manifests and plans; and Dask's tasks a second."""
    seconds: dict[str, list[float]] = {"read": [], "prepare": [], "resume": [], "end": []}
    for rows in ROWS:
        path = folder / f"rows{rows}.parquet"
        synthetic(folder, rows).write(path)
        start = time.perf_counter()
        manifest = Manifest.read(path)
        seconds["read"].append(time.perf_counter() - start)
        start = time.perf_counter()
        job = run.prepare(manifest, folder / "none.zarr")
        seconds["prepare"].append(time.perf_counter() - start)
        store = folder / f"complete{rows}.zarr"
        if rows < ROWS[-1]:
            pretend_complete(job, store)
            start = time.perf_counter()
            assert not run.prepare(manifest, store).plan.tasks
            seconds["resume"].append(time.perf_counter() - start)
            start = time.perf_counter()
            list(read_commits(open_storage(store), range(job.schema.num_shards)))
            seconds["end"].append(time.perf_counter() - start)
    read, planned = (
        [in_a_process(function, folder / f"rows{rows}.parquet") for rows in ROWS[1:]] for function in (reads, plans)
    )
    return {
        "read_seconds": slope(seconds["read"]),
        "prepare_seconds": slope(seconds["prepare"]),
        "resume_seconds": slope(seconds["resume"]),
        "end_seconds_per_shard": slope(seconds["end"]) * SHARD,
        "file_bytes": path.stat().st_size / ROWS[-1],
        "worker_bytes": (read[-1] - read[0]) / (ROWS[-1] - ROWS[1]),
        "client_bytes": (planned[-1] - planned[0]) / (ROWS[-1] - ROWS[1]),
        "client_base_bytes": planned[0],
        "task_bytes": len(pickle.dumps(job.plan.tasks[0])),
        "tasks_per_second": trivial_tasks_per_second(),
    }


def slope(seconds: Sequence[float]) -> float:
    """Seconds per row, from the two largest manifests that were tried."""
    rows = ROWS[: len(seconds)]
    return (seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2])


def synthetic(root: Path, rows: int) -> Manifest:
    """A manifest as of COCO: names, sizes and hashes; only the first image is there."""
    digests = [f"{index * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128:032x}" * 2 for index in range(rows)]
    names = [f"{index:012d}" for index in range(rows)]
    columns = {
        "sample_id": names,
        "image_path": [f"train2017/{name}.jpg" for name in names],
        "label_path": [f"stuff/{name}.png" for name in names],
        "height": [480] * rows,
        "width": [640] * rows,
        "image_sha256": digests,
        "label_sha256": digests[::-1],
        "split": ["train"] * rows,
        "orientation": [1] * rows,
        "problem": [""] * rows,
        "note": [""] * rows,
    }
    (root / "train2017").mkdir(exist_ok=True)
    (root / columns["image_path"][0]).touch()
    return Manifest(
        root=str(root),
        dataset="synthetic",
        vocabulary=coco_stuff_vocabulary(),
        raw_to_class={index: index for index in range(NUM_CLASSES)},
        raw_ignore=(255,),
        samples=SampleTable(pa.table(columns, schema=SCHEMA)),
    )


def pretend_complete(job: Job, store: Path) -> None:
    """A store whose every shard has its record, and files of no content."""
    storage, schema = open_storage(store), job.schema
    create_store(storage, schema, job.manifest)
    for shard in range(schema.num_shards):
        layers = {
            name: [schema.shard_file(spec, shard) for spec in schema.specs if spec.layer == name]
            for name in schema.layers
        }
        for path in [schema.shard_file(STATUS, shard), *(path for paths in layers.values() for path in paths)]:
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            (store / path).touch()
        start, stop = schema.shard_range(shard)
        record = CommitRecord(
            shard=shard,
            samples=(start, stop),
            inputs=job.manifest.row_digests(start, stop),
            layers={
                name: LayerCommit(settings=schema.layer_digest(name), files=dict.fromkeys(paths, "0" * 64))
                for name, paths in layers.items()
            },
        )
        path = store / commit_path(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.to_bytes())


def reads(path: Path) -> int:
    """Peak memory of a process that reads a manifest, as every worker does."""
    manifest = Manifest.read(path)
    return peak_bytes() if len(manifest) else 0


def plans(path: Path) -> int:
    """Peak memory of one that reads it and plans."""
    job = run.prepare(Manifest.read(path), path.with_suffix(".zarr"))
    return peak_bytes() if job.plan.tasks else 0


def in_a_process(function: Callable[[Path], int], path: Path) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, path).result()


def trivial_tasks_per_second(tasks: int = 1000) -> float:
    """Through one scheduler and back, a window in flight, all of Dask on this machine."""
    with connected("local", workers=2) as client:
        start = time.perf_counter()
        futures = as_completed([client.submit(int, number, pure=False) for number in range(8)])
        handed_in = 8
        for _ in futures:
            if handed_in < tasks:
                futures.add(client.submit(int, handed_in, pure=False))
                handed_in += 1
        return tasks / (time.perf_counter() - start)


def measured(manifest: Manifest, folder: Path, *, processes: int) -> Measurement:
    """Images computed in so many processes at once."""
    job = run.prepare(manifest, folder / "measured.zarr")
    found = measure_images(
        job.schema, manifest, kinds_of_work(job.plan.tasks), job.store, processes=processes, images=len(manifest) // 2
    )
    if found is None:
        raise SystemExit("no image can be computed")
    return found


def costs_of(found: Measurement, planning: dict[str, float]) -> Costs:
    (kind,) = found.kinds
    return Costs(
        image_seconds=float(np.mean(kind.image_seconds)),
        image_bytes=1.1 * found.image_file_bytes,  # with the label picture
        stored_bytes=kind.sample_bytes,
        shard_seconds=kind.shard_seconds,
        plan_seconds_per_image=planning["read_seconds"] + planning["prepare_seconds"],
        end_seconds_per_shard=planning["end_seconds_per_shard"],
        manifest_seconds_per_image=planning["read_seconds"],
        manifest_bytes_per_image=planning["file_bytes"],
        start_seconds=found.start_seconds,
        stagger_seconds=STAGGER_SECONDS,
        scheduler_seconds=1 / planning["tasks_per_second"],
        deaths_per_hour=DEATHS_PER_HOUR,
    )


def with_superpoint(costs: Costs) -> Costs:
    return replace(costs, image_seconds=costs.image_seconds + SUPERPOINT_SECONDS)


def described(found: Measurement, planning: dict[str, float], costs: Costs) -> list[tuple[str, str]]:
    million = 1e6
    return [
        ("an image, default structures, one process", f"{1e3 * costs.image_seconds:.1f} ms"),
        ("a shard besides its images", f"{1e3 * costs.shard_seconds:.1f} ms"),
        ("a worker's start", f"{costs.start_seconds:.1f} s"),
        ("trivial tasks through Dask", f"{planning['tasks_per_second']:.0f}/s"),
        ("a task, pickled", f"{planning['task_bytes']:.0f} bytes"),
        ("reading a manifest of a million rows", f"{planning['read_seconds'] * million:.1f} s"),
        ("planning a new store of a million", f"{planning['prepare_seconds'] * million:.1f} s"),
        ("planning a complete one", f"{planning['resume_seconds'] * million:.1f} s"),
        ("reading all its commit records", f"{planning['end_seconds_per_shard'] * million / SHARD:.1f} s"),
        ("the manifest's file", f"{planning['file_bytes'] * million / 1e6:.0f} MB"),
        ("a worker's memory for it, at its peak", f"{planning['worker_bytes'] * million / 1e9:.2f} GB"),
        ("the client's for it and the plan", f"{planning['client_bytes'] * million / 1e9:.2f} GB"),
    ]


# --- what is simulated ----------------------------------------------------------------------------------------------


def row(
    images: int,
    workers: int,
    costs: Costs,
    planning: dict[str, float],
    *,
    parts: bool = False,
    what: str | None = None,
) -> dict[str, object]:
    outcome: Outcome = simulate(costs, images=images, workers=workers, parts=parts)
    client = planning["client_base_bytes"] + planning["client_bytes"] * images
    worker = BASE_BYTES + max(planning["worker_bytes"], planning["client_bytes"] if parts else 0) * images
    limits = (["memory"] if worker > MEMORY_OF_A_CORE else []) + ([outcome.first_limit] if outcome.first_limit else [])
    return {
        **({"conditions": what} if what else {}),
        "images": f"{images:,}",
        "workers": f"{workers:,}" + (" parts" if parts else ""),
        "run": f"{outcome.seconds / 3600:.2f} h" if outcome.seconds > 5400 else f"{outcome.seconds / 60:.1f} min",
        "efficiency": f"{100 * outcome.efficiency:.0f} %",
        "scheduler": f"{100 * outcome.scheduler_load:.0f} %",
        "disk": f"{100 * outcome.disk_load:.0f} %",
        "client's memory": "-" if parts else f"{client / 1e9:.1f} GB",
        "a worker's": f"{worker / 1e9:.1f} GB",
        "gives way first": ", then ".join(limits) or "-",
    }


def validation(manifest: Manifest, folder: Path, planning: dict[str, float]) -> tuple[list[dict[str, object]], float]:
    """Real runs here beside simulated ones, and the largest difference as a share."""
    rows: list[dict[str, object]] = []
    worst = 0.0
    for workers in (1, 2):
        costs = replace(
            costs_of(measured(manifest, folder, processes=workers), planning),
            stagger_seconds=0.0,
            deaths_per_hour=0.0,
        )
        simulated = simulate(costs, images=len(manifest), workers=workers).seconds + CLUSTER_SECONDS
        start = time.perf_counter()
        run.preprocess(manifest, folder / f"real{workers}.zarr", workers=workers, progress=False)
        real = time.perf_counter() - start
        worst = max(worst, abs(simulated / real - 1))
        rows.append({"workers": workers, "simulated s": simulated, "real s": real, "ratio": simulated / real})
    return rows, worst


if __name__ == "__main__":
    main()
