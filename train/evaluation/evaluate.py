"""How well a run does on a manifest: predict every sample, and count pixels at the labels' own resolution.

The classes are the manifest's, whatever the run was trained on. A class counts as *seen* if one of its names is among
the names of the training vocabulary; the others are the open-vocabulary part and are averaged on their own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from ... import __version__
from ...common.errors import ConfigError
from ...common.settings import build, to_dict
from ...manifests.manifest import Manifest
from ..errors import CheckpointError, EvaluationError
from ..model.inference import PUBLISHED, InferenceSettings, class_texts, predict_label_map
from ..model.segmenter import Segmenter, SegmenterConfig, blank_segmenter
from ..model.text import read_templates
from ..runs import checkpoint
from ..runs.run_folder import RunFolder
from ..weights.export import is_export, read_export
from .image_counts import Counts, ImageCounts
from .metrics import ConfusionMatrix
from .result import Evaluation


def evaluate_model(
    model: Segmenter,
    manifest: Manifest,
    *,
    trained_on: Sequence[str],
    max_images: int | None = None,
    part: tuple[int, int] | None = None,
    settings: InferenceSettings = PUBLISHED,
    progress: bool = True,
    source: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Predict every sample of a manifest that is not quarantined (the first `max_images`) and count pixels.

    Samples without a labelled pixel are left out, too. Where the manifest folds classes into a background (VOC-20b),
    labels and predictions are folded before they are counted. `part` (i, n), i from 1, takes every n-th sample from the
    i-th on; the confusion matrices of all parts add up.

    Raises EvaluationError if there is none, ContentError for a file that is not what the manifest says.
    """
    vocabulary = manifest.vocabulary
    indices = manifest.usable
    quarantined = tuple(sample.sample_id for sample in manifest.quarantined)
    if not indices:
        raise EvaluationError(
            f"{manifest.dataset}: nothing to evaluate: {len(manifest)} samples, {len(quarantined)} of them quarantined",
            hint="Check the manifest's problems with `physseg manifest`.",
        )
    text_features = class_texts(model, vocabulary.classes)
    classes = manifest.evaluated_classes
    confusion = ConfusionMatrix(len(classes), vocabulary.ignore_index)
    number, of = part or (1, 1)
    chosen = indices[:max_images][number - 1 :: of]
    counts: dict[str, tuple[Counts, Counts, Counts]] = {}
    unlabelled = []
    loaded = zip(chosen, _loaded(manifest, chosen), strict=True)
    for index, (image, labels) in tqdm(loaded, total=len(chosen), unit="img", disable=not progress):
        sample_id = str(manifest.table.column("sample_id")[index].as_py())
        if (labels == vocabulary.ignore_index).all():
            unlabelled.append(sample_id)
            continue
        prediction = predict_label_map(model, image, text_features, settings)
        counts[sample_id] = confusion.update(manifest.fold(prediction), manifest.fold(labels))
    return Evaluation(
        confusion=confusion,
        classes=classes,
        seen=_seen(manifest, trained_on),
        num_images=len(counts),
        quarantined=quarantined,
        unlabelled=tuple(unlabelled),
        images=ImageCounts.stack(list(counts), list(counts.values()), len(classes)),
        source={**(source or {}), **_protocol(model, manifest, settings, max_images)},
        part=part,
    )


def _protocol(
    model: Segmenter, manifest: Manifest, settings: InferenceSettings, max_images: int | None
) -> dict[str, Any]:
    """What was evaluated how, and a short hash of it: results of equal fingerprints may be compared."""
    vocabulary = manifest.vocabulary
    protocol = {
        "physseg": __version__,
        "classes": vocabulary.fingerprint,
        "fold_from": manifest.fold_from,
        "templates": list(model.config.templates),
        "synonyms": model.config.synonyms,
        "preselected_classes": model.config.pad_len,
        "max_images": max_images,
        **{name: value for name, value in to_dict(settings).items() if name not in ("batch_windows", "memory_bytes")},
    }
    return {
        "dataset": manifest.dataset,
        "vocabulary": vocabulary.name,
        "manifest": manifest.fingerprint,
        "ignore_index": vocabulary.ignore_index,
        "protocol": protocol,
        "fingerprint": hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12],
        "shared_prompts": {name: list(ids) for name, ids in vocabulary.shared_prompts.items()},
    }


def _seen(manifest: Manifest, trained_on: Sequence[str]) -> tuple[bool, ...]:
    """Of each class that is scored; what is folded into the background counts as seen if any of it is."""
    seen = seen_classes(manifest.vocabulary.classes, trained_on)
    fold = manifest.fold_from
    return seen if fold is None else (*seen[:fold], any(seen[fold:]))


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
    weights: str
    """sha256 of the file that the weights were read from."""


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
    weights = checkpoint.weights_sha256(path)
    return LoadedRun(model=model.eval(), classes=state.classes, step=state.step, origin=origin, weights=weights)


def _load_export(path: Path, step: int | Literal["best"] | None) -> LoadedRun:
    model, document = read_export(path)
    if step not in (None, document["step"]):
        raise CheckpointError(f"{path}: an exported model of step {document['step']}, got --checkpoint {step}")
    classes = tuple(document["vocabulary"])
    return LoadedRun(
        model=model,
        classes=classes,
        step=document["step"],
        origin=document["origin"] or {},
        weights=document["weights"]["sha256"],
    )


# --- helpers --------------------------------------------------------------------------------------------------------


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
