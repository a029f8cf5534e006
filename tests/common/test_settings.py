"""Nested settings to dataclasses: unknown keys, wrong types and ranges are errors that name key, type and repair."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from physseg.common.errors import ConfigError
from physseg.common.settings import (
    PathText,
    apply_override,
    build,
    check_ranges,
    differing_keys,
    from_text,
    to_dict,
    type_in_words,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.1
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    folder: Path
    inner: Inner = field(default_factory=Inner)
    steps: int = 3
    names: tuple[str, ...] = ()
    remote: PathText | None = None
    flag: bool = False


BASE = Path("/base")


def read(**values: Any) -> Outer:
    return build(Outer, {"folder": "x", **values}, base=BASE)


def test_values_by_hand() -> None:
    config = read(inner={"rate": 1, "sizes": [3, 4]}, names=["u", "v"])
    assert config == Outer(folder=Path("/base/x"), inner=Inner(rate=1.0, sizes=(3, 4)), names=("u", "v"))
    assert isinstance(config.inner.rate, float)


def test_plain_and_build_are_inverse() -> None:
    config = read(inner={"mode": "b"}, names=["u"], remote="data")
    assert build(Outer, to_dict(config), base=Path("/elsewhere")) == config


def test_paths_are_relative_to_the_file_and_urls_are_left_alone() -> None:
    assert read(remote="data/images").remote == "/base/data/images"
    assert read(remote="s3://bucket/images").remote == "s3://bucket/images"
    assert read(remote="/abs").remote == "/abs"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 4}, "unknown key `step`; did you mean `steps`?"),
        ({"inner": {"ratio": 4}}, "unknown key `inner.ratio`; did you mean `rate`?"),
        ({"qqq": 4}, "unknown key `qqq`\n"),
        ({"steps": 2.5}, "`steps` must be an integer, got number 2.5"),
        ({"steps": True}, "`steps` must be an integer, got boolean True"),
        ({"flag": 1}, "`flag` must be true or false, got integer 1"),
        ({"inner": {"rate": "fast"}}, "`inner.rate` must be a number, got text 'fast'"),
        ({"inner": {"mode": "c"}}, "`inner.mode` must be one of 'a', 'b', got 'c'"),
        ({"inner": {"sizes": [1, "2"]}}, "`inner.sizes[1]` must be an integer, got text '2'"),
        ({"inner": 3}, "`inner` must be a table, got integer 3"),
        ({"names": "canny"}, "`names` must be a list, got text 'canny'"),
        ({"names": ["a", 3]}, "`names[1]` must be text, got integer 3"),
        ({"inner": {"rate": -1}}, "[inner] rate must not be negative, got -1.0"),
        ({"inner": {"rate": float("inf")}}, "inner.rate: expected a finite number, got inf"),
        ({"folder": 3}, "`folder` must be a path, got integer 3"),
    ],
)
def test_errors_name_key_type_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**values)
    assert message in f"{caught.value}\n"


def test_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        read(inner={"ratio": 4})
    assert caught.value.hint == "Known here: rate, mode, sizes."


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="`folder` is missing"):
        build(Outer, {}, base=BASE)


def override(*texts: str) -> Outer:
    values: dict[str, Any] = {"folder": "x"}
    for text in texts:
        apply_override(values, text, base=Path("/shell"))
    return build(Outer, values, base=BASE)


def test_overrides_are_toml_values_or_bare_text() -> None:
    config = override("inner.rate=2e-4", "inner.mode=b", "names=['p', 'q']", "flag=true", "steps = 7")
    assert (config.inner.rate, config.inner.mode, config.names, config.flag, config.steps) == (
        2e-4,
        "b",
        ("p", "q"),
        True,
        7,
    )


def test_override_paths_are_relative_to_the_shell() -> None:
    config = override("folder=run", "remote='data'")
    assert (config.folder, config.remote) == (Path("/shell/run"), "/shell/data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "expected KEY=VALUE, got 'steps'"),
        ("inner..rate=3", "expected KEY=VALUE"),
        ("folder.sub=3", "`folder` is a value, not a table"),
        ("inner.rat=3", "unknown key `inner.rat`; did you mean `rate`?"),
        ("steps=1O", "`steps` must be an integer, got text '1O'"),
    ],
)
def test_override_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(text)
    assert message in str(caught.value)


def test_differing_keys_are_dotted() -> None:
    ours = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert differing_keys(ours, {"a": {"b": 1, "c": 3}, "d": [1], "e": 5}) == {"a.c": (2, 3), "e": (None, 5)}
    assert differing_keys(ours, ours) == {}


Mode = Literal["mean", "max"]


@pytest.mark.parametrize(
    ("written", "kind", "expected"),
    [
        ("50", int, 50),
        ("1e-3", float, 1e-3),
        (3, float, 3.0),
        ("true", bool, True),
        ("Off", bool, False),
        ("1", bool, True),
        ("a.pt", Path, Path("a.pt")),
        ("50", str, "50"),
        ("none", int | None, None),
        (None, Path | None, None),
        ("None", str | None, None),
        ("7", int | None, 7),
        ("max", Mode, "max"),
        ("none", Mode | None, None),
    ],
)
def test_options_are_read_by_their_type(written: object, kind: object, expected: object) -> None:
    read = from_text(written, kind, where="x")
    assert read == expected and type(read) is type(expected)


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("50.5", int),
        (50.5, int),
        (True, int),
        (True, float),
        ("maybe", bool),
        (1, bool),
        ("min", Mode),
        (3, str),
        ("", int),
        ("inf", float),
        ("1e999", float),
        (float("nan"), float),
    ],
)
def test_an_option_of_another_type_names_both(written: object, kind: object) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text(written, kind, where="canny.low")
    assert str(caught.value) == f"canny.low: expected {type_in_words(kind)}, got {written!r}"


@dataclass(frozen=True)
class Numbers:
    a: float = 0.5
    b: int | None = None
    c: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({}, ""),
        ({"a": 0}, "a"),
        ({"a": 1}, ""),
        ({"a": 1.001}, "a"),
        ({"a": float("nan")}, "a"),
        ({"a": float("inf")}, "a"),
        ({"b": 0}, ""),
        ({"b": -1}, "b"),
        ({"b": 9}, "b"),
        ({"b": 10**400}, "b"),
        ({"c": (1, 5)}, "c"),
        ({"c": ()}, ""),
    ],
)
def test_ranges_are_open_or_closed_at_either_end(values: dict[str, Any], wrong: str) -> None:
    ranges = {"a": "(0, 1]", "b": "[0, 9)", "c": "[1, 4]"}
    told = ""
    try:
        check_ranges(Numbers(**values), **ranges)
    except ConfigError as error:
        told = str(error)
    assert told.startswith(f"{wrong}: expected a number in {ranges[wrong]}, got " if wrong else "") and bool(
        told
    ) == bool(wrong)
