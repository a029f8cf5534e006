"""The short names are the modules behind them, load what they need and no more, and survive pickling."""

import pickle
import subprocess
import sys
from pathlib import Path

import physseg
import pytest

HEAVY = {"torch", "dask", "distributed", "cv2", "zarr", "pyarrow", "kornia", "fsspec", "PIL"}


def run(code: str) -> str:
    """What a fresh Python prints that runs this code."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_public_name_is_there() -> None:
    assert all(hasattr(physseg, name) for name in physseg.__all__)
    assert set(physseg.__all__) <= set(dir(physseg))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = physseg.no_such_name


@pytest.mark.parametrize(
    "statement",
    [
        "import physseg; found = physseg.plugins.PluginError",
        "import physseg.plugins; found = physseg.plugins.PluginError",
        "from physseg.plugins import PluginError as found",
        "from physseg import plugins; found = plugins.PluginError",
        "from importlib import import_module; found = import_module('physseg.plugins').PluginError",
    ],
)
def test_a_short_name_is_the_module_itself(statement: str) -> None:
    """In a fresh Python each, since the first import is the one in question."""
    code = (
        f"{statement}\n"
        "import sys, physseg, physseg.train.public.plugins, physseg.common.plugins as owner\n"
        "assert found is owner.PluginError\n"
        "assert sys.modules['physseg.plugins'] is physseg.plugins is sys.modules['physseg.train.public.plugins']\n"
        "assert physseg.plugins.__name__ == physseg.plugins.__spec__.name == 'physseg.train.public.plugins'"
    )
    run(code)


def test_losses_are_reached_by_both_names() -> None:
    run(
        "import physseg.losses; from physseg.train.losses.alignment import patch_weights as theirs\n"
        "assert physseg.losses.patch_weights is theirs"
    )


@pytest.mark.parametrize("module", ["plugins", "losses", "testing"])
def test_what_a_module_exports_pickles(module: str) -> None:
    exported = getattr(physseg, module)
    for name in exported.__all__:
        value = getattr(exported, name)
        assert pickle.loads(pickle.dumps(value)) is value


def test_type_checkers_find_the_same_modules() -> None:
    """They ask no import hook: a partial stub package beside the installed one has the short names."""
    short = {name: f"from physseg.train.public.{name} import *\n" for name in ("losses", "plugins", "testing")}
    stubs = Path(physseg.__file__).parent / "train/public/stubs"
    assert {file.stem: file.read_text() for file in stubs.glob("*.pyi")} == short
    assert (stubs / "py.typed").read_text() == "partial\n"
    assert {name.removeprefix("physseg.") for name in physseg._SHORT} == set(short)


def test_an_unknown_module_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"physseg\.lossse"):
        __import__("physseg.lossse")


def test_import_physseg_loads_nothing_and_plugins_little() -> None:
    show = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    assert not {*HEAVY, "numpy", "typer"} & set(run(f"import physseg; {show}").split())
    names = "from physseg.plugins import ArraySpec, Backbone, Dataset, Extractor, Loss"
    assert not HEAVY & set(run(f"{names}; {show}").split())
