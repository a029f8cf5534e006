"""The page the demo ends with: one HTML file that holds its pictures and needs nothing from outside."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ...common.html import render
from ...common.text import format_duration, percent
from ...manifests.manifest import Manifest
from ..model.backbones.clip import Clip
from ..report.page import charts, structures_of_run
from ..report.pictures import map_row
from ..runs.run_log import read_log
from .results import Results, describe
from .scenes import UNSEEN_THINGS
from .zero_shot import label_map, text_embeds

MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "baseline": ("baseline", ("losses.lambda_p=0", "losses.lambda_sac=0")),
    "both losses": ("run", ()),
}
"""What is fine-tuned: the folder of each run, and what it changes of demo.toml."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step of the chain, as it ran."""

    title: str
    command: str
    """What a user would type. A step without a command of its own has the call in words."""
    seconds: float


def page_of_demo(
    out: Path,
    *,
    settings: Mapping[str, Any],
    stages: Sequence[Stage],
    resumed: bool,
    models: Mapping[str, Results],
    clip: Clip,
    shown: int,
) -> str:
    """The page of a demo whose steps have run, as HTML text, with the first predictions in the number `shown`.

    `models` are what was measured, the pretrained `clip` first and the demo's own model last.
    """
    train, val = (Manifest.read(out / f"{split}.parquet") for split in ("train", "val"))
    texts = text_embeds(clip, val.vocabulary.class_names)
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    facts = {**settings, "torch": torch.__version__, "cores": os.cpu_count(), "machine": machine}
    return render_page(
        settings={name: str(value) for name, value in facts.items()},
        stages=stages,
        resumed=resumed,
        models=models,
        charts=charts(read_log(out / "run" / "log.jsonl", "step"), "loss/"),
        scenes=[_scene(train, index) for index in range(min(3, len(train)))],
        structures=[one.on_page() for one in structures_of_run(out / "run")],
        predictions=[_prediction(val, index, out, clip, texts) for index in range(min(shown, len(val)))],
    )


def render_page(*, stages: Sequence[Stage], models: Mapping[str, Results], **shown: Any) -> str:
    """The whole page as HTML text.

    `shown` is what the template shows as it is: `settings`; whether the demo was `resumed`, so that the times are not
    those of the whole; `charts`; `scenes`, `structures` and `predictions`, rows of `pictures`, each with a `url` and a
    `caption`, with a `legend` of names and RGB colours.
    """
    results = list(models.values())[-1]
    things = [name.split(" ") for name in results.classes if " " in name]
    folder = Path(__file__).with_name("page")
    return render(
        folder / "demo.html",
        **shown,
        study=json.loads((folder / "study.json").read_text(encoding="utf-8")),
        stages=stages,
        models=models,
        results=results,
        words=describe(models),
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


def _scene(manifest: Manifest, index: int) -> dict[str, Any]:
    image, labels = manifest.load(index)
    title, text = f"training scene {manifest.samples[index].sample_id}", "its label map; grey regions are unlabelled"
    return map_row(title, image, [(labels, text)], manifest.vocabulary).on_page()


def _prediction(manifest: Manifest, index: int, out: Path, clip: Clip, texts: Tensor) -> dict[str, Any]:
    """The image, its label map and what each model predicts; classes that were never trained are marked."""
    image, labels = manifest.load(index)
    sample, counted = manifest.samples[index].sample_id, labels != manifest.vocabulary.ignore_index
    maps: list[tuple[Any, str]] = [(labels, "ground truth")]
    for title, (run, _) in {"zero-shot": ("", ()), **MODELS}.items():
        file = out / "predictions" / run / f"{Path(sample).name}_labels.png"
        ids = np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED)) if run else label_map(clip, image, texts)
        maps.append((ids, f"{title}: {percent(float(np.mean((ids == labels)[counted])))} of the pixels right"))
    row = map_row(f"validation scene {sample}", image, maps, manifest.vocabulary)
    unseen = {name: f"{name} (never trained)" for name in UNSEEN_THINGS}
    marked = [entry._replace(name=unseen.get(entry.name, entry.name)) for entry in row.legend]
    return replace(row, legend=marked).on_page()
