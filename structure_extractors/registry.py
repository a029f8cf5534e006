"""The extractors by name, and how to make them from names and settings that came as text or TOML.

A new extractor: write its file, enter its class here, give each of its arrays a row in the pipeline's schema.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

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

    ``settings`` maps an extractor's name to its options; a value may be text ("50"), which is read as the option's type
    ("none" for an option that may be absent). An unknown name or option, a name given twice, and settings of an
    extractor that was not asked for, are each an :class:`ExtractorError` that lists what there is.
    """
    settings = settings or {}
    for name in (*names, *settings):
        if name not in EXTRACTORS:
            known = ", ".join(EXTRACTORS)
            raise ExtractorError(
                f"unknown structure extractor {name!r}, expected one of: {known}", expected=list(EXTRACTORS), got=name
            )
    if len(set(names)) != len(names):
        raise ExtractorError(f"a structure extractor is named twice: {', '.join(names)}", got=list(names))
    for name in settings:
        if name not in names:
            raise ExtractorError(
                f"settings for {name!r}, which is not among the structures asked for: {', '.join(names) or 'none'}",
                hint=f"add {name} to the structures, or leave its settings out",
                expected=list(names),
                got=name,
            )
    return tuple(_make(EXTRACTORS[name], settings.get(name, {})) for name in names)


def options(name: str) -> dict[str, str]:
    """Return the options of a known extractor as ``{option: "type, default"}``, for help texts and errors."""
    hints = typing.get_type_hints(EXTRACTORS[name])
    return {f.name: f"{_type_name(hints[f.name])}, default {f.default!r}" for f in fields(EXTRACTORS[name]) if f.init}


def _make(extractor: type[Any], given: Mapping[str, Any]) -> Extractor:
    known = options(extractor.name)
    hints = typing.get_type_hints(extractor)
    for option in given:
        if option not in known:
            listed = "; ".join(f"{key} ({meaning})" for key, meaning in known.items())
            raise ExtractorError(
                f"{extractor.name} has no option {option!r}",
                hint=f"its options: {listed}",
                extractor=extractor.name,
                option=option,
                expected=list(known),
            )
    values = {
        option: _coerce(value, hints[option], where=f"{extractor.name}.{option}") for option, value in given.items()
    }
    made: Extractor = extractor(**values)
    return made


def _coerce(value: Any, hint: Any, *, where: str) -> Any:
    """Read ``value`` as the type that an option is annotated with; text is parsed, anything else must fit already."""
    for candidate in _alternatives(hint):
        try:
            return _read(value, candidate)
        except (ValueError, TypeError):
            continue
    expected = _type_name(hint)
    raise ExtractorError(f"{where}: expected {expected}, got {value!r}", option=where, expected=expected, got=value)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        # None first: of `str | None`, the text "none" means None.
        return tuple(sorted(typing.get_args(hint), key=lambda kind: kind is not types.NoneType))
    return (hint,)


def _read(value: Any, kind: Any) -> Any:
    if kind is types.NoneType:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
    elif kind is bool:
        text = str(value).strip().lower() if isinstance(value, str | bool) else ""
        if text in ("true", "false", "yes", "no", "on", "off", "1", "0"):
            return text in ("true", "yes", "on", "1")
    elif kind in (int, float):
        allowed = (str, int) if kind is int else (str, int, float)
        if isinstance(value, allowed) and not isinstance(value, bool):
            return kind(value)
    elif kind in (str, Path) and isinstance(value, str | Path):
        return kind(value)
    raise ValueError(value)


def _type_name(hint: Any) -> str:
    names = {types.NoneType: "none", bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return " or ".join(names.get(kind, str(kind)) for kind in typing.get_args(hint) or (hint,))
