"""The arrays of one sample: its files, resized to the frame, and what the extractors make of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ...common.plugins import ConformanceError, PluginError, find
from ...manifests.errors import ContentError
from ...manifests.manifest import Manifest
from ...structure_extractors.errors import ExtractorError
from ...structure_extractors.interface import Extractor, Labels, check_made
from ..store.schema import StoreSchema
from ..store.shard_files import Planes

Fetch = Callable[[], tuple[bytes, bytes]]
"""`Manifest.fetch` of one sample: its files, or its ContentError."""


class Clock:
    """Wall seconds by named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def compute_sample(
    manifest: Manifest, index: int, fetch: Fetch, schema: StoreSchema, extractors: Sequence[Extractor], clock: Clock
) -> tuple[str, Planes]:
    """The reason for quarantine ("" if none) and the sample's planes (none if quarantined).

    Raises:
        MemoryError: OpenCV got no memory, which is the machine's fault and not the sample's.
        PluginError, ConformanceError: As `compute_planes`.
    """
    try:
        with clock.part("load"):
            image, labels = manifest.decode(index, fetch())
        return "", compute_planes(image, labels, schema, extractors, clock)
    except (PluginError, ConformanceError) as error:
        raise error.prefixed(f"sample {manifest.samples[index].sample_id}") from error
    except (ContentError, ExtractorError, cv2.error) as error:
        if _is_no_memory(error):
            raise MemoryError(str(error)) from error
        return " ".join(str(error).split()), {}


def compute_planes(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    schema: StoreSchema,
    extractors: Sequence[Extractor],
    clock: Clock | None = None,
) -> Planes:
    """All arrays of one sample at frame size, from an image (H, W, 3) uint8 RGB and class ids (H, W).

    Raises:
        PluginError: An extractor of another package failed.
        ConformanceError: An extractor returned other arrays than it promised.
    """
    clock = clock or Clock()
    with clock.part("load"):
        image = schema.frame.resize_image(image)
        labels = schema.frame.resize_labels(labels)
    planes: Planes = {"labels": labels, "frame_size": np.array(labels.shape, dtype=np.uint16)}
    seen = image.view(), labels.view()
    for array in seen:  # what one extractor changed would be stored as labels, and be what the next one sees
        array.flags.writeable = False
    for extractor in extractors:
        with clock.part(extractor.name):
            made = _called(extractor, *seen, schema.vocabulary.ignore_index)
        check_made(made, extractor, labels)
        _check_room(extractor, made, schema)
        planes |= made
    return planes


def _check_room(extractor: Extractor, made: Planes, schema: StoreSchema) -> None:
    """Raise ExtractorError, which is a reason for quarantine, for a file that has more bytes than the canvas pixels."""
    room = schema.frame.canvas**2
    for spec in extractor.arrays:
        if spec.dims == ("byte",) and (size := made[spec.name].size) > room:
            expected = f"at most {room} bytes, one for each pixel of the canvas"
            raise ExtractorError.mismatch(spec.name, expected, f"{size}; lower {extractor.name}.quality")


def _called(extractor: Extractor, image: npt.NDArray[np.uint8], labels: Labels, ignore_index: int) -> Any:
    try:
        return extractor(image, labels, ignore_index=ignore_index)
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError) or _is_no_memory(error):  # the machine's fault
            raise
        with find("extractors", extractor.name).blamed():
            raise


def _is_no_memory(error: BaseException) -> bool:
    return isinstance(error, cv2.error) and getattr(error, "code", None) == cv2.Error.StsNoMem
