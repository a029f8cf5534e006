"""From a manifest and what was asked for to a job that can be run: schema, extractors, plan. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ... import __version__
from ...common.storage.interface import Storage
from ...common.storage.location import Location, open_storage, read_below
from ...common.text import Part
from ...manifests.manifest import Manifest
from ...structure_extractors import registry
from ...structure_extractors.interface import Extractor
from ...structure_extractors.superpoint.inference import check_gpu
from ..store.commits import sha256
from ..store.errors import StoreError
from ..store.frame import Frame
from ..store.layout import is_store, open_schema
from ..store.schema import ARRAYS, LABELS_LAYER, StoreSchema
from .plan import Plan, make_plan

ALWAYS = ("patch_counts",)
"""Layers that every store has besides labels: cheap, and needed by the patch alignment loss."""
VERSIONS = {"physseg": __version__, "opencv": cv2.__version__, "numpy": np.__version__}
"""What a store is made with."""
PROBED_FILES = 16
"""Images looked for before a run begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run that is decided on but has not begun."""

    store: Storage
    """Where the store is or will be."""
    manifest: Manifest
    schema: StoreSchema
    """What the store will hold."""
    extractors: tuple[Extractor, ...]
    """One per layer, save for layers that the store has, that were not asked for and that cannot be rebuilt."""
    plan: Plan
    """What is to be computed in the whole store."""
    part: Part | None
    """Which share of the plan this run computes; None: all of it."""
    found: StoreSchema | None
    """What the store held when this was planned; None if there was none."""

    @property
    def warnings(self) -> list[str]:
        """What a user should know before the run, in words."""
        return [
            f"the store was begun with {name} {self.schema.made_with.get(name)}, this is {version}: details may differ"
            for name, version in VERSIONS.items()
            if self.schema.made_with.get(name) != version
        ]

    @property
    def todo(self) -> Plan:
        """What this run computes."""
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
    existing = open_schema(store) if is_store(store) else None
    if existing is not None:
        _check_same_data(store, existing, manifest, frame)
    extractors, layers, arrays = _choose_layers(existing, structures, settings or {})
    schema = StoreSchema(
        num_samples=len(manifest),
        frame=existing.frame if existing else frame or Frame(),
        vocabulary=manifest.vocabulary,
        dataset=manifest.dataset,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=sha256(manifest.to_bytes()),
        layers={LABELS_LAYER: {"resize": "nearest", "revision": 1}, **layers},
        array_names=tuple(spec.name for spec in ARRAYS if spec.layer == LABELS_LAYER or spec.name in arrays),
        made_with=existing.made_with if existing else VERSIONS,
    )
    plan = make_plan(store, schema, manifest, extractors, retry_quarantined=retry_quarantined)
    if not elsewhere:
        check_gpu(extractor for task in plan.tasks for extractor in task.extractors)
    _check_data_there(manifest, plan)
    return Job(
        part=part,
        store=store,
        manifest=manifest,
        schema=schema,
        extractors=extractors,
        plan=plan,
        found=existing,
    )


def _choose_layers(
    existing: StoreSchema | None, structures: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Extractor, ...], dict[str, Mapping[str, Any]], set[str]]:
    """The extractors of this run, every layer's identity and arrays; stored settings hold where none are given."""
    stored = dict(existing.layers) if existing else {}
    stored.pop(LABELS_LAYER, None)
    asked = structures if structures is not None else () if existing else registry.DEFAULT
    wanted = list(dict.fromkeys([*asked, *ALWAYS, *stored]))
    if not set(settings) <= set(wanted) <= set(registry.EXTRACTORS):
        registry.build(wanted, settings)  # raises, naming what there is
    extractors: list[Extractor] = []
    layers: dict[str, Mapping[str, Any]] = {}
    arrays: set[str] = set()
    for name in sorted(wanted, key=list(registry.EXTRACTORS).index):
        given, options = settings.get(name, {}), registry.options(name)
        remembered = {key: value for key, value in stored.get(name, {}).items() if key in options}
        (extractor,) = registry.build([name], {name: {**remembered, **given}})
        # An identity holds a hash and never a path: what needs a file of weights cannot be rebuilt from it, unless
        # they are the package's own.
        kept = existing and name in stored and name not in asked and not given and "weights" in options
        if existing and kept and extractor.identity() != stored[name]:
            layers[name] = stored[name]
            arrays |= {spec.name for spec in existing.specs if spec.layer == name}
            continue
        extractors.append(extractor)
        layers[name] = extractor.identity()
        arrays |= set(extractor.arrays)
    return tuple(extractors), layers, arrays


def _check_same_data(store: Storage, existing: StoreSchema, manifest: Manifest, frame: Frame | None) -> None:
    hint = "choose another path for the store of this manifest"
    if existing.vocabulary.fingerprint != manifest.vocabulary.fingerprint:
        ours, its = (
            f"{words.name} ({words.num_classes} classes)" for words in (existing.vocabulary, manifest.vocabulary)
        )
        raise StoreError(f"{store}: holds labels of the vocabulary {ours}, the manifest has {its}", hint=hint)
    if existing.num_samples != len(manifest):
        raise StoreError(f"{store}: holds {existing.num_samples} samples, the manifest has {len(manifest)}", hint=hint)
    if frame is not None and frame != existing.frame:
        hint = "every array depends on the frame: choose another path, or leave the frame options out"
        raise StoreError(f"{store}: was made with {existing.frame}, asked for {frame}", hint=hint)


def _check_data_there(manifest: Manifest, plan: Plan) -> None:
    """Refuse to begin where the data set is not: every sample would be quarantined, one by one."""
    indices = [index for task in plan.tasks for index in range(*plan.schema.shard_range(task.shard))]
    probed = [manifest.samples[index] for index in indices[:: max(1, len(indices) // PROBED_FILES)]]
    paths = [sample.image_path for sample in probed if not sample.problem]
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
