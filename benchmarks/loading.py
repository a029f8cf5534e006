"""End to end: samples per second out of a DataLoader, for every form of the same samples.

    python benchmarks/loading.py [--manifest M.parquet] [--samples 192] [--rounds 5] [--passes 4]

Two worker processes (forkserver), batches of 8: arrays, JPEG decode, resize to the frame, a random 384 crop of image
and arrays, mirrored half of the time, batches. All but the reading is the same code for every form. Page cache warm.
All loaders live side by side, and each round runs each of them once, in a new order.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import psutil
import torch
from data import open_samples, write_store
from forms import OTHER_FORMS, STORE_FORMS, Form, JpegAlone, OurStore, Sample, write_forms
from physseg.common.processes import keep_freed_memory
from physseg.pipeline.store.frame import CELL_PX, Frame
from physseg.train.data.crop import CropWindow
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from common import Goal, Section, spread

CROP = 384
BATCH = 8
WORKERS = 2
FILL = {"labels": 255, "cell_classes": 255}

Batch = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=4, help="over the samples, per round and form")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = open_samples(args.manifest, args.samples, folder)
        store = write_store(samples.manifest, folder / "store.zarr")
        section = measure(store, write_forms(store, folder), samples.description, args.rounds, args.passes)
    print(section.markdown())


def measure(store: Path, folders: dict[str, Path], description: str, rounds: int, passes: int) -> Section:
    forms: list[Form] = [form(store) for form in STORE_FORMS]
    forms += [form(folders[form.__name__]) for form in OTHER_FORMS]
    rates, cpu = race({form.name: loader(form, passes) for form in forms}, rounds)
    rivals = [form.name for form in forms if not isinstance(form, JpegAlone) and form.name != OurStore.name]
    ahead = {name: ratios(rates[OurStore.name], rates[name]) for name in rivals}
    rows = [
        {
            "form": form.name,
            "samples/s": spread(rates[form.name]),
            "physseg against it": spread(ahead[form.name]) if form.name in ahead else "-",
            "CPU ms per sample": spread(cpu[form.name]),
            "how it is kept and read": form.how,
        }
        for form in sorted(forms, key=lambda form: -np.median(rates[form.name]))
    ]
    closest = min(ahead, key=lambda name: np.median(ahead[name]))
    return Section(
        title="Training data out of a DataLoader",
        text=f"{description}; arrays, JPEG decode, resize, {CROP} crop, flip, batches of {BATCH}; {WORKERS} worker "
        f"processes, {passes} passes over the samples per round, {rounds} rounds in turns, page cache warm. Median "
        "(smallest-largest) over rounds; the ratio of samples/s is taken within each round; CPU time is that of the "
        "workers. Other formats hold the arrays at frame size, where our store has its square canvas, and are spared "
        "checksums, which our reader checks. JPEG decode and resize take most of the time, so all distances are small.",
        tables=[rows],
        goals=[
            Goal(
                text="more samples/s than every other form",
                measured=f"{spread(ahead[closest])} times those of the closest, {closest}",
                met=float(np.median(ahead[closest])) > 1,
            )
        ],
    )


def race(loaders: dict[str, DataLoader[Batch]], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Samples/s and the workers' CPU ms per sample of each loader in each round, after one that does not count."""
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds + 1):
        for name in rng.permutation(list(loaders)):
            before, start = cpu_seconds(loaders[name]), time.perf_counter()
            count = sum(len(batch["images"]) for batch in loaders[name])
            seconds = time.perf_counter() - start
            if number:
                rates[name].append(count / seconds)
                cpu[name].append(1e3 * (cpu_seconds(loaders[name]) - before) / count)
    return rates, cpu


def cpu_seconds(batches: DataLoader[Batch]) -> float:
    """CPU time that a loader's workers have used so far."""
    workers = getattr(batches._iterator, "_workers", [])
    times = [psutil.Process(worker.pid).cpu_times() for worker in workers]
    return sum(time.user + time.system for time in times)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]


# --- the loaders ----------------------------------------------------------------------------------------------------


def loader(form: Form, passes: int) -> DataLoader[Batch]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["physseg.train.data.dataset"])
    options: dict[str, Any] = {
        "batch_size": None,  # the data sets make batches themselves
        "num_workers": WORKERS,
        "persistent_workers": True,
        "multiprocessing_context": context,
        "worker_init_fn": start_worker,
    }
    if form.random_access:
        return DataLoader(Indexed(form), sampler=RandomBatches(len(form), passes), **options)
    return DataLoader(Streamed(form, passes), **options)


def start_worker(_: int) -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class RandomBatches(torch.utils.data.Sampler[list[int]]):
    """Batches of indices: several random orders of all samples, one after the other, others in every epoch."""

    def __init__(self, num_samples: int, passes: int) -> None:
        self.num_samples, self.passes, self.rng = num_samples, passes, np.random.default_rng(0)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.passes):
            order = self.rng.permutation(self.num_samples).tolist()
            yield from (order[start : start + BATCH] for start in range(0, len(order), BATCH))


class Indexed(Dataset[Batch]):
    """Batches by list of indices."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        draws = np.random.default_rng(indices).random((len(indices), 3))
        self.form.prepare(indices, lambda place, size: window_of(draws[place], size).top + CROP)
        return assemble(map(self.form.read, indices), draws)


class Streamed(IterableDataset[Batch]):
    """Batches of a form that says its own order; each worker has its share."""

    def __init__(self, form: Form, passes: int) -> None:
        self.form, self.passes = form, passes

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = np.random.default_rng(worker.id if worker else 0)
        for _ in range(self.passes):
            samples = self.form.stream()
            while len((batch := assemble(samples, rng.random((BATCH, 3))))["images"]):
                yield batch


# --- the same for every form ----------------------------------------------------------------------------------------


def assemble(samples: Iterator[Sample], draws: npt.NDArray[np.float64]) -> Batch:
    """As many crops as there are draws (or samples left), each cut straight into its place in the batch."""
    stacked: dict[str, npt.NDArray[Any]] = {"images": np.empty((len(draws), 3, CROP, CROP), np.uint8)}
    count = 0
    for draw in draws:
        sample = next(samples, None)
        if sample is None:
            break
        for name, part in cut(sample, draw):
            if name not in stacked:
                stacked[name] = np.empty((len(draws), *part.shape), part.dtype)
            stacked[name][count] = part
        count += 1
        del sample
    return {name: torch.from_numpy(array[:count]) for name, array in stacked.items()}


def cut(sample: Sample, draw: npt.NDArray[np.float64]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """What the network gets of one sample: a window of the image and of each array."""
    image, planes = sample
    assert image is not None
    image = Frame().resize_image(image)
    window = window_of(draw, image.shape[:2])
    yield "images", window.cut_image(image)
    for name, plane in planes:
        is_cells = "cell" in name
        side = CROP // CELL_PX if is_cells else CROP
        part = window.cut_cells(plane) if is_cells else window.cut(plane)
        del plane
        yield name, part if part.shape[-2:] == (side, side) else padded(part, side, window.flip, FILL.get(name, 0))


def window_of(draw: npt.NDArray[np.float64], size: tuple[int, ...]) -> CropWindow:
    return CropWindow.draw(draw, (size[0], size[1]), size=CROP, flip_probability=0.5)


def padded(part: npt.NDArray[Any], side: int, flip: bool, fill: int) -> npt.NDArray[Any]:
    """A window that reaches beyond an array of frame size, filled up at the bottom and right, or left if mirrored."""
    out = np.full((*part.shape[:-2], side, side), fill, part.dtype)
    columns = slice(side - part.shape[-1], side) if flip else slice(0, part.shape[-1])
    out[..., : part.shape[-2], columns] = part
    return out


if __name__ == "__main__":
    main()
