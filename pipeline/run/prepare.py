"""From a manifest and what was asked for to a job that can be run: schema, extractors, plan. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
PROBED_FILES = 16
"""Images looked for before a run begins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run that is decided on but has not begun."""

    store: Storage
    """Where the store is or will be."""
    manifest: Manifest
    """Samples of the store."""
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
    warnings: tuple[str, ...] = ()
    """What a user should know before the run, in words."""

    @property
    def is_new(self) -> bool:
        """Whether the run makes the store."""
        return self.found is None

    @property
    def todo(self) -> Plan:
        """What this run computes."""
        return self.plan if self.part is None else self.plan.share(self.part)

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

    Args:
        manifest: The samples.
        store: Where the store is or will be.
        structures: Names of extractors; they add to those that the store has.
        settings: Extractor name -> option -> value; single options may be given.
        frame: Size rule of the canonical frame.
        retry_quarantined: Whether shards with samples in quarantine are computed again.
        part: Which share of the plan the run computes.
        elsewhere: Whether tasks run on other machines, so that this one needs no GPU.

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
    extractors, layers = _choose_layers(existing, structures, settings or {})
    made_with = {"physseg": __version__, "opencv": cv2.__version__, "numpy": np.__version__}
    schema = StoreSchema(
        num_samples=len(manifest),
        frame=existing.frame if existing else frame or Frame(),
        vocabulary=manifest.vocabulary,
        dataset=manifest.dataset,
        manifest_fingerprint=manifest.fingerprint,
        manifest_sha256=sha256(manifest.to_bytes()),
        layers={LABELS_LAYER: {"resize": "nearest", "revision": 1}, **layers},
        array_names=_array_names(existing, extractors, layers),
        made_with=existing.made_with if existing else made_with,
    )
    plan = make_plan(store, schema, manifest, extractors, retry_quarantined=retry_quarantined)
    if not elsewhere:
        check_gpu(extractor for task in plan.tasks for extractor in task.extractors)
    _check_data_there(manifest, [index for task in plan.tasks for index in range(*schema.shard_range(task.shard))])
    return Job(
        part=part,
        store=store,
        manifest=manifest,
        schema=schema,
        extractors=extractors,
        plan=plan,
        found=existing,
        warnings=_version_warnings(existing, made_with),
    )


def _choose_layers(
    existing: StoreSchema | None, structures: Sequence[str] | None, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[Extractor, ...], dict[str, Mapping[str, Any]]]:
    """The extractors of this run, and every layer's identity; stored settings hold where none are given."""
    stored = dict(existing.layers) if existing else {}
    stored.pop(LABELS_LAYER, None)
    asked = structures if structures is not None else () if existing else registry.DEFAULT
    order = list(registry.EXTRACTORS)
    names = list(dict.fromkeys([*asked, *ALWAYS, *stored]))
    names.sort(key=lambda name: order.index(name) if name in order else -1)
    if not set(settings) <= set(names):
        registry.build(names, settings)  # raises, naming what there is
    extractors: list[Extractor] = []
    layers: dict[str, Mapping[str, Any]] = {}
    for name in names:
        given = settings.get(name, {})
        if name in stored and name not in asked and not given and _needs_a_file(name):
            layers[name] = stored[name]
            continue
        (extractor,) = registry.build([name], {name: {**_stored_options(name, stored.get(name, {})), **given}})
        extractors.append(extractor)
        layers[name] = extractor.identity()
    return tuple(extractors), layers


def _stored_options(name: str, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored identity says of an extractor's options; a new layer has none."""
    return {key: value for key, value in identity.items() if key in registry.options(name)}


def _needs_a_file(name: str) -> bool:
    """Whether an extractor cannot be rebuilt from its stored identity, which holds a hash and never a path."""
    return "weights" in registry.options(name)


def _array_names(
    existing: StoreSchema | None, extractors: Sequence[Extractor], layers: Mapping[str, object]
) -> tuple[str, ...]:
    """What the extractors of this run yield, and what the store has of layers that it computed without them."""
    computed = {array for extractor in extractors for array in extractor.arrays}
    kept_layers = set(layers).difference(extractor.name for extractor in extractors)
    return tuple(
        spec.name
        for spec in ARRAYS
        if spec.layer == LABELS_LAYER
        or spec.name in computed
        or (existing and spec.name in existing.array_names and spec.layer in kept_layers)
    )


def _check_same_data(store: Storage, existing: StoreSchema, manifest: Manifest, frame: Frame | None) -> None:
    hint = "choose another path for the store of this manifest"
    if existing.vocabulary.fingerprint != manifest.vocabulary.fingerprint:
        raise StoreError(
            f"{store}: holds labels of the vocabulary {existing.vocabulary.name} "
            f"({existing.vocabulary.num_classes} classes), the manifest has {manifest.vocabulary.name} "
            f"({manifest.vocabulary.num_classes} classes)",
            hint=hint,
        )
    if existing.num_samples != len(manifest):
        raise StoreError(f"{store}: holds {existing.num_samples} samples, the manifest has {len(manifest)}", hint=hint)
    if frame is not None and frame != existing.frame:
        raise StoreError(
            f"{store}: was made with {existing.frame}, asked for {frame}",
            hint="every array depends on the frame: choose another path, or leave the frame options out",
        )


def _check_data_there(manifest: Manifest, indices: Sequence[int]) -> None:
    """Refuse to begin where the data set is not: every sample would be quarantined, one by one."""
    probed = [manifest.samples[index] for index in indices[:: max(1, len(indices) // PROBED_FILES)]]
    paths = [sample.image_path for sample in probed if not sample.problem]
    if paths and not any(_is_there(manifest.root, path) for path in paths):
        raise StoreError(
            f"{manifest.root}: expected the manifest's data set there, {paths[0]} and others do not exist",
            hint="if it was moved, say where to with --root; if it is on another machine, mount it",
        )


def _is_there(root: str, path: str) -> bool:
    try:
        read_below(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there, and one sample's trouble
        return True
    return True


def _version_warnings(existing: StoreSchema | None, now: Mapping[str, str]) -> tuple[str, ...]:
    then = existing.made_with if existing else now
    return tuple(
        f"the store was begun with {name} {then.get(name)}, this is {version}: details may differ"
        for name, version in now.items()
        if then.get(name) != version
    )
