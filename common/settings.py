"""From nested mappings (TOML, JSON) to frozen dataclasses and back: every key known, every value of the right type.

The types are read from the dataclasses themselves, so a setting exists in exactly one place. Understood: bool, int,
float (an integer is taken too), str, Path, `PathText`, `NameOrPath`, `Literal`, `X | None`, `tuple[X, ...]`,
`tuple[X, Y]`, `Mapping[str, X]` and nested dataclasses. `from_text` reads one option of a command line.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
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
    """An instance of the dataclass `cls` from nested values.

    Args:
        cls: A dataclass.
        values: Its fields by name; a missing one keeps its default.
        base: The folder that relative paths are taken from.
        where: The dotted prefix of a key in messages.

    Raises:
        ConfigError: A key is unknown (the message names the known ones) or missing, a value has the wrong type, or
            the dataclass itself refuses it.
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
        hint = error.hint if isinstance(error, PhyssegError) else None
        raise ConfigError(f"{f'[{where}] ' if where else ''}{error.args[0]}", hint=hint) from error


def to_dict(config: Any) -> Any:
    """The settings as JSON values: dataclasses become dicts, tuples lists. `build` reads the result back."""
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
    """Set one `key.sub=value` of the command line in nested values.

    Args:
        values: What the configuration file says; changed in place.
        text: The key, an equals sign, and the value as TOML or else as bare text.
        base: The shell's folder, which relative paths given this way are taken from.

    Raises:
        ConfigError: The text has no key or no equals sign, or the key lies below a value.
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


def from_text(value: Any, hint: Any, *, where: str) -> Any:
    """The value of one option as the type it is annotated with.

    >>> from_text("50", int, where="low"), from_text("none", str | None, where="weights")
    (50, None)

    Args:
        value: Text, which is read, or a value of a type that fits already.
        hint: bool, int, float, str, Path, `Literal`, or a union of these with None.
        where: The option's name in messages.

    Raises:
        ConfigError: The text cannot be read as that type, or the value has another one.
    """
    # None first: of `str | None`, the text "none" means None.
    for kind in sorted(_alternatives(hint), key=lambda kind: kind is not types.NoneType):
        try:
            return _read_text(value, kind)
        except (ValueError, TypeError):
            continue
    raise ConfigError.mismatch(where, type_in_words(hint), repr(value))


def type_in_words(hint: Any) -> str:
    """The type of an option, for help and messages.

    >>> type_in_words(float | None), type_in_words(Literal["a", "b"])
    ('number or none', "'a' or 'b'")
    """
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return " or ".join(_TYPE_WORDS.get(kind, str(kind)) for kind in _alternatives(hint))


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two results of `to_dict`, as (ours, theirs); absent shows as None."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = list(ours) + [key for key in theirs if key not in ours]
        found: dict[str, tuple[Any, Any]] = {}
        for key in keys:
            found |= differing_keys(ours.get(key), theirs.get(key), _dotted(prefix, key))
        return found
    return {} if ours == theirs else {prefix: (ours, theirs)}


# --- helpers --------------------------------------------------------------------------------------------------------


_TYPE_WORDS = {
    types.NoneType: "none",
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
}
_READ_FROM: dict[Any, Any] = {int: (str, int), float: (str, int, float), str: (str, Path), Path: (str, Path)}
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _read_text(value: Any, kind: Any) -> Any:
    word = value.strip().lower() if isinstance(value, str) else None
    if kind is types.NoneType and (value is None or word == "none"):
        return None
    if kind is bool and (isinstance(value, bool) or word in _TRUTH):
        return _TRUTH[word] if word else value
    if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
        return value
    if isinstance(value, _READ_FROM.get(kind, ())) and not isinstance(value, bool):
        return kind(value)
    raise ValueError(value)


class _OverriddenText(str):
    """Text of a `--set`: remembers the folder that a relative path in it is relative to."""

    __slots__ = ("base",)
    base: Path

    def __new__(cls, text: str, base: Path) -> "_OverriddenText":
        made = super().__new__(cls, text)
        made.base = base
        return made


def _convert(value: Any, hint: Any, *, base: Path, where: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names the key, the type and what was found."""
    if _nested(hint):
        return build(hint, _table(value, where), base=base, where=where)
    if hint is Any:
        return value
    convert = _CONVERTERS.get(typing.get_origin(hint))
    if convert is None:
        return _convert_scalar(value, hint, base=base, where=where)
    return convert(value, typing.get_args(hint), base=base, where=where)


def _convert_mapping(value: Any, arguments: tuple[Any, ...], *, base: Path, where: str) -> dict[str, Any]:
    items = _table(value, where).items()
    return {key: _convert(item, arguments[1], base=base, where=_dotted(where, key)) for key, item in items}


def _convert_annotated(value: Any, arguments: tuple[Any, ...], *, base: Path, where: str) -> Any:
    result = _convert(value, arguments[0], base=base, where=where)
    if _RelativePath in arguments or (_RelativePathUnlessName in arguments and not is_name(result)):
        return _resolved(result, base)
    return result


def _convert_choice(value: Any, choices: tuple[Any, ...], *, base: Path, where: str) -> Any:
    if value not in choices:
        raise ConfigError(f"`{where}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value) if isinstance(value, str) else value


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


_CONVERTERS: dict[Any, Callable[..., Any]] = {
    Annotated: _convert_annotated,
    Literal: _convert_choice,
    Mapping: _convert_mapping,
    types.UnionType: _convert_optional,
    typing.Union: _convert_optional,
    tuple: _convert_tuple,
}


def _resolved(text: str, base: Path) -> str:
    """A URL as it is; a path made absolute from `base`, or from the shell's folder if it came by `--set`."""
    if "://" in text or not text:
        return str(text)
    folder = text.base if isinstance(text, _OverriddenText) else base
    return str((folder / Path(str(text)).expanduser()).resolve())


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_type(where, "a table", value)
    return value


def _unknown_key(dotted: str, key: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    guess = f"; did you mean `{close[0]}`?" if close else ""
    return ConfigError(f"unknown key `{dotted}`{guess}", hint=f"Known here: {', '.join(known)}.")


def _wrong_type(where: str, expected: str, value: Any) -> ConfigError:
    shown = {str: "text", bool: "boolean", int: "integer", float: "number", dict: "table", list: "list"}
    kind = next((word for known, word in shown.items() if isinstance(value, known)), type(value).__name__)
    return ConfigError(f"`{where}` must be {expected}, got {kind} {to_dict(value)!r}")


def _init_fields(cls: type[Any]) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _nested(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _dotted(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else str(key)
