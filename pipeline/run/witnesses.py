"""Whose settings are a store's? The root document, its copy and the commit records are asked.

A whole document may still be another store's: a folder that was copied over another one, say. To go on by its
settings, or to repair by them, would compute everything again, and call the result faultless.
"""

from collections.abc import Iterable, Sequence

from ...common.storage.interface import Storage
from ..store.commits import PROVENANCE, CommitRecord, read_commits
from ..store.errors import StoreError
from ..store.layout import ROOT, SETTINGS_COPY, open_schema, shard_of
from ..store.schema import StoreSchema


def certain_schema(store: Storage) -> tuple[StoreSchema, dict[str, str]]:
    """The store's settings, and what is wrong with which document; raises StoreError where they are in doubt."""
    schema, faults, conflict = settle_schema(store)
    if conflict:
        hint = f"nothing was changed: restore {ROOT} and {SETTINGS_COPY} of this store, or preprocess into a new one"
        raise StoreError(f"{store}: {conflict}", hint=hint)
    return schema, faults


def settle_schema(store: Storage) -> tuple[StoreSchema, dict[str, str], str]:
    """The store's settings, what is wrong with which document, and why the settings are in doubt ("" if they are not).

    There are two, and a whole one may be another store's. Each layer of each commit record that was computed with the
    settings of one speaks for it: a run that changes settings keeps those of the labels at least.
    """
    found: dict[str, StoreSchema] = {}
    errors: dict[str, StoreError] = {}
    for document in (ROOT, SETTINGS_COPY):
        try:
            found[document] = open_schema(store, document)
        except StoreError as error:
            errors[document] = error
    if not found:
        if not store.exists(SETTINGS_COPY):
            raise errors[ROOT]
        hint = f"{SETTINGS_COPY} is damaged as well: preprocess into a new store"
        raise StoreError(errors[ROOT].args[0], hint=hint) from errors[ROOT]
    faults = {ROOT: f"damaged: {errors[ROOT].args[0]}"} if ROOT in errors else {}
    schemas = list(found.values())
    schemas = schemas[: 1 + (schemas[0] != schemas[-1])]  # two, only where they differ
    layers, votes = _votes(store, schemas)
    best = votes.index(max(votes))
    sides = "; ".join(f"{document} is spoken for by {count}" for document, count in zip(found, votes, strict=False))
    doubt = f"of {layers} layers in the commit records, {sides}"
    if len(schemas) == 2:
        foreign = list(found)[1 - best]
        faults[foreign] = f"differs from {list(found)[best]}; {doubt}"
    undecided = layers > 0 and votes[best] == 0
    if len(schemas) == 2 and votes[0] == votes[1]:  # a run that adds layers writes the copy, and then the root
        undecided = votes[0] == 0 or not schemas[0].layers.items() <= schemas[1].layers.items()
    if undecided and len(schemas) == 1:
        faults[next(iter(found))] = f"holds settings of another store: {doubt}"
    return schemas[best], faults, f"its settings are in doubt: {doubt}" if undecided else ""


def _votes(store: Storage, schemas: Sequence[StoreSchema]) -> tuple[int, list[int]]:
    """Number of layers in the commit records there are, and for each schema how many were computed with its settings.

    A record of other samples than a schema's does not count for it. One vote is enough where there is one schema.
    """
    digests = [{layer: schema.layer_digest(layer) for layer in schema.layers} for schema in schemas]
    layers, votes = 0, [0] * len(schemas)
    for record in read_commits(store, shards_of(store.list(f"{PROVENANCE}/commits"))):
        if isinstance(record, CommitRecord):
            layers += len(record.layers)
            for number, schema in enumerate(schemas):
                if record.samples == schema.shard_range(record.shard):
                    votes[number] += sum(record.has(*layer) for layer in digests[number].items())
        if len(votes) == 1 and votes[0]:
            break
    return layers, votes


def shards_of(paths: Iterable[str], schema: StoreSchema | None = None) -> set[int]:
    """The shards that files belong to; of a schema, those that it has."""
    shards = {shard for path in paths if (shard := shard_of(path)) is not None}
    return shards if schema is None else {shard for shard in shards if shard < schema.num_shards}
