"""What the analyses of images share: the samples of a manifest one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...manifests.manifest import Manifest
from ..errors import AnalysisError


def usable(manifest: Manifest, max_images: int | None = None) -> list[int]:
    """Indices of the first samples that are not quarantined. Raises AnalysisError if there are none."""
    found = manifest.usable[:max_images]
    if not found:
        raise AnalysisError(
            f"{manifest.dataset}: nothing to look at: {len(manifest)} samples, {len(manifest.quarantined)} quarantined",
            hint="Check the manifest's problems with `physseg manifest`.",
        )
    return found


def load_each(manifest: Manifest, indices: list[int]) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]]:
    """Image (H, W, 3) RGB and labels (H, W) of each sample in order, with a progress bar.

    Labels are class ids as they are scored (folded where the benchmark folds), or the ignore index. Raises ContentError
    for a file that is not what the manifest says.
    """
    for index in tqdm(indices, unit="img"):
        image, labels = manifest.load(index)
        yield image, manifest.fold(labels)
