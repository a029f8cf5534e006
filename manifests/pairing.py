"""Which image belongs to which label picture: by file stem, and complaining about everything left over."""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..common.documents import read_text
from ..common.text import preview
from .errors import ManifestError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")
CONVERSIONS = {
    ".npy": "save each array as a PNG, ids as 8 or 16 bits: Image.fromarray(np.load(IN).astype(np.uint16)).save(OUT)",
    ".jpg": "find the labels as PNG or TIFF: JPEG smears ids at the borders, and nothing brings them back",
}
UNICODE_HINT = (
    "the same names in two Unicode forms (NFC, and NFD as from macOS): `convmv -f utf8 -t utf8 --nfc --notest`"
)
LIST_HINT = (
    "complete the folders, or choose the samples with --list FILE (one file name without extension per line); "
    "for all that are in a folder: `ls FOLDER | sed 's/[.][^.]*$//' > FILE`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image with its label picture."""

    sample_id: str
    """Name of the sample: the stem of both files."""
    image: Path
    """Absolute path of the image."""
    label: Path
    """Absolute path of the label file."""
    note: str = ""
    """What is already known about the sample, such as that no annotation names it."""


def pair_files(
    images: Path, labels: Path, *, listed: Path | None = None, image_suffix: str = "", label_suffix: str = ""
) -> list[Pair]:
    """Pairs of equal stems in two flat folders, sorted; those alone that the file `listed` names.

    Stems end with the suffixes given, such as "_leftImg8bit" and "_gtFine_labelIds", which do not count; other files
    are left aside. Without the errors a forgotten folder would make a smaller data set and nobody would notice.

    Raises:
        ManifestError: A folder is missing or empty, two files have one stem, a file has no partner, or a listed stem
            has no files.
    """
    images, labels = images.expanduser().resolve(), labels.expanduser().resolve()
    if images == labels:
        raise ManifestError(f"{images}: images and labels lie in one folder", hint="put them into two folders")
    image_files = files_by_stem(images, IMAGE_SUFFIXES, "images", image_suffix)
    label_files = files_by_stem(labels, LABEL_SUFFIXES, "label pictures", label_suffix)
    stems = matching_stems(Side("image", images, image_files), Side("label", labels, label_files), listed)
    return [Pair(sample_id=stem, image=image_files[stem], label=label_files[stem]) for stem in stems]


class Side(NamedTuple):
    """Images, or what belongs to them, by the stem of their files; what one is called, and where they lie."""

    what: str
    place: Path | str
    by_stem: Mapping[str, object]


def matching_stems(one: Side, other: Side, listed: Path | None) -> list[str]:
    """Stems of both sides, or those that `listed` names, sorted. Raises ManifestError where one side lacks a stem."""
    if listed is not None:
        stems = read_list(listed)
        for side in (one, other):
            _check_listed(stems, side, listed)
        return sorted(stems)
    parts = [
        f"{len(lone)} of {len(a.by_stem)} {a.what}s in {a.place} have no {b.what} ({preview(sorted(lone))})"
        for a, b in ((one, other), (other, one))
        if (lone := a.by_stem.keys() - b.by_stem.keys())
    ]
    if parts:
        hint = _repair(one.by_stem.keys() - other.by_stem.keys(), other.by_stem.keys() - one.by_stem.keys())
        raise ManifestError("; ".join(parts), hint=hint)
    return sorted(one.by_stem)


def files_by_stem(folder: Path, suffixes: tuple[str, ...], what: str, stem_suffix: str = "") -> dict[str, Path]:
    """The files of a flat folder that end as asked for (in any case), by stem. Hidden files are left aside.

    Stems must end with `stem_suffix`, and lose it.

    Whatever else lies there is counted in a warning: a sample whose image *and* label are left aside has no partner
    that would complain. A link to nothing, or a folder, with the name of such a file is an error for the same reason.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "none there"
        raise ManifestError.mismatch(folder, f"a folder of {what}", got, hint="check the path")
    files: dict[str, Path] = {}
    others: Counter[str] = Counter()
    with os.scandir(folder) as found:
        entries = [e for e in found if not e.name.startswith(".") or e.name.lower().endswith(suffixes)]  # no .DS_Store
    for entry in entries:
        path = Path(entry.path)
        if kind := _left_aside(entry, suffixes, stem_suffix):
            others[kind] += 1
            continue
        _check_file(entry)
        if (stem := path.stem.removesuffix(stem_suffix)) in files:
            both = f"{files[stem].name} and {path.name}"
            raise ManifestError.mismatch(folder, "one file per name", both, hint="remove or rename one of them")
        files[stem] = path
    got = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())) or "nothing"
    if not files:
        hints = (hint for ending, hint in CONVERSIONS.items() if f" {ending} files" in f" {got}")
        hint = next(hints, "name the folder that holds the files themselves")
        raise ManifestError.mismatch(folder, f"{what} ({', '.join(suffixes)})", got, hint=hint)
    if others:
        logging.getLogger(__name__).warning("warning: %s: not used: %s", folder, got)
    return files


def read_list(path: Path) -> tuple[str, ...]:
    """The stems in a list file, one per line; empty lines do not count. Raises ManifestError, also for repeats."""
    lines = read_text(path, ManifestError, "a list of file names").splitlines()
    stems: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        stem = line.strip()
        if stem in stems:
            raise ManifestError(f"{path}, line {number}: {stem!r} already stands in line {stems[stem]}")
        if stem:
            stems[stem] = number
    if not stems:
        raise ManifestError.mismatch(path, "one name per line", "none")
    return tuple(stems)


def common_root(*folders: Path) -> Path:
    """The deepest folder that holds them all; at worst the file system's own root."""
    return Path(os.path.commonpath([folder.expanduser().resolve() for folder in folders]))


def _repair(lone: Set[str], partners: Set[str]) -> str:
    """What would pair names that have none of their own: one Unicode form, or endings that do not count."""
    if set(map(_composed, lone)) & set(map(_composed, partners)):
        return UNICODE_HINT
    first = min(lone, default="")
    for cut in (len(first), *(separator.start() for separator in re.finditer(r"[_\-. ]", first))):
        begins = re.compile(re.escape(first[:cut]) + r"(?=[_\-. ]|$)")
        ours, theirs = first[cut:], next((other[cut:] for other in sorted(partners) if begins.match(other)), "")
        pairs = sum(name.endswith(ours) and name.removesuffix(ours) + theirs in partners for name in lone)
        if pairs > max(1, len(lone) // 2):
            options = [f"--image-suffix={ours}"] * bool(ours) + [f"--label-suffix={theirs}"] * bool(theirs)
            return f"`physseg manifest folder` leaves endings of names out with {' '.join(options)}"
    return LIST_HINT


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _left_aside(entry: "os.DirEntry[str]", suffixes: tuple[str, ...], stem_suffix: str) -> str:
    """As what an entry is counted that is none of the files asked for; "" for one that is."""
    path = Path(entry.path)
    if entry.name.startswith("."):
        return "hidden files"
    if path.suffix.lower() in suffixes and path.stem.endswith(stem_suffix):
        return ""
    return "folders" if entry.is_dir() else f"{path.suffix or 'suffixless'} files"


def _check_file(entry: "os.DirEntry[str]") -> None:
    if not entry.is_file():
        got = "a folder" if entry.is_dir() else "a link to nothing" if entry.is_symlink() else "something else"
        raise ManifestError.mismatch(entry.path, "a file", got, hint="restore or remove it")
    if not entry.name.isprintable():  # line breaks, or bytes that are not UTF-8
        folder = Path(entry.path).parent
        raise ManifestError(f"{folder}: a file name with unprintable characters: {entry.name!r}", hint="rename it")


def _check_listed(stems: Iterable[str], side: Side, listed: Path) -> None:
    if missing := sorted(set(stems) - side.by_stem.keys()):
        hint = "correct the list or the folder"
        if any(Path(stem).suffix.lower() in IMAGE_SUFFIXES + LABEL_SUFFIXES for stem in missing):
            hint = "list names without their extension"
        elif set(map(_composed, missing)) & set(map(_composed, side.by_stem)):
            hint = UNICODE_HINT
        raise ManifestError(
            f"{listed}: {len(missing)} listed names have no {side.what} in {side.place} ({preview(missing)})", hint=hint
        )
