"""From nested mappings (TOML, JSON) to frozen dataclasses and back: every key known, every value of the right type.

The types are read from the dataclasses themselves, so a setting exists in exactly one place. Understood: bool, int,
float (an integer is taken too), str, Path, `PathText`, `NameOrPath`, `Literal`, `X | None`, `tuple[X, ...]` and nested
dataclasses. `from_text` reads one option of a command line.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from .documents import parse_toml
from .errors import ConfigError, PhyssegError

T = TypeVar("T")


PathText = Annotated[str, "path"]
"""Text that is a path or a URL; a relative path is resolved against the file it was written in."""
NameOrPath = Annotated[str, "name or path"]
"""The same for text that may also be a name: a bare word without a dot or a slash is one, and a template with {}."""


def is_name(text: str) -> bool:
    """Whether a `NameOrPath` is a name.

    >>> is_name("openai"), is_name("openai.pt"), is_name("./openai")
    (True, False, False)
    """
    return "{}" in text or not set(text) & {".", "/", "\\"}


def build(cls: type[T], values: Mapping[str, Any], *, base: Path, where: str = "") -> T:
    """An instance of the dataclass `cls` from nested values.

    A class whose fields depend on the values has a class method `for_values`: values to a subclass, and its values.

    Args:
        values: Its fields by name; a missing one keeps its default.
        base: The folder that relative paths are taken from.
        where: The dotted prefix of a key in messages.

    Raises:
        ConfigError: A key is unknown (the message names the known ones) or missing, a value has the wrong type, or
            the dataclass itself refuses it.
    """
    if for_values := getattr(cls, "for_values", None):
        cls, values = for_values(values)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            guess = f"; did you mean `{close[0]}`?" if close else ""
            unknown = f"unknown key `{_dotted(where, key)}`{guess}"
            raise ConfigError(unknown, hint=f"Known here: {', '.join(known)}.")
    hints = typing.get_type_hints(cls, include_extras=True)
    arguments: dict[str, Any] = {}
    for name, field in known.items():
        dotted = _dotted(where, name)
        if name in values:
            arguments[name] = _convert(values[name], hints[name], base=base, where=dotted)
        elif field.default is MISSING and field.default_factory is MISSING:
            if not is_dataclass(hints[name]):
                raise ConfigError(f"`{dotted}` is missing", hint="It has no default; add it to the file.")
            arguments[name] = _convert({}, hints[name], base=base, where=dotted)
    try:
        return cls(**arguments)
    except (PhyssegError, ValueError, TypeError) as error:
        hint = error.hint if isinstance(error, PhyssegError) else None
        raise ConfigError(f"{f'[{where}] ' if where else ''}{error.args[0]}", hint=hint) from error


def check_ranges(settings: Any, **ranges: str) -> None:
    """Refuse numbers outside of their ranges, which are written as mathematics has them.

        check_ranges(self, steps="[1, 1e9]", beta1="[0, 1)")

    A tuple is checked item by item; None is left alone, and NaN is in no range. Saved settings meet these ranges too:
    an upper end lies where nothing could be trained or loaded (beyond 1e18, squares of float32 overflow), and may be
    lower only for a key that may differ when a run is resumed. Raises ConfigError with field, range and value.
    """
    for name, written in ranges.items():
        low, high = map(float, written[1:-1].split(","))
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            ends = {low: written[0] == "[", high: written[-1] == "]"}
            if number is not None and not (low < number < high or ends.get(number)):
                raise ConfigError.mismatch(name, f"a number in {written}", number)


def to_dict(config: Any) -> Any:
    """The settings as JSON values: dataclasses become dicts, tuples lists. `build` reads the result back."""
    if is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def apply_override(values: dict[str, Any], text: str, *, base: Path) -> None:
    """Set one `key.sub=value` of the command line, the value as TOML or else as bare text, in a file's nested values.

    `base` is the shell's folder, which relative paths given this way are taken from. Raises ConfigError where the text
    has no key or no equals sign, or the key lies below a value.
    """
    key, equals, written = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"expected KEY=VALUE, got {text!r}", hint="For example: --set optim.learning_rate=1e-4")
    try:
        value = parse_toml(f"value = {written}", ConfigError, key)["value"]
    except ConfigError:
        value = written.strip()
    table = values
    for depth, part in enumerate(parts[:-1]):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"`{'.'.join(parts[: depth + 1])}` is a value, not a table")
        table = inner
    if isinstance(value, str):
        value = _OverriddenText(value)
        value.base = base
    table[parts[-1]] = value


def from_text(value: Any, hint: Any, *, where: str) -> Any:
    """The value of one option as the type it is annotated with.

    >>> from_text("50", int, where="low"), from_text("none", str | None, where="weights")
    (50, None)

    `value` is text, which is read, or of a type that fits already. `hint` is bool, int, float, str, Path, `Literal`, or
    a union of these with None. Raises ConfigError, with the option's name `where`, for any other value or text.
    """
    # None first: of `str | None`, the text "none" means None.
    for kind in sorted(_alternatives(hint), key=lambda kind: kind is not types.NoneType):
        try:
            read = _read_text(value, kind)
            if not isinstance(read, float) or math.isfinite(read):
                return read
        except (ValueError, TypeError, OverflowError):
            continue
    raise ConfigError.mismatch(where, type_in_words(hint), repr(value))


def type_in_words(hint: Any) -> str:
    """The type of an option, for help and messages.

    >>> type_in_words(float | None), type_in_words(Literal["a", "b"])
    ('number or none', "'a' or 'b'")
    """
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if len(kinds := _alternatives(hint)) > 1:
        return " or ".join(map(type_in_words, kinds))
    if hint not in (*_SCALARS, types.NoneType):
        raise TypeError(f"{hint} is no type of a setting")
    return "none" if hint is types.NoneType else re.sub("^an? ", "", _SCALARS[hint][0])


def differing_keys(ours: Any, theirs: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two results of `to_dict`, as (ours, theirs); absent shows as None."""
    both = [values for values in (ours, theirs) if values is not None]
    if both and all(isinstance(values, Mapping) for values in both):
        ours, theirs = ours or {}, theirs or {}
        keys = list(ours) + [key for key in theirs if key not in ours]
        found: dict[str, tuple[Any, Any]] = {}
        for key in keys:
            found |= differing_keys(ours.get(key), theirs.get(key), _dotted(prefix, key))
        return found
    return {} if ours == theirs else {prefix: (ours, theirs)}


_SCALARS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", (bool,)),
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
    Path: ("a path", (str,)),
}
"""Types of a single value: their names in messages, and what they are read from."""
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
    accepted = (str, Path, *_SCALARS[kind][1]) if kind in (int, float, str, Path) else ()
    if isinstance(value, accepted) and not isinstance(value, bool):
        return kind(value)
    raise ValueError(value)


class _OverriddenText(str):
    """Text of a `--set`: remembers the folder that a relative path in it is relative to."""

    base: Path


def _convert(value: Any, hint: Any, *, base: Path, where: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that names the key, the type and what was found."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong_type(where, "a table", value)
        return build(hint, value, base=base, where=where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        text = _convert(value, arguments[0], base=base, where=where)
        return text if hint == NameOrPath and is_name(text) else _resolved(text, base)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _wrong_type(where, "a list", value)
        return tuple(_convert(item, arguments[0], base=base, where=f"{where}[{i}]") for i, item in enumerate(value))
    if len(kinds := _alternatives(hint)) > 1:
        kind = next(kind for kind in kinds if kind is not types.NoneType)
        return None if value is None else _convert(value, kind, base=base, where=where)
    return _convert_scalar(value, hint, base=base, where=where)


def _convert_scalar(value: Any, kind: Any, *, base: Path, where: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"`{where}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return str(value) if isinstance(value, str) else value
    if kind not in _SCALARS:
        raise ConfigError(f"`{where}` cannot be read: it is annotated as {kind}, which is no type of a setting")
    words, accepted = _SCALARS[kind]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError.mismatch(where, "a finite number", value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _wrong_type(where, words, value)
    if kind is Path:
        return Path(_resolved(value, base))
    return value if isinstance(value, _OverriddenText) else kind(value)


def _resolved(text: str, base: Path) -> str:
    """A URL as it is; a path made absolute from `base`, or from the shell's folder if it came by `--set`."""
    if "://" in text or not text:
        return str(text)
    folder = text.base if isinstance(text, _OverriddenText) else base
    return str((folder / Path(str(text)).expanduser()).resolve())


def _wrong_type(where: str, expected: str, value: Any) -> ConfigError:
    shown = {str: "text", bool: "boolean", int: "integer", float: "number", dict: "table", list: "list"}
    kind = next((word for known, word in shown.items() if isinstance(value, known)), type(value).__name__)
    return ConfigError(f"`{where}` must be {expected}, got {kind} {value!r}")


def _dotted(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else str(key)
