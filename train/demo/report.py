"""Collects what the demo's page shows from the files that the chain has left."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...manifests.manifest import Manifest
from ...pipeline.inspect.drawing.label_maps import class_shares, overlay
from ...pipeline.inspect.drawing.palette import palette
from ..runs.run_log import read_log
from .page import DemoReport, Picture, Row, Stage
from .results import class_iou, destinations, score_group
from .scenes import UNSEEN_THINGS

_LOSSES = {
    "loss/total": "total",
    "loss/segmentation": "segmentation",
    "loss/structure": "structure, L^p",
    "loss/alignment": "patch alignment, L^sac",
}


def build_report(
    out: Path,
    *,
    settings: Mapping[str, Any],
    stages: Sequence[Stage],
    resumed: bool,
    confusion: npt.NDArray[np.int64],
    shown: int,
) -> DemoReport:
    """Everything `render_page` needs. ``confusion`` (T, T) is that of the validation split, rows truth."""
    train, val = (Manifest.read(out / f"{split}.parquet") for split in ("train", "val"))
    classes = val.vocabulary.prompt_names
    unseen = [index for index, name in enumerate(classes) if name in UNSEEN_THINGS]
    seen = [index for index in range(len(classes)) if index not in unseen]
    return DemoReport(
        settings={name: str(value) for name, value in {**settings, **_machine()}.items()},
        stages=stages,
        resumed=resumed,
        classes=classes,
        unseen=[classes[index] for index in unseen],
        iou=class_iou(confusion),
        pixels=confusion.sum(axis=1),
        seen_score=score_group(confusion, seen),
        unseen_score=score_group(confusion, unseen),
        gone=destinations(confusion, classes, unseen),
        losses=_losses(out / "run" / "log.jsonl"),
        scenes=[_scene(train, index) for index in range(min(3, len(train)))],
        structures=[
            Picture(image=_read_picture(path), caption=f"training scene {path.stem}", lossless=True)
            for path in sorted((out / "structures").glob("*.png"))
        ],
        predictions=[_prediction(val, index, out / "predictions") for index in range(min(shown, len(val)))],
    )


def _machine() -> dict[str, str]:
    import torch

    return {
        "torch": torch.__version__,
        "cores": str(os.cpu_count()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _losses(log: Path) -> dict[str, list[tuple[int, float]]]:
    """Each loss part's (step, value), the total first; a value that is no number was logged as text and is left out."""
    entries = read_log(log, "step")
    return {
        title: [(entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), float)]
        for name, title in _LOSSES.items()
    }


def _scene(manifest: Manifest, index: int) -> Row:
    image, labels = manifest.load(index)
    pictures = (
        Picture(image=image, caption=f"training scene {manifest.samples[index].sample_id}"),
        Picture(image=_coloured(manifest, image, labels), caption="its label map; grey regions are unlabelled"),
    )
    return Row(pictures=pictures, legend=_legend(manifest, labels))


def _prediction(manifest: Manifest, index: int, folder: Path) -> Row:
    """The image, its label map and what was predicted, drawn alike."""
    image, labels = manifest.load(index)
    sample = manifest.samples[index].sample_id
    predicted = _decode(folder / f"{Path(sample).name}_labels.png", cv2.IMREAD_UNCHANGED)
    labelled = labels != manifest.vocabulary.ignore_index
    right = float(np.mean(predicted[labelled] == labels[labelled])) if labelled.any() else float("nan")
    pictures = (
        Picture(image=image, caption=f"validation scene {sample}"),
        Picture(image=_coloured(manifest, image, labels), caption="its label map"),
        Picture(image=_coloured(manifest, image, predicted), caption=f"prediction: {right:.0%} of the pixels right"),
    )
    return Row(pictures=pictures, legend=_legend(manifest, np.stack((labels, predicted))))


def _coloured(manifest: Manifest, image: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The image in its classes' colours, with names on the large regions."""
    names, ignore_index = manifest.vocabulary.prompt_names, manifest.vocabulary.ignore_index
    return overlay(image, labels, names, ignore_index=ignore_index, alpha=0.7, max_legend=0)


def _legend(manifest: Manifest, labels: npt.NDArray[Any]) -> list[tuple[str, tuple[int, int, int]]]:
    """Classes that occur and their colours; those that were never trained are marked."""
    names = manifest.vocabulary.prompt_names
    colours = palette(len(names)).tolist()
    present = [index for index, _ in class_shares(labels) if index != manifest.vocabulary.ignore_index]
    return [
        (f"{names[i]}{' (never trained)' if names[i] in UNSEEN_THINGS else ''}", tuple(colours[i])) for i in present
    ]


def _read_picture(path: Path) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(_decode(path, cv2.IMREAD_COLOR)[..., ::-1])


def _decode(path: Path, flags: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags), np.uint8)
