"""Pictures and any words to label maps: ids as PNG, and an overlay with a legend to look at."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.atomic import atomic_json, atomic_write
from ...common.errors import PhyssegError, StorageError
from ...common.images import encode_png
from ...manifests.labels.class_file import read_class_file
from ...manifests.manifest import Manifest
from ...manifests.pairing import IMAGE_SUFFIXES, files_by_stem, read_list
from ...manifests.vocabulary import Vocabulary
from ...pipeline.inspect.drawing.label_maps import overlay
from ..errors import PredictionError
from ..model.inference import PUBLISHED, InferenceSettings, Segmented, class_texts, segment_with_scores
from ..model.segmenter import Segmenter
from .trained_model import as_rgb

Form = Literal["pictures", "png", "detectron2"]
"""What is written: `NAME_labels.png` and `NAME_overlay.png`; `NAME.png` for others to read; or for them, at the end,
`sem_seg_predictions.json` as detectron2 has it. PNGs of labels hold class ids of 8 or 16 bits."""

_ENDS = {"pictures": ("_labels.png", "_overlay.png", "_confidence.png"), "png": (".png",), "detectron2": ()}
EXAMPLE = 'For example: --classes "cat, dog, sofa, other".'


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """What was found of one class in one image."""

    id: int
    """The class's index, as label maps have it."""
    name: str
    share: float
    """Share of the pixels that were given this class, in [0, 1]."""
    score: float | None
    """Mean probability of the class over those pixels, in [0, 1]; None where there are none."""
    highest: float
    """Highest probability of the class at any pixel, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What became of one image."""

    image: Path
    labels: Path | None = None
    """PNG (H, W) of class indices, of 8 bits, or 16 for more than 255 classes; None after an error, or in JSON."""
    overlay: Path | None = None
    """PNG of the image in its classes' colours, with a legend; in the form of pictures only."""
    confidence: Path | None = None
    """PNG (H, W) of 8 bits: 255 times the probability of each pixel's class; where it was asked for."""
    classes: tuple[ClassScore, ...] = ()
    """All classes that were looked for, the largest share first."""
    error: str = ""
    """What went wrong, in one line; empty if nothing did."""


def predict_files(
    model: Segmenter,
    images: Manifest | Sequence[Path],
    vocabulary: Vocabulary,
    out: Path,
    *,
    form: Form = "pictures",
    confidence: bool = False,
    settings: InferenceSettings = PUBLISHED,
    texts: Tensor | None = None,
) -> Iterator[Prediction]:
    """Predict files, or a manifest's usable samples, one by one, and write them into `out` in a `Form`.

    Files are named by their STEM, samples by SAMPLE_ID. `confidence` writes `NAME_confidence.png`, too. `texts` are the
    text features of the words, where known.

    Yields:
        What became of each image. One that cannot be read, or is not what the manifest says, has an `error`, and the
        others are still done.

    Raises:
        PredictionError: Two images would write the same files, or one would overwrite what is read. Nothing was.
        StorageError: The place of the images cannot be reached.
    """
    sources = _sources(images)
    targets = [out / f"{name}{end}" for name, *_ in sources for end in _ENDS[form]]
    _check_overwrites_nothing(images, [path for _, path, _ in sources], targets)
    text_features = class_texts(model, vocabulary.classes) if texts is None else texts
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    names = vocabulary.prompt_names
    for name, path, load in sources:
        where = "" if isinstance(images, Manifest) else f"{path}: "  # errors of samples name their file
        try:
            image = load()
            found = segment_with_scores(model, image, text_features, settings)
            files: dict[str, Any] = {}
            if confidence:
                shades = np.rint(255 * found.confidence).astype(np.uint8)
                files["confidence"] = _write(out / f"{name}_confidence.png", shades)
            if form == "detectron2":
                entries += detectron2_entries(found.labels, path)
            elif form == "png":
                files["labels"] = _write(out / f"{name}.png", found.labels)
            else:
                drawn = overlay(image, found.labels, names, ignore_index=vocabulary.ignore_index)
                files["labels"] = _write(out / f"{name}_labels.png", found.labels)
                files["overlay"] = _write(out / f"{name}_overlay.png", drawn)
            yield Prediction(image=Path(path), classes=_scores(found, names), **files)
        except StorageError:
            raise
        except PhyssegError as error:
            yield Prediction(image=Path(path), error=where + "; ".join(filter(None, (error.args[0], error.hint))))
        except OSError as error:
            yield Prediction(image=Path(path), error=f"{path}: {error.strerror or error}")
    if form == "detectron2":
        atomic_json(out / "sem_seg_predictions.json", entries)


def detectron2_entries(labels: npt.NDArray[np.integer[Any]], file_name: str) -> list[dict[str, Any]]:
    """Class ids (H, W) of one image as detectron2's SemSegEvaluator writes them: a run-length coded mask per class."""
    from pycocotools import mask as coco_mask  # which nothing but this needs

    entries = []
    for category in np.unique(labels).tolist():
        code = coco_mask.encode(np.asfortranarray(labels == category, np.uint8))
        segmentation = {"size": list(labels.shape), "counts": code["counts"].decode("ascii")}
        entries.append({"file_name": file_name, "category_id": category, "segmentation": segmentation})
    return entries


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images that `physseg manifest` would take from them, sorted, lists as they say.

    A list is a text file (`.txt`) with a path in each line. What else lies in a folder is counted in a warning. Raises
    ManifestError for a folder without an image, and for a list without a path or with one twice.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            found += sorted(files_by_stem(argument, IMAGE_SUFFIXES, "images").values())
        else:
            found += map(Path, read_list(argument)) if argument.suffix == ".txt" else [argument]
    return found


def read_words(words: str | None, file: Path | None) -> Vocabulary:
    """The classes of "cat, dog, sofa", or of a class file (`manifests/labels/class_file.py`).

    Raises:
        PredictionError: Not exactly one of both is given, or the words name a file or are separated otherwise.
        ManifestError: Classes are empty or repeated.
    """
    if file is not None and words is None:
        return Vocabulary(name=file.stem, classes=read_class_file(file))
    if words is not None and file is None:
        if Path(words).suffix in (".txt", ".json", ".csv") or os.path.isfile(words):  # noqa: PTH113  many are no name
            raise PredictionError.mismatch("--classes", "words", f"the file {words}", hint="--classes-file takes files")
        if odd := next((character for character in ";|\n" if character in words), None):
            raise PredictionError.mismatch("--classes", "words with commas between them", repr(odd), hint=EXAMPLE)
        return Vocabulary(name="words", classes=tuple(word.strip() for word in words.split(",") if word.strip()))
    raise PredictionError("say which classes to look for: either --classes or --classes-file", hint=EXAMPLE)


def _sources(images: Manifest | Sequence[Path]) -> list[tuple[str, str, Callable[[], npt.NDArray[np.uint8]]]]:
    """Name of what is written, path, and what loads the image. Raises PredictionError where two have one name."""
    if isinstance(images, Manifest):
        ids, paths = (images.table.values(column) for column in ("sample_id", "image_path"))
        return [(ids[index], paths[index], partial(images.load_image, index, verify=True)) for index in images.usable]
    if not images:
        raise PredictionError("no image given")
    first: dict[str, Path] = {}
    for path in images:
        if path.stem in first:
            fault = f"{first[path.stem]} and {path} would both write {path.stem}_labels.png"
            raise PredictionError(fault, hint="Predict them in two calls with different --out.")
        first[path.stem] = path
    return [(path.stem, str(path), partial(as_rgb, path)) for path in images]


def _check_overwrites_nothing(images: object, read: Sequence[str], targets: Sequence[Path]) -> None:
    """Raise PredictionError if a file to write is an image, or a manifest's label file."""
    root, labels = (images.root, images.table.values("label_path")) if isinstance(images, Manifest) else ("", [])
    if both := {os.path.realpath(Path(root, path)) for path in (*read, *labels)} & {*map(os.path.realpath, targets)}:
        raise PredictionError(f"{min(both)} is read, and would be overwritten", hint="Name another folder: --out.")


def _scores(found: Segmented, names: Sequence[str]) -> tuple[ClassScore, ...]:
    ids = found.labels.ravel()
    pixels = np.bincount(ids, minlength=len(names)).tolist()
    sums = np.bincount(ids, weights=found.confidence.ravel(), minlength=len(names)).tolist()
    rows = zip(names, pixels, sums, found.highest.tolist(), strict=True)
    scores = [
        ClassScore(id=index, name=name, share=count / ids.size, score=total / count if count else None, highest=highest)
        for index, (name, count, total, highest) in enumerate(rows)
    ]
    return tuple(sorted(scores, key=lambda one: -one.share))


def _write(path: Path, pixels: npt.NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)  # a sample's id may name folders
    atomic_write(path, encode_png(pixels))
    return path
