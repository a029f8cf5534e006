"""Miniature data sets on disk, made in code."""

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from physseg import cli
from physseg.manifests.sample_table import Sample
from PIL import Image

UInt8 = npt.NDArray[np.uint8]


def sample(sample_id: str = "a", **changes: Any) -> Sample:
    """A row that passes every check, with changes."""
    fields: dict[str, Any] = {
        "sample_id": sample_id,
        "image_path": f"images/{sample_id}.jpg",
        "label_path": f"labels/{sample_id}.png",
        "height": 24,
        "width": 32,
        "image_sha256": "1" * 64,
        "label_sha256": "2" * 64,
        "split": "train",
    }
    return Sample(**(fields | changes))


class Toys:
    """Writers of small pictures; `folder` is a fresh directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def photo(height: int = 24, width: int = 32, seed: int = 0) -> UInt8:
        """A smooth gradient with a mark in the top left corner, so that turning it shows and JPEG keeps it."""
        y, x = np.mgrid[:height, :width]
        image = np.stack([x * 6, y * 8, (x + y + 20 * seed) * 3], axis=-1).clip(0, 255).astype(np.uint8)
        image[: height // 4, : width // 4] = 255
        return image

    def image(self, path: str, pixels: UInt8 | None = None, *, mode: str = "RGB", orientation: int = 1) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(self.photo() if pixels is None else pixels).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"quality": 95} if target.suffix.lower() in (".jpg", ".jpeg") else {}
        picture.save(target, exif=exif if orientation != 1 else b"", **options)
        return target

    def label(self, path: str, ids: npt.NDArray[np.generic] | None = None, *, palette: bool = False) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        ids = np.zeros((24, 32), np.uint8) if ids is None else ids
        picture = Image.fromarray(ids)
        if palette:
            picture.putpalette([(37 * i + 11) % 256 for i in range(768)])  # colours that have nothing to do with ids
        picture.save(target)
        return target

    def lines(self, path: str, *lines: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return target

    def pairs(self, stems: list[str], images: str = "images", labels: str = "labels") -> None:
        for number, stem in enumerate(stems):
            self.image(f"{images}/{stem}.jpg", self.photo(seed=number))
            self.label(f"{labels}/{stem}.png", np.full((24, 32), number % 2, np.uint8))


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path)


@pytest.fixture
def physseg(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in a fresh folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["physseg", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
            raise SystemExit(0)
        code = caught.value.code
        out, err = capsys.readouterr()
        return (0 if code is None else code), out, err

    return run


@pytest.fixture
def png_bytes() -> Callable[[npt.NDArray[np.generic]], bytes]:
    def encode(ids: npt.NDArray[np.generic]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(ids).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def low_bit_png() -> Callable[[UInt8, int, int], bytes]:
    """PNG of 1, 2 or 4 bits a pixel written by hand: Pillow does not write grey ones. colour_type 0 grey, 3 palette."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def encode(ids: UInt8, bits: int, colour_type: int = 0) -> bytes:
        height, width = ids.shape
        per_byte = 8 // bits
        padded = np.pad(ids, ((0, 0), (0, -width % per_byte)))
        packed = np.zeros((height, padded.shape[1] // per_byte), np.uint8)
        for position in range(per_byte):
            packed |= padded[:, position::per_byte] << (8 - bits * (position + 1))
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        palette = chunk(b"PLTE", bytes((53 * i + 7) % 256 for i in range(3 * 2**bits))) if colour_type == 3 else b""
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        body = palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + header + body

    return encode
