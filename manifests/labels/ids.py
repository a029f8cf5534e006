"""What the numbers in a data set's label files mean: raw ids become class ids, or "no class", or are an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from ...common.text import preview
from ..errors import ManifestError
from ..vocabulary import Vocabulary
from .forms import FORMS, MAX_RAW_ID


@dataclass(frozen=True, kw_only=True)
class LabelIds:
    """What the numbers in a data set's label files mean, and how its benchmark reads them."""

    vocabulary: Vocabulary
    raw_to_class: Mapping[int, int]
    """Class id of each raw label id. An id in neither this nor `raw_ignore` is an error of the file."""
    raw_ignore: tuple[int, ...]
    """Raw ids that mean "no class"."""
    label_form: str = "ids"
    """How label files hold raw ids, one of `labels.forms.FORMS`."""
    max_short_side_px: int | None = None
    """Cap on the short side: larger images and labels are made smaller on loading. Rows say the new size."""

    def __post_init__(self) -> None:  # now, not after all files were read
        """Every raw id fits 16 bits and means one thing: a class that exists, or ignore."""
        object.__setattr__(self, "raw_to_class", dict(sorted((int(k), int(v)) for k, v in self.raw_to_class.items())))
        object.__setattr__(self, "raw_ignore", tuple(sorted({int(raw) for raw in self.raw_ignore})))
        ignored, class_id = set(self.raw_ignore), f"a class id below {self.vocabulary.num_classes}"
        for raw in (*self.raw_to_class, *self.raw_ignore):
            if not 0 <= raw <= MAX_RAW_ID:
                raise ManifestError.mismatch("raw label ids", f"0..{MAX_RAW_ID}", raw)
        for raw, index in self.raw_to_class.items():
            if not 0 <= index < self.vocabulary.num_classes:
                raise ManifestError.mismatch(f"raw id {raw}", class_id, index)
            if raw in ignored:
                raise ManifestError(f"raw id {raw} means both class {index} and ignore; expected one")
        if self.label_form not in FORMS:
            hint = "the manifest was written by a newer physseg: update it, or make the manifest again"
            raise ManifestError.mismatch("label form", f"one of {', '.join(FORMS)}", repr(self.label_form), hint=hint)
        if self.max_short_side_px is not None and self.max_short_side_px < 1:
            raise ManifestError.mismatch("max_short_side_px", "1 or more", self.max_short_side_px)

    @classmethod
    def named(cls, name: str, meaning: Mapping[int, str | None]) -> Self:
        """The ids of label pictures by the name of each one's class; None means "no class".

        >>> LabelIds.named("toy", {0: None, 1: "cat", 2: "dog", 3: "cat"}).raw_to_class
        {1: 0, 2: 1, 3: 0}
        """
        vocabulary = Vocabulary(name=name, classes=tuple(dict.fromkeys(filter(None, meaning.values()))))
        raw_to_class = {raw: vocabulary.classes.index(entry) for raw, entry in meaning.items() if entry is not None}
        ignored = tuple(raw for raw, entry in meaning.items() if entry is None)
        return cls(vocabulary=vocabulary, raw_to_class=raw_to_class, raw_ignore=ignored)

    def map_ids(self, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
        """Raw ids (uint8 or uint16) as class ids, and what is unknown: "" or such as "id 44 (120 pixels)".

        Unknown ids become ignore_index; it is for the caller to refuse the sample.
        """
        classes, unknown = self._lookup
        if raw.dtype == np.uint8 and classes.dtype == np.uint8:
            labels = np.asarray(cv2.LUT(raw, classes[:256]))  # 10x faster than indexing
            faults = np.asarray(cv2.LUT(raw, unknown[:256]))
        else:
            labels, faults = classes[raw], unknown[raw]
        if not cv2.countNonZero(faults):
            return labels, ""
        found, counts = np.unique(raw[faults != 0], return_counts=True)
        ordered = sorted(zip(found.tolist(), counts.tolist(), strict=True), key=lambda entry: (-entry[1], entry[0]))
        named = [f"id {raw_id} ({count} pixel{'s' if count > 1 else ''})" for raw_id, count in ordered]
        return labels, preview(named, 5) + (" ids" if len(named) > 5 else "")

    @cached_property
    def _lookup(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        classes = np.full(MAX_RAW_ID + 1, self.vocabulary.ignore_index, self.vocabulary.label_dtype)
        unknown = np.ones(MAX_RAW_ID + 1, np.uint8)
        for raw, index in self.raw_to_class.items():
            classes[raw], unknown[raw] = index, 0
        unknown[list(self.raw_ignore)] = 0
        return classes, unknown
