"""A trained model for use from Python: an image and a list of words in, a label map out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

from ...common.text import counted
from ...manifests.errors import DecodeError
from ...manifests.photographs import colour_fault, read_photograph
from ..errors import PredictionError, ShapeError
from ..model.device import choose_device
from ..model.inference import InferenceSettings, class_texts, first_resize, predict_probabilities, segment_image
from ..model.segmenter import Segmenter
from .load_run import LoadedRun, load_run, step_of

ImageLike = npt.NDArray[np.uint8] | Image.Image | Path | str
"""uint8 RGB (H, W, 3), a Pillow image, or the path of a JPEG or PNG. EXIF orientation of the latter two is applied."""


class TrainedModel:
    """What `physseg.load` gives. Words may be any; one with synonyms separates them by commas ("sofa, couch")."""

    def __init__(self, loaded: LoadedRun, settings: InferenceSettings) -> None:
        self.segmenter: Segmenter = loaded.model
        """The network itself, in evaluation mode."""
        self.vocabulary: list[str] = list(loaded.classes)
        """The classes it was trained on."""
        self.step: int = loaded.step
        """Training steps it has taken."""
        self.origin: dict[str, Any] = dict(loaded.origin)
        """Where its weights come from, as far as is known."""
        self.settings = settings
        self._text: tuple[Any, Tensor] | None = None

    def segment(
        self, image: ImageLike, words: Sequence[str] | None = None
    ) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
        """The most probable word of every pixel.

        Every pixel gets one of the words: name what else there may be, too.

        Args:
            image: See `ImageLike`.
            words: What to look for. Default: the vocabulary.

        Returns:
            Indices (H, W) into the words: uint8 for at most 255 of them, else uint16.

        Raises:
            PredictionError: `words` is no list of words.
            DecodeError: A file is no whole image, or an image is transparent, in CMYK or of 16 bits.
            ShapeError: An array is no image.
        """
        return segment_image(self.segmenter, as_rgb(image), self._text_features(words), self.settings)

    def probabilities(self, image: ImageLike, words: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """The probability of every word at every pixel, each for itself, so that they need not sum to 1.

        Returns:
            float32 (T, H, W) in [0, 1] for T words, by default the vocabulary.
        """
        pixels, texts = as_rgb(image), self._text_features(words)
        entering = first_resize(pixels, self.settings)
        return predict_probabilities(self.segmenter, entering, texts, self.settings, size=pixels.shape[:2])

    def __repr__(self) -> str:
        config = self.segmenter.config
        return f"TrainedModel({config.clip}, step {self.step}, trained on {counted(len(self.vocabulary), 'class')})"

    def _text_features(self, words: Sequence[str] | None) -> Tensor:
        """Text features of the words; those of the last call are kept."""
        if isinstance(words, str) or (words is not None and not all(isinstance(word, str) for word in words)):
            raise PredictionError.mismatch("words", "a list of words", repr(words), 'for example ["cat", "dog"]')
        chosen = tuple(self.vocabulary if words is None else words)
        question = (chosen, self.segmenter.config)
        if self._text is None or self._text[0] != question:
            self._text = (question, class_texts(self.segmenter, chosen))
        return self._text[1]


def load_trained(path: str | Path, *, device: str, checkpoint: str | int, windows: bool) -> TrainedModel:
    """See `physseg.load`."""
    loaded = load_run(path, step=step_of(checkpoint), device=choose_device(device))
    return TrainedModel(loaded, InferenceSettings(windows=windows))


def as_rgb(image: ImageLike) -> npt.NDArray[np.uint8]:
    """The pixels of an image in any of the forms of `ImageLike`: uint8 RGB (H, W, 3)."""
    if isinstance(image, (str, Path)):
        return read_photograph(image)
    if isinstance(image, Image.Image):
        if fault := colour_fault(image.mode):
            raise DecodeError(fault, hint='make it RGB as you see fit, e.g. by image.convert("RGB")')
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ShapeError.mismatch("image", "a uint8 array (H, W, 3), a Pillow image or a path", type(image).__name__)
    return image
