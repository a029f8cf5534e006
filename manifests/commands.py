"""`physseg manifest ...`: from a data set's folder to its checked manifest."""

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.command_line.app import App, Group
from ..common.command_line.options import AllowQuarantine, to_write
from .datasets.builtin import DATA_SETS

REQUIRED, KEYWORD = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
OF_A_FEW = {name for data_set in DATA_SETS for name in data_set.options} - {"workers"}


class DataSets(Group):
    """Commands of physseg's own data sets, and of those that other packages offer, which are looked up when needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        from ..common.plugins import names

        return list(dict.fromkeys([*super().list_commands(ctx), *names("datasets")]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from ..common.plugins import find, offers

        if cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        packages = [offer.package for offer in offers("datasets") if offer.name == cmd_name]
        packages = packages or [find("datasets", cmd_name).package]  # raises: nobody offers it
        lone = App(add_completion=False)
        lone.command(cmd_name)(_command(cmd_name, f"From the package {' and '.join(packages)}."))
        return typer.main.get_command(lone)


app = App(DataSets, help="List a data set's images, labels and classes in a table.", no_args_is_help=True)

QUARANTINE_EXIT = 3
"""Exit code of a run that ended well but put samples into quarantine."""


def _option(kind: Any, text: str, *names: str, default: Any = None, **more: Any) -> tuple[Any, Any]:
    return Annotated[kind, typer.Option(*names, help=text, **more)], default


OPTIONS: Mapping[str, tuple[Any, Any]] = {
    "root": _option(Path | None, "Folder of unpacked archives; of your own images/ and labels/."),
    "out": _option(str | None, "Manifest to write, e.g. ade150.parquet; a file or a URL.", callback=to_write),
    "split": _option(str | None, "Name of the split, e.g. val. Default: the one that is evaluated."),
    "images": _option(Path | None, "Folder of the photographs (JPEG or PNG)."),
    "labels": _option(Path | None, "Folder of the label pictures; of Pascal Context with --form."),
    "form": _option(
        str | None,
        "Form of the label files: json (the merged file), mat, painted (PNGs made from json), ids "
        "(0..58, 255; of 60: 0..59), colours (the older form). Default: json if it is there, else mat.",
    ),
    "stuff_json": _option(Path | None, "Stuff annotations, painted first."),
    "instances_json": _option(Path | None, "Instance annotations, painted over the stuff."),
    "write_labels": _option(Path | None, "New folder for the label PNGs painted from JSON."),
    "classes": _option(Path, "One class a line, by id; commas: synonyms.", "--classes-file", default=REQUIRED),
    "ignore": _option(list[int] | None, "Id of no class; repeatable. Default 255, or 65535 where classes reach 255."),
    "first_id": _option(int, "Id of the class in line 1, e.g. 1 where 0 is unlabelled.", default=0, min=0),
    "listed": _option(Path | None, "File of the samples to use: one name without extension a line.", "--list"),
    "name": _option(str | None, "Name of the data set. Default: this one's, or the folder's."),
    "image_suffix": _option(str, "End of images' names to leave out: _leftImg8bit.", default=""),
    "label_suffix": _option(str, "End of labels' names to leave out: _mask.", default=""),
    "exif": _option(str, "EXIF orientations: error (quarantine), apply (turn them) or ignore.", default="error"),
    "max_megapixels": _option(float, "Larger pictures are quarantined before they are decoded.", default=100.0),
    "allow_jpeg_warnings": _option(bool, "Keep JPEGs that decode with a warning, with a note.", default=False),
    "workers": _option(int, "Worker processes; 0: the cores you may use.", default=0, min=0, max=1024),
    "allow_quarantine": (AllowQuarantine, False),
    "verbose": _option(bool, "Show the pixel share of every class.", default=False),
    "check": _option(bool, "Compare with what was published; --out may be left out.", default=False),
    "dry_run": _option(bool, "Say what would be read and how long it takes; --out may be left out.", default=False),
}
"""Options of the commands as type with help, and default. Some are those of a few data sets; see `builtin.Builtin`."""


def _command(data_set: str, description: str, own: Collection[str] = ()) -> Callable[..., None]:
    """`physseg manifest NAME` with all `OPTIONS` but those that are no data set's `own`.

    Where folders can be named, --root may be left out; that is a data set to train on, and EXIF orientations count.
    """
    to_train_on = "images" in own

    def command(**given: Any) -> None:
        from .report import EVALUATE, PREPROCESS

        _make(data_set, next_step=PREPROCESS if to_train_on else EVALUATE, **given)

    defaults = {} if to_train_on else {"root": REQUIRED, "exif": "ignore"}
    parameters = [
        inspect.Parameter(name, KEYWORD, default=defaults.get(name, default), annotation=annotation)
        for name, (annotation, default) in OPTIONS.items()
        if name in own or name not in OF_A_FEW
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
    command.__doc__ = f"{description}\n\nNothing is written where something is missing; the exit code is 1."
    return command


for _known in DATA_SETS:
    app.command(_known.name)(_command(_known.name, _known.description, _known.options))


def _make(
    data_set: str,
    *,
    next_step: str,
    out: str | None,
    allow_quarantine: bool,
    verbose: bool,
    check: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Write the manifest and say what is in it; of an archive that is checked, what it lacks.

    A manifest is written of a complete archive only, and its journal stays until then.
    """
    from .checking import CheckSettings
    from .datasets.published import benchmark
    from .journal import Journal
    from .report import archive_lines, summary_lines, trial_lines

    if out is None and not check and not dry_run:
        raise typer.BadParameter("expected --out FILE for a manifest, --check to look at the archive, or both")
    checks = {key: given.pop(key) for key in ("exif", "max_megapixels", "allow_jpeg_warnings", "workers")}
    given |= {"check": check, "keep": out is not None, "settings": CheckSettings(**checks)}
    if dry_run:
        typer.echo("\n".join(trial_lines(benchmark(data_set, dry_run=True, **given), check=check)))
        return
    with Journal(out) as journal:
        found = benchmark(data_set, journal=journal, **given)
        manifest, incomplete = found.checked.manifest, check and bool(found.faults)
        written = None if incomplete else out
        if written is not None:
            manifest.write(written)
            journal.remove()
    summary = summary_lines(found.checked, written, verbose=verbose, next_step=next_step)
    lacks = archive_lines(found) if check else ()
    for line in (*lacks, *summary) if written is not None else (*summary, *lacks):
        typer.echo(line)
    if incomplete:
        raise typer.Exit(1)
    if manifest.quarantined and not allow_quarantine:
        typer.echo(f"exit code {QUARANTINE_EXIT} for quarantined samples; --allow-quarantine accepts them", err=True)
        raise typer.Exit(QUARANTINE_EXIT)
