"""The image itself, on the frame: with this layer a store is all that training needs, and no image file is opened."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..common.images import encode_jpeg
from .interface import JSON, ArraySpec, Image, Labels, check_image, check_option, settings_identity

_LOSSLESS = ArraySpec("image", "uint8", ("y", "x", "channel"), 0, "the image on the frame: red, green, blue")
_JPEG = ArraySpec("image", "uint8", ("byte",), 0, "the image on the frame: a JPEG, then zeros")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """Array `image`: (H, W, 3) uint8 RGB, or the bytes (N,) of a JPEG. Uses the image only."""

    name: ClassVar[str] = "image"
    revision: ClassVar[int] = 1

    form: Literal["lossless", "jpeg"] = "lossless"  # the pixels, or a JPEG of them in a fifth of the bytes
    quality: int = 95  # of the JPEG, 1 to 100
    chroma: Literal["420", "444"] = "420"  # colours of the JPEG: at half the resolution, or at the full one

    def __post_init__(self) -> None:
        for option, allowed in (("form", ("lossless", "jpeg")), ("chroma", ("420", "444"))):
            check_option(self, option, getattr(self, option) in allowed, f"one of {', '.join(allowed)}")
        check_option(self, "quality", 1 <= self.quality <= 100, "a whole number in 1..100")

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """One array, of the form that was asked for."""
        return (_JPEG if self.form == "jpeg" else _LOSSLESS,)

    def identity(self) -> dict[str, JSON]:
        """Its settings; those of the JPEG only where it is one."""
        return settings_identity(self, without=() if self.form == "jpeg" else ("quality", "chroma"))

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        image = check_image(image, extractor=self.name)
        if self.form == "jpeg":
            image = np.frombuffer(encode_jpeg(image, self.quality, chroma=self.chroma), np.uint8)
        return {"image": image}
