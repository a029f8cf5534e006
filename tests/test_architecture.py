"""Rooms import in one direction, nothing imports in circles, and the command line starts without heavy libraries."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import physseg
import pytest
from physseg import cli

ROOT = Path(physseg.__file__).parent
PACKAGES = ("common", "manifests", "structure_extractors", "pipeline", "train")
MAX_MODULES = 12

DATA = {"common", "manifests"}
STORE = {*DATA, "structure_extractors", "pipeline.store"}
MODEL = {"common", "train.errors", "train.model"}
TRAINED = {*DATA, *MODEL, "train.runs", "train.weights", "train.evaluation", "train.prediction"}

ROOMS: dict[str, set[str]] = {
    "common": set(),
    "manifests": {"common"},
    "structure_extractors": {"common"},
    "pipeline.store": {*DATA, "structure_extractors"},
    "pipeline.run": STORE,
    "pipeline.cost": {*STORE, "pipeline.run"},
    "pipeline.inspect.drawing": {"common"},
    "pipeline.inspect": {*DATA, "pipeline.store", "pipeline.inspect.drawing"},
    "pipeline.commands": {*STORE, "pipeline.run", "pipeline.cost", "pipeline.inspect"},
    "train.errors": {"common"},
    "train.losses": {"common", "train.errors"},
    "train.model": {"common", "train.errors"},
    "train.optim": MODEL,
    "train.data": {"common", "train.errors", "pipeline.store"},
    "train.config": {*MODEL, "train.losses", "train.optim", "train.data", "pipeline.store"},
    "train.runs": {*DATA, "train.errors"},
    "train.weights": {*DATA, *MODEL, "train.config", "train.runs"},
    "train.evaluation": {*DATA, *MODEL, "train.losses"},
    "train.prediction": {*DATA, *MODEL, "train.runs", "train.weights", "pipeline.inspect.drawing"},
    "train.report": {*TRAINED, "train.data", "pipeline.store", "pipeline.inspect.drawing"},
    "train.loop": {*TRAINED, "train.config", "train.losses", "train.optim", "train.data", "train.report"}
    - {"train.prediction"},
    "train.planning": {
        *("common", "train.errors", "train.config", "train.optim", "train.data", "train.losses", "train.loop"),
        *("train.model", "train.runs", "train.weights"),
    },
    "train.public": {*STORE, *MODEL, "train.losses", "train.data"},
    "train.demo": {*DATA, *MODEL, "train.optim", "train.runs", "train.weights", "train.evaluation", "train.report"},
    "train.commands": {
        *TRAINED,
        "train.config",
        "train.loop",
        "train.planning",
        "train.report",
        "train.demo",
        "pipeline.inspect.drawing",
    },
    "train.detector": {*DATA, "structure_extractors", *MODEL, "train.runs"},
    "train.analysis": {
        *TRAINED,
        *("train.config", "train.losses", "train.data", "train.loop", "train.report", "train.commands"),
        *("structure_extractors", "pipeline.store", "pipeline.inspect.drawing"),
    },
}
"""Room -> the rooms that it may import besides itself. A room is a folder with all below it, or a file of its own."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> Iterator[str]:
    """Modules of ours that a file imports, at its top or inside a function, as dotted names below physseg."""
    folder = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] == "physseg" for name in node.names), f"{file}: import relatively"
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "physseg" or node.level, f"{file}: import relatively"
            if node.level:
                base = [*folder[: len(folder) + 1 - node.level], *(node.module.split(".") if node.module else [])]
                for name in node.names:
                    module = ROOT.joinpath(*base, name.name)
                    is_module = module.is_dir() or module.with_suffix(".py").exists()
                    yield ".".join([*base, name.name] if is_module else base)


GRAPH = {
    module_of(file): set(imports_of(file)) - {""}  # the root package has the version
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}


def room_of(module: str) -> str:
    """The smallest room that a module is in."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default="no room")


def test_rooms_import_what_the_table_says() -> None:
    wrong = [
        f"{module} ({room_of(module)}) imports {imported} ({room_of(imported)})"
        for module, all_imported in GRAPH.items()
        for imported in sorted(all_imported)
        if room_of(imported) not in {room_of(module), *ROOMS.get(room_of(module), ())}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_is_in_a_room() -> None:
    empty = [package for package in PACKAGES if package not in ROOMS]  # an __init__ that holds a docstring
    assert [module for module in GRAPH if room_of(module) == "no room"] == empty


@pytest.mark.parametrize("graph", [ROOMS, GRAPH], ids=["rooms", "modules"])
def test_nothing_imports_in_circles(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_package_inits_hold_a_docstring_alone() -> None:
    for package in PACKAGES:
        for init in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(init.read_text()).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{init} holds more than a docstring"


def test_every_folder_is_installed() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {f"physseg.{module_of(init)}" for package in PACKAGES for init in (ROOT / package).rglob("__init__.py")}
    assert set(document["tool"]["setuptools"]["packages"]) == {"physseg-stubs", "physseg", *folders}


def test_no_folder_is_a_heap() -> None:
    for package in PACKAGES:
        for init in (ROOT / package).rglob("__init__.py"):
            modules = [file.stem for file in init.parent.glob("*.py") if file != init]
            assert len(modules) <= MAX_MODULES, f"{init.parent}: {len(modules)} modules; make rooms of them"


def test_help_loads_neither_torch_nor_dask() -> None:
    code = (
        "import sys; sys.argv = ['physseg', '--help']\n"
        "from physseg.cli import app\n"
        "try: app()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'dask', 'distributed', 'cv2', 'zarr', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "preprocess" in result.stdout


@pytest.mark.parametrize("arguments", [["--debug", "train", "no.toml"], ["train", "no.toml", "--debug"]])
def test_debug_works_before_and_after_the_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shown in (arguments, ["train", "no.toml"]):
        monkeypatch.setattr(sys, "argv", ["physseg", *shown])
        with pytest.raises(SystemExit) as end:
            cli.main()
        error = capsys.readouterr().err
        assert end.value.code == 1
        assert "error: no.toml: no such configuration file" in error
        assert ("Traceback" in error) == ("--debug" in shown)


@pytest.mark.parametrize("package", PACKAGES)
def test_docstring_examples_hold(package: str) -> None:
    module = importlib.import_module(f"physseg.{package}")
    for info in pkgutil.walk_packages(module.__path__, f"physseg.{package}."):
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
