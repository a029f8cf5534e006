"""A grey picture to its map of keypoint probabilities, on a device of this process: what a GPU can do of SuperPoint.

torch is imported on first use.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError, WeightsError

if TYPE_CHECKING:
    from .weights import Detector

CPU = "cpu"
WORKER_NUMBER = "PHYSSEG_WORKER_NUMBER"
"""In a worker's environment: which of the workers of its machine it is, so that they spread over the GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Which network answers, and how."""

    weights: str
    """Path of the file."""
    sha256: str
    """Of the file: one that was replaced during a run ends the run."""
    precision: str
    """"float32" or "bfloat16"."""
    adaptation: int
    """Mean over so many homographies; 0 = none."""


class Answer(NamedTuple):
    """What a network says of one picture."""

    probability: npt.NDArray[np.float32]
    """Of a keypoint at each pixel, (H, W)."""
    threshold: float
    """Above which the authors of the weights call it one."""


def infer(network: Network, grey: npt.NDArray[np.uint8], device: str) -> Answer:
    """Run the network on one picture (H, W) uint8.

    One at a time on every device: sums may be ordered otherwise in a batch, and what is stored of a picture may not
    depend on which others were computed with it. The warped copies of ``adaptation`` are batches of fixed composition.
    """
    from .adaptation import adapted_probabilities
    from .network import grey_tensor, keypoint_probabilities

    with nullcontext() if device == CPU else same_sums_every_time():
        detector = load(network, device)
        images = grey_tensor(grey[None], detector.network.logits.conv.weight.device)
        if network.adaptation:
            probabilities = adapted_probabilities(detector.network, images, network.adaptation)
        else:
            probabilities = keypoint_probabilities(detector.network, images)
        probability: npt.NDArray[np.float32] = probabilities[0].cpu().numpy()
    return Answer(probability, detector.threshold)


def load(network: Network, device: str) -> "Detector":
    """The detector, ready on ``device``; loaded once per process, whatever the adaptation. Raises WeightsError."""
    return _load(network.weights, network.sha256, network.precision, device)


@lru_cache(maxsize=4)
def _load(path: str, sha256: str, precision: str, device: str) -> "Detector":
    import torch

    from .network import fold_normalisation
    from .weights import load_detector

    data = read_weights(path)
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
    network.to(device=device, dtype=getattr(torch, precision), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(detector, network=network)


def read_weights(path: str) -> bytes:
    """The bytes of a file of weights. Raises WeightsError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: expected a file of SuperPoint weights, got: {error.strerror or error}",
            hint="give the path of a file of weights: superpoint.weights=PATH",
            path=path,
        ) from error


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by PyTorch's names ("cuda:0", ...); follows ``CUDA_VISIBLE_DEVICES``."""
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))


def check_gpu(extractors: Iterable[object]) -> None:
    """Raises DeviceError where one of the extractors is to compute on a GPU and this machine has none."""
    if any(getattr(extractor, "device", CPU) != CPU for extractor in extractors):
        gpu_of_this_process()


def gpu_of_this_process() -> str:
    """The GPU that this process uses: the workers of a machine take its GPUs in turn, by their number or process id.

    Raises:
        DeviceError: This machine has none.
    """
    found = gpus()
    if not found:
        raise DeviceError(
            "superpoint.device: the layer superpoint is to be computed on a GPU (cuda), and PyTorch finds none here",
            hint="run this where a GPU is, or compute the layer on CPUs: "
            "--structures superpoint --set superpoint.device=cpu",
        )
    return found[int(os.environ.get(WORKER_NUMBER, os.getpid())) % len(found)]


@contextmanager
def same_sums_every_time() -> Iterator[None]:
    """Within, CUDA's float32 is float32 (no TF32) and no algorithm is chosen by racing or adds in a random order.

    These are settings of the process: one thread at a time may be within, and they are put back, as somebody may be
    training in it. The names are those of PyTorch's newer interface, as its older one refuses to be read where the
    newer has been used.
    """
    import torch

    backends: Any = torch.backends
    wanted: tuple[tuple[Any, str, object], ...] = (
        (backends.cudnn, "deterministic", True),
        (backends.cudnn, "benchmark", False),
        (backends.cudnn.conv, "fp32_precision", "ieee"),
        (backends.cuda.matmul, "fp32_precision", "ieee"),
    )
    with _one_at_a_time:
        before = [getattr(owner, name) for owner, name, _ in wanted]
        try:
            for owner, name, value in wanted:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(wanted, before, strict=True):
                setattr(owner, name, value)


_one_at_a_time = threading.Lock()
