"""Pictures and any words to label maps: ids as PNG, and an overlay with a legend to look at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.atomic import atomic_json, atomic_write
from ...common.errors import PhyssegError
from ...common.images import encode_png
from ...manifests.class_file import read_class_file
from ...manifests.manifest import Manifest
from ...manifests.pairing import IMAGE_SUFFIXES, files_by_stem
from ...manifests.vocabulary import Vocabulary
from ...pipeline.inspect.drawing.label_maps import class_shares, overlay
from ..errors import PredictionError
from ..model.inference import PUBLISHED, InferenceSettings, class_texts, segment_image
from ..model.segmenter import Segmenter
from .trained_model import as_rgb

EXAMPLE = 'For example: --classes "cat, dog, sofa, other".'


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What became of one image."""

    image: Path
    labels: Path | None = None
    """PNG (H, W) of class indices, of 8 bits, or 16 for more than 255 classes; None after an error."""
    overlay: Path | None = None
    """PNG of the image in its classes' colours, with a legend; None after an error."""
    shares: tuple[tuple[str, float], ...] = ()
    """Classes that occur and their share of the pixels, the largest first."""
    error: str = ""
    """What went wrong, in one line; empty if nothing did."""


def predict_files(
    model: Segmenter,
    images: Sequence[Path],
    vocabulary: Vocabulary,
    out: Path,
    *,
    settings: InferenceSettings = PUBLISHED,
) -> Iterator[Prediction]:
    """Predict files one by one and write `STEM_labels.png` and `STEM_overlay.png` into `out`.

    Yields:
        What became of each image. One that cannot be read has an `error`, and the others are still done.

    Raises:
        PredictionError: Two images would write the same files. Nothing was written.
    """
    _check_names(images)
    text_features = class_texts(model, vocabulary.classes)
    out.mkdir(parents=True, exist_ok=True)
    for path in images:
        try:
            yield _predict_file(model, path, vocabulary, text_features, out, settings)
        except PhyssegError as error:
            yield Prediction(image=path, error=f"{path}: {'; '.join(filter(None, (error.args[0], error.hint)))}")
        except OSError as error:
            yield Prediction(image=path, error=f"{path}: {error.strerror or error}")


def predict_for_others(
    model: Segmenter,
    images: Manifest | Sequence[Path],
    vocabulary: Vocabulary,
    out: Path,
    *,
    form: Literal["png", "detectron2"],
    settings: InferenceSettings = PUBLISHED,
) -> int:
    """Predict a manifest's usable samples, or files, at their own size, for `physseg judge` and others to read.

    Writes `SAMPLE_ID.png` (of files `STEM.png`; class ids, 8 or 16 bit), or at the end `sem_seg_predictions.json` as
    detectron2 does. Returns the number of images.

    Raises:
        PredictionError: Two files have one stem. Nothing was written.
        PhyssegError: An image cannot be read, or is not what the manifest says.
    """
    if not isinstance(images, Manifest):
        _check_names(images)
    text_features = class_texts(model, vocabulary.classes)
    entries: list[dict[str, Any]] = []
    indices = images.usable if isinstance(images, Manifest) else range(len(images))
    for index in indices:
        if isinstance(images, Manifest):
            sample = images.samples[index]
            name, file_name, image = sample.sample_id, sample.image_path, images.load_image(index, verify=True)
        else:
            name, file_name, image = images[index].stem, str(images[index]), as_rgb(images[index])
        labels = segment_image(model, image, text_features, settings)
        if form == "png":
            path = out / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, encode_png(labels))
        else:
            entries += detectron2_entries(labels, file_name)
    if form == "detectron2":
        out.mkdir(parents=True, exist_ok=True)
        atomic_json(out / "sem_seg_predictions.json", entries)
    return len(indices)


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
    """Files as they are, folders as the images that `physseg manifest` would take from them, sorted.

    What else lies in a folder is counted in a warning. Raises ManifestError for a folder without an image.
    """
    found: list[Path] = []
    for argument in arguments:
        is_folder = argument.is_dir()
        found += sorted(files_by_stem(argument, IMAGE_SUFFIXES, "images").values()) if is_folder else [argument]
    return found


def read_words(words: str | None, file: Path | None) -> Vocabulary:
    """The classes of "cat, dog, sofa", or of a class file (`manifests/class_file.py`).

    Raises:
        PredictionError: Not exactly one of both is given, or the words name a file or are separated otherwise.
        ManifestError: Classes are empty or repeated.
    """
    if file is not None and words is None:
        return Vocabulary(name=file.stem, classes=read_class_file(file))
    if words is not None and file is None:
        if Path(words).suffix in (".txt", ".json", ".csv") or Path(words).is_file():
            raise PredictionError.mismatch("--classes", "words", f"the file {words}", hint="--classes-file takes files")
        if odd := next((character for character in ";|\n" if character in words), None):
            raise PredictionError.mismatch("--classes", "words with commas between them", repr(odd), hint=EXAMPLE)
        return Vocabulary(name="words", classes=tuple(word.strip() for word in words.split(",") if word.strip()))
    raise PredictionError("say which classes to look for: either --classes or --classes-file", hint=EXAMPLE)


def _predict_file(
    model: Segmenter, path: Path, vocabulary: Vocabulary, text_features: Tensor, out: Path, settings: InferenceSettings
) -> Prediction:
    image = as_rgb(path)
    labels = segment_image(model, image, text_features, settings)
    names = vocabulary.prompt_names
    drawn = overlay(image, labels, names, ignore_index=vocabulary.ignore_index)
    files = {name: out / f"{path.stem}_{name}.png" for name in ("labels", "overlay")}
    atomic_write(files["labels"], encode_png(labels))
    atomic_write(files["overlay"], encode_png(drawn))
    shares = tuple((names[index], share) for index, share in class_shares(labels))
    return Prediction(image=path, labels=files["labels"], overlay=files["overlay"], shares=shares)


def _check_names(images: Sequence[Path]) -> None:
    """Two pictures of one name would overwrite each other's results."""
    if not images:
        raise PredictionError("no image given")
    first: dict[str, Path] = {}
    for path in images:
        if path.stem in first:
            fault = f"{first[path.stem]} and {path} would both write {path.stem}_labels.png"
            raise PredictionError(fault, hint="Predict them in two calls with different --out.")
        first[path.stem] = path
