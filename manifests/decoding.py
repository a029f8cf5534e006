"""Bytes to arrays: the one place where photographs become RGB and label pictures become raw ids.

Photographs go through OpenCV (fastest of the decoders measured), label pictures through Pillow, which hands palette
indices out as they are. Orientation is never applied behind our back: the manifest says which one to apply.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from .errors import DecodeError, LabelFormatError

# Of a picture we say what is wrong with it, or nothing: Pillow's warnings name a line of its own code, and no file.
warnings.filterwarnings("ignore", module=r"PIL\.")
LABEL_FORMATS = ("PNG", "TIFF")  # lossless; a JPEG would smear ids
SMALLER = "check the file, make it smaller (`magick IN -resize 50% OUT`), or allow more: manifest's --max-megapixels"
STILL = "save one of its pictures as a plain PNG, e.g. the first with Pillow: Image.open(IN).save(OUT)"
ONE_CHANNEL = "keep one of them, e.g. with Pillow: Image.open(IN).getchannel(0).save(OUT)"
SMALL_NUMBERS = (
    "save whole numbers of 0..65535 as 16 bits, e.g. with NumPy and Pillow: "
    "Image.fromarray(np.asarray(Image.open(IN)).astype(np.uint16)).save(OUT)"
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_MEGAPIXELS = 178.0  # Pillow refuses pictures of more than twice its MAX_IMAGE_PIXELS
PNG_DEPTH, PNG_COLOUR_TYPE = 24, 25  # positions in the file; the header chunk always comes first
# TIFF tag -> its name, what holds where it is absent, and what leaves the stored numbers alone.
PLAIN_TIFF = {
    258: ("bits per pixel", 1, (8, 16)),
    259: ("lossy or unknown compression", 1, (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)),  # 6 and 7 are JPEG
    262: ("photometric interpretation", 1, (1, 3)),  # 0 is black, or a palette
    274: ("orientation", 1, (1,)),
    339: ("sample format", 1, (1,)),  # unsigned
}


def is_png(data: bytes) -> bool:
    return data.startswith(PNG_SIGNATURE)


def decode_image(data: bytes, orientation: int = 1, *, factor: int = 1) -> npt.NDArray[np.uint8]:
    """A photograph as uint8 (H, W, 3) RGB, turned by the EXIF `orientation` given here, not by the one in the file.

    Greyscale gives three equal channels. Damage to a JPEG is *not* noticed (OpenCV fills with grey): `check_image` does
    that once, and hashes guard it afterwards. Raises DecodeError when OpenCV cannot read it at all. With a `factor` of
    8 a JPEG is made an eighth as high and wide, rounded up, its channels in OpenCV's order.
    """
    check_not_empty(data)
    size = cv2.IMREAD_COLOR_RGB if factor == 1 else cv2.IMREAD_REDUCED_COLOR_8
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), size | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        if getattr(error, "code", None) == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error  # the machine's fault, not the file's
        raise DecodeError(f"cannot be decoded: {error}") from error
    if image is None:
        raise DecodeError("cannot be decoded: not a picture that OpenCV can read")
    return turn(np.asarray(image, dtype=np.uint8), orientation)


def turn(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Apply an EXIF orientation to (H, W, ...).

    2 mirrors, 3 is a half turn, 4 flips, 5 transposes, 6 and 8 are quarter turns right and left, 7 is transverse.
    """
    if orientation == 1:
        return image
    if orientation not in range(2, 9):
        raise DecodeError.mismatch("EXIF orientation", "1..8", orientation)
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def decode_label(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """A label picture as raw ids, (H, W) uint8, or uint16 for 16-bit pictures.

    Palette pictures give their indices, never their colours. Grey pictures of 1, 2 or 4 bits give the stored numbers
    (Pillow would stretch them to 0..255). Raises DecodeError for colour, alpha, lossy or damaged pictures, and, from
    the header alone, for one of more than `max_megapixels`.
    """
    with opened(data, max_megapixels, "label") as picture:
        if picture.format not in LABEL_FORMATS:
            raise LabelFormatError(f"expected a label picture in {' or '.join(LABEL_FORMATS)}, got {picture.format}")
        with damage_named():
            _check_channel(picture)
            _check_plain(picture)
            ids = np.asarray(picture)
        mode = picture.mode
    if mode in ("L", "1"):
        return _unstretch(ids.astype(np.uint8), data)
    if mode == "P":
        return ids.astype(np.uint8, copy=False)
    return ids.astype(np.uint16, copy=False)


def check_png(data: bytes) -> None:
    """Check every chunk of a PNG against its CRC, up to the end mark; any other file passes. Raises DecodeError.

    An animated PNG (APNG) is refused: which of its pictures one sees depends on the decoder.

    Decoders stop at the last row: Pillow accepts a file whose tail is missing or whose checksums are wrong.
    """
    if not is_png(data):
        return
    offset = len(PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data.ljust(offset + 8, b"\0"), offset)
        end = offset + 12 + length  # length, kind, body, CRC
        if end > len(data):
            raise DecodeError(f"cannot be decoded: the PNG ends after {len(data)} bytes, in the middle of a chunk")
        if zlib.crc32(data[offset + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise DecodeError(f"cannot be decoded: wrong checksum of the PNG chunk at byte {offset}")
        if kind == b"acTL":
            raise DecodeError("expected a still picture, got an animated PNG", hint=STILL, reason="animated picture")
        if kind == b"IEND":
            return
        offset = end


def _check_channel(picture: Image.Image) -> None:
    """Refuse label pictures of more than one channel, or of other numbers than 8 or 16 bits; each with its repair."""
    expected, mode = "one channel of class ids", picture.mode
    if mode in ("I", "F", "I;16S", "I;32S", "I;32BS", "F;32F", "F;32BF"):
        got = f"32-bit, signed or floating-point numbers (mode {mode})"
        raise LabelFormatError(f"expected ids of 8 or 16 bits, got {got}", hint=SMALL_NUMBERS, reason="label numbers")
    if mode in ("L", "P", "1", "I;16", "I;16B"):
        return
    if mode in ("RGB", "RGBA"):
        colours = np.asarray(picture)[..., :3]
        if (colours == colours[..., :1]).all():
            got = f"three equal ones (mode {mode})"
            raise LabelFormatError(f"expected {expected}, got {got}", hint=ONE_CHANNEL, reason="equal channels")
    raise LabelFormatError(f"expected {expected}, got mode {mode} (colours or transparency)")


def _check_plain(picture: Image.Image) -> None:
    """Refuse label pictures whose stored numbers Pillow would not hand out as they are, in their order, all of them.

    It inverts 8-bit TIFFs in which 0 is white, turns TIFFs by their orientation tag, and shows one page of many.
    """
    got = []
    if isinstance(picture, TiffImageFile):
        got = [
            f"{what} {value}"
            for tag, (what, default, allowed) in PLAIN_TIFF.items()
            for value in np.atleast_1d(picture.tag_v2.get(tag, default)).tolist()
            if value not in allowed
        ]
    if getattr(picture, "n_frames", 1) > 1:
        got.append(f"{picture.n_frames} pages")  # type: ignore[attr-defined]
    if got:
        expected = "one plain page of 8 or 16 bits per pixel, 0 as black"
        raise LabelFormatError(f"expected {expected}, got {', '.join(got)}")


def check_not_empty(data: bytes) -> None:
    """Raise DecodeError for a file without a byte."""
    if not data:
        raise DecodeError("expected a picture, got 0 bytes", hint="restore the file")


def opened(data: bytes, max_megapixels: float, what: str) -> Image.Image:
    """A picture of which the header alone was read. Raises DecodeError for none, and for more than `max_megapixels`."""
    check_not_empty(data)
    with damage_named():
        try:
            picture = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise DecodeError(f"too large: {error}", hint=SMALLER, reason=f"{what} too large") from error
        except UnidentifiedImageError as error:
            raise DecodeError("cannot be decoded: not a picture in any known format") from error
    megapixels = picture.width * picture.height / 1e6
    if megapixels > max_megapixels:
        got = f"{megapixels:.3g} ({picture.height} x {picture.width} pixels)"
        too_large = f"expected at most {max_megapixels:g} megapixels, got {got}"
        raise DecodeError(too_large, hint=SMALLER, reason=f"{what} too large")
    return picture


@contextmanager
def damage_named() -> Iterator[None]:
    """Whatever Pillow raises becomes a DecodeError: on damaged bytes its parsers fail with any error there is."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Exception as error:
        raise DecodeError(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _unstretch(ids: npt.NDArray[np.uint8], data: bytes) -> npt.NDArray[np.uint8]:
    """Undo Pillow's stretching of 2- and 4-bit grey PNGs to 0..255 (a 4-bit id 3 arrives as 51)."""
    if is_png(data) and data[PNG_COLOUR_TYPE] == 0 and data[PNG_DEPTH] in (2, 4):
        return ids // np.uint8(255 // (2 ** data[PNG_DEPTH] - 1))
    return ids
