"""Which image belongs to which label picture: by file stem, and complaining about everything left over."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ManifestError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png", ".tif", ".tiff")
LIST_HINT = "complete the folders, or choose the samples with --list FILE (one file name without extension per line)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image with its label picture."""

    sample_id: str  # the file stem
    image: Path  # absolute
    label: Path  # absolute
    note: str = ""  # what is already known about it, e.g. that no annotation names it


def pair_files(images: Path, labels: Path, *, listed: Path | None = None) -> list[Pair]:
    """Pairs of equal stems in two flat folders, sorted by stem; `listed` names a file that selects stems.

    Raises ManifestError for a missing or empty folder, two files with one stem, anything without a partner, and a
    listed stem without files. Without that, a forgotten folder would make a smaller data set and nobody would notice.
    """
    images, labels = images.expanduser().resolve(), labels.expanduser().resolve()
    if images == labels:
        raise ManifestError(
            f"{images}: images and labels lie in one folder", hint="put them into two folders", path=str(images)
        )
    image_files = files_by_stem(images, IMAGE_SUFFIXES, "images")
    label_files = files_by_stem(labels, LABEL_SUFFIXES, "label pictures")
    if listed is not None:
        stems = read_list(listed)
        image_files = _select(image_files, stems, images, listed, "image")
        label_files = _select(label_files, stems, labels, listed, "label picture")
    lone_images, lone_labels = image_files.keys() - label_files.keys(), label_files.keys() - image_files.keys()
    if lone_images or lone_labels:
        parts = []
        if lone_images:
            parts.append(
                f"{len(lone_images)} of {len(image_files)} images in {images} have no label ({some(lone_images)})"
            )
        if lone_labels:
            parts.append(
                f"{len(lone_labels)} of {len(label_files)} labels in {labels} have no image ({some(lone_labels)})"
            )
        raise ManifestError("; ".join(parts), hint=LIST_HINT, images=sorted(lone_images), labels=sorted(lone_labels))
    return [Pair(sample_id=stem, image=image_files[stem], label=label_files[stem]) for stem in sorted(image_files)]


def files_by_stem(folder: Path, suffixes: tuple[str, ...], what: str) -> dict[str, Path]:
    """The files of a flat folder that end as asked for (in any case), by stem. Hidden files do not count.

    Whatever else lies there is counted in a warning: a sample whose image *and* label are left aside has no partner
    that would complain. A link to nothing, or a folder, with the name of such a file is an error for the same reason.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "none there"
        raise ManifestError(
            f"{folder}: expected a folder of {what}, got {got}", hint="check the path", path=str(folder)
        )
    files: dict[str, Path] = {}
    others: dict[str, int] = {}
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes:
            kind = "folders" if entry.is_dir() else f"{path.suffix or 'suffixless'} files"
            others[kind] = others.get(kind, 0) + 1
            continue
        if not entry.is_file():
            got = "a folder" if entry.is_dir() else "a link to nothing" if entry.is_symlink() else "something else"
            raise ManifestError(f"{path}: expected a file, got {got}", hint="restore or remove it", path=str(path))
        if not entry.name.isprintable():  # line breaks, or bytes that are not UTF-8
            raise ManifestError(f"{folder}: a file name with unprintable characters: {entry.name!r}", hint="rename it")
        if path.stem in files:
            raise ManifestError(
                f"{folder}: expected one file per name, got {files[path.stem].name} and {path.name}",
                hint="remove or rename one of them",
                path=str(path),
            )
        files[path.stem] = path
    got = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items())) or "nothing"
    if not files:
        raise ManifestError(
            f"{folder}: expected {what} ({', '.join(suffixes)}), got {got}",
            hint="name the folder that holds the files themselves",
            path=str(folder),
        )
    if others:
        logging.getLogger(__name__).warning("warning: %s: not used: %s", folder, got)
    return files


def read_list(path: Path) -> tuple[str, ...]:
    """The stems in a list file, one per line; empty lines do not count. Raises ManifestError, also for repeats."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: expected a list of file names, got {error}", path=str(path)) from error
    stems: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        stem = line.strip()
        if stem in stems:
            raise ManifestError(f"{path}, line {number}: {stem!r} already stands in line {stems[stem]}", path=str(path))
        if stem:
            stems[stem] = number
    if not stems:
        raise ManifestError(f"{path}: expected one file name without extension per line, got none", path=str(path))
    return tuple(stems)


def common_root(*folders: Path) -> Path:
    """The deepest folder that holds them all; at worst the file system's own root."""
    return Path(os.path.commonpath([folder.expanduser().resolve() for folder in folders]))


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names of many: "a, b and 3 more"."""
    ordered = sorted(names)
    rest = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _select(files: dict[str, Path], stems: Iterable[str], folder: Path, listed: Path, what: str) -> dict[str, Path]:
    missing = [stem for stem in stems if stem not in files]
    if missing:
        hint = "correct the list or the folder"
        if Path(missing[0]).suffix.lower() in IMAGE_SUFFIXES + LABEL_SUFFIXES:
            hint = "list names without their extension"
        raise ManifestError(
            f"{listed}: {len(missing)} listed names have no {what} in {folder} ({some(missing)})",
            hint=hint,
            path=str(listed),
            missing=missing,
        )
    return {stem: files[stem] for stem in stems}
