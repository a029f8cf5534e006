"""Pages from templates: what is escaped, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError
from physseg.common.html import chart, render

HOSTILE = "</script><b>&\"'"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "page.css").write_text("b { color: red }")
    (tmp_path / "page.html").write_text(
        '<style>{% include "page.css" %}</style>\n'
        "{% for name in names %}\n"
        '<i title="{{ name }}">{{ name }}</i>\n'
        "{% endfor %}\n"
        '<script type="application/json">{{ names | tojson }}</script>\n'
    )
    return tmp_path / "page.html"


def test_text_is_escaped_and_values_for_scripts_stay_inside_them(template: Path) -> None:
    page = render(template, names=[HOSTILE])
    escaped = "&lt;/script&gt;&lt;b&gt;&amp;&#34;&#39;"
    assert page.startswith(f'<style>b {{ color: red }}</style>\n<i title="{escaped}">{escaped}</i>\n<script')
    values = page.split('json">')[1].removesuffix("</script>\n")
    assert "<" not in values
    assert json.loads(values) == [HOSTILE]


def test_a_value_that_is_missing_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="names"):
        render(template)


def points(line: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_a_chart_spans_its_axes() -> None:
    """By hand: axes from (56, 152) to (248, 30), zero always on the axis."""
    drawn = chart("loss", [(0, 0.0), (10, 5.0), (20, 10.0)])
    assert points(drawn["raw"]) == points(drawn["smooth"]) == [(56, 152), (152, 91), (248, 30)]
    below = chart("loss", [(5, -1.0), (6, 1.0)])
    assert points(below["raw"]) == [(56, 152), (248, 30)] and (below["lowest"], below["highest"]) == (-1, 1)
    assert points(chart("one", [(7, 2.0)])["raw"]) == [(56, 30)] * 2
    assert chart("none", [])["raw"] == ""


def test_a_long_line_keeps_its_ends_and_its_mean() -> None:
    """Values that alternate between 0 and 2 have a mean of 1, half way up."""
    drawn = chart("loss", [(step, 2.0 * (step % 2)) for step in range(10_000)])
    raw, smooth = np.array(points(drawn["raw"])), np.array(points(drawn["smooth"]))
    assert len(raw) == len(smooth) == 500 and (drawn["first_step"], drawn["last_step"]) == (0, 9999)
    assert (raw[0, 0], raw[-1, 0]) == (56, 248)
    assert np.abs(smooth[:, 1] - 91).max() < 1 and set(raw[:, 1]) == {30, 152}
