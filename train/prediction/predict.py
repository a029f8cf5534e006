"""Pictures and any words to label maps: ids as PNG, and an overlay with a legend to look at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...common.atomic import atomic_write
from ...common.errors import PhyssegError
from ...manifests.decoding import check_image, decode_image
from ...manifests.vocabulary import Vocabulary, read_classes
from ...pipeline.inspect.drawing.label_maps import class_shares, overlay
from ..errors import PredictionError
from ..model.inference import PUBLISHED, InferenceSettings, class_texts, predict_label_map
from ..model.segmenter import Segmenter

SUFFIXES = (".jpg", ".jpeg", ".png")
"""What is taken from a folder, letter case aside; a file named on the command line may be called anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What became of one image."""

    image: Path
    labels: Path | None = None
    """PNG (H, W) of class indices: 8 bits, or 16 for more than 255 classes."""
    overlay: Path | None = None
    """The image in its classes' colours, with a legend."""
    shares: tuple[tuple[str, float], ...] = ()
    """Classes that occur and their share of the pixels, the largest first."""
    error: str = ""
    """One line; empty if all went well."""


def predict_files(
    model: Segmenter,
    images: Sequence[Path],
    vocabulary: Vocabulary,
    out: Path,
    *,
    settings: InferenceSettings = PUBLISHED,
) -> Iterator[Prediction]:
    """Predict files one by one and write `STEM_labels.png` and `STEM_overlay.png` into `out`.

    An image that cannot be read yields a Prediction with `error`; the others are still done. Raises PredictionError
    before anything is written if two images would write the same files.
    """
    _check_names(images)
    text_features = class_texts(model, vocabulary.classes)
    out.mkdir(parents=True, exist_ok=True)
    for path in images:
        try:
            yield _predict_file(model, path, vocabulary, text_features, out, settings)
        except (PhyssegError, OSError) as error:
            reason = error.args[0] if isinstance(error, PhyssegError) else error.strerror or str(error)
            yield Prediction(image=path, error=f"{path}: {reason}")


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the JPEG and PNG files in them, sorted; PredictionError if there are none."""
    found: list[Path] = []
    for argument in arguments:
        if not argument.is_dir():
            found.append(argument)
            continue
        inside = sorted(path for path in argument.iterdir() if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise PredictionError(f"{argument}: no {', '.join(SUFFIXES)} file in this folder", path=str(argument))
        found += inside
    return found


def read_words(words: str | None, file: Path | None) -> Vocabulary:
    """The classes of "cat, dog, sofa", or of a class file (one class per line, synonyms separated by commas).

    Raises PredictionError unless exactly one is given, ManifestError for empty or repeated classes.
    """
    if file is not None and words is None:
        return Vocabulary(name=file.stem, classes=read_classes(file))
    if words is not None and file is None:
        return Vocabulary(name="words", classes=tuple(word.strip() for word in words.split(",") if word.strip()))
    raise PredictionError(
        "say which classes to look for: either --classes or --classes-file",
        hint='For example: --classes "cat, dog, sofa, other".',
    )


# --- helpers --------------------------------------------------------------------------------------------------------


def _predict_file(
    model: Segmenter, path: Path, vocabulary: Vocabulary, text_features: Tensor, out: Path, settings: InferenceSettings
) -> Prediction:
    data = path.read_bytes()
    image = decode_image(data, check_image(data).orientation)
    labels = predict_label_map(model, image, text_features, settings)
    names = vocabulary.prompt_names
    drawn = overlay(image, labels, names, ignore_index=vocabulary.ignore_index)
    files = {name: out / f"{path.stem}_{name}.png" for name in ("labels", "overlay")}
    atomic_write(files["labels"], _png(labels))
    atomic_write(files["overlay"], _png(drawn[..., ::-1]))  # OpenCV writes BGR
    shares = tuple((names[index], share) for index, share in class_shares(labels))
    return Prediction(image=path, labels=files["labels"], overlay=files["overlay"], shares=shares)


def _png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise PredictionError(f"a picture of {pixels.shape} {pixels.dtype} could not be written as PNG")
    return data.tobytes()


def _check_names(images: Sequence[Path]) -> None:
    """Two pictures of one name would overwrite each other's results."""
    if not images:
        raise PredictionError("no image given")
    first: dict[str, Path] = {}
    for path in images:
        if path.stem in first:
            raise PredictionError(
                f"{first[path.stem]} and {path} would both write {path.stem}_labels.png",
                hint="Predict them in two calls with different --out.",
            )
        first[path.stem] = path
