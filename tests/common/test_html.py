"""Pages from templates: what is escaped, what is refused."""

import json
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from physseg.common.html import render

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
