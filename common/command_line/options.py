"""Options that several commands share, and how their values are read and written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..atomic import atomic_json, check_target
from ..errors import ConfigError

T = TypeVar("T")
PRINT = Path("-")
"""What `--json` is given to print."""


def to_write(place: T) -> T:
    """The value of an option that names a file to write, "FOLDER/*" for one in a folder; an error before any work."""
    from ..storage.location import is_url, local_path

    if place not in (None, PRINT) and not is_url(str(place)):
        check_target(local_path(str(place)))
    return place


def parsed(parse: Callable[[str], T], text: str | None, option: str) -> T | None:
    """The value of an option; one that does not parse is an error of usage."""
    try:
        return None if text is None else parse(text)
    except ConfigError as error:
        # The message may begin with the name that the value has elsewhere: `--part: part: expected ...` says it twice.
        raise typer.BadParameter(error.args[0].removeprefix(f"{option[2:]}: "), param_hint=option) from None


def show(text: str, document: Any, json_file: Path | None) -> None:
    """Print what a command found, and write it as JSON where asked; `--json -` prints the JSON instead."""
    typer.echo(json.dumps(document, indent=1) if json_file == PRINT else text)
    if json_file and json_file != PRINT:
        atomic_json(json_file, document)


JsonOut = Annotated[
    Path | None, typer.Option("--json", callback=to_write, help="Write everything to a JSON file; - prints it.")
]
Root = Annotated[str | None, typer.Option(help="Folder or URL of the data set's files, if they moved.")]
Device = Annotated[str, typer.Option(help="auto (CUDA if there is one), cpu, cuda, cuda:1.")]
NumImages = Annotated[int | None, typer.Option("--num-images", min=1, help="Take only the first N images.")]
AllowQuarantine = Annotated[bool, typer.Option("--allow-quarantine", help="Exit 0 although samples were quarantined.")]
