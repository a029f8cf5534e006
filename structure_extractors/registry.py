"""The extractors by name, physseg's own and those of other packages, and how to make them from settings as text.

A run sends workers no extractor but a `Request`, by which each makes its own: a package that is not installed there is
then an error in words, and one of another revision is found before it computes anything.
"""

import json
import socket
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any

from ..common import plugins
from ..common.errors import PhyssegError
from ..common.settings import differing_keys, from_text, type_in_words
from .errors import ExtractorError, PackageError
from .interface import ArraySpec, Extractor, identity, setting_fields

DEFAULT = ("canny", "mask_edges", "sift", "patch_counts")


@dataclass(frozen=True, slots=True)
class Request:
    """What an extractor is made from, on any machine that has its package."""

    name: str
    package: str
    """Distribution that offers it, and its version."""
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, extractor: Extractor) -> "Request":
        """The request of a made extractor."""
        offer = plugins.find("extractors", extractor.name)
        settings = tuple((f.name, getattr(extractor, f.name)) for f in setting_fields(extractor) if f.init)
        return cls(extractor.name, f"{offer.package} {offer.version}", settings)

    def make(self, expected: Mapping[str, Any]) -> Extractor:
        """The extractor, kept from call to call. Raises PackageError where this machine's is not the `expected` one."""
        extractor, found = _made(self)
        if found != expected:
            here = "; ".join(
                f"{key} {ours!r} instead of {theirs!r}"
                for key, (ours, theirs) in differing_keys(found, expected).items()
            )
            raise PackageError(
                f"{socket.gethostname()}: the structure extractor {self.name} is another one here: {here}",
                hint=f"install {self.package} on every machine of the run",
            )
        return extractor


@cache
def _made(request: Request) -> tuple[Extractor, Mapping[str, Any]]:
    try:
        extractor = _constructed(request.name, dict(request.settings))
    except (plugins.PluginError, ExtractorError) as error:
        message = f"{socket.gethostname()}: {request.name} of {request.package} cannot be made here: {error.args[0]}"
        raise PackageError(message, hint=f"install {request.package} on every machine of the run") from error
    return extractor, identity(extractor)


def build(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> tuple[Extractor, ...]:
    """Make the named extractors, in the given order.

    `settings` are options by the name of their extractor. A value may be text ("50"), which is read as the option's
    type ("none" for an option that may be absent).

    Raises:
        ExtractorError: An option is unknown, a name is given twice, an extractor that was not asked for has settings, a
            value is out of its range, or a package's extractor does not keep to the interface. The message lists what
            there is.
        PluginError: A name is unknown, or its package does not import.
        ConfigError: A value cannot be read as its option's type.
    """
    settings = settings or {}
    for name in (*names, *settings):
        plugins.find("extractors", name)
    if len(set(names)) != len(names):
        raise ExtractorError(f"a structure extractor is named twice: {', '.join(names)}")
    for name in settings:
        if name not in names:
            raise ExtractorError(
                f"settings for {name!r}, which is not among the structures asked for: {', '.join(names) or 'none'}",
                hint=f"add {name} to the structures, or leave its settings out",
            )
    return tuple(_make(name, settings.get(name, {})) for name in names)


def options(name: str) -> dict[str, str]:
    """The options of a known extractor as `{option: "type, default"}`, for help texts and errors."""
    extractor = _load(name)
    with plugins.find("extractors", name).blamed():
        hints = typing.get_type_hints(extractor)
        settings = [field for field in setting_fields(extractor) if field.init]
        return {field.name: f"{type_in_words(hints[field.name])}, default {field.default!r}" for field in settings}


def _load(name: str) -> type[Any]:
    offer = plugins.find("extractors", name)
    extractor = offer.load()
    if not (isinstance(extractor, type) and is_dataclass(extractor)):
        raise ExtractorError.mismatch(offer.where, "a frozen dataclass of settings", repr(extractor))
    return extractor


def _make(name: str, given: Mapping[str, Any]) -> Extractor:
    known, hints = options(name), typing.get_type_hints(_load(name))
    values = {}
    for option, value in given.items():
        if option not in known:
            listed = "; ".join(f"{key} ({meaning})" for key, meaning in known.items())
            raise ExtractorError(f"{name} has no option {option!r}", hint=f"its options: {listed or 'none'}")
        values[option] = from_text(value, hints[option], where=f"{name}.{option}")
    return _constructed(name, values)


def _constructed(name: str, values: Mapping[str, Any]) -> Extractor:
    """An extractor that keeps to the interface, of whatever package."""
    extractor, offer = _load(name), plugins.find("extractors", name)
    with offer.blamed():
        try:
            made: Extractor = extractor(**values)
        except PhyssegError:
            raise
        except (ValueError, TypeError) as error:
            raise ExtractorError(f"{name}: {error}", hint=f"its options: {options(name)}") from error
        check_members(made, name, offer.where)
        found: Any = identity(made)
        if not isinstance(found, dict) or json.loads(json.dumps(found, allow_nan=False)) != found:
            raise ExtractorError.mismatch(offer.where, "an identity that JSON gives back as it is", repr(found))
    return made


def check_members(made: Any, name: str, where: str) -> None:
    """Raise ExtractorError unless an object has what `Extractor` says, under the name of its entry point."""
    arrays = getattr(made, "arrays", None)
    has_specs = isinstance(arrays, tuple) and bool(arrays) and all(isinstance(spec, ArraySpec) for spec in arrays)
    faults = {
        f"the name {name!r}, as its entry point": getattr(made, "name", None) == name,
        "an integer as its `revision`": type(getattr(made, "revision", None)) is int,
        "a tuple of ArraySpec as its `arrays`": has_specs,
        "to be called with an image and labels": callable(made),
    }
    for expected, kept in faults.items():
        if not kept:
            raise ExtractorError.mismatch(where, expected, "another")
    if any("slot" in spec.dims for spec in made.arrays) and type(getattr(made, "slots", None)) is not int:
        raise ExtractorError.mismatch(where, "an integer as its `slots`, for its arrays with that dimension", "none")
