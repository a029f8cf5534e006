"""What every structure extractor is: frozen settings that are called with an image and its label map.

The store's identity is made of `settings_identity`, so a setting may never depend on the image, the machine or a
path, and equal settings must give equal bytes.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import ExtractorError

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"
Image: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Extractor(Protocol):
    """One frozen dataclass per extractor; its fields are its settings, each with a comment that says what it means."""

    @property
    def name(self) -> str:
        """Key in the registry, and on the command line."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that a call yields, in order. Ask the instance: settings may add one."""

    def identity(self) -> dict[str, JSON]:
        """Everything the bytes depend on besides the inputs, as JSON: revision, settings, hash of weights; no path."""

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> Mapping[str, npt.NDArray[Any]]:
        """Compute the arrays. Each extractor checks the input that it uses, and changes none.

        Args:
            image: (H, W, 3) uint8 RGB, of any strides.
            labels: (H, W) uint8 or uint16 class ids, of any strides.
            ignore_index: The id of pixels without a class.
        """


def settings_identity(extractor: Any, *, revision: int, without: tuple[str, ...] = ()) -> dict[str, JSON]:
    """The settings of a dataclass as JSON, with the revision of its algorithm.

    Args:
        extractor: The extractor.
        revision: Raised in the extractor's file whenever its code changes so that equal settings give other bytes.
            Stores then recompute that structure and nothing else.
        without: Fields that may not enter (paths, speed).
    """
    settings: dict[str, JSON] = {f.name: getattr(extractor, f.name) for f in fields(extractor) if f.name not in without}
    return {"extractor": extractor.name, "revision": revision, **settings}


def check_image(image: Any, *, extractor: str) -> Image:
    """The image in C order. Raises ExtractorError unless it is (H, W, 3) uint8 with H, W >= 1."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        expected = "an RGB image, uint8 (H, W, 3)"
    elif image.size == 0:
        expected = "an image of at least one pixel"
    else:
        return np.ascontiguousarray(image)
    raise ExtractorError.mismatch(extractor, expected, _describe(image))


def check_labels(labels: Any, *, ignore_index: int, extractor: str) -> Labels:
    """The labels in C order. Raises ExtractorError unless (H, W) uint8 or uint16 with room for `ignore_index`."""
    got = _describe(labels)
    if not isinstance(labels, np.ndarray) or labels.dtype not in (np.uint8, np.uint16) or labels.ndim != 2:
        expected = "a label map, uint8 or uint16 (H, W)"
    elif labels.size == 0:
        expected = "a label map of at least one pixel"
    elif not 0 <= ignore_index <= np.iinfo(labels.dtype).max:
        expected, got = f"an ignore_index that {labels.dtype} can hold", str(ignore_index)
    else:
        return np.ascontiguousarray(labels)
    raise ExtractorError.mismatch(extractor, expected, got)


def check_option(extractor: Any, option: str, ok: bool, expected: str) -> None:
    """Raise ExtractorError that names the option of an extractor and its value, unless `ok`."""
    if not ok:
        raise ExtractorError.mismatch(f"{extractor.name}.{option}", expected, repr(getattr(extractor, option)))


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
