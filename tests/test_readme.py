"""What the README and the other pages say of the code is what the code says."""

import re
from pathlib import Path

import pytest
from physseg.cli import app
from physseg.common import plugins
from physseg.pipeline.store.schema import LABEL_ARRAYS, STATUS, arrays_of
from physseg.structure_extractors.registry import build
from typer.main import get_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_arrays_is_the_schemas() -> None:
    extractors = build(plugins.names("extractors"), {"superpoint": {"dense": True}})
    of_layers = [array for extractor in extractors for array in arrays_of(extractor)]
    lines = ["| array | layer | dtype | dimensions | fill | what |", "|---|---|---|---|---|---|"]
    for spec in (*LABEL_ARRAYS, *of_layers, STATUS):
        dims = ", ".join(("sample", *spec.dims))
        lines.append(f"| `{spec.name}` | {spec.layer or '-'} | {spec.dtype} | {dims} | {spec.fill} | {spec.meaning} |")
    assert "\n".join(lines) in README, "\n".join(lines)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_every_command_of_a_page_exists_and_takes_its_options(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^ {4}physseg (.+)$", text, re.MULTILINE)
    assert len(commands) >= 12 or page.stem != "README"
    for line in commands:
        words = line.split("#")[0].split()
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        alone = command.name == "plugins" and all(word.startswith("--") for word in words)  # the table
        assert alone or not hasattr(command, "commands"), f"{line}: no such command"
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{line}: no option {word}"


def test_files_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
