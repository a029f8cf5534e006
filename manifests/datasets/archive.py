"""Published data sets on disk: what was released, what of it lies in a folder, and what is missing.

Each data set's own file finds its folders; what all of them ask of a find stands here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ...common.text import preview
from ..checking import Checked, CrossCheck
from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..pairing import Pair, common_root


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One split as it was published."""

    title: str
    """Name for people, such as "ADE20K-150, validation"."""
    counts: tuple[int, ...]
    """Number of samples; several where the literature disagrees, none where nobody says."""
    source: str
    """Where one gets the release, and what to unpack."""
    numbering: str = ""
    """Template of the samples' names by number from 1, such as "ADE_val_{:08d}"; "" where they are not numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One split as it lies in a folder; files by stem, as many as there are."""

    release: Release
    ids: LabelIds
    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    listed: Sequence[str] | None = None
    """Names of the split's samples, where a file lists them; None for all that are there."""
    listed_in: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """What is already known about a sample, by stem."""
    cross_check: CrossCheck | None = None
    refuse: Callable[[Checked], None] | None = None
    """Raises ManifestError for labels that are wrong together, though each may be right."""
    dataset: str = ""
    """Name of the data set in the manifest, where it is not the one that it is found by."""

    @classmethod
    def of(
        cls,
        pairs: Iterable[Pair],
        ids: LabelIds,
        release: Release,
        *,
        check_files: bool = False,
        dataset: str = "",
        refuse: Callable[[Checked], None] | None = None,
    ) -> Self:
        """The archive of samples that are paired already; `check_files` says which files are not there."""
        by_id = {pair.sample_id: pair for pair in pairs}
        images = {name: pair.image for name, pair in by_id.items() if not check_files or pair.image.is_file()}
        labels = {name: pair.label for name, pair in by_id.items() if not check_files or pair.label.is_file()}
        return cls(
            release=release,
            ids=ids,
            images=images,
            labels=labels,
            listed=tuple(by_id),
            notes={name: pair.note for name, pair in by_id.items()},
            dataset=dataset,
            refuse=refuse,
        )

    @property
    def names(self) -> frozenset[str]:
        """Names of the samples that the split should have."""
        return frozenset(self.images.keys() | self.labels.keys() if self.listed is None else self.listed)

    def pairs(self) -> list[Pair]:
        """The samples whose two files are there, sorted by name."""
        complete = sorted(self.names & self.images.keys() & self.labels.keys())
        return [
            Pair(sample_id=name, image=self.images[name], label=self.labels[name], note=self.notes.get(name, ""))
            for name in complete
        ]

    def missing(self) -> Iterator[str]:
        """One line about photographs that are not there, one about label files."""
        of = f"the {len(self.names)} names" + (f" in {self.listed_in}" if self.listed_in else "")
        for what, files in (("photograph", self.images), ("label file", self.labels)):
            if absent := self.names - files.keys():
                place = f" in {common_root(*{file.parent for file in files.values()})}" if files else ""
                yield f"{len(absent)} of {of} have no {what}{place} ({preview(sorted(absent))})"

    def miscounted(self) -> list[str]:
        """A line if the split has another number of samples than was published: half an archive, another release."""
        of_list = f" names in {self.listed_in}: a cut list, or that of another release" if self.listed_in else ""
        return [line + of_list for line in miscounted(self.release, self.names)]


def miscounted(release: Release, names: Collection[str]) -> list[str]:
    """A line if there are more or fewer samples than were published; it names those missing if it can."""
    if not release.counts or len(names) in release.counts:
        return []
    line = f"{release.title}: expected {' or '.join(map(str, release.counts))} samples, got {len(names)}"
    numbered = map(release.numbering.format, range(1, release.counts[0] + 1)) if release.numbering else ()
    absent = set(numbered).difference(names)
    return [line + (f"; missing: {preview(sorted(absent))}" if absent else "")]


def existing_folder(root: Path, candidates: Iterable[str], what: str, release: Release) -> Path:
    """The first of the folders below `root` that exists. Raises ManifestError, which says where to get the archive."""
    root = root.expanduser().resolve()
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise ManifestError.mismatch(root, f"the folder of {release.title}", got, hint=release.source)
    tried = [root / candidate for candidate in candidates]
    if found := next(filter(Path.is_dir, tried), None):
        return found
    expected = " or ".join(map(str, tried))
    raise ManifestError(f"{what} of {release.title}: expected {expected}, none exists", hint=release.source)


def existing_list(candidates: Sequence[Path], release: Release) -> Path:
    """The first of the list files that exists. Raises ManifestError, which says where to get the archive."""
    if found := next(filter(Path.is_file, candidates), None):
        return found
    expected, hint = " or ".join(map(str, candidates)), f"{release.source}; or name yours with --list FILE"
    raise ManifestError(f"list of {release.title}: expected {expected}, none exists", hint=hint)
