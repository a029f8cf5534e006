"""What `physseg superpoint ...` does: settings from words, the work, a few lines of report."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...common.atomic import atomic_write
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.superpoint.extractor import SHIPPED_WEIGHTS
from ...structure_extractors.superpoint.network import Architecture, fold_normalisation
from ...structure_extractors.superpoint.weights import load_detector
from .evaluation import Rows, evaluate, network_detector, table
from .labels import Labelled
from .loop import TrainSettings, check_device, chosen_precision, recorded_precision, train
from .pairs import sequence_pairs
from .pictures import write_pictures
from .sources import LabelledImages, Mixed, Shapes

Say = Callable[[str], None]


def train_synthetic(
    run: Path,
    *,
    steps: int,
    seed: int,
    full_width: bool,
    batch_size: int,
    precision: str,
    device: str,
    workers: int | None,
    say: Say,
) -> Path:
    """Train on generated shapes into the folder ``run``; returns the file of weights."""
    widths: dict[str, Any] = asdict(Architecture()) if full_width else {}
    settings = TrainSettings(
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        precision=chosen_precision(precision, device, recorded_precision(run)),
        **{name: value for name, value in widths.items() if name in ("widths", "head_width")},
    )
    weights = train(Shapes(), settings, run, device=device, workers=drawing_processes(workers, device), say=say)
    say(f"{weights}: trained on shapes")
    return weights


def train_labelled(
    run: Path,
    images: Path,
    labels: Path,
    *,
    start: Path | None,
    steps: int,
    shapes: float,
    seed: int,
    batch_size: int,
    precision: str,
    device: str,
    workers: int | None,
    say: Say,
) -> Path:
    """Train further on labelled pictures of a folder, with a share of shapes; returns the file of weights."""
    settings = TrainSettings(
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        precision=chosen_precision(precision, device, recorded_precision(run)),
        learning_rate=1e-3,
        warped=0.7,
    )
    labelled = Labelled.read(labels)
    if min(have - want for have, want in zip(labelled.size, settings.size, strict=True)) < 0:
        raise ExtractorError(
            f"{labels}: labels of pictures of {labelled.size}, smaller than {settings.size} to train on"
        )
    source = Mixed(LabelledImages(images, labelled), shapes)
    weights = train(
        source,
        settings,
        run,
        start=start or SHIPPED_WEIGHTS,
        device=device,
        workers=drawing_processes(workers, device),
        say=say,
    )
    say(f"{weights}: trained on {len(labelled.names)} labelled pictures")
    return weights


def drawing_processes(workers: int | None, device: str) -> int:
    """How many processes draw pictures: as asked, or none beside a CPU that computes and up to 8 beside anything else.

    A step's 32 pictures take a core 0.05 to 0.2 s to draw.
    """
    if workers is not None:
        return workers
    return 0 if torch.device(check_device(device)).type == "cpu" else min(8, max(1, len(os.sched_getaffinity(0)) - 1))


def evaluate_weights(
    weights: Path | None,
    *,
    sequences: Sequence[Path],
    photographs: Path | None,
    per_kind: int,
    out: Path | None,
    device: str,
    say: Say,
    pictures: Path | None = None,
) -> Rows:
    """Print the figures of a detector beside the classical ones, and write them as JSON; draw what it finds."""
    path = weights or SHIPPED_WEIGHTS
    if not path.is_file():
        raise ExtractorError(f"{path}: expected a file of weights, found none", hint="name a .safetensors or .pth file")
    detector = load_detector(path.read_bytes(), where=str(path))
    network = fold_normalisation(detector.network).to(check_device(device))
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise ExtractorError(f"{pictures}: expected a folder for pictures, or nothing yet, found a file")
    pairs = {folder.name: sequence_pairs(folder) for folder in sequences}
    if len(pairs) < len(sequences):
        raise ExtractorError(f"expected sequences of different names, got {', '.join(map(str, sequences))}")
    rows = evaluate(network, sequences=pairs, photographs=photographs, per_kind=per_kind, say=say)
    say("")
    table(rows, say)
    if out is not None:
        atomic_write(out, (json.dumps({"weights": path.name, "figures": rows}, indent=2) + "\n").encode())
        say(f"written to {out}")
    if pictures is not None:
        named = [(f"{name}_{number}", pair) for name, found in pairs.items() for number, pair in enumerate(found, 2)]
        files = write_pictures(pictures, network_detector(network), threshold=detector.threshold, pairs=named)
        say(f"{pictures}: {len(files)} pictures of what it finds")
    return rows
