"""An extractor that harms the process it runs in, at chosen images; workers import this file by its name alone."""

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from physseg.structure_extractors.canny import Canny
from physseg.structure_extractors.interface import JSON, ArraySpec, Image, Labels

HOG_BYTES = 1_600_000_000


@dataclass(frozen=True, kw_only=True)
class FaultyCanny:
    """Canny edges as ever, of all other images."""

    name: ClassVar[str] = "canny"
    revision: ClassVar[int] = 1
    arrays: ClassVar[tuple[ArraySpec, ...]] = Canny.arrays

    faults: tuple[tuple[str, str], ...]
    """Digest of the image in the frame, and what it does: "kill", "exit", "hog", "sleep", "divide" (by zero), "once
    FILE" (that does not exist before)."""

    def make(self, expected: Mapping[str, JSON]) -> "FaultyCanny":
        """In the place of a `Request`."""
        return self

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> Mapping[str, npt.NDArray[np.uint8]]:
        fault, _, file = dict(self.faults).get(digest(image), "").partition(" ")
        if fault == "once" and not Path(file).exists():
            Path(file).touch()
            fault = "kill"
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "exit":
            os._exit(3)
        elif fault == "divide":
            1 / 0  # noqa: B018
        elif fault == "sleep":
            time.sleep(60)
        elif fault == "hog":
            blocks = []
            for _ in range(HOG_BYTES // 50_000_000):
                blocks.append(np.ones(50_000_000, np.uint8))
                time.sleep(0.02)
            time.sleep(10)  # whoever watches has seen it by now
        return Canny()(image, labels, ignore_index=ignore_index)


def digest(image: Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
