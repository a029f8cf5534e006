"""SuperPoint keypoints (DeTone et al. 2018): the published detector and its post-processing, weights of ours or yours.

torch is imported on first use, so that runs without SuperPoint do not pay for it in every worker.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt

from .errors import WeightsError
from .interface import JSON, Image, Labels, check_image, check_option, settings_identity
from .keypoints import Scores, clear_border, encode_confidence, keep_strongest, suppress_neighbours

if TYPE_CHECKING:
    from .superpoint_weights import Detector


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
    weights_sha256: str = field(init=False, default="")  # of the file; part of the identity, unlike its path

    def __post_init__(self) -> None:
        def check(ok: bool, option: str, expected: str) -> None:
            check_option(ok, extractor=self.name, option=option, expected=expected, got=getattr(self, option))

        check(self.threshold is None or 0 <= self.threshold < 1, "threshold", "a number in [0, 1), or none")
        check(0 <= self.nms_radius <= 64, "nms_radius", "an integer in 0..64")
        check(0 <= self.border <= 1024, "border", "an integer in 0..1024")
        check(self.max_keypoints is None or self.max_keypoints >= 1, "max_keypoints", "an integer >= 1, or none")
        check(self.precision in ("float32", "bfloat16"), "precision", "'float32' or 'bfloat16'")
        check(self.adaptation in ADAPTATIONS, "adaptation", f"one of {', '.join(map(str, ADAPTATIONS))}")
        if self.weights is not None:  # None stays: the package may lie elsewhere on the machine of a worker
            object.__setattr__(self, "weights", str(Path(self.weights).expanduser().resolve()))
        object.__setattr__(self, "weights_sha256", hashlib.sha256(_read(self._path)).hexdigest())

    @property
    def _path(self) -> str:
        return str(SHIPPED_WEIGHTS) if self.weights is None else self.weights

    @property
    def arrays(self) -> tuple[str, ...]:
        return ("superpoint", "superpoint_dense") if self.dense else ("superpoint",)

    def identity(self) -> dict[str, JSON]:
        threshold = self._detector().threshold if self.threshold is None else self.threshold
        return settings_identity(self, revision=2, without=("weights",)) | {"threshold": threshold}

    def __call__(self, image: Image, labels: Labels, *, ignore_index: int) -> dict[str, npt.NDArray[np.uint8]]:
        return self.detect([image])[0]

    def detect(self, images: Sequence[Image]) -> list[dict[str, npt.NDArray[np.uint8]]]:
        """Compute the arrays of several images (H, W, 3) uint8 RGB, of one size as one batch; results in order.

        Images of different sizes are never padded to each other: that would make a result depend on its batch. On a
        CPU no result does; on a GPU sums may differ in the last bit between batch sizes.
        """
        grey = [_grey(check_image(image, extractor=self.name)) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(grey):
            by_size.setdefault(image.shape, []).append(index)
        out: list[dict[str, npt.NDArray[np.uint8]]] = [{} for _ in images]
        for indices in by_size.values():
            for index, probability in zip(indices, self._probabilities([grey[i] for i in indices]), strict=True):
                out[index] = self._arrays_of(probability)
        return out

    def _arrays_of(self, probability: Scores) -> dict[str, npt.NDArray[np.uint8]]:
        threshold = self._detector().threshold if self.threshold is None else self.threshold
        kept = select_keypoints(
            probability,
            threshold=threshold,
            nms_radius=self.nms_radius,
            border=self.border,
            max_keypoints=self.max_keypoints,
        )
        arrays = {"superpoint": encode_confidence(kept)}
        return arrays | {"superpoint_dense": encode_confidence(probability)} if self.dense else arrays

    def _probabilities(self, grey: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        from .superpoint_network import grey_tensor, probability_maps

        network = self._detector().network
        if not self.adaptation:
            return probability_maps(network, np.stack(grey))
        from .superpoint_adaptation import adapted_probabilities

        images = grey_tensor(np.stack(grey), network.logits.conv.weight.device)
        adapted: npt.NDArray[np.float32] = adapted_probabilities(network, images, self.adaptation).cpu().numpy()
        return adapted

    def _detector(self) -> "Detector":
        return _load(self._path, self.weights_sha256, self.precision)


def _grey(image: Image) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


@lru_cache(maxsize=4)
def _load(path: str, sha256: str, precision: str) -> "Detector":
    """Load a detector once per process. Workers come with the hash: a file replaced during a run ends the run."""
    import torch

    from .superpoint_network import fold_normalisation
    from .superpoint_weights import load_detector

    data = _read(path)
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise WeightsError(
            f"{path}: the file changed during the run, expected sha256 {sha256}, got {got}",
            hint="leave weight files alone while a run uses them; start again to use the new file",
            path=path,
            expected=sha256,
            got=got,
        )
    detector = load_detector(data, where=path)
    network = fold_normalisation(detector.network)
    network.to(dtype=getattr(torch, precision), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(detector, network=network)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: expected a file of SuperPoint weights, got: {error.strerror or error}",
            hint="give the path of a file of weights: superpoint.weights=PATH",
            path=path,
        ) from error
