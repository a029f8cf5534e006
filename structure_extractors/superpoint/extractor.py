"""SuperPoint keypoints (DeTone et al. 2018): the published detector and its post-processing, weights of ours or yours.

torch is imported on first use, so that runs without SuperPoint do not pay for it in every worker.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..interface import JSON, ArraySpec, Image, Labels, check_image, check_option, settings_identity
from ..keypoints import encode_confidence, select_keypoints
from .inference import CPU, gpu_of_this_process, infer, load, read_weights

if TYPE_CHECKING:
    from .weights import Detector

SHIPPED_WEIGHTS = Path(__file__).parent / "weights" / "superpoint_physseg.safetensors"  # its model card lies beside it
ADAPTATIONS = (0, 16, 32)
_KEYPOINTS = ArraySpec(
    "superpoint", "uint8", ("y", "x"), 0, "SuperPoint keypoints, coded as SIFT's", "keypoints", "map"
)
_DENSE = ArraySpec(
    "superpoint_dense", "uint8", ("y", "x"), 0, "SuperPoint probability before suppression, coded", "density", "map"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuperPoint:
    """Array `superpoint` (H, W) uint8, a keypoint heatmap as in `keypoints.py`. Uses the image only.

    With `dense` also `superpoint_dense` (H, W) uint8: the probability of every pixel before anything was removed,
    by the same square-root code. Making one reads and hashes the weight file; the network is loaded on first use, once
    per process. The number of threads is torch's own setting.
    """

    name: ClassVar[str] = "superpoint"
    revision: ClassVar[int] = 2

    weights: str | None = None  # file of weights, of a format in weights.py; None = the package's own
    threshold: float | None = None  # keypoints are more probable than this; None = the weights' own
    nms_radius: int = 4  # a keypoint suppresses weaker ones up to this far in x and y, pixels; 0 = none
    border: int = 4  # keypoints closer than this to the image's edge are dropped, pixels
    max_keypoints: int | None = None  # keep this many of the strongest; None = all
    adaptation: int = 0  # 16 or 32: mean over that many homographies, as many times slower, more repeatable; 0 = none
    dense: bool = False  # also yield superpoint_dense
    precision: Literal["float32", "bfloat16"] = "float32"  # the network's; bfloat16 is faster on CPUs that have it
    device: Literal["cpu", "cuda"] = "cpu"  # the network's; a GPU's sums differ from a CPU's in the last bits
    weights_sha256: str = field(init=False, default="")  # sha256 of the file; part of the identity, unlike its path

    def __post_init__(self) -> None:
        threshold, most = self.threshold, self.max_keypoints
        check_option(self, "threshold", threshold is None or 0 <= threshold < 1, "a number in [0, 1), or none")
        check_option(self, "nms_radius", 0 <= self.nms_radius <= 64, "an integer in 0..64")
        check_option(self, "border", 0 <= self.border <= 1024, "an integer in 0..1024")
        check_option(self, "max_keypoints", most is None or most >= 1, "an integer >= 1, or none")
        check_option(self, "precision", self.precision in ("float32", "bfloat16"), "'float32' or 'bfloat16'")
        check_option(self, "device", self.device in ("cpu", "cuda"), "'cpu' or 'cuda'")
        check_option(self, "adaptation", self.adaptation in ADAPTATIONS, f"one of {', '.join(map(str, ADAPTATIONS))}")
        if self.weights is not None:  # None stays: the package may lie elsewhere on the machine of a worker
            object.__setattr__(self, "weights", str(Path(self.weights).expanduser().resolve()))
        object.__setattr__(self, "weights_sha256", hashlib.sha256(read_weights(self._path)).hexdigest())

    @property
    def _path(self) -> str:
        return str(SHIPPED_WEIGHTS) if self.weights is None else self.weights

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        return (_KEYPOINTS, _DENSE) if self.dense else (_KEYPOINTS,)

    def identity(self) -> dict[str, JSON]:
        threshold = self._detector(CPU).threshold if self.threshold is None else self.threshold
        # Stores were computed on CPUs before there was a choice, and are what they were.
        without = ("weights", "device") if self.device == CPU else ("weights",)
        revision = 3 if self.adaptation else self.revision  # 3 smooths the mean over homographies
        return settings_identity(self, revision=revision, without=without) | {"threshold": threshold}

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        """Compute the arrays of an image (H, W, 3) uint8 RGB. Raises DeviceError if there is no GPU and should be."""
        grey = cv2.cvtColor(check_image(image, extractor=self.name), cv2.COLOR_RGB2GRAY)
        detector = self._detector(CPU if self.device == CPU else gpu_of_this_process())
        probability = infer(detector.network, np.asarray(grey, np.uint8), self.adaptation)
        kept = select_keypoints(
            probability,
            threshold=detector.threshold if self.threshold is None else self.threshold,
            nms_radius=self.nms_radius,
            border=self.border,
            max_keypoints=self.max_keypoints,
        )
        arrays = {"superpoint": encode_confidence(kept)}
        return arrays | {"superpoint_dense": encode_confidence(probability)} if self.dense else arrays

    def _detector(self, device: str) -> "Detector":
        return load(self._path, precision=self.precision, device=device, sha256=self.weights_sha256)
