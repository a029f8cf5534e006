"""From nested mappings (TOML, JSON) to frozen dataclasses and back: every key known, every value of the right type.

The types are read from the dataclasses themselves, so a setting exists in exactly one place. Understood: bool, int,
float (an integer is taken too), str, ``PathText``, ``NameOrPath``, ``Literal``, ``X | None``, ``tuple[X, ...]``,
``tuple[X, Y]``, ``Mapping[str, X]`` and nested dataclasses.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from .errors import ConfigError, PhyssegError

T = TypeVar("T")


class _RelativePath:
    """Marks text that is a path or a URL; a relative path is resolved against the file it was written in."""


class _RelativePathUnlessName:
    """The same for text that may also be a name: a bare word without a dot or a slash is one."""


PathText = Annotated[str, _RelativePath]
NameOrPath = Annotated[str, _RelativePathUnlessName]


def is_name(text: str) -> bool:
    """Whether a `NameOrPath` is a name.

    >>> is_name("openai"), is_name("openai.pt"), is_name("./openai")
    (True, False, False)
    """
    return not set(text) & {".", "/", "\\"}


def build(cls: type[T], values: Mapping[str, Any], *, base: Path, where: str = "") -> T:
    """An instance of the dataclass ``cls`` from nested ``values``; relative paths are taken from the folder ``base``.

    Raises ConfigError for an unknown key (naming the known ones), a missing one, a wrong type, or a value that the
    dataclass itself refuses; ``where`` is the dotted prefix that the message shows.
    """
    known = {field.name: field for field in _init_fields(cls)}
    for key in values:
        if key not in known:
            raise _unknown_key(_dotted(where, key), key, list(known))
    hints = typing.get_type_hints(cls, include_extras=True)
    arguments: dict[str, Any] = {}
    for name, field in known.items():
        if name in values:
            arguments[name] = _convert(values[name], hints[name], base=base, where=_dotted(where, name))
        elif _nested(hints[name]) and not _has_default(field):
            arguments[name] = build(hints[name], {}, base=base, where=_dotted(where, name))
        elif not _has_default(field):
            raise ConfigError(f"`{_dotted(where, name)}` is missing", hint="It has no default; add it to the file.")
    try:
        return cls(**arguments)
    except (PhyssegError, ValueError, TypeError) as error:
        hint, facts = (error.hint, error.fields) if isinstance(error, PhyssegError) else (None, {})
        raise ConfigError(f"{f'[{where}] ' if where else ''}{error.args[0]}", hint=hint, **facts) from error


def to_dict(config: Any) -> Any:
    """The settings as JSON values: dataclasses become dicts, tuples lists; ``build`` reads the result back."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in _init_fields(type(config))}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def apply_override(values: dict[str, Any], text: str, *, base: Path) -> None:
    """Set one ``key.sub=value`` of the command line in nested ``values``; the value is TOML, or else bare text.

    Relative paths given this way are relative to ``base``, the shell's folder, not to the configuration file's.
    """
    key, equals, written = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set takes KEY=VALUE, got {text!r}", hint="For example: --set optim.learning_rate=1e-4")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written.strip()
    table = values
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: `{'.'.join(parts[: depth + 1])}` is a value, not a table")
        table = inner
    table[parts[-1]] = _OverriddenText(value, base) if isinstance(value, str) else value


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two plain settings, each with (ours, theirs); absent shows as None."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = list(ours) + [key for key in theirs if key not in ours]
        found: dict[str, tuple[Any, Any]] = {}
        for key in keys:
            found |= differing_keys(ours.get(key), theirs.get(key), _dotted(prefix, key))
        return found
    return {} if ours == theirs else {prefix: (ours, theirs)}


# --- helpers --------------------------------------------------------------------------------------------------------


class _OverriddenText(str):
    """Text of a ``--set``: remembers the folder that a relative path in it is relative to."""

    __slots__ = ("base",)
    base: Path

    def __new__(cls, text: str, base: Path) -> "_OverriddenText":
        made = super().__new__(cls, text)
        made.base = base
        return made


def _convert(value: Any, hint: Any, *, base: Path, where: str) -> Any:
    """``value`` as the type ``hint``, or a ConfigError that names the key, the type and what was found."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    result = value
    if _nested(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, "a table", value)
        if _nested(hint):
            return build(hint, value, base=base, where=where)
        result = {
            key: _convert(item, arguments[1], base=base, where=_dotted(where, key)) for key, item in value.items()
        }
    elif origin in (typing.Union, types.UnionType):
        result = _convert_optional(value, arguments, base=base, where=where)
    elif origin is Annotated:
        result = _convert(value, arguments[0], base=base, where=where)
        if _RelativePath in arguments[1:] or (_RelativePathUnlessName in arguments[1:] and not is_name(result)):
            result = _resolved(result, base)
    elif origin is Literal:
        if value not in arguments:
            raise ConfigError(f"`{where}` must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        result = str(value) if isinstance(value, str) else value
    elif origin is tuple:
        result = _convert_tuple(value, arguments, base=base, where=where)
    elif hint is not Any:
        result = _convert_scalar(value, hint, base=base, where=where)
    return result


def _convert_scalar(value: Any, hint: Any, *, base: Path, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(_resolved(value, base))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, str):
        return value if isinstance(value, _OverriddenText) else str(value)
    names = {Path: "a path", bool: "true or false", int: "an integer", float: "a number", str: "text"}
    raise _wrong_type(where, names.get(hint, str(hint)), value)


def _convert_optional(value: Any, choices: tuple[Any, ...], *, base: Path, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(value, choice, base=base, where=where)
        except ConfigError as error:
            errors.append(error)
    raise errors[-1]


def _convert_tuple(value: Any, items: tuple[Any, ...], *, base: Path, where: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong_type(where, "a list", value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"`{where}` takes {len(items)} values, got {len(value)}: {list(value)!r}")
    pairs = zip(value, items, strict=True)
    return tuple(_convert(item, hint, base=base, where=f"{where}[{i}]") for i, (item, hint) in enumerate(pairs))


def _resolved(text: str, base: Path) -> str:
    """A URL as it is; a path made absolute from ``base``, or from the shell's folder if it came by ``--set``."""
    if "://" in text or not text:
        return str(text)
    folder = text.base if isinstance(text, _OverriddenText) else base
    return str((folder / Path(str(text)).expanduser()).resolve())


def _unknown_key(dotted: str, key: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    guess = f"; did you mean `{close[0]}`?" if close else ""
    return ConfigError(
        f"unknown key `{dotted}`{guess}", hint=f"Known here: {', '.join(known)}.", expected=known, got=key
    )


def _wrong_type(where: str, expected: str, value: Any) -> ConfigError:
    shown = {str: "text", bool: "boolean", int: "integer", float: "number", dict: "table", list: "list"}
    kind = next((word for known, word in shown.items() if isinstance(value, known)), type(value).__name__)
    return ConfigError(f"`{where}` must be {expected}, got {kind} {to_dict(value)!r}", expected=expected, got=value)


def _init_fields(cls: type[Any]) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _nested(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _dotted(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else str(key)
