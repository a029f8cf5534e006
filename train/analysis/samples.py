"""What the analyses of images share: the samples of a manifest one by one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...manifests.manifest import Manifest, Sample
from ..errors import AnalysisError


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """One sample, decoded."""

    sample: Sample
    """The sample's row of the manifest."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    labels: npt.NDArray[Any]
    """(H, W) class ids as they are scored (folded where the benchmark folds), or the ignore index."""


def usable(manifest: Manifest, max_images: int | None = None) -> list[int]:
    """Indices of the first samples that are not quarantined. Raises AnalysisError if there are none."""
    found = manifest.usable[:max_images]
    if not found:
        raise AnalysisError(
            f"{manifest.dataset}: nothing to look at: {len(manifest)} samples, {len(manifest.quarantined)} quarantined",
            hint="Check the manifest's problems with `physseg manifest`.",
        )
    return found


def load_each(manifest: Manifest, indices: list[int], *, progress: bool = True) -> Iterator[Loaded]:
    """The samples in order, with a progress bar. Raises ContentError for a file that is not what the manifest says."""
    for index in tqdm(indices, unit="img", disable=not progress):
        image, labels = manifest.load(index)
        yield Loaded(sample=manifest.samples[index], image=image, labels=manifest.fold(labels))
