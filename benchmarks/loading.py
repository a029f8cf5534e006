"""End to end: samples per second out of a DataLoader, for every form of the same samples.

    python benchmarks/loading.py [--manifest M.parquet] [--samples 192] [--rounds 5] [--passes 4]

Two worker processes (forkserver), batches of 8: arrays, image, a random 384 crop of image and arrays, mirrored half of
the time, batches. Originals are decoded and resized to the frame; frames are read as they are. Two comparisons share
the rounds: our training's own loader beside a bare loop, and formats, where all but the reading is the same code. Page
cache warm. All loaders live side by side, and each round runs each of them once, in a new order.
"""

import argparse
import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import psutil
import torch
from data import STRUCTURES, Samples, open_samples, superpoint_settings, write_store
from forms import PEERS, READERS, BareLoop, Form, JpegAlone, OurStore, Sample, write_peers
from physseg.common.loader import _Packed
from physseg.common.processes import keep_freed_memory
from physseg.pipeline.run import run
from physseg.pipeline.store.frame import CELL_PX, Frame
from physseg.train.data.crop import CropWindow
from physseg.train.data.dataset import DataConfig, TrainSamples
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from common import Goal, Section, spread

TITLE = "Training data out of a DataLoader"
CROP = 384
BATCH = 8
WORKERS = 2
FILL = {"labels": 255, "cell_classes": 255}
COCO_IMAGES = 118_287

TFLOP_A_SAMPLE = 19.7 / 16
"""Of the step with the fewest: ViT-B/16, 171 classes, both losses, batch 16, by `physseg train --dry-run`."""
GPU_TFLOPS = 400.0
"""What a training in bfloat16 may reach at best on a GPU of 989 TFLOP/s (H100, H200): two fifths."""
DATA_WAIT = 0.02
BUSY = 0.8
"""Share of its time that a loader process may work, so that uneven batches do not make a training wait."""

Batch = dict[str, torch.Tensor]
LAYERS: Mapping[str, dict[str, str]] = {"lossless": {"form": "lossless"}, "jpeg": {"form": "jpeg"}}
"""Settings of the layer `image`."""


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
        section = measure(samples, store, folder, rounds=args.rounds, passes=args.passes)
    print(section.markdown())


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One line of a table."""

    name: str
    dataset: "Dataset[Any]"
    num_samples: int
    how: str
    gigabytes: float
    """For COCO's images, originals included where they are read."""
    opened_by: str = ""
    packed: bool = False
    """Whether batches come by our own loader's way from process to process, instead of PyTorch's."""


def measure(samples: Samples, store: Path, folder: Path, *, rounds: int, passes: int, title: str = TITLE) -> Section:
    folder.mkdir(exist_ok=True)
    stores = {"files": store} | {form: with_images(samples, store, folder / f"{form}.zarr", form) for form in LAYERS}
    training = training_contenders(stores)
    formats = format_contenders(stores, write_peers(store, folder / "peers"))
    loaders = {each.name: loader(each, passes) for each in (*training, *formats)}
    rates, cpu = race(loaders, rounds)

    def lines(contenders: Sequence[Contender], ours: str) -> list[dict[str, object]]:
        return [
            {
                "loader": each.name,
                "samples/s": spread(rates[each.name]),
                "lossless against it": "-" if each.name == ours else spread(ratios(rates[ours], rates[each.name])),
                "CPU ms a sample": spread(cpu[each.name]),
                "GB for COCO's 118,287": round(each.gigabytes, 1),
                **({"opened by": each.opened_by} if each.opened_by else {}),
                "how it is kept and read": each.how,
            }
            for each in sorted(contenders, key=lambda each: -np.median(rates[each.name]))
        ]

    packages = sorted({form.package for form in (*PEERS, *READERS, OurStore)} | {"torch", "numpy"})
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return Section(
        title=title,
        text=f"{samples.description}; arrays, image, {CROP} crop, flip, batches of {BATCH} out of a DataLoader; "
        f"{WORKERS} worker processes, {passes} passes over the samples per round, {rounds} rounds in turns, page cache "
        "warm. Median (smallest-largest) over rounds; the ratio of samples/s is taken within each round; CPU time is "
        "that of the workers. First our training's own loader, with its checks, masks and jitter, reading files or the "
        "layer `image` in either form; the bare loop sends its batches the same way. Then formats, where "
        "all but the reading is the same code and batches travel as PyTorch sends them. Other formats hold arrays and "
        "frames at frame size, where our store has its square canvas, at our zstd levels, and are spared checksums, "
        f"which our reader checks. {versions}.",
        tables=[lines(training, TRAINING["lossless"]), lines(formats, LOSSLESS)],
        goals=[*goals(rates, formats), gpu_goal(cpu[TRAINING["lossless"]])],
    )


TRAINING = {
    form: f"training, {words}"
    for form, words in {"files": "image files", "lossless": "`image` lossless", "jpeg": "`image` JPEG"}.items()
}
LOSSLESS, FILES, BARE = "physseg, `image` lossless", "physseg, image files", "bare loop, `image` lossless"


def goals(rates: Mapping[str, Sequence[float]], formats: Sequence[Contender]) -> list[Goal]:
    def against(ours: str, rivals: Sequence[str]) -> tuple[float, str]:
        ahead = {name: ratios(rates[ours], rates[name]) for name in rivals}
        closest = min(ahead, key=lambda name: np.median(ahead[name]))
        return float(np.median(ahead[closest])), f"{spread(ahead[closest])} times those of the closest, {closest}"

    peers = [each.name for each in formats if each.name not in (LOSSLESS, FILES, JpegAlone.name)]
    frames = [name for name in peers if name.endswith(("frames", "lossless"))]
    originals = [name for name in peers if name not in frames]
    speedup = ratios(rates[TRAINING["lossless"]], rates[TRAINING["files"]])
    bare = ratios(rates[BARE], rates[TRAINING["lossless"]])
    lossless, of_lossless = against(LOSSLESS, originals)
    files, of_files = against(FILES, originals)
    whole, of_whole = against(TRAINING["lossless"], frames)
    compressed = against(TRAINING["lossless"], [name for name in frames if "raw" not in name])[1]
    reader = against(LOSSLESS, [name for name in frames if "raw" not in name])[1]
    return [
        Goal(
            text="lossless: at least 1.8 times the training's loader with files",
            measured=spread(speedup),
            met=float(np.median(speedup)) >= 1.8,
        ),
        Goal(
            text="lossless: the bare loop is at most 1.3 times as fast",
            measured=spread(bare),
            met=float(np.median(bare)) <= 1.3,
        ),
        Goal(
            text="lossless: more samples/s than every peer that decodes originals",
            measured=of_lossless,
            met=lossless > 1,
        ),
        Goal(
            text="lossless: the training's loader has no fewer samples/s than any peer with the same frames and arrays",
            measured=f"{of_whole}; of those that compress as we, {compressed}. Our reader in the peers' code: {reader}",
            met=whole >= 1,
        ),
        Goal(text="files: more samples/s than every peer that decodes originals", measured=of_files, met=files > 1),
    ]


def gpu_goal(cpu_ms: Sequence[float]) -> Goal:
    """How many loader processes feed a GPU. Calculated, not measured: no GPU takes part in this benchmark."""
    wanted, each = GPU_TFLOPS / TFLOP_A_SAMPLE, 1e3 / float(np.median(cpu_ms))
    processes = math.ceil(wanted * (1 - DATA_WAIT) / (each * BUSY))
    return Goal(
        text=f"a GPU waits for data at most {DATA_WAIT:.0%} of its time (calculated)",
        measured=f"at {GPU_TFLOPS:g} TFLOP/s and {TFLOP_A_SAMPLE:.2f} TFLOP a sample (ViT-B/16, 171 classes, both "
        f"losses, batch 16) it takes {wanted:.0f} samples/s. A loader process with a core of its own gives {each:.0f} "
        f"with `image` lossless: {processes} a GPU suffice, each busy {BUSY:.0%} of its time at most",
        met=processes <= WORKERS,
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


# --- the contenders -------------------------------------------------------------------------------------------------


def with_images(samples: Samples, store: Path, target: Path, form: str) -> Path:
    """A copy of the store, with the layer `image` in a form."""
    shutil.copytree(store, target)
    settings = superpoint_settings(store.with_suffix(".pth")) | {"image": LAYERS[form]}
    run.preprocess(samples.manifest, target, structures=(*STRUCTURES, "image"), settings=settings, scheduler="sync")
    return target


def training_contenders(stores: Mapping[str, Path]) -> list[Contender]:
    found = []
    for form, store in stores.items():
        config = DataConfig(store=str(store), crop=CROP, verify=False)  # of files, which happens once
        dataset = TrainSamples(config, STRUCTURES, cells=True, seed=0)
        how = "one file per image beside the store" if form == "files" else "the store alone"
        size = gigabytes(store, len(dataset.usable)) + (originals(store) if form == "files" else 0)
        found.append(
            Contender(
                name=TRAINING[form],
                dataset=dataset,
                num_samples=len(dataset.usable),
                how=how,
                gigabytes=size,
                packed=True,
            )
        )
    bare = BareLoop(stores["lossless"], frames=True)
    size = gigabytes(stores["lossless"], len(bare))
    return [
        *found,
        Contender(name=BARE, dataset=Indexed(bare), num_samples=len(bare), how=bare.how, gigabytes=size, packed=True),
    ]


def format_contenders(stores: Mapping[str, Path], peers: Sequence[Form]) -> list[Contender]:
    readers = [
        form(stores["lossless" if frames else "files"], frames)
        for form in (OurStore, *READERS)
        for frames in (False, True)
    ]
    found = []
    for form in (*readers, JpegAlone(stores["files"]), *peers):
        ours = isinstance(form, OurStore)
        beside = originals(stores["files"]) if ours and not form.frames else 0
        image = (
            ("`image` lossless" if form.frames else "image files")
            if ours
            else ("frames" if form.frames else "originals")
        )
        count = len(form) if form.random_access else len(peers[0])
        found.append(
            Contender(
                name=form.name if isinstance(form, JpegAlone) else f"{form.name}, {image}",
                dataset=Indexed(form) if form.random_access else Streamed(form),
                num_samples=count,
                how=form.how,
                gigabytes=beside if isinstance(form, JpegAlone) else gigabytes(form.folder, count) + beside,
                opened_by="any viewer of pictures" if isinstance(form, JpegAlone) else form.opened_by,
            )
        )
    return found


def gigabytes(folder: Path, count: int) -> float:
    """GB that a folder of so many samples would take for COCO's images."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return total / count * COCO_IMAGES / 1e9


def originals(store: Path) -> float:
    """GB that image files like those of a store would take for COCO's images."""
    manifest = OurStore(store).reader.manifest
    paths = [Path(manifest.root) / manifest.table.value("image_path", index) for index in range(len(manifest))]
    return sum(path.stat().st_size for path in paths) / len(paths) * COCO_IMAGES / 1e9


# --- the loaders ----------------------------------------------------------------------------------------------------


def loader(contender: Contender, passes: int) -> DataLoader[Batch]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["physseg.train.data.dataset"])
    options: dict[str, Any] = {
        "batch_size": None,  # the data sets make batches themselves
        "num_workers": WORKERS,
        "prefetch_factor": 4,
        "persistent_workers": True,
        "multiprocessing_context": context,
        "worker_init_fn": start_worker,
    }
    if contender.packed:
        options["collate_fn"] = _Packed
    if isinstance(contender.dataset, Streamed):
        contender.dataset.passes = passes
    else:
        options["sampler"] = RandomBatches(contender.num_samples, passes)
    return DataLoader(contender.dataset, **options)


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

    def __init__(self, form: Form) -> None:
        self.form, self.passes = form, 1

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
        place(sample, draw, stacked, count)
        count += 1
        del sample
    return {name: torch.from_numpy(array[:count]) for name, array in stacked.items()}


def place(sample: Sample, draw: npt.NDArray[np.float64], stacked: dict[str, npt.NDArray[Any]], row: int) -> None:
    """Cut what the network gets of one sample, a window of the image and of each array, into a row of the batch."""
    image, planes = sample
    image = Frame().resize_image(image)
    window = window_of(draw, image.shape[:2])
    window.cut_image(image, stacked["images"][row])
    del image, sample
    for name, plane in planes:
        cut, side = (window.cut_cells, CROP // CELL_PX) if "cell" in name else (window.cut, CROP)
        if name not in stacked:
            stacked[name] = np.empty((len(stacked["images"]), *plane.shape[:-2], side, side), plane.dtype)
        top, left = (offset * side // CROP for offset in (window.top, window.left))
        if plane.shape[-2] - top >= side and plane.shape[-1] - left >= side:
            cut(plane, stacked[name][row])
        else:
            stacked[name][row] = padded(cut(plane), side, window.flip, FILL.get(name, 0))
        del plane


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
