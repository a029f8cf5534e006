"""How well a run does on a manifest: one confusion matrix at the labels' own resolution, and what follows from it.

The classes are the manifest's, whatever the run was trained on. A class counts as *seen* if one of its names is among
the names of the training vocabulary; the others are the open-vocabulary part and are averaged on their own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from .. import __version__
from ..manifests.table import Manifest
from ..manifests.whole_file import write_whole
from . import checkpoint
from .config_reading import build, plain
from .errors import CheckpointError, ConfigError, EvaluationError
from .image_counts import ImageCounts
from .metrics import ConfusionMatrix
from .model.inference import PUBLISHED, InferenceSettings, predict_label_map
from .model.segmenter import Segmenter, SegmenterConfig, blank_segmenter
from .model.text import read_templates
from .run_folder import RunFolder
from .weights.export import is_export, read_export


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A confusion matrix with everything needed to read it."""

    confusion: ConfusionMatrix
    classes: tuple[str, ...]
    """Class names as prompted, in the matrix's order."""
    seen: tuple[bool, ...]
    """Whether the training vocabulary names the class."""
    num_images: int
    quarantined: tuple[str, ...]
    """Ids of samples that the manifest quarantines; they were left out."""
    source: Mapping[str, Any]
    """What was evaluated on what: run, step, data set, protocol."""
    images: ImageCounts | None = None
    """Counts of every image by itself; None where only sums are known."""

    def group_miou(self, seen: bool) -> float | None:
        """Mean IoU over the classes of the ground truth that are seen, or unseen; None where there are none.

        Over the ground truth's classes only: a seen class that is wrongly predicted costs the class it was taken for.
        """
        iou, true = self.confusion.iou(), self.confusion.matrix.sum(axis=1)
        members = (np.array(self.seen) == seen) & (true > 0)
        return float(iou[members].mean()) if members.any() else None

    def with_counts(self, matrix: npt.NDArray[np.int64]) -> "Evaluation":
        """The same evaluation with other pixel counts (C, C): those of all parts, added."""
        confusion = ConfusionMatrix(self.confusion.num_classes, self.confusion.ignore_index)
        confusion.matrix = matrix
        return replace(self, confusion=confusion, images=None)

    def document(self) -> dict[str, Any]:
        """Everything as JSON: fractions 0..1, None where there is nothing to average."""
        summary = self.confusion.summary(self.classes)
        for row, seen in zip(summary["classes"], self.seen, strict=True):
            row["seen"] = seen
        groups = {name: {"miou": self.group_miou(flag), "classes": self.seen.count(flag)} for name, flag in _GROUPS}
        return {
            "physseg": __version__,
            **self.source,
            "num_images": self.num_images,
            "quarantined": list(self.quarantined),
            **groups,
            "miou_interval": self.images.interval() if self.images else None,
            **summary,
        }

    def table(self, *, rows: int = 10) -> str:
        """For the terminal: averages, seen against unseen, the best and worst classes; unseen ones are marked."""
        names = [name if seen else f"{name} (unseen)" for name, seen in zip(self.classes, self.seen, strict=True)]
        lines = [self.confusion.table(names, rows=rows)]
        if self.images:
            low, high = self.images.interval()
            lines.insert(0, f"mIoU, 95 % over images by bootstrap: {100 * low:.2f} to {100 * high:.2f}")
        if not all(self.seen):
            lines.append("")
            for name, flag in _GROUPS:
                value = self.group_miou(flag)
                shown = "no pixels" if value is None else f"mIoU {100 * value:6.2f}"
                lines.append(f"{name:7} classes {shown}  over those of {self.seen.count(flag)} that occur")
        if self.quarantined:
            lines.append(f"\n{len(self.quarantined)} quarantined samples left out: {', '.join(self.quarantined[:5])}")
        return "\n".join(lines)

    def scalars(self) -> dict[str, float]:
        """The averages under the training log's names; those that do not exist are left out."""
        values = {
            "eval/miou": self.confusion.miou(),
            "eval/pixel_accuracy": self.confusion.pixel_accuracy(),
            "eval/miou_seen": self.group_miou(True),
            "eval/miou_unseen": self.group_miou(False),
        }
        return {name: value for name, value in values.items() if value is not None and not np.isnan(value)}

    def write(self, folder: Path, name: str) -> Path:
        """Write `name.json`, and as `name.npz` the matrix, its class names and every image's counts.

        Returns the JSON's path.
        """
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {"confusion": self.confusion.matrix, "classes": np.array(self.classes)}
        if self.images:
            arrays["image_ids"] = np.array(self.images.image_ids)
            arrays |= {f"image_{part}": getattr(self.images, part) for part in ("hits", "true", "predicted")}
        buffer = BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_whole(folder / f"{name}.npz", buffer.getvalue())
        path = folder / f"{name}.json"
        write_whole(path, (json.dumps(self.document(), indent=1) + "\n").encode())
        return path


_GROUPS = (("seen", True), ("unseen", False))


def evaluate_run(
    run: Path,
    manifest: Manifest,
    *,
    step: int | None = None,
    device: torch.device | str = "cpu",
    max_images: int | None = None,
    settings: InferenceSettings = PUBLISHED,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a run's checkpoint (the latest unless `step` is given) on a manifest."""
    loaded = load_run(run, step=step, device=device)
    return evaluate_model(
        loaded.model,
        manifest,
        trained_on=loaded.classes,
        max_images=max_images,
        settings=settings,
        progress=progress,
        source={"run": str(run), "step": loaded.step},
    )


def evaluate_model(
    model: Segmenter,
    manifest: Manifest,
    *,
    trained_on: Sequence[str],
    max_images: int | None = None,
    part: tuple[int, int] = (0, 1),
    settings: InferenceSettings = PUBLISHED,
    progress: bool = True,
    source: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Predict every sample of a manifest that is not quarantined (the first `max_images`) and count pixels.

    `part` (i, n) takes every n-th of them from the i-th on, i from 0; the confusion matrices of all parts add up.

    Raises EvaluationError if there is none, ContentError for a file that is not what the manifest says.
    """
    vocabulary = manifest.vocabulary
    indices = _usable(manifest)
    quarantined = tuple(sample.sample_id for sample in manifest.quarantined)
    if not indices:
        raise EvaluationError(
            f"{manifest.dataset}: nothing to evaluate: {len(manifest)} samples, {len(quarantined)} of them quarantined",
            hint="Check the manifest's problems with `physseg manifest`.",
        )
    device = next(model.parameters()).device
    with torch.no_grad():
        text_features = model.encode_text(model.tokenize(vocabulary.classes).to(device))
    confusion = ConfusionMatrix(vocabulary.num_classes, vocabulary.ignore_index)
    chosen = indices[:max_images][part[0] :: part[1]]
    counts = []
    for image, labels in tqdm(_loaded(manifest, chosen), total=len(chosen), unit="img", disable=not progress):
        counts.append(confusion.update(predict_label_map(model, image, text_features, settings), labels))
    return Evaluation(
        confusion=confusion,
        classes=vocabulary.prompt_names,
        seen=seen_classes(vocabulary.classes, trained_on),
        num_images=len(chosen),
        quarantined=quarantined,
        images=ImageCounts.stack(
            [manifest.samples[index].sample_id for index in chosen], counts, len(confusion.matrix)
        ),
        source={
            **(source or {}),
            "dataset": manifest.dataset,
            "vocabulary": vocabulary.name,
            "manifest": manifest.fingerprint,
            "protocol": {
                "templates": list(model.config.templates),
                "synonyms": model.config.synonyms,
                **plain(settings),
            },
        },
    )


def seen_classes(classes: Sequence[str], trained_on: Sequence[str]) -> tuple[bool, ...]:
    """Which classes have a name (any synonym, letter case aside) that is a name of a training class.

    >>> seen_classes(["sofa, couch", "Tree", "sea star"], ["couch", "tree, shrub"])
    (True, True, False)
    """
    known = {name for entry in trained_on for name in _synonyms(entry)}
    return tuple(not known.isdisjoint(_synonyms(entry)) for entry in classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A model with a checkpoint's weights, in evaluation mode."""

    model: Segmenter
    classes: tuple[str, ...]
    """Training vocabulary."""
    step: int
    origin: Mapping[str, Any]
    """Where the weights come from: run, data it was trained on, pretrained CLIP, imported file; as far as is known."""


def load_run(
    run: Path | str,
    *,
    step: int | Literal["best"] | None = None,
    device: torch.device | str = "cpu",
    prompts: str = "",
    synonyms: str | None = None,
) -> LoadedRun:
    """Load a run's checkpoint (the latest unless `step` is given), or an exported model, for evaluation and prediction.

    "best" is the step of the highest mIoU that was evaluated during training.

    `prompts` and `synonyms` replace those of training, as in SegmenterConfig. Raises RunFolderError for what is no run
    folder, CheckpointError for a checkpoint that is missing, torn or foreign, ConfigError for other prompts in number.
    """
    path = Path(run)
    loaded = _load_export(path, step) if is_export(path) else _load_checkpoint(path, step)
    if prompts or synonyms:
        loaded.model.set_prompts(templates=read_templates(prompts) if prompts else None, synonyms=synonyms)
    loaded.model.to(device)
    return loaded


def _load_checkpoint(run: Path, step: int | Literal["best"] | None) -> LoadedRun:
    folder = RunFolder(run)
    document = folder.read()
    if step == "best":
        best = folder.best()
        if best is None:
            hint = "set eval.manifest, and eval.keep_best, to have one; or name a step"
            raise CheckpointError(f"{run}: no best checkpoint: nothing was evaluated during training", hint=hint)
        step = int(best["step"])
    path = checkpoint.path_of(folder.checkpoints, step)
    try:
        model = blank_segmenter(build(SegmenterConfig, document["model"], base=folder.path))
    except ConfigError as error:
        hint = f"it was written by physseg {document['version']}, this is {__version__}"
        raise CheckpointError(f"{folder.config_file}: {error.args[0]}", hint=hint) from error
    state = checkpoint.load_model(path, model, document["model"])
    origin = {"run": run.absolute().name, "data": state.data, **(document.get("origin") or {})}
    return LoadedRun(model=model.eval(), classes=state.classes, step=state.step, origin=origin)


def _load_export(path: Path, step: int | Literal["best"] | None) -> LoadedRun:
    model, document = read_export(path)
    if step not in (None, document["step"]):
        raise CheckpointError(f"{path}: an exported model of step {document['step']}, got --checkpoint {step}")
    classes = tuple(document["vocabulary"])
    return LoadedRun(model=model, classes=classes, step=document["step"], origin=document["origin"] or {})


# --- helpers --------------------------------------------------------------------------------------------------------


def _usable(manifest: Manifest) -> list[int]:
    problems = manifest.table.column("problem").to_pylist()
    return [index for index, problem in enumerate(problems) if not problem]


def _loaded(manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]]:
    """Images and labels in order, each decoded while the one before is being predicted."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(manifest.load, indices[0]) if indices else None
        for following in [*indices[1:], None]:
            if upcoming is None:
                return
            current = upcoming.result()
            if following is not None:
                upcoming = pool.submit(manifest.load, following)
            yield current


def _synonyms(entry: str) -> set[str]:
    return {name.strip().casefold() for name in entry.split(",") if name.strip()}
