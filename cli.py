"""The command line, put together from the packages' commands; heavy imports happen inside the commands."""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import __version__
from .common.errors import PhyssegError, of_system
from .manifests import commands as manifests
from .pipeline import commands as pipeline
from .train import commands as train
from .train.analysis import commands as analysis
from .train.detector import commands as structure_extractors

app = typer.Typer(
    name="physseg",
    help="Pseudo ground truth computed once, open-vocabulary segmenters trained on it many times.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, too; before or after the command.")] = False,
) -> None:
    """The usual order: manifest, preprocess, verify, inspect, train, evaluate, predict. `physseg demo` shows it all."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.add_typer(manifests.app, name="manifest")
app.add_typer(pipeline.app)
app.add_typer(train.app)
app.add_typer(analysis.app, name="analyse")
app.add_typer(train.weights_app, name="weights")
app.add_typer(structure_extractors.app, name="superpoint")


plugins_app = typer.Typer()
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    json_: Annotated[bool, typer.Option("--json", help="Print a list of objects, one for each name.")] = False,
) -> None:
    """What is found by name: structure extractors, losses, data sets and backbones, physseg's own and other packages'.

    Each is imported, to say why one cannot be used; Control-C ends the import of one. Exit code 1: there is such a one.
    """
    if context.invoked_subcommand:
        return
    from .common.plugins import KINDS, offers
    from .common.text import align

    found = [offer for kind in KINDS for offer in offers(kind)]
    rows = [(one.kind, one.name, one.package, one.version, one.entry.value, one.problem()) for one in found]
    columns = ("kind", "name", "package", "version", "target", "problem")
    as_json = json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1)
    typer.echo(as_json if json_ else "\n".join(align([columns, *rows], right=())))
    if any(row[-1] for row in rows):
        raise typer.Exit(1)


@plugins_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of your part: small letters, digits and underscores.")],
    kind: Annotated[Literal["extractor", "loss", "dataset"], typer.Option(help="What it is.")] = "extractor",
    out: Annotated[Path | None, typer.Option(help="Folder of the package.  [default: physseg-NAME]")] = None,
) -> None:
    """Begin a package of your own: one module with a small part that works, a test that passes, and its entry point."""
    from .train.public.new_package import write_package

    folder = out or Path(f"physseg-{name.replace('_', '-')}")
    typer.echo(f"wrote {folder}: {', '.join(write_package(name, kind, folder))}")
    typer.echo(f"next: cd {folder} && pip install --editable . && pytest")


def main() -> None:
    """Entry point: runs the app, and turns our errors into one line, a hint and an exit code."""
    # Threads that spin while they wait for each other stall as soon as anything else runs: on two loaded cores, twelve
    # training steps took 12-19 s with threads that sleep and 29-38 s by default. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options  # taken out here, so that it works before and after the command
    try:
        app([text for text in options if text != "--debug"] + arguments[len(options) :])
    except (PhyssegError, OSError) as error:  # OSError: disk full, no permission; its text names the file
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {of_system(error) if isinstance(error, OSError) else error}", err=True)
        sys.exit(error.exit_code if isinstance(error, PhyssegError) else 1)


if __name__ == "__main__":
    main()
