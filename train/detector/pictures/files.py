"""Pictures on disk: which there are, and one as grey pixels of a given size."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ....common.regular_files import read_regular
from ....manifests.errors import DecodeError
from ....manifests.photographs import check_image
from ....structure_extractors.errors import ExtractorError

Grey = npt.NDArray[np.uint8]  # (H, W)
SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp")
FORMATS = ("JPEG", "MPO", "PNG", "PPM", "BMP", "WEBP")  # PPM: PGM, too


def find_pictures(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted. Raises ExtractorError if there are none."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ExtractorError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}), found none")
    return found


def picture_digest(path: Path) -> str:
    """The sha256 of a picture's file. Raises ExtractorError."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_grey(path: Path, size: tuple[int, int] | None = None, digest: str | None = None) -> Grey:
    """A file's picture as grey (H, W) uint8, resized by area to `size` (h, w) if given.

    Raises ExtractorError, also for a file with another `picture_digest` than the one that is given.
    """
    data = _read(path)
    if digest not in (None, hashlib.sha256(data).hexdigest()):
        raise ExtractorError(f"{path}: another picture than was labelled", hint="label the folder again")
    try:
        check_image(data, formats=FORMATS)
    except DecodeError as error:
        raise ExtractorError(f"{path}: {error.args[0]}", hint=error.hint) from error
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ExtractorError.mismatch(path, "a picture", "a file that cannot be decoded")
    if size is not None:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ExtractorError(f"{path}: expected a picture, got: {error.strerror or error}") from error
