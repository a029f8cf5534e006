"""Sizes, durations, previews and parts, as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from physseg.common.errors import ConfigError
from physseg.common.text import Part, format_bytes, format_duration, latex_table, parse_bytes, percent, preview


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (1_234_567, "1.2 MB"), (5e9, "5.0 GB"), (7.2e15, "7200.0 TB")],
)
def test_sizes_are_shown_in_decimal_units(size: float, shown: str) -> None:
    assert format_bytes(size) == shown


@pytest.mark.parametrize(
    ("fraction", "one_digit", "two"),
    [
        (0, "0.0%", "0.00%"),
        (0.0004, "<0.1%", "0.04%"),
        (0.001, "0.1%", "0.10%"),
        (0.00004, "<0.1%", "<0.01%"),
        (0.1234, "12.3%", "12.34%"),
        (1, "100.0%", "100.00%"),
        (float("nan"), "-", "-"),
    ],
)
def test_small_shares_are_not_shown_as_none(fraction: float, one_digit: str, two: str) -> None:
    assert (percent(fraction, digits=1), percent(fraction)) == (one_digit, two)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64", 64), (" 2GiB ", 2 * 2**30), ("2gib", 2 * 2**30), ("1.5 kB", 1500), (".5m", 500_000), ("3T", 3 * 10**12)],
)
def test_sizes_are_read_in_units_of_1000_and_of_1024(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e3x", "2 GiBs", "1,5 GB", "2 G B", "1e400", "9" * 400 + "TiB"])
def test_a_text_that_is_no_size_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="2GiB"):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_size_that_was_shown_is_read_back(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.05, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (1e5, "27.8 h")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_a_preview_says_how_many_it_leaves_out() -> None:
    assert preview([]) == "none"
    assert preview(range(5)) == "0, 1, 2, 3, 4"
    assert preview(range(6)) == "0, 1, 2, 3, 4 and 1 more"
    assert preview((str(i) for i in range(4)), limit=2) == "0, 1 and 2 more"


def test_latex_takes_every_character_as_it_is() -> None:
    """By LaTeX's own table of special characters; a bracket would be an option of the line's end before it."""
    cell = r"a&b %c $d #e _f {g} ~h ^i \j <k> |l ± [m] -5 to -0.5, T-5"
    lines = latex_table([("", "x"), (cell, "2")], right={1}).splitlines()
    assert lines[:4] == [r"\begin{tabular}{lr}", r"\toprule", r" & x \\", r"\midrule"]
    assert lines[5:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[4] == (
        r"a\&b \%c \$d \#e \_f \{g\} \textasciitilde{}h \textasciicircum{}i \textbackslash{}j "
        r"\textless{}k\textgreater{} \textbar{}l $\pm$ {[}m] $-$5 to $-$0.5, T-5 & 2 \\"
    )


@given(st.integers(1, 9), st.lists(st.integers(), max_size=40))
def test_parts_share_everything_once(parts: int, items: list[int]) -> None:
    shares = [Part(number, parts) for number in range(1, parts + 1)]
    assert sorted(item for share in shares for item in share.of(items)) == sorted(items)
    for share in shares:
        assert share.of(items) == [item for index, item in enumerate(items) if share.owns(index)]
        assert Part.parse(str(share)) == share


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3"])
def test_a_part_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="I/N") as caught:
        Part.parse(text)
    assert "SLURM_ARRAY_TASK_ID" in str(caught.value.hint)
