"""What the numbers in a data set's label files mean: raw ids become class ids, or "no class", or are an error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ManifestError
from ..vocabulary import Vocabulary
from .forms import MAX_RAW_ID, check_form


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelIds:
    """What the numbers in a data set's label files mean, and how its benchmark reads them.

    `Manifest` has the same fields, and says what they are.
    """

    vocabulary: Vocabulary
    raw_to_class: Mapping[int, int]
    raw_ignore: tuple[int, ...]
    label_form: str = "ids"
    max_short_side_px: int | None = None
    fold_from: int | None = None

    def __post_init__(self) -> None:  # now, not after all files were read
        check_id_map(self.raw_to_class, self.raw_ignore, self.vocabulary)
        check_protocol(self.label_form, self.max_short_side_px, self.fold_from, self.vocabulary)


def check_id_map(raw_to_class: Mapping[int, int], raw_ignore: Sequence[int], vocabulary: Vocabulary) -> None:
    """Raise ManifestError unless every raw id fits 16 bits and means one thing: a class that exists, or ignore."""
    for raw in (*raw_to_class, *raw_ignore):
        if not 0 <= raw <= MAX_RAW_ID:
            raise ManifestError.mismatch("raw label ids", f"0..{MAX_RAW_ID}", raw)
    for raw, index in raw_to_class.items():
        if not 0 <= index < vocabulary.num_classes:
            raise ManifestError.mismatch(f"raw id {raw}", f"a class id below {vocabulary.num_classes}", index)
    both = sorted(set(raw_to_class) & set(raw_ignore))
    if both:
        raise ManifestError(f"raw id {both[0]} means both class {raw_to_class[both[0]]} and ignore; expected one")


def check_protocol(
    label_form: str, max_short_side_px: int | None, fold_from: int | None, vocabulary: Vocabulary
) -> None:
    """Raise ManifestError unless the form exists, the limit is a size, and `fold_from` is the id of a class."""
    check_form(label_form)
    if max_short_side_px is not None and max_short_side_px < 1:
        raise ManifestError.mismatch("max_short_side_px", "1 or more", max_short_side_px)
    if fold_from is not None and not 0 <= fold_from < vocabulary.num_classes:
        raise ManifestError.mismatch("fold_from", f"a class id below {vocabulary.num_classes}", fold_from)
