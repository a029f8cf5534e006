"""A grey picture to its map of keypoint probabilities, on a device of this process: what a GPU can do of SuperPoint.

torch is imported on first use.
"""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...common.regular_files import read_regular
from ..errors import DeviceError, WeightsError
from ..keypoints import Scores

if TYPE_CHECKING:
    from .network import DetectorNetwork
    from .weights import Detector

CPU = "cpu"
WORKER_NUMBER = "PHYSSEG_WORKER_NUMBER"
"""In a worker's environment: which of the workers of its machine it is, so that they spread over the GPUs."""


def read_detector(
    path: str | Path, *, precision: str = "float32", device: str = CPU, sha256: str | None = None
) -> "Detector":
    """A file's detector, made ready: norms folded, channels last. Raises WeightsError, also for another `sha256`."""
    import torch

    from .network import fold_normalisation
    from .weights import load_detector

    data = read_weights(path)
    got = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, got):
        raise WeightsError(
            f"{path}: the file changed during the run, expected sha256 {sha256}, got {got}",
            hint="leave weight files alone while a run uses them; start again to use the new file",
        )
    detector = load_detector(data, where=str(path))
    network = fold_normalisation(detector.network)
    network.to(device=device, dtype=getattr(torch, precision), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(detector, network=network)


load = lru_cache(maxsize=4)(read_detector)  # once per process


def infer(network: "DetectorNetwork", grey: npt.NDArray[np.uint8], adaptation: int = 0) -> Scores:
    """Run a network on one picture, so that equal pictures get equal bytes.

    One at a time on every device: sums may be ordered otherwise in a batch, and what is stored of a picture may not
    depend on which others were computed with it. The warped copies of `adaptation` are batches of fixed composition.

    The network is in evaluation mode, and its weights have the device and the precision to compute in; `grey` is (H, W)
    uint8 of any size. Returns the probability of a keypoint at each pixel, (H, W) float32: the mean over `adaptation`
    homographies, or for 0 that of the picture as it is.
    """
    from .adaptation import adapted_probabilities
    from .network import grey_tensor, keypoint_probabilities

    with nullcontext() if network.device.type == CPU else same_sums_every_time():
        images = grey_tensor(grey[None], network.device)
        if adaptation:
            maps = adapted_probabilities(network, images, adaptation)
        else:
            maps = keypoint_probabilities(network, images)
        probability: Scores = maps[0].cpu().numpy()
    return probability


def read_weights(path: str | Path) -> bytes:
    """The bytes of a file of weights. Raises WeightsError."""
    try:
        return read_regular(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: expected a file of SuperPoint weights, got: {error.strerror or error}",
            hint="give the path of a .safetensors or .pth file, in a run as superpoint.weights=PATH",
        ) from error


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by PyTorch's names ("cuda:0", ...); follows `CUDA_VISIBLE_DEVICES`."""
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))


def check_gpu(extractors: Iterable[object]) -> None:
    """Raises DeviceError where one of the extractors is to compute on a GPU and this machine has none."""
    if any(getattr(extractor, "device", CPU) != CPU for extractor in extractors):
        gpu_of_this_process()


def gpu_of_this_process() -> str:
    """The GPU of this process: a machine's workers take them in turn, by number or process id. Raises DeviceError."""
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
