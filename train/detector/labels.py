"""Keypoint labels of a folder of pictures, in one file: what homographic adaptation writes and training reads."""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...common.atomic import atomic_write
from ...common.documents import MALFORMED
from ...common.regular_files import read_regular
from ...structure_extractors.errors import ExtractorError


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Keypoints of N pictures, all resized to one size."""

    names: tuple[str, ...]  # paths relative to the folder of pictures
    size: tuple[int, int]  # height and width that the pictures are resized to
    points: npt.NDArray[np.float32]  # (P, 2) x, y of all pictures, one after the other
    offsets: npt.NDArray[np.int64]  # (N + 1,) where each picture's points begin
    digests: tuple[str, ...] = ()  # sha256 of each picture's file; none in label files of earlier versions
    made_by: str = ""  # settings of the detection as JSON, with the sha256 of the weights

    @property
    def precision(self) -> str | None:
        """What the detector computed in, if `made_by` tells."""
        try:
            return str(json.loads(self.made_by)["precision"])
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def fingerprint(self) -> str:
        """What changes with any picture or point; empty for label files of earlier versions, which know no pictures."""
        content = json.dumps(self.digests).encode() + self.points.tobytes() + self.offsets.tobytes()
        return f"; {hashlib.sha256(content).hexdigest()}" if self.digests else ""

    def keypoints(self, index: int) -> npt.NDArray[np.float32]:
        """Keypoints (K, 2) x, y of picture `index`."""
        return self.points[self.offsets[index] : self.offsets[index + 1]]

    def write(self, path: Path) -> None:
        """Write an .npz archive, atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        atomic_write(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> "Labelled":
        """Read what `write` wrote; anything else is an ExtractorError."""
        try:
            with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as file:
                return cls(
                    names=tuple(map(str, file["names"])),
                    size=(int(file["size"][0]), int(file["size"][1])),
                    points=file["points"],
                    offsets=file["offsets"],
                    digests=tuple(map(str, file["digests"])) if "digests" in file else (),
                    made_by=str(file["made_by"]),
                )
        except (OSError, EOFError, zipfile.BadZipFile, *MALFORMED) as error:
            hint = "write one with `physseg superpoint label`"
            raise ExtractorError.mismatch(path, "keypoint labels", error, hint) from error
