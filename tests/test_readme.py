"""What the README says of the code is what the code says."""

import re
from pathlib import Path

from physseg.cli import app
from physseg.pipeline.schema import markdown_table
from typer.main import get_command

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_arrays_is_the_schemas() -> None:
    assert markdown_table() in README


def test_every_command_in_the_readme_exists_and_takes_its_options() -> None:
    commands = re.findall(r"^ {4}physseg (.+)$", README, re.MULTILINE)
    assert len(commands) >= 12
    for line in commands:
        words = line.split("#")[0].split()
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert not hasattr(command, "commands"), f"{line}: no such command"
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{line}: no option {word}"


def test_files_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (Path(__file__).parent.parent / target).exists(), target
