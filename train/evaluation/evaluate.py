"""How well a run does on a manifest: predict every sample, and count pixels at the labels' own resolution.

The classes are the manifest's, whatever the run was trained on. A class counts as *seen* if one of its names is among
the names of the training vocabulary; the others are the open-vocabulary part and are averaged on their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.progress import ProgressBar
from ...common.text import Part, counted
from ...manifests.manifest import Manifest
from ..errors import EvaluationError
from ..model.inference import PUBLISHED, InferenceSettings, class_texts, segment_image
from ..model.segmenter import Segmenter
from ..model.text import synonyms_of
from .counter import PredictionCounter
from .protocol import identity
from .result import Evaluation


def evaluate_model(
    model: Segmenter,
    manifest: Manifest,
    *,
    trained_on: Sequence[str],
    max_images: int | None = None,
    part: Part | None = None,
    by_size: bool = False,
    settings: InferenceSettings = PUBLISHED,
    texts: Tensor | None = None,
    progress: bool = True,
    source: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Predict every sample of a manifest that is not quarantined and count pixels.

    Samples without a labelled pixel are left out, too. Where the manifest folds classes into a background (VOC-20b),
    labels and predictions are folded before they are counted.

    Args:
        trained_on: Class names of the training vocabulary.
        max_images: Number of samples, from the first one on; None takes all.
        part: Which of these samples to take; the confusion matrices of all parts add up.
        by_size: Count by the size of objects as well (object_size.py).
        texts: Text features of the manifest's classes, where they are known.
        source: What else the result should say of the model.

    Raises:
        EvaluationError: There is nothing to evaluate.
        ContentError: A file is not what the manifest says.
    """
    chosen = usable_samples(manifest, max_images)
    text_features = class_texts(model, manifest.vocabulary.classes) if texts is None else texts
    return score(
        manifest,
        part.of(chosen) if part else chosen,
        lambda _, image: segment_image(model, image, text_features, settings),
        trained_on=trained_on,
        part=part,
        by_size=by_size,
        progress=progress,
        source={**(source or {}), **identity(model, manifest, settings, max_images)},
    )


def score(
    manifest: Manifest,
    chosen: Sequence[int],
    predict: Callable[[str, npt.NDArray[np.uint8]], npt.NDArray[Any] | None],
    *,
    trained_on: Sequence[str],
    source: Mapping[str, Any],
    part: Part | None = None,
    by_size: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Count pixels of anybody's predictions: what `evaluate_model` and `evaluate_predictions` have in common.

    `predict` gives class ids (H, W) as prompted, of a sample's id and image; None leaves the sample out.
    """
    vocabulary = manifest.vocabulary
    classes = vocabulary.class_names
    counter = PredictionCounter(len(classes), vocabulary.ignore_index, by_size)
    unlabelled = []
    loaded = zip(chosen, load_each(manifest, chosen), strict=True)
    for index, (image, labels) in ProgressBar(loaded, total=len(chosen), unit="img", disable=not progress):
        sample_id = manifest.table.value("sample_id", index)
        if (labels == vocabulary.ignore_index).all():
            unlabelled.append(sample_id)
            continue
        prediction = predict(sample_id, image)
        if prediction is None:
            continue
        counter.update(sample_id, vocabulary.fold(prediction), labels)
    return Evaluation(
        **counter.counts(),
        classes=classes,
        seen=class_groups(vocabulary.classes, vocabulary.fold_from, trained_on),
        quarantined=tuple(sample.sample_id for sample in manifest.quarantined),
        unlabelled=tuple(unlabelled),
        source=source,
        part=part,
    )


def seen_classes(classes: Sequence[str], trained_on: Sequence[str]) -> tuple[bool, ...]:
    """Which classes have a name (any synonym, letter case aside) that is a name of a training class.

    >>> seen_classes(["sofa, couch", "Tree", "sea star"], ["couch", "tree, shrub"])
    (True, True, False)
    """
    known = {name for entry in trained_on for name in synonyms_of(entry.casefold())}
    return tuple(not known.isdisjoint(synonyms_of(entry.casefold())) for entry in classes)


def class_groups(classes: Sequence[str], fold_from: int | None, trained_on: Sequence[str]) -> tuple[bool, ...]:
    """Which of the scored classes are seen: what is folded into the background is if any of it is."""
    seen = seen_classes(classes, trained_on)
    return seen if fold_from is None else (*seen[:fold_from], any(seen[fold_from:]))


def usable_samples(manifest: Manifest, max_images: int | None = None) -> list[int]:
    """Indices of the first samples that are not quarantined. Raises EvaluationError if there are none."""
    found = manifest.usable[:max_images]
    if not found:
        counts = f"{counted(len(manifest), 'sample')}, {len(manifest.quarantined)} of them quarantined"
        hint = "Check the manifest's problems with `physseg manifest`."
        raise EvaluationError(f"{manifest.dataset}: nothing to evaluate: {counts}", hint=hint)
    return found


def load_each(manifest: Manifest, indices: Sequence[int]) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]]:
    """Images (H, W, 3) RGB and folded labels (H, W) in order, each decoded while the one before is being predicted."""
    with ThreadPoolExecutor(1) as pool:
        current = None
        for index in [*indices, None]:
            upcoming = None if index is None else pool.submit(manifest.load, index)
            if current is not None:
                image, labels = current.result()
                yield image, manifest.vocabulary.fold(labels)
            current = upcoming
