"""Samples of a store looked up by id or index, with their arrays cut to the frame."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.storage.content_cache import ContentCache
from ...common.storage.location import Location, open_storage
from ...common.text import counted, did_you_mean
from ...manifests.errors import ContentError
from ...manifests.manifest import Sample
from ...manifests.vocabulary import Vocabulary
from ..store.frame import CELL_PX
from ..store.layout import open_schema
from ..store.open_store import cut_sample
from ..store.reader import StoreReader
from ..store.schema import StoredArray
from .drawing.label_maps import class_shares
from .drawing.layers import KINDS
from .drawing.palette import UInt8
from .errors import InspectError

PATCH_PX = 2 * CELL_PX
"""Side of a patch: weights are drawn as the trainer sums them."""
MOVED_HINT = "if the data set was moved, give its folder with --root DIR"


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """What the store knows of one sample, cut to its frame (h, w)."""

    index: int
    sample: Sample
    vocabulary: Vocabulary
    image: UInt8
    """Image at the frame's size, (h, w, 3) RGB; grey where the file could not be read."""
    image_problem: str
    """Why the image could not be read, else empty."""
    labels: npt.NDArray[Any]
    """Class ids, (h, w)."""
    structures: Mapping[str, tuple[StoredArray, npt.NDArray[Any]]]
    """Structure maps (h, w), or planes (P, h, w) of classes, by array name, with their rows of the schema."""
    cell_classes: npt.NDArray[Any]
    """Classes in each cell of 8 px of the frame, (K, rows, columns)."""
    cell_counts: UInt8
    """Pixels of each such class, (K, rows, columns)."""

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches that cover the frame."""
        height, width = self.labels.shape
        return -(-height // PATCH_PX), -(-width // PATCH_PX)

    @property
    def shares(self) -> list[tuple[int, float]]:
        """Ids of the classes in the label map with their share of the frame; the largest first."""
        return [item for item in class_shares(self.labels) if item[0] != self.vocabulary.ignore_index]

    def patch_weights(self, class_id: int) -> npt.NDArray[np.float32]:
        """Share of one class in the pixels of each patch of the frame, (rows, columns): w_ij of Eq. 2 for class j."""
        counts = np.where(self.cell_classes == class_id, self.cell_counts, 0).sum(axis=0, dtype=np.float32)
        (rows, columns), side = self.patches, PATCH_PX // CELL_PX
        padded = np.pad(counts, (0, side - 1))  # of the last patches some cells may be missing
        cells = padded[: rows * side, : columns * side]
        patches = cells.reshape(rows, side, columns, side).sum(axis=(1, 3))
        return np.asarray(patches / PATCH_PX**2, np.float32)


class SampleViews:
    """Looks samples of a store up by id or index, and makes their views."""

    def __init__(self, store: Location, *, root: str | None = None, cache: ContentCache | None = None) -> None:
        store = open_storage(store)
        schema = open_schema(store)
        self.drawn = tuple(spec for spec in schema.specs if spec.drawn in KINDS)
        names = ["labels", *(spec.name for spec in self.drawn), "cell_classes", "cell_counts"]
        self.reader = StoreReader(store, names, root=root, cache=cache, images=True)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.reader.vocabulary

    def find(self, text: str) -> int:
        """Index of the sample with that id, or else with that index. Raises InspectError, with close matches."""
        rows = self.reader.manifest.table
        if (position := rows.find(text)) is not None:
            return position
        if re.fullmatch(r"0|[1-9][0-9]{0,11}", text) and int(text) < len(self.reader):
            return int(text)
        raise InspectError(
            f"{self.reader.store}: no sample {text!r}, neither as an id nor as an index below {len(self.reader)}",
            hint=did_you_mean(text, rows.values("sample_id")),
        )

    def find_class(self, text: str) -> int:
        """Class id of a labelled class's whole entry or a synonym of exactly one, in any case. Raises InspectError."""
        vocabulary, wanted = self.vocabulary, " ".join(text.lower().split())
        entries = [" ".join(entry.lower().split()) for entry in vocabulary.labelled_classes]
        if wanted in entries:
            return entries.index(wanted)
        synonyms = [(word.strip(), index) for index, entry in enumerate(entries) for word in entry.split(",")]
        found = [index for word, index in synonyms if word == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            listed = "; ".join(repr(vocabulary.labelled_classes[index]) for index in found)
            raise InspectError(f"class {text!r} may be one of several", hint=f"give the whole entry: {listed}")
        raise InspectError(
            f"{self.reader.store}: no class {text!r} in {vocabulary.name} ({counted(len(entries), 'class')})",
            hint=did_you_mean(wanted, [word for word, _ in synonyms]),
        )

    def view(self, index: int, *, need_image: bool = True) -> SampleView:
        """The view of one sample; its image must be the one the store was computed from.

        `need_image` makes an image that cannot be read an InspectError. Otherwise it is grey. Raises
        StoreIncompleteError for a sample that is not computed, or quarantined.
        """
        reader = self.reader
        stored = cut_sample(reader, index)
        (height, width), arrays = stored.size, stored.arrays
        problem = ""
        try:
            image = reader.image(index)
        except ContentError as error:
            if need_image:
                raise InspectError(error.args[0], hint=MOVED_HINT) from error
            problem, image = str(error.args[0]), np.full((height, width, 3), 128, np.uint8)
        return SampleView(
            index=index,
            sample=reader.manifest.samples[index],
            vocabulary=self.vocabulary,
            image=image,
            image_problem=problem,
            labels=arrays["labels"],
            structures={spec.name: (spec, arrays[spec.name]) for spec in self.drawn},
            cell_classes=arrays["cell_classes"],
            cell_counts=arrays["cell_counts"],
        )
