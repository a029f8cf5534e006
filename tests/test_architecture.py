"""The folders' arrows point one way, and the command line starts without the heavy libraries."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import physseg
import pytest

ROOT = Path(physseg.__file__).parent

MAY_IMPORT = {
    "manifests": set(),
    "structure_extractors": set(),
    "pipeline": {"manifests", "structure_extractors"},
    "train": {
        "manifests",
        "pipeline.schema",
        "pipeline.reader",
        "pipeline.frame",
        "pipeline.draw",
        "pipeline.errors",
        "pipeline.html_page",
        "pipeline.commands",
        "structure_extractors.canny",  # an analysis sets the structure head beside it
    },
}
"""Package -> the packages, or single modules, of ours that it may import besides itself."""


def imports_of_ours(file: Path) -> set[str]:
    """Modules of physseg that a file imports from outside its own package, as dotted names below physseg."""
    found = set()
    depth = len(file.relative_to(ROOT).parents)  # dots that lead to the root of physseg
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and node.module:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("physseg"):
            found.add((node.module or "").removeprefix("physseg").lstrip("."))
        elif isinstance(node, ast.Import):
            found |= {name.name.removeprefix("physseg.") for name in node.names if name.name.startswith("physseg")}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for module in imports_of_ours(file):
            allowed = module == package or any(
                module == name or module.startswith(f"{name}.") for name in MAY_IMPORT[package]
            )
            assert allowed, f"{file.relative_to(ROOT)} imports {module}; {package} may import {MAY_IMPORT[package]}"


def test_nobody_imports_the_command_line() -> None:
    for package in MAY_IMPORT:
        for file in (ROOT / package).rglob("*.py"):
            assert "cli" not in {module.split(".")[0] for module in imports_of_ours(file)}, file


def test_package_inits_stay_empty() -> None:
    for package in MAY_IMPORT:
        for init in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(init.read_text()).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), f"{init} holds more than a docstring"


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


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_docstring_examples_hold(package: str) -> None:
    module = importlib.import_module(f"physseg.{package}")
    for info in pkgutil.walk_packages(module.__path__, f"physseg.{package}."):
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
