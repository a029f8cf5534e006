"""The manifest: a table of samples, their vocabulary, and the way from raw label ids to class ids."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ..common.documents import digest_of_json, parsing, sha256_of
from ..common.regular_files import is_files_fault, read_regular
from ..common.storage.content_cache import ContentCache
from ..common.storage.location import absolute, is_url, read_below, split, without_credentials
from ..common.text import control_character
from .decoding import decode_image
from .errors import ContentError, DecodeError, ManifestError
from .labels.forms import decode_raw
from .labels.ids import LabelIds
from .labels.short_side import cap_image, cap_labels
from .row_groups import REBUILD_HINT, ROWS_PER_GROUP, ParquetRows
from .sample_table import COLUMNS, Sample, SampleTable, checked_columns
from .vocabulary import Vocabulary

__all__ = ["Manifest", "Sample", "SampleTable", "Vocabulary"]

FORMAT_VERSIONS = (1, 2, 3)
"""2: with the fields of a benchmark's protocol, of which readers of 1 must not ignore one that is set. 3: with a digest
for each column of each group of rows, where there are several groups. Each is written only where it is needed."""
PROTOCOL: dict[str, Any] = {"label_form": "ids", "max_short_side_px": None, "fold_from": None}
"""These fields, and what holds where a file has none of them."""


@dataclass(frozen=True, kw_only=True)
class Manifest(LabelIds):
    """What there is: samples below a root, their classes, and what the raw ids in the label pictures mean."""

    root: str
    """Folder that holds all files: an absolute path, or a URL that fsspec understands."""
    dataset: str
    """Name of the data set for people, such as "coco-stuff"."""
    samples: Sequence[Sample]
    """The rows; given as any sequence, kept as a `SampleTable`."""

    def __post_init__(self) -> None:
        table = SampleTable.of(self.samples)
        object.__setattr__(self, "samples", table)
        super().__post_init__()
        if found := control_character(self.dataset + self.vocabulary.name):
            raise ManifestError.mismatch(
                "name of the data set", "printable characters", found, hint="give another --name"
            )
        without_credentials(self.root)
        if table.file is None:  # of others `read` looks at all rows, and workers need some only
            self._check_ids()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def table(self) -> SampleTable:
        """The rows as columns, for questions about many of them."""
        return SampleTable.of(self.samples)

    @property
    def quarantined(self) -> tuple[Sample, ...]:
        """The samples that carry a problem, in order."""
        return tuple(self.table.quarantined)

    @property
    def usable(self) -> list[int]:
        """Indices of the samples that carry no problem, ascending."""
        return list(self.table.usable.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over vocabulary, id map, protocol and all rows; not over the root: a moved data set keeps it."""
        fold_from = self.vocabulary.fold_from
        fold = "" if fold_from is None else f"fold_from={fold_from}:"  # rows and layers do without
        return hashlib.sha256(f"{fold}{self._meaning}:{self.table.digest}".encode()).hexdigest()

    def row_digests(self, start: int, stop: int) -> tuple[str, ...]:
        """For each of rows [start, stop), 64 bits (hex) of all that its stored arrays depend on.

        That is the content of its files, the classes and the id map.
        """
        return self.table.row_digests(start, stop, self._meaning)

    @cached_property
    def _meaning(self) -> str:
        ids = [list(self.raw_to_class.items()), list(self.raw_ignore)]
        meaning: list[Any] = [self.vocabulary.fingerprint, ids]
        if self.label_form != "ids" or self.max_short_side_px is not None:  # stores made without these keep their hash
            meaning.append([self.label_form, self.max_short_side_px])
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()

    def write(self, path: Path | str) -> None:
        """Write as Parquet to a path or URL, atomically."""
        folder, name = split(str(path))
        folder.put(name, self.chunks)

    def to_bytes(self) -> bytes:
        """The Parquet file; equal manifests give equal bytes (from one version of pyarrow)."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the Parquet file, piece by piece, from the file it is read from where that says the same."""
        shown = vars(self) | {"fold_from": self.vocabulary.fold_from}
        protocol = {name: shown[name] for name in PROTOCOL}
        header = {
            "format_version": 3 if self.table.is_grouped else 1 if protocol == PROTOCOL else 2,
            "root": self.root,
            "dataset": self.dataset,
            "vocabulary": {"name": self.vocabulary.name, "classes": list(self.vocabulary.classes)},
            "raw_to_class": list(self.raw_to_class.items()),
            "raw_ignore": list(self.raw_ignore),
        } | ({} if protocol == PROTOCOL else protocol)
        if self.table.is_grouped:
            header["groups"] = self.table.digests
        header["sha256"] = _sealed(header, self.table.digest)
        metadata = json.dumps(header, ensure_ascii=False).encode()
        file = self.table.file
        return file.chunks() if file and file.metadata == metadata else self.table.to_parquet(metadata)

    @cached_property
    def sha256(self) -> str:
        """sha256 (hex) of the bytes of the Parquet file."""
        return sha256_of(self.chunks())

    def _check_ids(self, where: str = "") -> None:
        if repeated := self.table.repeated:
            got = f"sample id {repeated[0]!r} stands in {repeated[1]} rows"
            raise ManifestError(f"{where}{got}; expected every id once", hint=REBUILD_HINT)

    @classmethod
    def read(cls, path: Path | str, *, root: str | None = None) -> "Manifest":
        """Read a path or URL; `root` is where the data set lies now, if moved. Raises ManifestError for no manifest."""
        folder, name = split(str(path))
        try:
            file = ParquetRows.find(folder, name, str(path))
        except FileNotFoundError as error:
            raise ManifestError(f"{path}: no such manifest", hint="make one with `physseg manifest`") from error
        except IsADirectoryError as error:
            raise ManifestError.mismatch(path, "a manifest (Parquet)", "a folder", hint=REBUILD_HINT) from error
        manifest = cls.parse(file, root=root)
        manifest._check_ids(f"{path}: ")
        return manifest

    @classmethod
    def parse(cls, file: ParquetRows, *, root: str | None = None, hashed: bool = False) -> "Manifest":
        """The manifest in a file, which the caller may compare with a hash of its own (`hashed`).

        Of a file with several groups of rows only the header is read, and each group when somebody asks for it.

        Raises:
            ManifestError: It is no manifest, or its content is not what its digest says. It names the file.
        """
        path = file.path
        with parsing(ManifestError, f"{path}: its metadata is not a manifest's", REBUILD_HINT):
            header = dict(json.loads(file.metadata))
            if (version := header.get("format_version")) not in FORMAT_VERSIONS:
                expected = f"manifest format {' or '.join(map(str, FORMAT_VERSIONS))}"
                raise ManifestError.mismatch(path, expected, version, hint=REBUILD_HINT)
            said = header.pop("sha256", None)
            if version == 3:
                rows = SampleTable.of_file(file, header["groups"])
            else:
                table = checked_columns(file.read(COLUMNS), path)
                rows = SampleTable(table, rows_per_group=max(ROWS_PER_GROUP, table.num_rows))
        if said != _sealed(header, rows.digest) and (said is not None or version == 3):
            damaged = f"{path}: damaged or changed since it was written: its digest differs"
            raise ManifestError(damaged, hint=f"copy it again, or {REBUILD_HINT}")
        if said is None and not hashed:
            tqdm.write(f"note: {path}: written by an earlier physseg, without a digest of its content", file=sys.stderr)
        protocol = {name: header.get(name, default) for name, default in PROTOCOL.items()}
        with parsing(ManifestError, f"{path}: its metadata is incomplete", REBUILD_HINT):
            vocabulary = header["vocabulary"]
            fold_from, classes = protocol.pop("fold_from"), tuple(vocabulary["classes"])
            try:
                return cls(
                    root=os.fspath(header["root"]) if root is None else absolute(root),
                    dataset=header["dataset"],
                    vocabulary=Vocabulary(name=vocabulary["name"], classes=classes, fold_from=fold_from),
                    raw_to_class=dict(header["raw_to_class"]),
                    raw_ignore=tuple(header["raw_ignore"]),
                    samples=rows,
                    **protocol,
                )
            except ManifestError as error:
                raise error.prefixed(path) from error

    def load(self, index: int, *, verify: bool = True) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """A sample's image and labels; `verify` compares both files with the hashes in the manifest.

        Returns:
            The image (H, W, 3) uint8 RGB, and the labels (H, W) of the vocabulary's dtype: class ids or `ignore_index`.

        Raises:
            ContentError: The sample is quarantined, a file is missing, changed or undecodable, the sizes differ, or a
                raw id means nothing. It names the file.
        """
        return self.decode(index, self.fetch(index), verify=verify)

    def fetch(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of a sample's image and label file, unchecked. Raises ContentError as `load`."""
        sample = self.samples[index]
        _check_usable(sample)
        return self._bytes(sample, sample.image_path), self._bytes(sample, sample.label_path)

    def decode(
        self, index: int, files: tuple[bytes, bytes], *, verify: bool = True
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
        """What `load` gives, from the bytes of `fetch`."""
        sample = self.samples[index]
        image = self._decode_image(sample, files[0], verify=verify)
        path = sample.label_path
        with _named(sample, path, files[1], sample.label_sha256 if verify else ""):
            raw = cap_labels(decode_raw(files[1], self.label_form), self.max_short_side_px)
        if raw.shape != image.shape[:2]:
            raise _content_error(sample, path, f"{_size(image.shape)} as the image", _size(raw.shape))
        labels, unknown = self.map_ids(raw)
        if unknown:
            raise _content_error(sample, path, f"only ids of the table ({len(self.raw_to_class)} classes)", unknown)
        return image, labels

    def load_image(
        self, index: int, *, verify: bool = False, cache: ContentCache | None = None
    ) -> npt.NDArray[np.uint8]:
        """The image alone, as in `load`; its size is always checked, its hash on demand only.

        With a `cache`, images by URL are brought there once and read from it.
        """
        facts = self.table.image_facts(index)
        if facts is not None:
            path, orientation, size = facts
            with suppress(OSError, DecodeError):
                data = self._image_bytes(index, path, cache)
                if not verify or hashlib.sha256(data).hexdigest() == self.table.value("image_sha256", index):
                    image = cap_image(decode_image(data, orientation), self.max_short_side_px)
                    if image.shape[:2] == size:
                        return image
        sample = self.samples[index]  # which also names what is wrong
        _check_usable(sample)
        return self._decode_image(sample, self._bytes(sample, sample.image_path), verify=verify)

    def _image_bytes(self, index: int, path: str, cache: ContentCache | None) -> bytes:
        if cache is None or not is_url(self.root):
            return read_below(self.root, path)
        sha256 = self.table.value("image_sha256", index)
        return read_regular(cache.file(sha256, lambda: read_below(self.root, path), f"{self.root}/{path}"))

    def _decode_image(self, sample: Sample, data: bytes, *, verify: bool) -> npt.NDArray[np.uint8]:
        path = sample.image_path
        with _named(sample, path, data, sample.image_sha256 if verify else ""):
            image = cap_image(decode_image(data, sample.orientation), self.max_short_side_px)
        if image.shape[:2] != (sample.height, sample.width):
            expected = f"{_size((sample.height, sample.width))} as in the manifest"
            raise _content_error(sample, path, expected, _size(image.shape))
        return image

    def _bytes(self, sample: Sample, path: str) -> bytes:
        try:
            return read_below(self.root, path)
        except OSError as error:
            if not is_files_fault(error):
                raise
            expected = f"a readable file below {self.root}"
            hint = "if it was moved: --root DIR, or data.images of a training"
            got = error.strerror or type(error).__name__
            raise _content_error(sample, path, expected, got, hint=hint) from error


def _sealed(header: Mapping[str, Any], rows: str) -> str:
    """sha256 (hex) over all that a manifest's file says; `rows` is the digest of its rows."""
    return digest_of_json([header, rows])


def _content_error(sample: Sample, path: str, expected: str, got: str, *, hint: str | None = None) -> ContentError:
    return ContentError.mismatch(f"sample {sample.sample_id}: {path}", expected, got, hint=hint)


def _check_usable(sample: Sample) -> None:
    if sample.problem:
        raise ContentError(f"sample {sample.sample_id} is quarantined: {sample.problem}")


@contextmanager
def _named(sample: Sample, path: str, data: bytes, sha256: str) -> Iterator[None]:
    """Before a file is decoded its hash is checked, if one is given; what is wrong names sample and file."""
    got = hashlib.sha256(data).hexdigest() if sha256 else ""
    if got != sha256:
        hint = "the file changed after the manifest was made: restore it, or make the manifest again"
        raise _content_error(sample, path, f"sha256 {sha256[:12]} as in the manifest", got[:12], hint=hint)
    try:
        yield
    except DecodeError as error:
        raise ContentError(f"sample {sample.sample_id}: {path}: {error.args[0]}", hint=error.hint) from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} pixels (h x w)"
