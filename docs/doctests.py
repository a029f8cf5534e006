"""Shows the examples of docstrings as code on the site: Markdown takes a line that begins with >>> for a quotation."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around each example, from its first prompt to the blank line after it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring with its examples in fences.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2\\n\\nOr not.")
    'Adds.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```\\n\\nOr not.'
    """
    lines: list[str] = []
    indent: str | None = None
    for line in [*text.split("\n"), ""]:
        if indent is None and line.lstrip().startswith(">>>"):
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{indent}```pycon")
        elif indent is not None and not line.strip():
            lines.append(f"{indent}```")
            indent = None
        lines.append(line)
    return "\n".join(lines[:-1])
