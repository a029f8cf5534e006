"""The command line, put together from the packages' commands; heavy imports happen inside the commands."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import __version__
from .common.command_line.app import App
from .common.command_line.options import JsonOut, show
from .common.errors import PhyssegError, of_system
from .manifests import commands as manifests
from .pipeline import commands as pipeline
from .train import commands as train
from .train.analysis import commands as analysis
from .train.detector import commands as structure_extractors

app = App(
    name="physseg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option(help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks, too.")] = False,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
) -> None:
    """Compute pseudo ground truth once, train open-vocabulary segmenters on it many times.

    The usual order: manifest, preprocess, verify, inspect, train, evaluate, predict. `physseg demo` shows it all. The
    options below may stand anywhere on the line.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit


app.add_typer(manifests.app, name="manifest")
app.add_typer(pipeline.app)
app.add_typer(train.app)
app.add_typer(analysis.app, name="analyse")
app.add_typer(train.weights_app, name="weights")
app.add_typer(structure_extractors.app, name="superpoint")


plugins_app = App()
app.add_typer(plugins_app, name="plugins")


@plugins_app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    json_file: JsonOut = None,
) -> None:
    """List the structures, losses, data sets and backbones found.

    They are physseg's own and other packages'. Each is imported, to say why one cannot be used; Control-C ends the
    import of one. Exit code 1: there is such a one.
    """
    if context.invoked_subcommand:
        return
    from .common.plugins import KINDS, offers
    from .common.text import align

    found = [offer for kind in KINDS for offer in offers(kind)]
    rows = [(one.kind, one.name, one.package, one.version, one.entry.value, one.problem()) for one in found]
    columns = ("kind", "name", "package", "version", "target", "problem")
    document = [dict(zip(columns, row, strict=True)) for row in rows]
    show("\n".join(align([columns, *rows], right=())), document, json_file)
    if any(row[-1] for row in rows):
        raise typer.Exit(1)


@plugins_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of your part: small letters, digits and underscores.")],
    kind: Annotated[Literal["extractor", "loss", "dataset"], typer.Option(help="Kind of the part.")] = "extractor",
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
    debug = "--debug" in options  # these are taken out here, so that they work before and after the command
    if {"--quiet", "-q"} & {*options}:
        os.environ["PHYSSEG_QUIET"] = "1"  # for processes that are started, too
    if {"--version", "-V"} & {*options}:
        arguments = options = ["--version"]
    try:
        app([text for text in options if text not in ("--debug", "--quiet", "-q")] + arguments[len(options) :])
    except (PhyssegError, OSError) as error:  # OSError: disk full, no permission; its text names the file
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {of_system(error) if isinstance(error, OSError) else error}", err=True)
        sys.exit(error.exit_code if isinstance(error, PhyssegError) else 1)


if __name__ == "__main__":
    main()
