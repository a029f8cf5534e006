"""Command line of physseg: thin commands over the library; heavy imports happen inside the commands."""

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from . import PhyssegError, __version__

app = typer.Typer(
    name="physseg",
    help="Pseudo ground truth computed once, open-vocabulary segmenters trained on it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
manifest_app = typer.Typer(help="Turn a data set folder into a table of samples with a vocabulary.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    """The usual order: manifest, preprocess, verify, inspect, train, evaluate, predict. `physseg demo` shows it all."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


# --- manifest -------------------------------------------------------------------------------------------------------


# --- preprocess, verify, inspect ------------------------------------------------------------------------------------


# --- train, evaluate, predict ---------------------------------------------------------------------------------------


# --- demo -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Entry point: runs the app, and turns our errors into one line, a hint and an exit code."""
    try:
        app()
    except PhyssegError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
