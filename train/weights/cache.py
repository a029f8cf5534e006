"""Pretrained CLIP weights on this machine: the cache of fetched ones, and what a run's `clip_weights` names.

    CACHE/clip/ViT-B-16/openai/ViT-B-16.pt      as it was published
    CACHE/clip/ViT-B-16/openai/weights.json     where it came from, size, sha256, what it needs; written last

CACHE is $PHYSSEG_CACHE, or ~/.cache/physseg. Nothing here uses a network: see fetch.py. The package has weights
of its own, beside this module: `scenes`, of the tiny CLIP (scenes.md).
"""

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...common.documents import parsing
from ...common.regular_files import read_regular
from ...common.settings import build, is_name
from ..errors import WeightsError
from ..model.backbones.interface import OPENAI_MEAN, OPENAI_STD, published_names
from .clip_weights import is_openai_form

RECORD_FILE = "weights.json"
OWN = {"scenes": "tiny"}
"""Tags of the package's own weights, and the preset that they fit."""
NEEDS = ("quick_gelu", "image_mean", "image_std")
"""What weights decide of a model: settings of the same names, which nobody needs to set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsRecord:
    """What is known of fetched weights; the content of `weights.json`."""

    clip: str
    """Name of the preset that the weights fit."""
    tag: str
    """open_clip's name for the weights."""
    file: str
    """Name of the weights file, which lies beside the record."""
    url: str
    """Address that the file came from."""
    num_bytes: int
    sha256: str
    quick_gelu: bool
    """Whether the weights were trained with QuickGELU instead of GELU."""
    version: str
    """Version of physseg that fetched the file."""
    image_mean: tuple[float, ...] = OPENAI_MEAN
    """Mean of red, green and blue that the weights were trained with. A record without one is of before others could be
    fetched."""
    image_std: tuple[float, ...] = OPENAI_STD
    """Standard deviations that the weights were trained with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipWeights:
    """A file of CLIP weights that a run may begin with."""

    name: str
    """Tag or path, as the configuration says it."""
    path: Path
    sha256: str
    quick_gelu: bool | None
    """Whether the weights need QuickGELU, or None if the file does not tell."""
    image_mean: tuple[float, ...] | None = None
    """Mean that images are normalised by, or None if the file does not tell."""
    image_std: tuple[float, ...] | None = None
    """Standard deviations that images are normalised by, or None if the file does not tell."""

    def facts(self) -> dict[str, Any]:
        """For a run's records."""
        return {"name": self.name, "file": self.path.name, "sha256": self.sha256}


def cache_folder() -> Path:
    """$PHYSSEG_CACHE, or ~/.cache/physseg."""
    return Path(os.environ.get("PHYSSEG_CACHE") or "~/.cache/physseg").expanduser()


def weights_folder(clip: str, tag: str) -> Path:
    """Where fetched weights of a preset and tag lie, or will."""
    return cache_folder() / "clip" / clip / tag


def read_record(clip: str, tag: str) -> WeightsRecord | None:
    """The record of fetched weights, or None if there are none.

    Raises:
        WeightsError: The record cannot be read.
    """
    path = weights_folder(clip, tag) / RECORD_FILE
    if not path.exists():
        return None
    with parsing(WeightsError, f"{path}: not a record of fetched weights", _fetch_hint(clip, tag)):
        content = json.loads(read_regular(path))
        known = {field.name: content[field.name] for field in fields(WeightsRecord) if field.name in content}
        return build(WeightsRecord, known, base=path.parent)


def file_sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_clip_weights(name: str, clip: str) -> ClipWeights:
    """The file that `clip_weights = name`, a tag or a path, means for the preset `clip`; hashed.

    Raises:
        WeightsError: The tag was not fetched, the file is not there, or a cached file is not the one that was fetched.
    """
    if not is_name(name):
        path = Path(name)
        if not path.is_file():
            raise WeightsError(f"clip_weights: {path}: no such file", hint="expected a tag, or a file of CLIP weights")
        quick_gelu = True if is_openai_form(path) else None
        return ClipWeights(name=name, path=path, sha256=file_sha256(path), quick_gelu=quick_gelu)
    if name in OWN:
        if clip != OWN[name]:
            raise WeightsError.mismatch(f"clip_weights {name!r}", f"model.clip {OWN[name]!r}", repr(clip))
        path = Path(__file__).with_name(f"{name}.safetensors")
        own = file_sha256(path) if path.is_file() else "no file"
        if f"`{own}`" not in path.with_suffix(".md").read_text(encoding="utf-8"):
            raise WeightsError.mismatch(path, "the sha256 of its card", own, "install physseg again")
        return ClipWeights(name=name, path=path, sha256=own, quick_gelu=False)
    record = read_record(clip, name)
    if record is None:
        fetch = _fetch_hint(clip, name) if clip in published_names() else f"nobody has published weights for {clip}"
        hint = f"{fetch}; `physseg weights list` shows all tags; a file needs a slash or a dot"
        raise WeightsError(f"clip_weights: {name!r} for {clip} is not in the cache {cache_folder()}", hint=hint)
    path = weights_folder(clip, name) / record.file
    found = file_sha256(path) if path.is_file() else None
    if found != record.sha256:
        raise WeightsError.mismatch(path, f"sha256 {record.sha256}", found or "no file", _fetch_hint(clip, name))
    needs = {field: getattr(record, field) for field in NEEDS}
    return ClipWeights(name=name, path=path, sha256=found, **needs)


def _fetch_hint(clip: str, tag: str) -> str:
    return f"physseg weights fetch {tag} --clip {clip}"
