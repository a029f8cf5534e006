"""The notebook runs from top to bottom, and what it shows on the web is what it shows here, on other numbers."""

import json
from pathlib import Path

import physseg

from .conftest import DOCS
from .notebook import run

NOTEBOOK = json.loads((DOCS / "tour.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_and_shows_what_its_outputs_show(demo: Path) -> None:
    for cell, shown in zip(CODE, run(NOTEBOOK), strict=True):
        kinds = [
            [(output["output_type"], *output.get("data", ())) for output in one] for one in (cell["outputs"], shown)
        ]
        assert kinds[0] == kinds[1], "".join(cell["source"])


def test_the_notebook_is_one_of_jupyters_and_small() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert (DOCS / "tour.ipynb").stat().st_size < 300_000


def test_the_notebook_uses_every_public_function() -> None:
    source = "\n".join("".join(cell["source"]) for cell in CODE)
    functions = {name for name in physseg.__all__ if callable(getattr(physseg, name))} - {"PhyssegError"}
    assert {"open_store", "StoreDataset", "load", "evaluate_predictions"} <= functions
    assert not [name for name in (*functions, *physseg.losses.__all__) if name not in source]
