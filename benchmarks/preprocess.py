"""Computing a store: images per second against a bare loop of library calls, and two workers against one.

    python benchmarks/preprocess.py [--manifest M.parquet] [--samples 256] [--out FILE.json]

The bare loop is the least that any program pays for the same maps: read, decode, resize, Canny, SIFT and label edges in
one process on one thread, nothing checked, nothing kept. Both sides take turns, 64 images (a shard) at a time.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from data import PUBLISHED_WIDTHS, Samples, open_samples, superpoint_settings, write_superpoint_weights
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.executors.address import AddressExecutor
from physseg.pipeline.run.executors.interface import Executor
from physseg.pipeline.run.executors.local import LocalExecutor
from physseg.pipeline.run.executors.sync import SyncExecutor
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.layout import create_store
from physseg.pipeline.store.schema import SAMPLES_PER_SHARD
from physseg.structure_extractors.superpoint.extractor import SuperPoint
from PIL import Image

from common import Goal, Section, machine, spread

STRUCTURES = ("canny", "mask_edges", "sift", "patch_counts")
WORKER_PASSES = 3
"""How often workers get the samples, under other ids: of four shards, two workers wait for the slower at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--samples", type=int, default=4 * SAMPLES_PER_SHARD)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        section = measure(open_samples(args.manifest, args.samples, Path(folder)), Path(folder))
    print(section.markdown())
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "tables": section.tables}, indent=2, default=str) + "\n")


def measure(samples: Samples, folder: Path) -> Section:
    cv2.setNumThreads(1)
    manifest = samples.manifest
    bare(first(manifest, 4))  # warms caches and imports
    rates, parts = against_bare(manifest, folder / "sync.zarr")
    bare_speedup = bare_in_two_processes(manifest)
    many = replace(
        manifest,
        samples=[replace(s, sample_id=f"{n}-{s.sample_id}") for n in range(WORKER_PASSES) for s in manifest.samples],
    )
    seconds = two_workers(many, folder)
    superpoint = superpoint_seconds(manifest, folder)
    table = {
        "bare loop in a process of its own": rates["bare"],
        "bare loop, C library told to keep freed memory": rates["kept"],
        "ours, --scheduler sync": rates["ours"],
        "ours, one Dask worker": [len(many) / s for s in seconds["one"]],
        "ours, two Dask workers": [len(many) / s for s in seconds["two"]],
        "ours, two Dask workers, their start included": [len(many) / s for s in seconds["whole"]],
    }
    total = sum(parts.values())
    shares = {name: (f"{1e3 * s / len(manifest):.2f}", f"{100 * s / total:.1f} %") for name, s in parts.items()}
    shares["(superpoint, published widths, by itself)"] = (f"{1e3 * superpoint:.0f}", "-")
    ratios = {side: [ours / bare for ours, bare in zip(rates["ours"], rates[side], strict=True)] for side in rates}
    speedups = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
    return Section(
        title="Computing a store",
        text=f"{samples.description}; structures {', '.join(STRUCTURES)}. Median (smallest-largest) over shards of "
        f"{SAMPLES_PER_SHARD} images for one process, over runs for workers. Beyond the bare loop, ours checks the "
        "hashes of both files and the label ids, counts classes in cells, thins keypoints, compresses, and writes "
        f"files that survive a power cut. Workers get the samples {WORKER_PASSES} times. SIFT's detector is most of "
        "either; it allocates 40 MB an image, which glibc, "
        "depending on what else the process did, hands back and maps anew each time. Our tasks tell it to keep them, "
        "so there are two bare loops: as it comes, and with that setting. Two processes of the bare loop are "
        f"{bare_speedup:.2f} times as fast as one: that is what this machine's second core gives.",
        tables=[
            [{"what": name, "images/s": spread(values)} for name, values in table.items()],
            [{"part": name, "ms per image": ms, "share": share} for name, (ms, share) in shares.items()],
        ],
        goals=[
            Goal(
                text="at least 0.9 of the bare loop's images/s, per core",
                measured=f"{spread(ratios['bare'])}; with the memory setting given to the loop too "
                f"{spread(ratios['kept'])}",
                met=all(float(np.median(ratios[side])) >= 0.9 for side in ("bare", "kept")),
            ),
            Goal(
                text="two workers at least 1.8 times one",
                measured=spread(speedups),
                met=float(np.median(speedups)) >= 1.8,
            ),
        ],
    )


def against_bare(manifest: Manifest, store: Path) -> tuple[dict[str, list[float]], Counter[str]]:
    """Images per second of ours and of the bare loop, shard by shard in turns, and our seconds by part.

    The loop runs in a process of its own ("bare") and in this one, where our tasks have told the C library to keep
    freed memory ("kept").
    """
    rates: dict[str, list[float]] = {"ours": [], "bare": [], "kept": []}
    parts: Counter[str] = Counter()
    job = run.prepare(manifest, store, structures=STRUCTURES)
    create_store(job.store, job.schema, manifest)
    reports = SyncExecutor().run(job.plan.tasks)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(bare, first(manifest, 4)).result()
        for task in job.plan.tasks:
            shard = replace(manifest, samples=manifest.samples[slice(*job.schema.shard_range(task.shard))])
            order = list(rates)[task.shard % 3 :] + list(rates)[: task.shard % 3]
            for side in order:
                start = time.perf_counter()
                if side == "ours":
                    report = next(reports)
                elif side == "bare":
                    pool.submit(bare, shard).result()
                else:
                    bare(shard)
                seconds = time.perf_counter() - start
                rates[side].append(len(shard) / seconds)
                if side == "ours":
                    parts.update(report.seconds)
                    parts["everything else"] += seconds - sum(report.seconds.values())
    return rates, parts


def two_workers(manifest: Manifest, folder: Path, rounds: int = 2) -> dict[str, list[float]]:
    """Seconds for the whole manifest on clusters that are up and warm, in turns, and with the cluster's start."""
    seconds: dict[str, list[float]] = {"one": [], "two": [], "whole": []}
    with LocalExecutor(workers=1).connected() as one, LocalExecutor(workers=2).connected() as two:
        for client in (one, two):
            client.run(warm_up)
        for number in range(rounds):
            for name, client in (("one", one), ("two", two)):
                store = folder / f"{name}{number}.zarr"
                seconds[name].append(preprocess(manifest, store, AddressExecutor(name=client.scheduler.address)))
    seconds["whole"].append(preprocess(manifest, folder / "whole.zarr", LocalExecutor(workers=2)))
    return seconds


def warm_up() -> None:
    """Import in a worker what the tasks need."""
    import physseg.pipeline.run.task
    import physseg.structure_extractors.registry  # noqa: F401


def preprocess(manifest: Manifest, store: Path, executor: Executor) -> float:
    """Seconds of the whole run, from the manifest to the last commit."""
    start = time.perf_counter()
    run.execute(run.prepare(manifest, store, structures=STRUCTURES), executor, progress=False)
    return time.perf_counter() - start


def first(manifest: Manifest, count: int) -> Manifest:
    return replace(manifest, samples=manifest.samples[:count])


def bare(manifest: Manifest) -> float:
    """Seconds of the bare loop over a manifest."""
    cv2.setNumThreads(1)
    root, frame = Path(manifest.root), Frame()
    sift = cv2.SIFT.create(enable_precise_upscale=True)
    square = np.ones((3, 3), np.uint8)
    files = [(root / sample.image_path, root / sample.label_path) for sample in manifest.samples]
    start = time.perf_counter()
    for image_file, label_file in files:
        image = cv2.imdecode(np.fromfile(image_file, np.uint8), cv2.IMREAD_COLOR)
        height, width = frame.size(*image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        labels = np.asarray(Image.open(label_file))
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        cv2.Canny(grey, 100, 200)
        cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, square)
        sift.detect(grey, None)
    return time.perf_counter() - start


def bare_in_two_processes(manifest: Manifest) -> float:
    """How much faster two processes of the bare loop are than one, each on a shard's worth of images."""
    part = first(manifest, SAMPLES_PER_SHARD)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(bare, [first(part, 2)] * 4))
        alone = pool.submit(bare, part).result()
        together = list(pool.map(bare, [part, part]))
    return 2 * alone / max(together)


def superpoint_seconds(manifest: Manifest, folder: Path, count: int = 4) -> float:
    """Seconds per image of the published network, float32, on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    weights = write_superpoint_weights(folder / "superpoint_published.pth", PUBLISHED_WIDTHS)
    extractor = SuperPoint(**superpoint_settings(weights)["superpoint"])
    seconds = []
    for index in [0, *range(min(count, len(manifest)))]:
        image, labels = manifest.load(index)
        image, labels = Frame().resize_image(image), Frame().resize_labels(labels)
        start = time.perf_counter()
        extractor(image, labels, ignore_index=manifest.vocabulary.ignore_index)
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(before)  # what is measured next may take more
    return float(np.median(seconds[1:]))


if __name__ == "__main__":
    main()
