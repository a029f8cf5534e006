"""SuperPoint keypoints (DeTone et al. 2018): the published detector and its post-processing, weights of ours or yours.

torch is imported on first use, so that runs without SuperPoint do not pay for it in every worker.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..interface import JSON, Image, Labels, check_image, check_option, settings_identity
from ..keypoints import Scores, clear_border, encode_confidence, keep_strongest, suppress_neighbours
from .inference import CPU, Network, gpu_of_this_process, infer, load, read_weights

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "superpoint_physseg.safetensors"  # its model card lies beside it
ADAPTATIONS = (0, 16, 32)


def select_keypoints(
    probability: Scores, *, threshold: float, nms_radius: int, border: int, max_keypoints: int | None
) -> Scores:
    """Keep the keypoints of a probability map (H, W) float32; all other pixels become 0.

    As published: threshold, greedy non-maximum suppression, removal of points near the image's edge (after suppression,
    so that a point there still suppresses its neighbours), the strongest few.
    """
    above = np.where(probability > threshold, probability, np.float32(0))
    kept = clear_border(suppress_neighbours(above, nms_radius), border)
    return keep_strongest(kept, max_keypoints)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperPoint:
    """Array ``superpoint`` (H, W) uint8, a keypoint heatmap as in ``keypoints.py``. Uses the image only.

    With ``dense`` also ``superpoint_dense`` (H, W) uint8: the probability of every pixel before anything was removed,
    by the same square-root code. Making one reads and hashes the weight file; the network is loaded on first use, once
    per process. The number of threads is torch's own setting.
    """

    name: ClassVar[str] = "superpoint"

    weights: str | None = None  # file of weights; formats in superpoint_weights.py. None = the package's own
    threshold: float | None = None  # keypoints are more probable than this; None = what the authors of the weights use
    nms_radius: int = 4  # a keypoint suppresses weaker ones up to this far in x and y, pixels; 0 = none
    border: int = 4  # keypoints closer than this to the image's edge are dropped, pixels
    max_keypoints: int | None = None  # keep this many of the strongest; None = all
    adaptation: int = 0  # 16 or 32: mean over so many homographies, as many times slower, more repeatable; 0 = none
    dense: bool = False  # also yield superpoint_dense
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network; bfloat16 is faster on CPUs that have it
    device: Literal["cpu", "cuda"] = "cpu"  # of the network; a GPU's sums differ from a CPU's in the last bits
    weights_sha256: str = field(init=False, default="")  # of the file; part of the identity, unlike its path

    def __post_init__(self) -> None:
        def check(ok: bool, option: str, expected: str) -> None:
            check_option(ok, extractor=self.name, option=option, expected=expected, got=getattr(self, option))

        check(self.threshold is None or 0 <= self.threshold < 1, "threshold", "a number in [0, 1), or none")
        check(0 <= self.nms_radius <= 64, "nms_radius", "an integer in 0..64")
        check(0 <= self.border <= 1024, "border", "an integer in 0..1024")
        check(self.max_keypoints is None or self.max_keypoints >= 1, "max_keypoints", "an integer >= 1, or none")
        check(self.precision in ("float32", "bfloat16"), "precision", "'float32' or 'bfloat16'")
        check(self.device in ("cpu", "cuda"), "device", "'cpu' or 'cuda'")
        check(self.adaptation in ADAPTATIONS, "adaptation", f"one of {', '.join(map(str, ADAPTATIONS))}")
        if self.weights is not None:  # None stays: the package may lie elsewhere on the machine of a worker
            object.__setattr__(self, "weights", str(Path(self.weights).expanduser().resolve()))
        object.__setattr__(self, "weights_sha256", hashlib.sha256(read_weights(self._path)).hexdigest())

    @property
    def _path(self) -> str:
        return str(SHIPPED_WEIGHTS) if self.weights is None else self.weights

    @property
    def arrays(self) -> tuple[str, ...]:
        return ("superpoint", "superpoint_dense") if self.dense else ("superpoint",)

    def identity(self) -> dict[str, JSON]:
        threshold = load(self._network, CPU).threshold if self.threshold is None else self.threshold
        # Stores were computed on CPUs before there was a choice, and are what they were.
        without = ("weights", "device") if self.device == CPU else ("weights",)
        revision = 3 if self.adaptation else 2  # 3 smooths the mean over homographies
        return settings_identity(self, revision=revision, without=without) | {"threshold": threshold}

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Compute the arrays of an image (H, W, 3) uint8 RGB. Raises DeviceError if there is no GPU and should be."""
        grey = _grey(check_image(image, extractor=self.name))
        answer = infer(self._network, grey, CPU if self.device == CPU else gpu_of_this_process())
        kept = select_keypoints(
            answer.probability,
            threshold=answer.threshold if self.threshold is None else self.threshold,
            nms_radius=self.nms_radius,
            border=self.border,
            max_keypoints=self.max_keypoints,
        )
        arrays = {"superpoint": encode_confidence(kept)}
        return arrays | {"superpoint_dense": encode_confidence(answer.probability)} if self.dense else arrays

    def detect(self, images: Sequence[Image]) -> list[dict[str, npt.NDArray[np.uint8]]]:
        """Compute the arrays of several images of any sizes, one by one: no result depends on the others."""
        return [self(image, _NO_LABELS, ignore_index=0) for image in images]

    @property
    def _network(self) -> Network:
        return Network(
            weights=self._path, sha256=self.weights_sha256, precision=self.precision, adaptation=self.adaptation
        )


_NO_LABELS: Labels = np.zeros((1, 1), np.uint8)


def _grey(image: Image) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
