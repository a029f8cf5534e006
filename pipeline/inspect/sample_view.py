"""One sample of a store as pictures: its arrays cut to the frame, its panels, and one composite that shows them all."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from PIL import Image

from ...common.atomic import atomic_write
from ...common.storage.content_cache import ContentCache
from ...common.storage.location import Location, open_storage
from ...manifests.errors import ContentError
from ...manifests.manifest import Sample
from ...manifests.vocabulary import Vocabulary
from ..store.commits import read_commit
from ..store.layout import open_schema
from ..store.reader import StoreReader
from ..store.schema import QUARANTINED, ArraySpec
from .drawing import draw
from .drawing.lettering import Colour, text_px
from .errors import InspectError

CELLS_PER_PATCH = 2
"""Cells along a patch's side: patch weights are drawn as the trainer sums them, in patches of 16 px."""

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """What the store knows of one sample, cut to its frame (h, w)."""

    index: int
    sample: Sample
    vocabulary: Vocabulary
    image: UInt8
    """(h, w, 3) RGB at the frame's size; grey where the file could not be read."""
    image_problem: str
    """Why the image could not be read, else empty."""
    labels: npt.NDArray[Any]
    structures: Mapping[str, tuple[ArraySpec, UInt8]]
    cell_classes: npt.NDArray[Any]
    cell_counts: UInt8
    """(K, rows, columns), an even number of cells that covers the frame."""
    patch_px: int

    @property
    def shares(self) -> list[tuple[int, float]]:
        """Ids of the classes in the label map with their share of the frame; the largest first."""
        return [item for item in draw.class_shares(self.labels) if item[0] != self.vocabulary.ignore_index]

    def patch_weights(self, class_id: int) -> npt.NDArray[np.float32]:
        """w_ij of Eq. 2 for one class j (rows, columns): its share of the pixels of each patch of the frame."""
        counts = np.where(self.cell_classes == class_id, self.cell_counts, 0).sum(axis=0, dtype=np.float32)
        rows, columns = counts.shape
        side = CELLS_PER_PATCH
        patches = counts.reshape(rows // side, side, columns // side, side).sum(axis=(1, 3))
        return np.asarray(patches / self.patch_px**2, np.float32)


class SampleViews:
    """Looks samples of a store up by id or index, and makes their views."""

    def __init__(self, store: Location, *, root: str | None = None, cache: ContentCache | None = None) -> None:
        store = open_storage(store)
        schema = open_schema(store)
        self.drawn = tuple(spec for spec in schema.specs if spec.drawn)
        names = ["labels", *(spec.name for spec in self.drawn), "cell_classes", "cell_counts"]
        self.reader = StoreReader(store, names, root=root, cache=cache)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.reader.schema.vocabulary

    @property
    def patch_px(self) -> int:
        """Side of a patch, px."""
        return CELLS_PER_PATCH * self.reader.schema.cell_px

    def find(self, text: str) -> int:
        """Index of the sample with that id, or else with that index; raises InspectError with close matches."""
        ids = self.reader.manifest.table.column("sample_id")
        position = pc.index(ids, text).as_py()
        if position >= 0:
            return int(position)
        if re.fullmatch(r"0|[1-9][0-9]{0,11}", text) and int(text) < len(self.reader):
            return int(text)
        raise InspectError(
            f"{self.reader.store}: no sample {text!r}, neither as an id nor as an index below {len(self.reader)}",
            hint=_did_you_mean(text, ids.to_pylist()),
            got=text,
        )

    def find_class(self, text: str) -> int:
        """Class id of a name: a whole entry of the vocabulary, or a synonym of exactly one, in any case."""
        wanted = " ".join(text.lower().split())
        entries = [" ".join(entry.lower().split()) for entry in self.vocabulary.classes]
        if wanted in entries:
            return entries.index(wanted)
        words = [[word.strip() for word in entry.split(",")] for entry in entries]
        found = [index for index, synonyms in enumerate(words) if wanted in synonyms]
        if len(found) == 1:
            return found[0]
        if found:
            listed = "; ".join(repr(self.vocabulary.classes[index]) for index in found)
            raise InspectError(
                f"class {text!r} may be one of several", hint=f"give the whole entry: {listed}", got=text
            )
        known = [word for synonyms in words for word in synonyms]
        raise InspectError(
            f"{self.reader.store}: no class {text!r} in {self.vocabulary.name} ({self.vocabulary.num_classes} classes)",
            hint=_did_you_mean(wanted, known),
            got=text,
        )

    def view(self, index: int, *, need_image: bool = True) -> SampleView:
        """The view of one sample; its image must be the one the store was computed from.

        Raises StoreIncompleteError for a sample that is not computed, InspectError for a quarantined one. An image that
        cannot be read is an InspectError, or with ``need_image`` False a grey one, and its fault in ``image_problem``.
        """
        reader = self.reader
        if reader.status[index] == QUARANTINED:
            name = reader.manifest.samples[index].sample_id
            raise InspectError(f"{reader.store}: sample {index} ({name}) is quarantined: {self._why(index)}", got=name)
        planes = reader.read(index)
        height, width = reader.frame_size(index)
        rows, columns = (CELLS_PER_PATCH * -(-edge // self.patch_px) for edge in (height, width))
        cells = [_even(planes[name])[:, :rows, :columns] for name in ("cell_classes", "cell_counts")]
        problem = ""
        try:
            image = reader.schema.frame.resize_image(reader.manifest.load_image(index, verify=True))
        except ContentError as error:
            if need_image:
                hint = "if the data set was moved, give its folder with --root DIR"
                raise InspectError(error.args[0], hint=hint, **error.fields) from error
            problem, image = str(error.args[0]), np.full((height, width, 3), 128, np.uint8)
        return SampleView(
            index=index,
            sample=reader.manifest.samples[index],
            vocabulary=self.vocabulary,
            image=image,
            image_problem=problem,
            labels=planes["labels"][:height, :width],
            structures={spec.name: (spec, planes[spec.name][:height, :width]) for spec in self.drawn},
            cell_classes=cells[0],
            cell_counts=cells[1],
            patch_px=self.patch_px,
        )

    def _why(self, index: int) -> str:
        """Why a sample is quarantined, from its shard's commit record."""
        record = read_commit(self.reader.store, index // self.reader.schema.samples_per_shard)
        entries = record.quarantine if record else ()
        return next((entry.reason for entry in entries if entry.index == index), "its commit record does not say why")


def structure_colour(position: int) -> Colour:
    """Colour of the structure at a position of the store's list."""
    return draw.STRUCTURE_COLOURS[position % len(draw.STRUCTURE_COLOURS)]


def describe(spec: ArraySpec, plane: UInt8) -> str:
    """How much a structure map holds, for its caption."""
    if spec.drawn == draw.KEYPOINTS:
        return f"{np.count_nonzero(plane):,} keypoints"
    if spec.drawn == draw.EDGES:
        return f"{draw.percent(np.count_nonzero(plane) / plane.size)} of the pixels"
    return f"highest {(plane.max() / 255) ** 2:.2f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture of a sample."""

    stem: str
    """Of its file."""
    caption: str
    picture: UInt8
    """As it stands among others, at the frame's size."""
    alone: UInt8
    """The same with what explains it: a legend or a scale."""


def panels(view: SampleView, class_ids: Sequence[int]) -> Iterator[Panel]:
    """The image, the labels, each structure, and the patch weights of each class."""
    names, ignore_index = view.vocabulary.prompt_names, view.vocabulary.ignore_index
    size = f"{view.sample.width} x {view.sample.height} px, frame {view.image.shape[1]} x {view.image.shape[0]}"
    yield Panel(stem="image", caption=f"image ({size})", picture=view.image, alone=view.image)
    alone = draw.overlay(view.image, view.labels, names, ignore_index=ignore_index)
    height, width = view.labels.shape
    yield Panel(stem="labels", caption="labels", picture=alone[:height, :width], alone=alone)
    for position, (spec, plane) in enumerate(view.structures.values()):
        picture = draw.structure_overlay(view.image, plane, spec.drawn, colour=structure_colour(position))
        caption = f"{spec.name} ({describe(spec, plane)})"
        yield Panel(stem=spec.name, caption=caption, picture=picture, alone=picture)
    shares = dict(view.shares)
    for class_id in class_ids:
        caption = f"patch weights: {names[class_id]}{'' if class_id in shares else ' (not in this image)'}"
        picture = draw.heat_map(view.image, view.patch_weights(class_id), patch_px=view.patch_px)
        title = f"share of each {view.patch_px}-px patch that is {names[class_id]}"
        scale = draw.scale_bar(width, text_px(height, width), title)
        stem = f"weights_{_safe(names[class_id])}"
        yield Panel(stem=stem, caption=caption, picture=picture, alone=draw.stack([picture, scale], axis=0))


def composite(view: SampleView, shown: Sequence[Panel], *, max_legend: int = 30) -> UInt8:
    """All panels on one page, with the legend of the label map and the scale of the weights beside them."""
    size_px = text_px(*view.labels.shape)
    page = draw.tile([(panel.picture, panel.caption) for panel in shown], columns=_columns(view, len(shown)))
    legend = draw.label_legend(
        view.labels,
        view.vocabulary.prompt_names,
        ignore_index=view.vocabulary.ignore_index,
        max_legend=max_legend,
        size_px=size_px,
        height=page.shape[0] - 5 * size_px,  # the scale stands below
    )
    scale = draw.scale_bar(max(legend.shape[1], 18 * size_px), size_px, f"share of each {view.patch_px}-px patch")
    side = draw.stack([legend, scale], axis=0)
    title = draw.heading(f"{view.sample.sample_id}   (sample {view.index})", page.shape[1] + side.shape[1], size_px)
    return draw.stack([title, draw.stack([page, side], axis=1)], axis=0)


def write_sample(view: SampleView, out: Path, class_ids: Sequence[int] = ()) -> Path:
    """Write ``out/ID.png``, the composite, and the single panels below ``out/ID``; returns the composite's path.

    Without ``class_ids`` the patch weights are those of the most present class.
    """
    shown = list(panels(view, list(class_ids) or [class_id for class_id, _ in view.shares[:1]]))
    name = _safe(view.sample.sample_id)
    if name != view.sample.sample_id:
        name = f"{name}-{view.index}"  # two ids may be alike once made safe for a file name
    for panel in shown:
        atomic_write(out / name / f"{panel.stem}.png", encode_png(panel.alone))
    atomic_write(out / f"{name}.png", encode_png(composite(view, shown)))
    return out / f"{name}.png"


def encode_png(image: UInt8) -> bytes:
    """A picture (H, W, 3) as PNG."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _columns(view: SampleView, count: int) -> int:
    """Columns that make a page of about 3:2 without many empty places."""

    def fault(columns: int) -> float:
        rows = -(-count // columns)
        aspect = columns * (view.labels.shape[1] + 16) / (rows * (view.labels.shape[0] + 40))
        return abs(math.log(aspect / 1.5)) + (rows * columns - count) / count

    return min(range(1, count + 1), key=fault)


def _even(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cells (K, rows, columns), with an empty row and column more where their number is odd."""
    odd = cells.shape[-1] % CELLS_PER_PATCH
    return np.pad(cells, ((0, 0), (0, odd), (0, odd))) if odd else cells


def _safe(text: str) -> str:
    """The text as the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:120] or "_"


def _did_you_mean(text: str, known: Sequence[str]) -> str:
    """A hint with what the user may have meant: what contains the text, else what looks like it."""
    close = [name for name in known if text and text in name][:5]
    close = close or difflib.get_close_matches(text, known[:20_000], n=5, cutoff=0.5)  # all of them would take seconds
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    return f"there are, for example, {', '.join(map(repr, known[:5]))}"
