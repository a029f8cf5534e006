"""Photographs of other people: whether a file is whole, what its header says, and which colours we take.

One judgement for all that read them: `physseg manifest`, `predict`, `segment` and `analyse structure`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from simplejpeg import decode_jpeg

from ..common.regular_files import read_regular
from .decoding import PNG_DEPTH, check_png, damage_named, decode_image, is_png, opened
from .errors import DecodeError

DEFAULT_MEGAPIXELS = 100.0
FORMATS = ("JPEG", "MPO", "PNG")  # MPO: a JPEG with further pictures behind it, as some cameras write
GREY, PALETTE = "greyscale image, read as three equal channels", "palette image, read as its colours"
COLOURS = {"RGB": "", "L": GREY, "1": GREY, "P": PALETTE}
"""Pillow's modes that all decoders read alike, and what is noted of each."""
PLAIN_COLOURS = "convert to 8-bit RGB, e.g. `magick IN -colorspace sRGB -alpha off -depth 8 OUT`, and look at it"
DAMAGED = "copy or download again; where a picture looks right, manifest's --allow-jpeg-warnings takes it as it is"
NOT_STRICT = "JPEG of a chroma sampling that the strict decoder does not know, checked for truncation only"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What the header of a photograph says, before any turning."""

    height: int
    width: int
    mode: str
    """Pillow's mode: "RGB", "L" (greyscale), "CMYK", "RGBA", "P", "I;16", ...; "RGB;16" for 16 bits per colour, and
    "P with transparency" where colours of a palette, or one colour, are transparent."""
    orientation: int
    """EXIF orientation 1..8; 1 where the file says nothing or nonsense."""
    note: str = ""
    """What was not checked, or found and allowed."""

    def size_after(self, orientation: int) -> tuple[int, int]:
        """(height, width) once `orientation` was applied: 5..8 swap the two."""
        return (self.width, self.height) if orientation >= 5 else (self.height, self.width)


def check_image(
    data: bytes,
    *,
    max_megapixels: float = DEFAULT_MEGAPIXELS,
    allow_jpeg_warnings: bool = False,
    formats: Collection[str] = FORMATS,
) -> ImageFacts:
    """Decode a photograph strictly and say what it is; for once per file, before `decode_image` gives its pixels.

    Args:
        max_megapixels: Larger pictures are refused from the header alone.
        allow_jpeg_warnings: Whether a JPEG that decodes with a warning is noted; otherwise it is refused.
        formats: Pillow's names of the formats that are taken.

    Raises:
        DecodeError: The file is empty, truncated, otherwise damaged, too large, animated, or of another format.
    """
    note = ""
    with opened(data, max_megapixels, "image") as picture:
        if picture.format not in formats:
            expected = " or ".join(name for name in formats if name != "MPO")
            hint = "convert the file to JPEG or PNG"
            raise DecodeError(f"expected {expected}, got {picture.format}", hint=hint, reason="image format")
        if picture.format not in ("JPEG", "MPO"):
            warning = None
        elif (warning := jpeg_warning(data)) is None:
            note = NOT_STRICT
        with damage_named():
            if warning != "":  # what libjpeg decodes in silence Pillow decodes, too, and slower
                picture.load()
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
        if warning:
            note = f"JPEG warning allowed: {warning}"
            if not allow_jpeg_warnings:
                raise DecodeError(f"libjpeg warns: {warning}", hint=DAMAGED, reason="JPEG warning")
        facts = ImageFacts(
            height=picture.height,
            width=picture.width,
            mode=_mode(picture, data),
            orientation=orientation if orientation in range(1, 9) else 1,
            note=note,
        )
    check_png(data)
    return facts


def _mode(picture: Image.Image, data: bytes) -> str:
    depth = ";16" if is_png(data) and data[PNG_DEPTH] == 16 and ";16" not in picture.mode else ""
    return picture.mode + depth + (" with transparency" if "transparency" in picture.info else "")


def jpeg_warning(data: bytes) -> str | None:
    """What libjpeg says first when it decodes the JPEG: "" for nothing, None where this decoder does not know the file.

    libjpeg goes on after damage and fills with grey, or shifts all that follows; Pillow and OpenCV drop its warnings.
    Every code of the file is read but one in 64 pixels made: the same warnings in two thirds of the time.
    """
    try:
        decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        text = str(error)
        return None if "Could not determine" in text else text
    return ""


def colour_fault(mode: str) -> str:
    """What is wrong with the colours of a picture of that mode, "" for nothing.

    Decoders disagree on CMYK (inverted or not, profile or not), on what lies under alpha, and on 16 to 8 bits.
    """
    return "" if mode in COLOURS else f"expected 8-bit RGB or greyscale, got {mode}"


def read_photograph(path: Path | str) -> npt.NDArray[np.uint8]:
    """The photograph of a file as uint8 (H, W, 3) RGB, turned as its EXIF orientation says.

    Raises:
        DecodeError: As `check_image`, and for other colours than 8-bit RGB or greyscale.
        OSError: There is no such file, or it cannot be read.
    """
    data = read_regular(path)
    facts = check_image(data)
    if fault := colour_fault(facts.mode):
        raise DecodeError(fault, hint=PLAIN_COLOURS, reason="image mode")
    return decode_image(data, facts.orientation)
