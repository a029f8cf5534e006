"""How near the classes of a test vocabulary are to those of training, by CLIP's text encoder (the paper's Table 1).

With s(a, b) the cosine of two classes' text vectors, A the test classes and B the training classes:

* directed Hausdorff similarity   h(A -> B) = min over a of max over b of s(a, b): the test class that is worst covered.
  This is what Table 1 reports: for VOC's 20 classes, all of which are COCO-Stuff's too, it is near 1.
* symmetric Hausdorff similarity  H = min(h(A -> B), h(B -> A)); 1 - H is the Hausdorff distance for the distance 1 - s.
* mean best cosine                mean over a of max over b of s(a, b).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.labels.class_file import FORMS, read_class_file
from ...manifests.manifest import Manifest
from ...manifests.vocabulary import VOCABULARIES, Vocabulary, published_vocabulary
from ..errors import AnalysisError
from .encoders import ClipEncoder

ALIASES = {"coco-stuff": "coco-stuff-171"}
TABLE_1 = ("pascal-voc-20", "pascal-context-59", "pascal-context-459", "ade20k-150", "ade20k-847")
"""The vocabularies of the paper's table, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """One vocabulary against that of training; cosines in [-1, 1]."""

    vocabulary: Vocabulary
    """A test classes."""
    reference: Vocabulary
    """B training classes."""
    nearest: npt.NDArray[np.int64]
    """(A,) id of the training class most similar to each test class, the lower id on a tie."""
    cosine: npt.NDArray[np.float64]
    """(A,) similarity of each test class to its nearest training class."""
    reverse: npt.NDArray[np.float64]
    """(B,) similarity of each training class to its nearest test class."""

    @property
    def measures(self) -> dict[str, float]:
        """The three measures of the module's docstring; the first is from the vocabulary to the reference."""
        return {
            "hausdorff": float(self.cosine.min()),
            "symmetric_hausdorff": float(min(self.cosine.min(), self.reverse.min())),
            "mean_best_cosine": float(self.cosine.mean()),
        }

    def neighbours(self) -> list[tuple[str, str, float]]:
        """(class, its nearest class of the reference, cosine), the least similar first."""
        ours, theirs = self.vocabulary.prompt_names, self.reference.prompt_names
        order = np.argsort(self.cosine, kind="stable")
        return [(ours[i], theirs[self.nearest[i]], float(self.cosine[i])) for i in order]


def compare_vocabularies(
    vocabulary: Vocabulary, reference: Vocabulary, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]
) -> Similarity:
    """From unit text vectors (A, D) of the vocabulary and (B, D) of the reference."""
    cosines = ours.astype(np.float64) @ theirs.astype(np.float64).T
    return Similarity(
        vocabulary=vocabulary,
        reference=reference,
        nearest=cosines.argmax(axis=1),
        cosine=cosines.max(axis=1),
        reverse=cosines.max(axis=0),
    )


def similarities(encoder: ClipEncoder, vocabularies: Sequence[Vocabulary], reference: Vocabulary) -> list[Similarity]:
    """Every vocabulary against the reference, with one text encoder."""
    theirs = encoder.texts(reference.classes).cpu().numpy()
    return [
        compare_vocabularies(vocabulary, reference, encoder.texts(vocabulary.classes).cpu().numpy(), theirs)
        for vocabulary in vocabularies
    ]


def find_vocabulary(text: str) -> Vocabulary:
    """A vocabulary by its published name ("ade20k-150"), of a manifest, or of a class file. Raises AnalysisError."""
    name = ALIASES.get(text, text)
    known = {path.stem.replace("_", "-") for path in VOCABULARIES.glob("*.txt") if not path.stem.endswith("_ids")}
    if name in known:
        return published_vocabulary(name)
    path = Path(text)
    if path.suffix == ".parquet":
        return Manifest.read(path).vocabulary
    if path.is_file():
        return Vocabulary(name=path.stem, classes=read_class_file(path))
    hint = f"known: {', '.join(sorted(known | set(ALIASES)))}; or a manifest (.parquet), or a class file: {FORMS}"
    raise AnalysisError(f"{text}: no published vocabulary of this name, and no file", hint=hint)


def table(found: Sequence[Similarity], *, worst: int = 3) -> list[tuple[str, ...]]:
    """The table, its heading first: a row per vocabulary, with its least covered classes."""
    rows: list[tuple[str, ...]] = [("vocabulary", "classes", "Hausdorff", "symmetric", "mean best", "least similar")]
    for item in found:
        shown = ", ".join(f"{name} ({near} {cosine:.2f})" for name, near, cosine in item.neighbours()[:worst])
        cosines = (f"{value:.3f}" for value in item.measures.values())
        rows.append((item.vocabulary.name, str(item.vocabulary.num_classes), *cosines, shown))
    return rows


def document(found: Sequence[Similarity], origin: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON, with the nearest neighbour of every class."""
    return {
        "encoder": origin,
        "reference": {"name": found[0].reference.name, "fingerprint": found[0].reference.fingerprint},
        "vocabularies": [
            {
                "name": item.vocabulary.name,
                "fingerprint": item.vocabulary.fingerprint,
                "num_classes": item.vocabulary.num_classes,
                **item.measures,
                "classes": [dict(zip(("name", "nearest", "cosine"), row, strict=True)) for row in item.neighbours()],
            }
            for item in found
        ],
    }


def neighbours_csv(found: Sequence[Similarity]) -> str:
    """One line per class of every vocabulary: vocabulary, class, nearest, cosine."""
    sheet = StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["vocabulary", "class", "nearest", "cosine"])
    for item in found:
        writer.writerows([item.vocabulary.name, *row[:2], f"{row[2]:.6f}"] for row in item.neighbours())
    return sheet.getvalue()
