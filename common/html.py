"""HTML pages from jinja2 templates: text is escaped, and a name that nobody gave a value is an error.

    page = render(Path(__file__).with_name("page") / "page.html", title="a < b", rows=[...])

Templates include their neighbours (`{% include "page.css" %}`) and write values for scripts by `{{ value | tojson }}`.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, **values: Any) -> str:
    """The text of a template file with the values it names; `markupsafe.Markup` among them is not escaped."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template(template.name).render(values)
