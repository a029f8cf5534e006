"""The page the demo ends with: one HTML file that holds its pictures and needs nothing from outside."""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...common.html import render
from ...common.images import data_url
from ...common.text import format_duration, percent
from ...manifests.manifest import Manifest
from ..report.page import charts
from ..report.pictures import map_row, prediction_row
from ..runs.run_log import read_log
from .results import Results, describe
from .scenes import UNSEEN_THINGS


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the chain, as it ran."""

    title: str
    command: str
    """What a user would type. A step without a command of its own has the call in words."""
    seconds: float


def page_of_demo(
    out: Path, *, settings: Mapping[str, Any], stages: Sequence[Stage], resumed: bool, results: Results, shown: int
) -> str:
    """The page of a demo whose steps have run, as HTML text, with the first predictions in the number `shown`."""
    train, val = (Manifest.read(out / f"{split}.parquet") for split in ("train", "val"))
    return render_page(
        settings={name: str(value) for name, value in {**settings, **_machine()}.items()},
        stages=stages,
        resumed=resumed,
        results=results,
        charts=charts(read_log(out / "run" / "log.jsonl", "step"), "loss/"),
        scenes=[_scene(train, index) for index in range(min(3, len(train)))],
        structures=[
            {"url": data_url(path.read_bytes(), "png"), "caption": f"training scene {path.stem}"}
            for path in sorted((out / "structures").glob("*.png"))
        ],
        predictions=[_prediction(val, index, out / "predictions") for index in range(min(shown, len(val)))],
    )


def render_page(*, stages: Sequence[Stage], results: Results, **shown: Any) -> str:
    """The whole page as HTML text.

    `shown` is what the template shows as it is: `settings`; whether the demo was `resumed`, so that the times are not
    those of the whole; `charts`; `structures`, pictures with a `url` and a `caption`; `scenes` and `predictions`, rows
    of `pictures` with a `legend` of names and RGB colours.
    """
    things = [name.split(" ") for name in results.classes if " " in name]
    return render(
        Path(__file__).with_name("page") / "demo.html",
        **shown,
        stages=stages,
        results=results,
        words=describe(results.seen, results.unseen, results.gone),
        total=format_duration(sum(stage.seconds for stage in stages)),
        classes=_class_rows(results),
        stuff=[name for name in results.classes if " " not in name],
        colours=list(dict.fromkeys(colour for colour, _ in things)),
        shapes=list(dict.fromkeys(shape for _, shape in things)),
        percent=percent,
    )


def _class_rows(results: Results) -> list[dict[str, Any]]:
    """What the table says of each class, those that were never trained at the end."""
    unseen = results.unseen_classes
    columns = zip(results.classes, results.pixels.tolist(), results.iou.tolist(), strict=True)
    rows = [
        {"name": name, "unseen": name in unseen, "pixels": pixels, "iou": None if math.isnan(iou) else iou}
        for name, pixels, iou in columns
    ]
    return sorted(rows, key=lambda row: row["name"] in unseen)


def _machine() -> dict[str, str]:
    import torch

    return {
        "torch": torch.__version__,
        "cores": str(os.cpu_count()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def _scene(manifest: Manifest, index: int) -> dict[str, Any]:
    image, labels = manifest.load(index)
    title, text = f"training scene {manifest.samples[index].sample_id}", "its label map; grey regions are unlabelled"
    return map_row(title, image, [(labels, text)], manifest.vocabulary).on_page()


def _prediction(manifest: Manifest, index: int, folder: Path) -> dict[str, Any]:
    """The image, its label map and what was predicted; classes that were never trained are marked."""
    image, labels = manifest.load(index)
    sample = manifest.samples[index].sample_id
    predicted = np.asarray(cv2.imread(str(folder / f"{Path(sample).name}_labels.png"), cv2.IMREAD_UNCHANGED))
    row = prediction_row(f"validation scene {sample}", image, labels, predicted, manifest.vocabulary)
    unseen = {name: f"{name} (never trained)" for name in UNSEEN_THINGS}
    marked = [entry._replace(name=unseen.get(entry.name, entry.name)) for entry in row.legend]
    return replace(row, legend=marked).on_page()
