"""The examples of docs/python.md run as they stand, each by itself."""

import re
from pathlib import Path

import physseg
import pytest

from .conftest import DOCS

PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
ALL = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", ALL, ids=[str(number) for number in range(len(ALL))])
def test_an_example_runs(code: str, demo: Path) -> None:
    exec(compile(code, "docs/python.md", "exec"), {"__name__": "__main__"})


def test_every_public_name_is_on_the_page() -> None:
    names = {name for name in physseg.__all__ if name != "__version__"}
    assert {f"physseg.{name}" for name in names} <= set(re.findall(r"physseg\.\w+", PAGE))
    for module in (physseg.losses, physseg.plugins, physseg.testing):
        for name in module.__all__:
            assert re.search(rf"\b{name}\b", PAGE), f"{module.__name__}.{name} is not in docs/python.md"
