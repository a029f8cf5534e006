"""Every sample is read once and checked: what cannot be used is named in its row, never dropped."""

import errno
import hashlib
import logging
import pickle
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg

from .. import __version__
from ..common.processes import available_cpus, in_processes, keep_freed_memory
from ..common.progress import ProgressBar
from ..common.regular_files import read_regular
from ..common.text import counted, evenly, spread_of
from .decoding import MAX_MEGAPIXELS, ONE_CHANNEL, SMALL_NUMBERS, SMALLER, STILL, check_png, decode_image, is_png
from .errors import DecodeError, LabelFormatError, ManifestError
from .journal import Journal, Record, state_of
from .labels.forms import decode_raw
from .labels.ids import LabelIds
from .labels.short_side import capped_size
from .manifest import Manifest, Sample, SampleTable
from .pairing import Pair, common_root
from .photographs import COLOURS, DAMAGED, DEFAULT_MEGAPIXELS, PLAIN_COLOURS, ImageFacts, check_image, colour_fault

CHUNK = 8  # samples a task: hides the bookkeeping, and is little to lose where a run is killed
SAMPLES_PER_PROCESS = 128
"""Samples that are worth a process: its start takes 0.4 s, a sample of COCO 5 ms."""
TRIAL_SAMPLES, TRIAL_SECONDS = 128, 10.0
"""Samples a process that are checked to see how long all take, and seconds after which no more are."""

# Reasons of quarantine, as they begin a sample's `problem`, each with the repair.
REPAIRS = {
    "unreadable image": "copy or download the files again",
    "unreadable label": "copy or download the files again",
    "image format": "convert to JPEG or PNG",
    "JPEG warning": DAMAGED,
    "image too large": SMALLER,
    "label too large": SMALLER,
    "animated picture": STILL,
    "image mode": PLAIN_COLOURS,
    "equal channels": ONE_CHANNEL,
    "label numbers": SMALL_NUMBERS,
    "label format": LabelFormatError.default_hint,
    "EXIF orientation": "`--exif apply` if labels were drawn on turned images, `--exif ignore` if on images as stored",
    "size mismatch": "resize the label with nearest neighbour, or find the image it was drawn on",
    "unknown ids": "correct the label, or take it out of its archive again; in a data set of your own, say what the id "
    "means: a line in --classes-file, --ignore, or --first-id 1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """How strict the checks are."""

    exif: str = "error"
    """What happens to images with an EXIF orientation other than 1: error (quarantine), apply (turn) or ignore."""
    max_megapixels: float = DEFAULT_MEGAPIXELS
    """Size of the largest image, and of the largest label, that is accepted. Others are refused from their header."""
    allow_jpeg_warnings: bool = False
    """Whether a JPEG that decodes with a warning is used, with a note; otherwise it is quarantined."""
    workers: int = 0
    """Number of processes; 0 for as many as there are CPUs that this one may use. Few samples are checked by fewer."""

    def __post_init__(self) -> None:
        if self.exif not in ("error", "apply", "ignore"):
            raise ManifestError.mismatch("exif", "error, apply or ignore", repr(self.exif))
        if not 0 < self.max_megapixels <= MAX_MEGAPIXELS:
            expected = f"more than 0 and at most {MAX_MEGAPIXELS:g} (Pillow's own limit)"
            raise ManifestError.mismatch("max_megapixels", expected, self.max_megapixels)
        if self.workers < 0:
            raise ManifestError.mismatch("workers", "0 or more", self.workers)


DEFAULT_CHECKS = CheckSettings()
CrossCheck = Callable[[Pair, npt.NDArray[Any]], str]
"""What another file of the archive says against a pair's raw ids: a note for its row, "" where all agrees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A manifest with what was counted on the way."""

    manifest: Manifest
    class_pixels: npt.NDArray[np.int64]
    """Number of pixels of each class in all usable samples, (T,)."""
    ignored_pixels: int
    """Number of pixels without a class in all usable samples."""
    raw_ids: frozenset[int]
    """Every raw id that stands in a label, in those of quarantined samples, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCheck:
    """All that a row depends on besides its files; called with a pair, also in another process, it makes the row."""

    root: Path
    """The folder that holds all files."""
    ids: LabelIds
    split: str
    settings: CheckSettings = DEFAULT_CHECKS
    cross_check: CrossCheck | None = None

    @classmethod
    def of(cls, pairs: Sequence[Pair], **known: Any) -> Self:
        """The check of these pairs, with the fields besides `root`. Raises ManifestError where there is none."""
        if not pairs:
            raise ManifestError("expected at least one image with its label, got none")
        root = common_root(*{pair.image.parent for pair in pairs}, *{pair.label.parent for pair in pairs})
        return cls(root=root, **known)

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that, and of the versions of what decodes."""
        versions = (__version__, cv2.__version__, PIL.__version__, simplejpeg.__version__)
        # By a name: what a partial prints has addresses in it, and no run would resume another's journal.
        cross_check = getattr(self.cross_check, "__qualname__", type(self.cross_check).__qualname__)
        known = (versions, self.root, self.ids, self.split, replace(self.settings, workers=0), cross_check)
        return hashlib.sha256(repr(known).encode()).hexdigest()

    def workers(self, count: int) -> int:
        """Number of processes for that many samples: one a core, unless its start would take longer than its work."""
        workers = min(self.settings.workers or available_cpus(), count // SAMPLES_PER_PROCESS)
        if workers > 1:
            try:
                pickle.dumps(self)
            except Exception as error:
                alone = "warning: one process checks all samples: what the data set gives cannot be sent to others: %s"
                logging.getLogger(__name__).warning(alone, error)
                return 1
        return max(1, workers)

    def __call__(self, pair: Pair) -> Record:
        """What the pair's files hold. Raises ManifestError where one cannot be read at all."""
        state, image_bytes, label_bytes = _read(pair)
        root = f"{self.root}/".replace("//", "/")
        image_name, label_name = str(pair.image).removeprefix(root), str(pair.label).removeprefix(root)
        notes = [pair.note] if pair.note else []
        problems: list[str] = []
        facts = raw = None
        with _quarantine(problems, "unreadable image", image_name):
            allowed = self.settings.allow_jpeg_warnings
            facts = check_image(image_bytes, max_megapixels=self.settings.max_megapixels, allow_jpeg_warnings=allowed)
        with _quarantine(problems, "unreadable label", label_name):
            check_png(label_bytes)  # whose damage decoders do not notice
            raw = decode_raw(label_bytes, self.ids.label_form, self.settings.max_megapixels)
        orientation, size = 1, (0, 0)
        if facts is not None:
            orientation = facts.orientation if self.settings.exif == "apply" else 1
            size = facts.size_after(orientation)
            label_size = None if raw is None else (raw.shape[0], raw.shape[1])
            more_problems, more_notes = judge_image(facts, image_name, label_size, self.settings.exif)
            problems += more_problems or _check_fast_decoder(image_bytes, image_name, orientation, size)
            notes += more_notes
            if label_size and label_size != size and not problems:
                expected = f"{size[0]} x {size[1]} pixels (h x w) as {image_name}"
                got = f"{label_size[0]} x {label_size[1]}"
                problems.append(f"size mismatch: {label_name}: expected {expected}, got {got}")
        labelled, seen = np.zeros(0, np.int64), set[int]()
        if raw is not None:
            if self.cross_check is not None:
                notes += filter(None, [self.cross_check(pair, raw)])
            labelled, unknown, seen = count_classes(raw, self.ids)
            if unknown:
                expected = f"ids of the {counted(self.ids.vocabulary.num_classes, 'class')}"
                problems.append(f"unknown ids: {label_name}: expected {expected}, got {unknown}")
            elif not labelled[:-1].any():
                notes.append("no labelled pixel")
        height, width = capped_size(*size, self.ids.max_short_side_px)
        sample = Sample(
            sample_id=pair.sample_id,
            image_path=image_name,
            label_path=label_name,
            height=height,
            width=width,
            image_sha256=hashlib.sha256(image_bytes).hexdigest(),
            label_sha256=hashlib.sha256(label_bytes).hexdigest(),
            split=self.split,
            orientation=orientation,
            problem="; ".join(problems),
            note="; ".join(notes),
        )
        occurring = [] if problems else np.flatnonzero(labelled).tolist()
        pixels = list(zip(occurring, labelled[occurring].tolist(), strict=True))
        return Record(state=state, sample=sample, pixels=pixels, raw_ids=sorted(seen))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial(Checked):
    """A few samples of many, checked to see how long all of them take; its manifest holds those alone."""

    num_samples: int
    """Number of samples that there are."""
    num_bytes: int
    """Bytes of all files, reckoned from those that were read."""
    workers: int
    sample_seconds: float
    """Seconds a sample, in one of as many processes as there will be."""
    wall_seconds: tuple[float, float]
    """Seconds of the whole, at the short and at the long end of the spread."""


def check_samples(
    pairs: Sequence[Pair],
    ids: LabelIds,
    *,
    dataset: str,
    split: str,
    settings: CheckSettings = DEFAULT_CHECKS,
    cross_check: CrossCheck | None = None,
    journal: Journal | None = None,
) -> Checked:
    """Read and check all pairs, in parallel, and make the manifest; its root is the folder that holds all files.

    Content problems become the `problem` of a row. What a `journal` has of the same files is not read again.

    Raises:
        ManifestError: There is no pair, or every one has a problem: then something is wrong with the arguments rather
            than with the files. Or a process died.
    """
    check = PairCheck.of(pairs, ids=ids, split=split, settings=settings, cross_check=cross_check)
    ordered = sorted(pairs, key=lambda pair: pair.sample_id)
    with nullcontext(journal) if journal else Journal() as records:
        records.begin(check.digest, ordered)
        pending = records.pending
        results = check_chunks(check, ordered, pending, check.workers(len(pending)))
        with (
            ProgressBar(total=len(ordered), initial=records.num_done, desc="checking", unit="image") as progress,
            closing(results),
        ):
            for chunk, lines, _ in results:
                records.add(chunk, lines)
                progress.update(len(chunk))
        assert not len(records.pending), "samples without a row"
        return _summed(records, check, dataset)


def try_samples(pairs: Sequence[Pair], ids: LabelIds, *, dataset: str, **known: Any) -> Trial:
    """Check a few of the pairs, evenly spread, as `check_samples` would, which has the arguments and the errors."""
    check = PairCheck.of(pairs, ids=ids, **known)
    workers, ordered = check.workers(len(pairs)), sorted(pairs, key=lambda pair: pair.sample_id)
    chosen = [ordered[index] for index in evenly(range(len(ordered)), TRIAL_SAMPLES * workers)]
    turns = -(-len(chosen) // CHUNK)  # chunks of all parts of the data set, as there may be no time for all chunks
    spread = np.concatenate([np.arange(first, len(chosen), turns) for first in range(turns)])
    seconds: list[float] = []
    with Journal() as records:
        records.begin(check.digest, chosen)
        began, start = time.monotonic(), 0.0
        with closing(check_chunks(check, chosen, spread, workers)) as results:
            for chunk, lines, took in results:
                records.add(chunk, lines)
                start = start or time.monotonic() - began - took
                seconds.append(took / len(chunk))
                if time.monotonic() > began + start + TRIAL_SECONDS:
                    break
        found = _summed(records, check, dataset)
        num_bytes = [record.state[3] + record.state[5] for record in records]
    warm = seconds[workers:] or seconds  # the first of a process takes longer
    mean, error = float(np.mean(warm)), spread_of(warm)
    short, long = (start + len(pairs) * mean / workers * share for share in (1 - error, 1 + error))
    return Trial(
        **{field.name: getattr(found, field.name) for field in fields(Checked)},
        num_samples=len(pairs),
        num_bytes=round(float(np.mean(num_bytes)) * len(pairs)),
        workers=workers,
        sample_seconds=mean,
        wall_seconds=(short, long),
    )


def check_chunks(
    check: PairCheck, pairs: Sequence[Pair], chosen: npt.NDArray[np.intp], workers: int
) -> Generator[tuple[list[int], list[bytes], float], None, None]:
    """Some of the pairs, a few at a time as they are done: indices, lines of the journal, seconds."""
    chunks = (chosen[start : start + CHUNK].tolist() for start in range(0, len(chosen), CHUNK))
    tasks = ((chunk, [pairs[index] for index in chunk]) for chunk in chunks)
    if workers == 1:
        yield from map(partial(_check_chunk, check), tasks)
        return
    hint = "usually memory: run the same command with fewer --workers"
    death = ManifestError("a process that checked samples was killed", hint=hint)
    yield from in_processes(partial(_check_chunk, check), tasks, workers=workers, death=death)


def _check_chunk(check: PairCheck, task: tuple[list[int], list[Pair]]) -> tuple[list[int], list[bytes], float]:
    keep_freed_memory()
    began = time.perf_counter()
    chunk, pairs = task
    return chunk, [check(pair).to_line() for pair in pairs], time.perf_counter() - began


def _summed(records: Journal, check: PairCheck, dataset: str) -> Checked:
    ids, raw_ids = check.ids, set[int]()
    pixels = np.zeros(ids.vocabulary.num_classes + 1, np.int64)

    def counted_samples() -> Iterator[Sample]:
        for record in records:
            raw_ids.update(record.raw_ids)
            for index, count in record.pixels:
                pixels[index] += count
            yield record.sample

    samples = SampleTable.spooled(counted_samples())
    broken = samples.quarantined
    if len(broken) == len(samples):
        first = "".join(f"\n  {sample.sample_id}: {sample.problem}" for sample in broken[:5])
        hint = shifted_ids(ids, raw_ids) or REPAIRS[broken[0].problem.split(":")[0]]
        raise ManifestError(f"none of {len(samples)} samples can be used; the first:{first}", hint=hint)
    described = {field.name: getattr(ids, field.name) for field in fields(ids)}
    manifest = Manifest(root=str(check.root), dataset=dataset, samples=samples, **described)
    return Checked(
        manifest=manifest, class_pixels=pixels[:-1], ignored_pixels=int(pixels[-1]), raw_ids=frozenset(raw_ids)
    )


@contextmanager
def _quarantine(problems: list[str], reason: str, name: str) -> Iterator[None]:
    """A file that cannot be decoded becomes one of the problems, by the error's own reason if it has one."""
    try:
        yield
    except DecodeError as error:
        problems.append(f"{error.fields.get('reason', reason)}: {name}: {error.args[0]}")


def count_classes(raw: npt.NDArray[Any], ids: LabelIds) -> tuple[npt.NDArray[np.int64], str, set[int]]:
    """Pixels per class, (T + 1,) int64 with ignored and unknown ones last; unknown ids in words, or ""; all raw ids."""
    # By runs of equal ids, which are long: 0.1 ms for a label map of COCO, where counting its pixels takes 0.9.
    flat, is_end = raw.ravel(), np.ones(raw.size, np.bool_)
    np.not_equal(flat[1:], flat[:-1], out=is_end[:-1])
    ends = is_end.nonzero()[0]
    lengths = ends + 1
    lengths[1:] -= lengths[:-1].copy()
    pixels = np.bincount(flat[ends], lengths)
    seen = np.flatnonzero(pixels)
    labels, unknown = ids.map_ids(seen)
    histogram = np.bincount(labels, pixels[seen], minlength=ids.vocabulary.ignore_index + 1).astype(np.int64)
    counted = np.append(histogram[: ids.vocabulary.num_classes], histogram[-1])
    return counted, ids.map_ids(raw)[1] if unknown else "", set(seen.tolist())


def shifted_ids(ids: LabelIds, raw_ids: Collection[int]) -> str:
    """A line if labels look numbered by one otherwise, too high or too low; those that fit by chance are shifted.

    Too high: the first id stands in none, the one past the last in some. Too low: the last id stands in none, and 255,
    which means nothing here, in some: where ids begin with a background, labels without one are so.
    """
    first, last = min(ids.raw_to_class), max(ids.raw_to_class)
    past, void = last + 1, 255
    if last not in raw_ids and void in raw_ids and void not in {*ids.raw_to_class, *ids.raw_ignore}:
        name = ids.vocabulary.class_names[ids.raw_to_class[last]]
        none_and_some = f"no label holds id {last} ({name!r}), some hold {void}, which is no id here"
        return f"{none_and_some}: have they no background, and ids one lower, as those of pascal-context-59 beside -60?"
    if first in raw_ids or past not in raw_ids or past in ids.raw_ignore:
        return ""
    name = ids.vocabulary.class_names[ids.raw_to_class[first]]
    none_and_one = f"no label holds id {first} ({name!r}), some hold id {past}, which is one past the last class"
    return f"{none_and_one}: are they numbered from {first + 1}? In a data set of your own: --first-id {first + 1}"


def judge_image(
    facts: ImageFacts, name: str, label_size: tuple[int, int] | None, exif: str
) -> tuple[list[str], list[str]]:
    """Problems and notes of an image that decodes: its colours and its EXIF orientation."""
    problems, notes = [], [*filter(None, (facts.note, COLOURS.get(facts.mode)))]
    if fault := colour_fault(facts.mode):
        problems.append(f"image mode: {name}: {fault}")
    if facts.orientation != 1 and exif == "error":
        fits = {
            (True, True): "its size fits both",
            (True, False): "its size fits the stored image only",
            (False, True): "its size fits the turned image only",
            (False, False): "its size fits neither",
        }[label_size == facts.size_after(1), label_size == facts.size_after(facts.orientation)]
        problems.append(
            f"EXIF orientation: {name}: expected 1, got {facts.orientation}; nothing says whether the label was "
            "drawn on the stored or on the turned image" + (f" ({fits})" if label_size else "")
        )
    elif facts.orientation != 1:
        notes.append("EXIF orientation applied" if exif == "apply" else "EXIF orientation ignored")
    return problems, notes


def _read(pair: Pair) -> tuple[list[Any], bytes, bytes]:
    """State and bytes of a pair's files; the state first, so that a change in between shows later."""
    try:
        return state_of(pair), read_regular(pair.image), read_regular(pair.label)
    except OSError as error:
        hint = None if error.errno == errno.ENODATA else "check the file's permissions and the disk"
        where = error.filename or f"{pair.image} or {pair.label}"
        raise ManifestError(f"{where}: cannot be read: {error.strerror}", hint=hint) from error


def _check_fast_decoder(data: bytes, name: str, orientation: int, size: tuple[int, int]) -> list[str]:
    """The strict decoder accepted the image; the fast one, which all later steps use, must see the same size.

    Of a JPEG it reads every code but makes one pixel in 64, and refuses what it refuses when it makes all.
    """
    factor = 1 if is_png(data) else 8
    try:
        height, width = decode_image(data, orientation, factor=factor).shape[:2]
    except DecodeError as error:
        return [f"unreadable image: {name}: {error.args[0]}"]
    if (height, width) == (-(-size[0] // factor), -(-size[1] // factor)):
        return []
    got = f"{size[0]} x {size[1]} or about {height * factor} x {width * factor}"
    return [f"unreadable image: {name}: decoders disagree on its size, {got}"]
