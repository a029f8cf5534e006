"""ADE20K: 150 classes from the scene parsing challenge, 847 classes from the full release 2021_17_01."""

import json
import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.regular_files import read_regular
from ...common.text import preview
from ..checking import Checked
from ..errors import ManifestError
from ..labels.ids import LabelIds
from ..pairing import IMAGE_SUFFIXES, Pair, files_by_stem, read_list
from ..vocabulary import VOCABULARIES, published_vocabulary
from .archive import Archive, Release, existing_folder

CHALLENGE_SOURCE = (
    "unpack http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip into --root: it brings "
    "ADEChallengeData2016/images and ADEChallengeData2016/annotations"
)
CHALLENGE_FOLDERS = ("ADEChallengeData2016", ".")
CHALLENGE = {
    "validation": Release(
        title="ADE20K-150, validation", counts=(2000,), source=CHALLENGE_SOURCE, numbering="ADE_val_{:08d}"
    ),
    "training": Release(
        title="ADE20K-150, training", counts=(20210,), source=CHALLENGE_SOURCE, numbering="ADE_train_{:08d}"
    ),
}
FULL_SOURCE = (
    "ask for the full data set, release 2021_17_01, at https://groups.csail.mit.edu/vision/datasets/ADE20K/ and unpack "
    "it into --root: it brings ADE20K_2021_17_01/images/ADE"
)
FULL_FOLDERS = ("ADE20K_2021_17_01", ".")
FULL = {
    "validation": Release(
        title="ADE20K-847 (2021_17_01), validation", counts=(2000,), source=FULL_SOURCE, numbering="ADE_val_{:08d}"
    ),
    "training": Release(title="ADE20K-847 (2021_17_01), training", counts=(25574,), source=FULL_SOURCE),
}
JSON_DISAGREES = "ids unlike those in its JSON file"


def ade20k_150_ids() -> LabelIds:
    """Label pictures hold 0 for unlabelled and class + 1, 1..150, by share of pixels: 1 is wall."""
    vocabulary = published_vocabulary("ade20k-150")
    return LabelIds(
        vocabulary=vocabulary,
        raw_to_class={index + 1: index for index in range(vocabulary.num_classes)},
        raw_ignore=(0,),
    )


@cache
def ade20k_847_ids() -> LabelIds:
    """`_seg.png` files hold the release's ids, 1..3688; 847 are classes, by frequency, the others and 0 are ignored.

    `vocabularies/ade20k_847_ids.txt` has the release's id of each class of `ade20k_847.txt`, line by line.
    """
    lines = (VOCABULARIES / "ade20k_847_ids.txt").read_text(encoding="utf-8").split()
    raw_to_class = {int(raw): index for index, raw in enumerate(lines)}
    return LabelIds(
        vocabulary=published_vocabulary("ade20k-847"),
        raw_to_class=raw_to_class,
        raw_ignore=tuple(raw for raw in range(3689) if raw not in raw_to_class),
        label_form="ade-full",
        max_short_side_px=512,
    )


def find_ade20k_150(root: Path, split: str, *, listed_in: Path | None = None) -> Archive:
    """A split of the scene parsing challenge (ADEChallengeData2016) below `root`; `listed_in` selects samples."""
    release = CHALLENGE[split]
    places = [f"{sub}/images/{split}" for sub in CHALLENGE_FOLDERS]
    if not any((root / place).is_dir() for place in (*places, f"{CHALLENGE_FOLDERS[0]}/images")):
        for folder in (root / sub for sub in FULL_FOLDERS):
            if (folder / "images" / "ADE").is_dir():
                raise _wrong_release(folder, release, "the full release (ADE20K-847)")
    images = existing_folder(root, places, "photographs", release)
    labels = existing_folder(images.parents[1], [f"annotations/{split}"], "label pictures", release)
    return Archive(
        release=release,
        ids=ade20k_150_ids(),
        images=files_by_stem(images.resolve(), IMAGE_SUFFIXES, "photographs"),
        labels=files_by_stem(labels.resolve(), (".png",), "label pictures"),
        listed=read_list(listed_in) if listed_in else None,
        listed_in=listed_in,
    )


def find_ade20k_847(root: Path, split: str, *, listed_in: Path | None = None) -> Archive:
    """A split of the full release below `root`; `listed_in` selects samples.

    Photographs and labels lie together in folders by scene.
    """
    release = FULL[split]
    places = [f"{sub}/images/ADE/{split}" for sub in FULL_FOLDERS]
    if not any((root / sub / "images" / "ADE").is_dir() for sub in FULL_FOLDERS):
        for folder in (root / sub for sub in (*FULL_FOLDERS, *CHALLENGE_FOLDERS, "ADE20K_2016_07_26")):
            if (folder / "annotations" / split).is_dir():
                raise _wrong_release(folder, release, "the scene parsing challenge (ADE20K-150)")
            if (folder / "images" / split).is_dir():
                raise _wrong_release(folder, release, "the release of 2016, whose ids mean other things")
    scenes = existing_folder(root, places, "scenes", release)
    images, labels = _scene_files(scenes.resolve())
    return Archive(
        release=release,
        ids=ade20k_847_ids(),
        images=images,
        labels=labels,
        listed=read_list(listed_in) if listed_in else None,
        listed_in=listed_in,
        cross_check=check_against_json,
        refuse=partial(_refuse_other_ids, scenes, release),
    )


FINDERS = {"ade20k-150": find_ade20k_150, "ade20k-847": find_ade20k_847}


def check_against_json(pair: Pair, raw: npt.NDArray[Any]) -> str:
    """Compare a scene's ids with the objects in the JSON file beside it: ids, and the names of the 847 classes.

    The PNG may lack an object (another one covers it), never have one more.
    """
    try:  # the release's own reader takes Latin-1: not all of its files are UTF-8
        text = read_regular(pair.image.with_suffix(".json")).decode("latin-1")
        objects = json.loads(text)["annotation"]["object"]
        names = {int(entry["name_ndx"]): ", ".join(map(str.strip, entry["name"].split(","))) for entry in objects}
    except FileNotFoundError:
        return "no JSON file beside it"
    except (OSError, ValueError, KeyError, TypeError):
        return "its JSON file cannot be read"
    ids = ade20k_847_ids()
    known = {raw_id: ids.vocabulary.classes[index] for raw_id, index in ids.raw_to_class.items() if raw_id in names}
    extra = set(np.flatnonzero(np.bincount(raw.ravel())).tolist()) - names.keys() - {0}
    return JSON_DISAGREES if extra or any(names[raw_id] != name for raw_id, name in known.items()) else ""


def _refuse_other_ids(scenes: Path, release: Release, checked: Checked) -> None:
    """A scene or two whose JSON file disagrees are noted in their rows; where most do, the ids mean other things."""
    doubtful = [sample.sample_id for sample in checked.manifest.samples if JSON_DISAGREES in sample.note]
    if 2 * len(doubtful) > len(checked.manifest):
        where = f"{scenes}: {len(doubtful)} of {len(checked.manifest)} scenes"
        got = "another release or converted labels"
        where = f"{where} have {JSON_DISAGREES} ({preview(sorted(doubtful))})"
        raise ManifestError.mismatch(where, release.title, got, hint=release.source)


def _scene_files(scenes: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Photographs and `_seg.png` files by scene name; the folders named after a scene hold masks of its instances."""
    found: dict[str, dict[str, Path]] = {".jpg": {}, "_seg.png": {}}
    for folder, subfolders, files in os.walk(scenes):
        subfolders[:] = sorted(name for name in subfolders if not re.fullmatch(r"ADE_[a-z]+_\d+", name))
        for file in files:
            suffix = next(filter(file.endswith, found), None)
            if suffix is None or file.startswith("."):
                continue
            name, path = file.removesuffix(suffix), Path(folder, file)
            if name in found[suffix]:
                both = f"{found[suffix][name]} and {path}"
                raise ManifestError.mismatch(scenes, "one file per scene", both, hint="remove one of them")
            found[suffix][name] = path
    if not all(found.values()):
        raise ManifestError.mismatch(scenes, "scenes (.jpg with _seg.png)", "none", hint=FULL_SOURCE)
    return found[".jpg"], found["_seg.png"]


def _wrong_release(folder: Path, release: Release, got: str) -> ManifestError:
    return ManifestError.mismatch(folder, release.title, got, hint=release.source)
