"""How commands are made: one short form, completion and type for each name, examples, old names that still work.

The file `names.toml` has what a name is in all commands. `App` gives it to the options as commands are added.
"""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ..plugins import names

F = TypeVar("F", bound=Callable[..., Any])
_TO_WRITE = re.compile(r"-$|[^-].*\.(?!zarr$|parquet$)\w+$")  # a file behind `--json`: no option, store or manifest
PRINTED_JSON = ("plan", "inspect", "plugins", "list")
"""Commands whose `--json` took no file, and printed."""


@cache
def table(name: str) -> dict[str, Any]:
    """One of the files beside this: `names`, what a name is in every command, or `examples`, by `command_path`."""
    return tomllib.loads(resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


class App(typer.Typer):
    """A Typer whose groups and commands are those below."""

    def __init__(self, cls: type[TyperGroup] | None = None, **options: Any) -> None:
        super().__init__(cls=cls or Group, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        add = super().command(name, cls=Command, **options)
        return lambda function: add(finished(function))

    def callback(self, **options: Any) -> Callable[[F], F]:
        add = super().callback(**options)
        return lambda function: add(finished(function))


def finished(function: F) -> F:
    """The same function; its options get the short form and the completion that go with their names."""
    short, known = table("names")["short"], table("names")["values"]
    for name, parameter in inspect.signature(function).parameters.items():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            long = f"--{name.replace('_', '-')}" if info.default is ... else info.default
            if isinstance(info, typer.models.OptionInfo):  # where Typer has names in annotations; no --no-FLAG
                info.default, info.param_decls = long, tuple(filter(None, [short.get(long[2:])]))
            if not info.autocompletion and (values := known.get(long[2:])):
                info.autocompletion = completed(values.copy if isinstance(values, list) else partial(names, values))
    return function


def completed(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes a word, that behind its last comma, to some of the values, which are asked for then."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begun = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in values() if value.startswith(begun)]

    return complete


class _Ours:
    """What commands and groups do in our way."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, in_new_names(self, args, quiet=ctx.resilient_parsing))  # type: ignore[misc]

    def collect_usage_pieces(self, ctx: Any) -> Any:
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [re.sub("[{}]", "", piece).upper() for piece in pieces]

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", "argument"), ("Options", "option")):
            records = [one.get_help_record(ctx) for one in self.get_params(ctx) if one.param_type_name == kind]
            if rows := [(_in_words(record[0], kind), record[1]) for record in records if record]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if lines := table("examples").get(path := command_path(ctx), "").splitlines():
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in lines))
        if not path:
            with formatter.section("Exit codes"):
                formatter.write_dl(list(table("names")["exit_codes"].items()))


class Command(_Ours, TyperCommand):
    """One command."""


class Group(_Ours, TyperGroup):
    """Commands below one name."""


def in_new_names(command: Any, args: Sequence[str], *, quiet: bool = False) -> list[str]:
    """The words behind a command with old names of its options replaced; a line on standard error tells of each."""
    words, last, rest, notes = [], [], list(args), []
    while rest and rest[0] not in ("--", *getattr(command, "commands", ())):
        name, equals, value = (word := rest.pop(0)).partition("=")
        if (new := _new_name(command, name)) == name or new.startswith("-"):
            words.append(new + equals + value)
        else:  # an argument, which goes last
            last += [value] if equals else [rest.pop(0)] if rest else []
        if new != name:
            notes.append(f"{name} is now {new}")
        elif word == "--json" and command.name in PRINTED_JSON and not _TO_WRITE.match(" ".join(rest[:1])):
            notes.append("--json takes a file now, or - to print")
            words.append("-")
    for note in () if quiet else dict.fromkeys(notes):
        typer.echo(f"note: {note}", err=True)
    return [*words, *rest, *last]


def _new_name(command: Any, name: str) -> str:
    """What an option of a command is called now; its last argument counts as one, in capitals."""
    arguments = [one.name.upper() for one in command.params if one.param_type_name == "argument"]
    known = {*(option for one in command.params for option in one.opts), *arguments[-1:]}
    return next((new for new in (name, *table("names")["old"].get(name, ())) if new in known), name)


def _in_words(name: str, kind: str) -> str:
    """An option with the type of its value in words; an argument without, for its name says it."""
    typed, types = re.compile(r" <(?:list\[)?([^<>]+?)(?: range)?\]?>"), table("names")["types"]
    found = typed.sub(lambda found: f" {types.get(found[1].lower(), found[1])}" if kind == "option" else "", name)
    return found if kind == "option" else found.upper()


def command_path(ctx: Any) -> str:
    """The command of a context without the program's name: `analyse oracle`."""
    return re.sub(r"^.*?physseg(\.cli)? ?", "", ctx.command_path)
