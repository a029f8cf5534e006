"""`physseg plugins new`: a small package with a part of one's own that passes its test, to be filled with an idea."""

import re
from collections.abc import Set
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Final

from ...common.atomic import atomic_folder
from ...common.plugins import KINDS, PluginError, names

TEMPLATES: Final = Path(__file__).with_name("template")
GROUPS: Final = {"extractor": "extractors", "loss": "losses", "dataset": "datasets"}
"""What can be begun -> its kind of entry point."""
_USES: Final = {
    "extractor": "physseg preprocess MANIFEST STORE --structures $name",
    "loss": "physseg train CONFIG --set losses.$name.weight=1.0",
    "dataset": "physseg manifest $name --root FOLDER --split train --out train.parquet",
}


def write_package(name: str, kind: str, folder: Path) -> list[str]:
    """Write a package physseg-NAME, of module physseg_NAME, into a new folder, atomically; returns its files' names.

    Raises PluginError for a name that no part can have, or that is taken, and where the folder exists.
    """
    if not re.fullmatch("[a-z]([a-z0-9_]{0,38}[a-z0-9])?", name) or iskeyword(name):
        expected = "small letters, digits and underscores within, 40 at most, a letter first, and no word of Python's"
        raise PluginError.mismatch("the name", expected, repr(name))
    group = GROUPS[kind]
    if name in {*names(group), *_reserved(kind)}:
        raise PluginError(
            f"the name {name} is taken among {group}", hint="choose another; `physseg plugins` lists them"
        )
    if folder.exists() or folder.is_symlink():
        raise PluginError(f"{folder}: exists already", hint="choose another folder with --out")
    module = f"physseg_{name}"
    values = {
        "name": name,
        "package": module.replace("_", "-"),
        "module": module,
        "cls": "".join(map(str.capitalize, name.split("_"))),
        "group": group,
        "words": KINDS[group],
    }
    files = {"pyproject.toml": "pyproject.toml", "README.md": "README.md"}
    files |= {f"{module}.py": f"{kind}.py", f"test_{module}.py": f"test_{kind}.py"}
    values["use"] = Template(_USES[kind]).substitute(values)
    with atomic_folder(folder) as partial:
        for file, template in files.items():
            text = Template((TEMPLATES / f"{template}.in").read_text(encoding="utf-8")).substitute(values)
            (partial / file).write_text(text, encoding="utf-8")
    return list(files)


def _reserved(kind: str) -> Set[str]:
    """Names that a part of this kind cannot have."""
    if kind == "extractor":
        from ...pipeline.store.schema import LABEL_ARRAYS, RESERVED
        from ...structure_extractors.patch_counts import PatchCounts

        return RESERVED | {array.name for array in (*LABEL_ARRAYS, *PatchCounts.arrays)}
    if kind == "loss":
        from ..losses.named import reserved_names
        from ..losses.total import LossConfig

        return reserved_names(LossConfig)
    return set()
