"""Ordered class names: what a label's number means and what a prompt says."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.documents import read_text
from ..common.text import control_character, counted
from .errors import ManifestError

MAX_CLASSES = 65535
VOCABULARIES = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """An ordered list of classes; class id = position.

    >>> v = Vocabulary(name="pets", classes=("cat, kitten", "dog"))
    >>> v.prompt_names, v.ignore_index
    (('cat', 'dog'), 255)
    """

    name: str
    """Name for people, such as "coco-stuff-171"; not part of the fingerprint."""
    classes: tuple[str, ...]
    """One entry per class: synonyms separated by commas, the first of which is used in prompts."""
    fold_from: int | None = None
    """This class id and all above it are words for one class, "background", which has this id in labels and results."""

    def __post_init__(self) -> None:
        where = f"vocabulary {self.name!r}"
        if not self.classes:
            raise ManifestError.mismatch(where, "at least one class", "none")
        if len(self.classes) > MAX_CLASSES:
            raise ManifestError.mismatch(where, f"at most {MAX_CLASSES} classes", len(self.classes))
        first_seen: dict[str, int] = {}
        for index, entry in enumerate(self.classes):
            if not entry.split(",")[0].strip():
                raise ManifestError(f"{where}: class {index} has no name (got {entry!r})")
            if found := control_character(entry):
                raise ManifestError.mismatch(f"{where}, class {index}", "printable characters", found)
            if entry in first_seen:
                hint = "every class needs a text of its own; add synonyms to tell them apart"
                raise ManifestError(f"{where}: classes {first_seen[entry]} and {index} are both {entry!r}", hint=hint)
            first_seen[entry] = index
        if self.fold_from is not None and not 0 <= self.fold_from < self.num_classes:
            expected = f"a class id below {self.num_classes}"
            raise ManifestError.mismatch(f"{where}: fold_from", expected, self.fold_from)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def describe(self, first_id: int = 0) -> str:
        """How many classes there are, and the first and the last with their ids.

        >>> Vocabulary(name="v", classes=("sea", "grass, lawn", "road")).describe()
        '3 classes: 0 sea ... 2 road'
        """
        last = self.num_classes - 1
        ends = f"{first_id} {self.classes[0]}" + (f" ... {first_id + last} {self.classes[-1]}" if last else "")
        return f"{counted(self.num_classes, 'class')}: {ends}"

    @property
    def prompt_names(self) -> tuple[str, ...]:
        """The first synonym of each class. Two classes may share one (19 of ADE20K-847's do)."""
        return _first_synonyms(self.classes)

    @property
    def labelled_classes(self) -> tuple[str, ...]:
        """The classes as labels and results have them: `classes`, but "background" for all from `fold_from` on."""
        return self.classes if self.fold_from is None else (*self.classes[: self.fold_from], "background")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first synonym of each of `labelled_classes`: what pictures, tables and results call a class id.

        >>> Vocabulary(name="v", classes=("cat, kitten", "dog", "bag", "bed"), fold_from=2).class_names
        ('cat', 'dog', 'background')
        """
        return _first_synonyms(self.labelled_classes)

    def fold(self, class_ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Class ids of prompts as labels and results have them: from `fold_from` on they become it, ignore stays."""
        if self.fold_from is None:
            return class_ids
        folded = np.minimum(class_ids, class_ids.dtype.type(self.fold_from))
        return np.where(class_ids == self.ignore_index, class_ids, folded)

    @property
    def shared_prompts(self) -> dict[str, tuple[int, ...]]:
        """First synonyms that several classes begin with, and their class ids: one prompt, told apart by nothing.

        >>> Vocabulary(name="v", classes=("bag, sack", "tree", "bag, handbag")).shared_prompts
        {'bag': (0, 2)}
        """
        classes_of: dict[str, list[int]] = {}
        for index, name in enumerate(self.prompt_names):
            classes_of.setdefault(name, []).append(index)
        return {name: tuple(ids) for name, ids in classes_of.items() if len(ids) > 1}

    @property
    def ignore_index(self) -> int:
        """The class id that means "no class": 255 while class ids fit beside it in 8 bits, else 65535."""
        return 255 if self.num_classes <= 255 else 65535

    @property
    def label_dtype(self) -> "np.dtype[Any]":
        """uint8 while class ids and `ignore_index` fit, else uint16."""
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.uint16)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the ordered classes; neither name nor fold count, which change no stored layer."""
        return hashlib.sha256(json.dumps(self.classes, ensure_ascii=True).encode()).hexdigest()


def _first_synonyms(entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(entry.split(",")[0].strip() for entry in entries)


def published_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a published benchmark by its name, e.g. "ade20k-847", from `vocabularies/ade20k_847.txt`."""
    classes = read_classes(VOCABULARIES / f"{name.replace('-', '_')}.txt")
    words_for_background = {"pascal-voc-20b": 20}  # of a vocabulary that has some, the first
    return Vocabulary(name=name, classes=classes, fold_from=words_for_background.get(name))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read one of our own class files: one class per line, synonyms separated by commas; class id = line number - 1.

    Other people's have other forms: `labels.class_file.read_class_file`. Raises ManifestError, as `checked_classes`.
    """
    text = read_text(path, ManifestError, "a text file with one class per line")
    return checked_classes(path, text.rstrip().split("\n"))  # splitlines() also splits at form feeds


def checked_classes(path: Path, entries: Sequence[str], unit: str = "line") -> tuple[str, ...]:
    """Class names as a file has them, with one space behind each comma of their synonyms.

    Raises:
        ManifestError: An entry is empty, has no class name or repeats one. It names the place: skipping it would shift
            the ids of all that follow.
    """
    places: dict[str, int] = {}
    for number, line in enumerate(entries, start=1):
        entry = ", ".join(word.strip() for word in line.split(","))
        where = f"{path}, {unit} {number}"
        if not entry.split(",")[0]:
            hint = f"no empty {unit}: class id = {unit} number - 1"
            raise ManifestError.mismatch(where, "a class name", repr(line), hint=hint)
        if entry in places:
            hint = "remove one, or add synonyms to tell them apart"
            raise ManifestError(f"{where}: class {entry!r} already stands in {unit} {places[entry]}", hint=hint)
        if found := control_character(entry):
            raise ManifestError.mismatch(where, "a name in printable characters", found, hint="write it anew")
        places[entry] = number
    return tuple(places)
