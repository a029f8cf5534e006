"""The extractors by name, and how to make them from names and settings that came as text or TOML.

A new extractor: write its file, enter its class here, give each of its arrays a row in the pipeline's schema.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..common.settings import from_text, type_in_words
from .canny import Canny
from .errors import ExtractorError
from .interface import Extractor
from .mask_edges import MaskEdges
from .patch_counts import PatchCounts
from .sift import Sift
from .superpoint.extractor import SuperPoint

EXTRACTORS: dict[str, type[Any]] = {
    extractor.name: extractor for extractor in (Canny, MaskEdges, Sift, SuperPoint, PatchCounts)
}
DEFAULT = ("canny", "mask_edges", "sift", "patch_counts")


def build(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Extractor, ...]:
    """Make the named extractors, in the given order.

    Args:
        names: Names of extractors.
        settings: Options by the name of their extractor. A value may be text ("50"), which is read as the option's type
            ("none" for an option that may be absent).

    Raises:
        ExtractorError: A name or an option is unknown, a name is given twice, an extractor that was not asked for has
            settings, or a value is out of its range. The message lists what there is.
        ConfigError: A value cannot be read as its option's type.
    """
    settings = settings or {}
    for name in (*names, *settings):
        if name not in EXTRACTORS:
            raise ExtractorError(f"unknown structure extractor {name!r}, expected one of: {', '.join(EXTRACTORS)}")
    if len(set(names)) != len(names):
        raise ExtractorError(f"a structure extractor is named twice: {', '.join(names)}")
    for name in settings:
        if name not in names:
            raise ExtractorError(
                f"settings for {name!r}, which is not among the structures asked for: {', '.join(names) or 'none'}",
                hint=f"add {name} to the structures, or leave its settings out",
            )
    return tuple(_make(EXTRACTORS[name], settings.get(name, {})) for name in names)


def options(name: str) -> dict[str, str]:
    """The options of a known extractor as `{option: "type, default"}`, for help texts and errors."""
    hints = typing.get_type_hints(EXTRACTORS[name])
    return {
        f.name: f"{type_in_words(hints[f.name])}, default {f.default!r}" for f in fields(EXTRACTORS[name]) if f.init
    }


def _make(extractor: type[Any], given: Mapping[str, Any]) -> Extractor:
    known, hints = options(extractor.name), typing.get_type_hints(extractor)
    values = {}
    for option, value in given.items():
        if option not in known:
            listed = "; ".join(f"{key} ({meaning})" for key, meaning in known.items())
            raise ExtractorError(f"{extractor.name} has no option {option!r}", hint=f"its options: {listed}")
        values[option] = from_text(value, hints[option], where=f"{extractor.name}.{option}")
    made: Extractor = extractor(**values)
    return made
