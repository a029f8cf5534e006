"""Fetch pretrained CLIP weights by open_clip's tag into the cache; the only part of physseg that uses a network.

open_clip knows the tags, where each lies, and which activation and normalisation of images it needs.
"""

import errno
import os
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ... import __version__
from ...common.atomic import atomic_folder, atomic_json, file_lock, remove_partials
from ...common.progress import ProgressBar
from ...common.storage.credentials import masked
from ...common.storage.location import without_credentials
from ...common.text import align, format_bytes
from ..errors import WeightsError
from ..model.backbones.interface import OPENAI_MEAN, OPENAI_STD, published_names
from .cache import NEEDS, OWN, RECORD_FILE, WeightsRecord, file_sha256, find_clip_weights, read_record, weights_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One place that has a tag's weights."""

    url: str
    """Web address of the file."""
    sha256: str = ""
    """sha256 of the file, or its first digits, where the address tells it."""
    repository: str = ""
    """Repository on Hugging Face, if the file is there; its own client fetches it then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedTag:
    """Published weights of a backbone; what they share with `WeightsRecord` has the same names."""

    clip: str
    tag: str
    quick_gelu: bool
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD
    sources: tuple[Source, ...]
    """Places that have the weights, in the order in which they are tried."""


@cache
def pretrained_tags() -> tuple[PretrainedTag, ...]:
    """All tags of physseg's own backbones, in open_clip's order."""
    import open_clip

    found = []
    for clip in published_names():
        for tag in open_clip.list_pretrained_tags_by_model(clip):
            facts = open_clip.get_pretrained_cfg(clip, tag)
            one = PretrainedTag(
                clip=clip,
                tag=tag,
                quick_gelu=facts.get("quick_gelu", False),
                image_mean=tuple(facts["mean"]),
                image_std=tuple(facts["std"]),
                sources=_sources(facts.get("url", ""), facts.get("hf_hub", "")),
            )
            found.append(one)
    return tuple(found)


def tags_of(clip: str | None) -> tuple[PretrainedTag, ...]:
    """The tags of one backbone, or of all. Raises WeightsError, which lists those that have any, for one without."""
    tags = pretrained_tags()
    if found := tuple(one for one in tags if clip in (None, one.clip)):
        return found
    known = ", ".join(dict.fromkeys(one.clip for one in tags))
    raise WeightsError(f"{clip!r} has no published weights", hint=f"those that have: {known}")


def find_tag(tag: str, clip: str | None) -> PretrainedTag:
    """The tag of that name.

    Raises:
        WeightsError: There is none, several backbones have it and `clip` is None, or it is one of the package's own.
    """
    if tag in OWN and clip in (None, OWN[tag]):
        raise WeightsError(f"{tag!r} is in the package", hint=f'clip_weights = "{tag}" needs no fetching')
    tags = tags_of(clip)
    matching = [one for one in tags if one.tag == tag]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(one.clip for one in matching)
        raise WeightsError(f"{tag!r} is a tag of {names}", hint=f"say which, for example --clip {matching[0].clip}")
    known = ", ".join(dict.fromkeys(one.tag for one in tags))
    raise WeightsError(f"{tag!r} is no tag of {clip or 'any preset'}", hint=f"known: {known}")


def listing(clip: str | None = None) -> list[dict[str, Any]]:
    """Tags, of one backbone or of all, with what is known. Bytes, sha256 and file are None for what is not cached."""
    own = [_own(tag, preset) for tag, preset in OWN.items() if clip in (None, preset)]
    return [
        {
            "clip": one.clip,
            "tag": one.tag,
            "activation": "QuickGELU" if one.quick_gelu else "GELU",
            "image_mean": one.image_mean,
            "image_std": one.image_std,
            "bytes": record and record.num_bytes,
            "sha256": record and record.sha256,
            "file": record and str(weights_folder(one.clip, one.tag) / record.file),
            "sources": [masked(source.url) for source in one.sources],
        }
        for one, record in ((one, read_record(one.clip, one.tag)) for one in (() if own and clip else tags_of(clip)))
    ] + own


def _own(tag: str, clip: str) -> dict[str, Any]:
    one = find_clip_weights(tag, clip)
    known = {"bytes": one.path.stat().st_size, "sha256": one.sha256, "file": str(one.path), "sources": []}
    means = {"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
    return {"clip": clip, "tag": tag, "activation": "GELU", **means, **known}


def listing_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same as a table for the terminal."""
    rows = [("clip", "tag", "activation", "image mean", "")]
    for entry in entries:
        place = "cached" if entry["sources"] else "in the package"
        known = f"{place}, {format_bytes(entry['bytes'])}, sha256 {entry['sha256'][:16]}" if entry["sha256"] else ""
        mean = "OpenAI's" if entry["image_mean"] == OPENAI_MEAN else " ".join(map(str, entry["image_mean"]))
        rows.append((entry["clip"], entry["tag"], entry["activation"], mean, known))
    return align(rows, right=())


def fetch(tag: PretrainedTag, *, url: str | None = None) -> tuple[WeightsRecord, bool]:
    """Bring a tag's weights into the cache; returns their record, and whether anything had to be fetched.

    `url` is another place, such as a mirror. A hash that the tag's own address tells is still required.

    Raises:
        WeightsError: No place has them, and the message names each one's answer; or what came is not the file.
    """
    sources = (Source(url=without_credentials(url), sha256=tag.sources[0].sha256),) if url else tag.sources
    folder = weights_folder(tag.clip, tag.tag)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.parent, wait_seconds=None):  # whoever waited finds the work done
        known = read_record(tag.clip, tag.tag)
        if known is not None and (folder / known.file).is_file() and file_sha256(folder / known.file) == known.sha256:
            return known, False
        remove_partials(folder.parent)
        failures = []
        for source in sources:
            try:
                return _fetch_from(source, tag, folder), True
            except WeightsError:  # it was there, but is not the file: going elsewhere would hide that
                raise
            except Exception as error:  # no connection, no such file: each HTTP library has errors of its own
                of_disk = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
                if isinstance(error, OSError) and error.errno in of_disk:
                    raise  # no place can help a cache that cannot be written
                cause = error.__cause__ or error  # the hub's client speaks of its own cache first
                inner = getattr(cause, "reason", None)  # what no connection means; an HTTP status has a word there
                cause = inner if isinstance(inner, Exception) else cause
                reason = (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).splitlines()[0]
                failures.append(f"{source.url}: {reason}")
    hint = "on a machine without a network, fetch it elsewhere and name the file as `clip_weights`"
    raise WeightsError(f"{tag.clip} {tag.tag}: could not be fetched: {'; '.join(failures)}", hint=hint)


def _sources(url: str, hub: str) -> tuple[Source, ...]:
    """Places from open_clip's two fields: a web address, and a repository of Hugging Face with or without a file."""
    direct = [Source(url=url, sha256=_hash_in(url))] if url else []
    if not hub:
        return tuple(direct)
    repository, _, file = hub.rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    base = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    on_hub = [Source(url=f"{base}/{repository}/resolve/main/{name}", repository=repository) for name in names]
    # An address that tells the file's hash comes first.
    return tuple(direct + on_hub if direct and direct[0].sha256 else on_hub + direct)


def _hash_in(url: str) -> str:
    """The sha256, or its first digits, that OpenAI's and open_clip's own addresses contain."""
    *_, folder, name = url.split("/")
    if "openaipublic" in url:
        return folder
    return name.rpartition("-")[2].partition(".")[0] if "mlfoundations" in url else ""


def _fetch_from(source: Source, tag: PretrainedTag, folder: Path) -> WeightsRecord:
    """Put a source's file and its record into the folder, atomically.

    Raises WeightsError if the file came torn or is another one than announced.
    """
    with atomic_folder(folder, replace=True) as partial:
        file = partial / _file_name(source.url)
        expected = source.sha256
        if source.repository:
            expected = _from_hub(source, file)
        else:
            _from_web(source.url, file)
        size, found = file.stat().st_size, file_sha256(file)
        if not found.startswith(expected):
            hint = "try again; if it stays so, something between here and there changes the file"
            got = f"{found} ({size} bytes); nothing was kept"
            raise WeightsError.mismatch(source.url, f"sha256 {expected}", got, hint)
        record = WeightsRecord(
            **{name: getattr(tag, name) for name in ("clip", "tag", *NEEDS)},
            file=file.name,
            url=masked(source.url),
            num_bytes=size,
            sha256=found,
            version=__version__,
        )
        atomic_json(partial / RECORD_FILE, asdict(record))
    return record


def _from_hub(source: Source, target: Path) -> str:
    """Download by Hugging Face's own client; returns the sha256 that the hub announces, or ""."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download

    endpoint = source.url.partition(f"/{source.repository}/resolve/")[0]
    hf_hub_download(source.repository, target.name, local_dir=target.parent, endpoint=endpoint)
    # The client's notes for a folder that stays in step with a repository.
    shutil.rmtree(target.parent / ".cache", ignore_errors=True)
    etag = get_hf_file_metadata(source.url).etag or ""
    return etag if len(etag) == 64 else ""  # files outside the hub's large-file storage have a shorter git hash


def _from_web(url: str, target: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"physseg/{__version__}"})
    with urllib.request.urlopen(request, timeout=60) as response, target.open("wb") as file:
        total = int(response.headers.get("Content-Length", -1))
        with ProgressBar.wrapattr(file, "write", total=max(total, 0), desc=target.name) as shown:
            shutil.copyfileobj(response, shown, 1 << 20)
        if 0 <= file.tell() < total:  # neither urllib nor open_clip's own downloader notices
            raise WeightsError(f"{url}: the connection ended after {file.tell()} of {total} bytes", hint="try again")


def _file_name(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise WeightsError(f"{url}: expected an address that begins with https:// or http://")
    name = urlsplit(url).path.rpartition("/")[2]
    if not name or name.startswith("."):
        raise WeightsError(f"{url}: the address does not end in a file's name")
    return name
