"""Fetch pretrained CLIP weights by open_clip's tag into the cache; the only part of physseg that uses a network.

open_clip knows the tags, where each lies and which activation it needs. Weights with another normalisation of their
input than OpenAI's are left out: the segmenter's is fixed.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ... import __version__
from ..errors import WeightsError
from ..model.backbones.clip_presets import PRETRAINED
from .cache import RECORD_FILE, WeightsRecord, read_record, weights_folder, write_record
from .download import Downloaded, download, file_sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place that has a tag's weights."""

    url: str
    sha256: str = ""
    """Of the file, or its first digits, where the address tells it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedTag:
    """Published weights of a preset."""

    clip: str
    tag: str
    quick_gelu: bool
    """Whether they were trained with QuickGELU; else with GELU."""
    sources: tuple[Source, ...]
    """In the order they are tried."""


@cache
def pretrained_tags() -> tuple[PretrainedTag, ...]:
    """All tags of all presets, in open_clip's order."""
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    found = []
    for clip in PRETRAINED:
        for tag in open_clip.list_pretrained_tags_by_model(clip):
            facts = open_clip.get_pretrained_cfg(clip, tag)
            if (tuple(facts["mean"]), tuple(facts["std"])) != (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD):
                continue
            sources = _sources(facts.get("url", ""), facts.get("hf_hub", ""))
            found.append(PretrainedTag(clip=clip, tag=tag, quick_gelu=facts.get("quick_gelu", False), sources=sources))
    return tuple(found)


def find_tag(tag: str, clip: str | None) -> PretrainedTag:
    """The tag of that name; WeightsError if there is none, or if several presets have it and `clip` does not say."""
    tags = pretrained_tags()
    matching = [one for one in tags if one.tag == tag and clip in (None, one.clip)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(one.clip for one in matching)
        raise WeightsError(f"{tag!r} is a tag of {names}", hint=f"say which, for example --clip {matching[0].clip}")
    if clip is not None and clip not in PRETRAINED:
        raise WeightsError(f"{clip!r} has no published weights", hint=f"those that have: {', '.join(PRETRAINED)}")
    known = ", ".join(dict.fromkeys(one.tag for one in tags if clip in (None, one.clip)))
    raise WeightsError(f"{tag!r} is no tag of {clip or 'any preset'}", hint=f"known: {known}", expected=known, got=tag)


def listing() -> list[dict[str, Any]]:
    """All tags with what is known of them; bytes, sha256 and file are None for what is not in the cache."""
    entries = []
    for one in pretrained_tags():
        record = read_record(one.clip, one.tag)
        entries.append(
            {
                "clip": one.clip,
                "tag": one.tag,
                "activation": "QuickGELU" if one.quick_gelu else "GELU",
                "bytes": record and record.num_bytes,
                "sha256": record and record.sha256,
                "file": record and str(weights_folder(one.clip, one.tag) / record.file),
                "sources": [source.url for source in one.sources],
            }
        )
    return entries


def listing_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a table for the terminal."""
    lines = [f"{'clip':13} {'tag':26} {'activation':10}"]
    for entry in entries:
        known = f"cached, {entry['bytes'] / 1e6:.0f} MB, sha256 {entry['sha256'][:16]}" if entry["sha256"] else ""
        lines.append(f"{entry['clip']:13} {entry['tag']:26} {entry['activation']:10} {known}".rstrip())
    return lines


def fetch(tag: PretrainedTag, *, url: str | None = None, progress: bool = True) -> tuple[WeightsRecord, bool]:
    """Bring a tag's weights into the cache; returns their record, and whether anything had to be fetched.

    `url` names another place, such as a mirror; a hash that the tag's own address tells is still required. Raises
    WeightsError if no place has them, naming what each one answered.
    """
    folder = weights_folder(tag.clip, tag.tag)
    with _locked(folder):
        known = read_record(tag.clip, tag.tag) if (folder / RECORD_FILE).exists() else None
        if known is not None and _is_whole(folder / known.file, known.sha256):
            return known, False
        sources = (Source(url=url, sha256=tag.sources[0].sha256),) if url else tag.sources
        source, file = _first_that_answers(tag, sources, folder, progress=progress)
        record = WeightsRecord(
            clip=tag.clip,
            tag=tag.tag,
            file=file.path.name,
            url=source.url,
            num_bytes=file.num_bytes,
            sha256=file.sha256,
            quick_gelu=tag.quick_gelu,
            version=__version__,
        )
        write_record(record)
        return record, True


# --- helpers --------------------------------------------------------------------------------------------------------


def _sources(url: str, hub: str) -> tuple[Source, ...]:
    """Places from open_clip's two fields: a web address, and a repository of Hugging Face with or without a file."""
    direct = [Source(url=url, sha256=_hash_in(url))] if url else []
    if not hub:
        return tuple(direct)
    repository, _, file = hub.rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    on_hub = [Source(url=f"{base}/{repository}/resolve/main/{name}") for name in names]
    # An address that tells the file's hash comes first.
    return tuple(direct + on_hub if direct and direct[0].sha256 else on_hub + direct)


def _hash_in(url: str) -> str:
    """The sha256, or its first digits, that OpenAI's and open_clip's own addresses contain."""
    *_, folder, name = url.split("/")
    if "openaipublic" in url:
        return folder
    return name.rpartition("-")[2].partition(".")[0] if "mlfoundations" in url else ""


def _first_that_answers(
    tag: PretrainedTag, sources: tuple[Source, ...], folder: Path, *, progress: bool
) -> tuple[Source, Downloaded]:
    failures = []
    for source in sources:
        target = folder / _file_name(source.url)
        try:
            return source, download(source.url, target, sha256=source.sha256, progress=progress)
        except WeightsError as error:
            failures.append(error)
            if "expected" in error.fields:  # it was there, but did not come whole: going elsewhere would hide that
                raise
    listed = "; ".join(str(error.args[0]) for error in failures)
    raise WeightsError(f"{tag.clip} {tag.tag}: could not be fetched: {listed}", hint=failures[-1].hint)


def _file_name(url: str) -> str:
    name = urlsplit(url).path.rpartition("/")[2]
    if not name or name.startswith("."):
        raise WeightsError(f"{url}: the address does not end in a file's name")
    return name


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time fetches into a folder; the next one finds the work done."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
