"""From a manifest and what was asked for to a job that can be run: schema, extractors, plan. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from ... import __version__
from ...common import plugins
from ...common.storage.interface import Storage
from ...common.storage.location import Location, open_storage, read_below
from ...common.text import Part, counted
from ...manifests.manifest import Manifest
from ...structure_extractors import registry
from ...structure_extractors.interface import Extractor, identity
from ...structure_extractors.superpoint.inference import check_gpu
from ..store.errors import StoreError
from ..store.frame import CELL_PX, Frame
from ..store.layout import is_store, open_schema
from ..store.schema import LABEL_ARRAYS, LABELS_LAYER, RESERVED, StoredArray, StoreSchema, arrays_of
from .plan import Plan, make_plan
from .witnesses import certain_schema

VERSIONS = {"physseg": __version__, "opencv": cv2.__version__, "numpy": np.__version__}
"""Of physseg, and of the libraries whose results are stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run that is decided on but has not begun."""

    store: Storage
    manifest: Manifest
    schema: StoreSchema
    extractors: tuple[Extractor, ...]
    """One per layer, save for layers that the store has, that were not asked for and that cannot be made here."""
    plan: Plan
    """What is to be computed in the whole store."""
    part: Part | None
    """Which share of the plan this run computes; None: all of it."""
    found: StoreSchema | None
    """What the store held when this was planned; None if there was none."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """Document of the store's settings -> why it was not believed; the run writes it again."""

    @property
    def warnings(self) -> list[str]:
        """What a user should know before the run, in words."""
        begun = self.schema.made_with
        return [f"{document} {doubt}: it is written again" for document, doubt in self.doubts.items()] + [
            f"the store was begun with {name} {begun.get(name)}, this is {version}: details may differ"
            for name, version in _versions(self.extractors).items()
            if begun.get(name) != version
        ]

    @property
    def todo(self) -> Plan:
        if self.part is None:
            return self.plan
        return replace(self.plan, tasks=tuple(task for task in self.plan.tasks if self.part.owns(task.shard)))

    @property
    def shards(self) -> Sequence[int]:
        """The shards that this run answers for, whether it computes them or finds them committed."""
        every = range(self.schema.num_shards)
        return every if self.part is None else self.part.of(every)


def prepare(
    manifest: Manifest,
    store: Location,
    *,
    structures: Sequence[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    frame: Frame | None = None,
    retry_quarantined: bool = False,
    part: Part | None = None,
    elsewhere: bool = False,
) -> Job:
    """Decide what a run will do, writing nothing. What is not said is as in the store, or the default for a new one.

    `structures` are names of extractors, which add to those that the store has; `settings` map their names to single
    options. `part` is the share of the plan that the run computes. A run `elsewhere` needs no GPU on this machine.

    Raises:
        StoreError: The manifest or the frame cannot be the store's, or the data set is not where the manifest says.
        DeviceError: A GPU is needed and this machine has none.
    """
    if len(manifest) == 0:
        raise StoreError("the manifest has no samples", hint="make it again with `physseg manifest`")
    store = open_storage(store)
    existing: StoreSchema | None = None
    doubts: Mapping[str, str] = {}
    if is_store(store):
        open_schema(store)  # or it is verify's to mend
        existing, doubts = certain_schema(store)
        _check_same_data(store, existing, manifest, frame)
    elif frame and frame.short_edge < CELL_PX:  # stores of earlier versions may hold less than a cell
        raise StoreError.mismatch("short edge", f"{CELL_PX} px, a cell, or more", f"{frame.short_edge} px")
    extractors, layers, arrays = _choose_layers(existing, structures, settings or {})
    schema = StoreSchema(
        num_samples=len(manifest),
        frame=existing.frame if existing else frame or Frame(),
        vocabulary=manifest.vocabulary,
        dataset=manifest.dataset,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=manifest.sha256,
        layers={LABELS_LAYER: {"resize": "nearest", "revision": 1}, **layers},
        arrays=(*LABEL_ARRAYS, *arrays),
        made_with=_versions(extractors) | dict(existing.made_with if existing else {}),
    )
    try:
        schema.check()
    except ValueError as error:
        raise StoreError(f"{store}: {error}", hint="this is a bug of the extractor that has such an array") from error
    same = existing is not None and existing.manifest_sha256 == schema.manifest_sha256
    if not same:  # of another manifest all rows are read: damage is to be found by now
        manifest.table.check()
    plan = make_plan(
        store, schema, manifest, extractors, same_rows=same and not doubts, retry_quarantined=retry_quarantined
    )
    if not elsewhere:
        todo = {request.name for task in plan.tasks for request in task.extractors}
        check_gpu(extractor for extractor in extractors if extractor.name in todo)
    _check_data_there(manifest, plan)
    return Job(
        part=part,
        store=store,
        manifest=manifest,
        schema=schema,
        extractors=extractors,
        plan=plan,
        found=existing,
        doubts=doubts,
    )


def _choose_layers(
    existing: StoreSchema | None, structures: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Extractor, ...], dict[str, Mapping[str, Any]], list[StoredArray]]:
    """The extractors of this run, every layer's identity and arrays; stored settings hold where none are given."""
    of_store, has = (existing.layers, existing.arrays) if existing else ({}, ())
    stored = {name: of for name, of in of_store.items() if name != LABELS_LAYER}
    asked = structures if structures is not None else () if existing else registry.DEFAULT
    wanted = list(dict.fromkeys([*asked, "patch_counts", *stored]))  # cheap, and needed by the patch alignment loss
    if not set(settings) <= set(wanted) or not set(asked) <= set(plugins.names("extractors")):
        registry.build(list(asked), settings)  # raises, naming what there is
    order = {name: number for number, name in enumerate(plugins.names("extractors"))}
    extractors: list[Extractor] = []
    layers: dict[str, Mapping[str, Any]] = {}
    arrays: list[StoredArray] = []
    for name in sorted(wanted, key=lambda name: order.get(name, len(order))):
        extractor = _make(name, stored.get(name), settings.get(name, {}), asked=name in asked)
        if extractor is None:
            layers[name] = stored[name]
            arrays += (array for array in has if array.layer == name)
        else:
            extractors.append(extractor)
            layers[name] = identity(extractor)
            arrays += arrays_of(extractor)
    _check_array_names(arrays)
    return tuple(extractors), layers, arrays


def _make(name: str, stored: Mapping[str, Any] | None, given: Mapping[str, Any], *, asked: bool) -> Extractor | None:
    """The extractor of a layer; None where the store has the layer, nothing is asked of it, and it cannot be made here.

    That is so where its package is not installed, or for an identity that holds the hash of a file of weights and, as
    ever, no path: unless they are the package's own.
    """
    try:
        options = registry.options(name)
        remembered = {key: value for key, value in (stored or {}).items() if key in options}
        (extractor,) = registry.build([name], {name: {**remembered, **given}})
    except plugins.PluginError:
        if stored is None or asked or given:
            raise
        return None
    left_alone = stored is not None and not asked and not given and "weights" in options
    return None if left_alone and identity(extractor) != stored else extractor


def _check_array_names(arrays: Sequence[StoredArray]) -> None:
    """Refuse two arrays of one name in one store."""
    owners = dict.fromkeys(RESERVED | {array.name for array in LABEL_ARRAYS}, "the store itself")
    for array in arrays:
        if array.layer == LABELS_LAYER:
            raise StoreError.mismatch("structures", "another name than that of the store's own layer", LABELS_LAYER)
        if array.name in owners:
            expected = f"a name that nothing else in the store has, as {owners[array.name]} does"
            raise StoreError.mismatch(f"array of the structure {array.layer}", expected, array.name)
        owners[array.name] = f"the structure {array.layer}"


def _versions(extractors: Sequence[Extractor]) -> dict[str, str]:
    """What a store is made with: physseg, the libraries whose results are stored, and the packages of its layers."""
    offers = [plugins.find("extractors", extractor.name) for extractor in extractors]
    return VERSIONS | {offer.package: offer.version for offer in offers if offer.package != plugins.OURS}


def _check_same_data(store: Storage, existing: StoreSchema, manifest: Manifest, frame: Frame | None) -> None:
    hint = "choose another path for the store of this manifest"
    if existing.vocabulary.fingerprint != manifest.vocabulary.fingerprint:
        both = (existing.vocabulary, manifest.vocabulary)
        ours, its = (f"{words.name} ({counted(words.num_classes, 'class')})" for words in both)
        raise StoreError(f"{store}: holds labels of the vocabulary {ours}, the manifest has {its}", hint=hint)
    if existing.num_samples != len(manifest):
        ours = counted(existing.num_samples, "sample")
        raise StoreError(f"{store}: holds {ours}, the manifest has {len(manifest)}", hint=hint)
    if frame is not None and frame != existing.frame:
        hint = "every array depends on the frame: choose another path, or leave the frame options out"
        raise StoreError(f"{store}: was made with {existing.frame}, asked for {frame}", hint=hint)


def _check_data_there(manifest: Manifest, plan: Plan) -> None:
    """Refuse to begin where the data set is not: every sample would be quarantined, one by one."""
    size, count = plan.schema.samples_per_shard, plan.samples_to_compute
    places = range(0, count, max(1, count // 16))
    probed = [plan.tasks[place // size].shard * size + place % size for place in places]
    (problems, found) = (
        [manifest.table.values(name, at, at + 1)[0] for at in probed] for name in ("problem", "image_path")
    )
    paths = [path for path, problem in zip(found, problems, strict=True) if not problem]
    if paths and not any(_is_there(manifest.root, path) for path in paths):
        message = f"{manifest.root}: expected the manifest's data set there, {paths[0]} and others do not exist"
        hint = "if it was moved, say where to with --root; if it is on another machine, mount it"
        raise StoreError(message, hint=hint)


def _is_there(root: str, path: str) -> bool:
    try:
        read_below(root, path)
    except OSError as error:  # of any other, the file is there: one sample's trouble
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return True
