"""The pages of the site that no file of docs/ holds; `make docs` loads this file into mkdocs.

The README is the site's first page. Links to files of the repository lead to a copy of the file on the site, so that no
link depends on where the repository is published. The reference comes from the code: commands from their `--help`, the
configuration from `physseg train --example`, Python's names from `__all__` and their docstrings.
"""

import ast
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from physseg.cli import app
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "docs_package" / "physseg"
PARTS = ("__init__.py", "cli.py", "common", "manifests", "structure_extractors", "pipeline", "train")
LOG = logging.getLogger("mkdocs.hooks.physseg")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let mkdocstrings find the package by its import name, whatever the clone's folder is called, and nothing else."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if not (PACKAGE / part).is_symlink():
            (PACKAGE / part).symlink_to(ROOT / part)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(PACKAGE.parent)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and a copy of every file of the repository that a page links to."""
    waiting = {
        "index.md": "README.md",
        "repository/CONTRIBUTING.md": "CONTRIBUTING.md",
        "repository/CHANGELOG.md": "CHANGELOG.md",
    }
    waiting |= {file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()}
    done: set[str] = set()
    while waiting:
        page, source = waiting.popitem()
        done.add(page)
        text = (ROOT / source).read_text(encoding="utf-8")
        if PurePosixPath(source).suffix != ".md":
            text = f"# `{source}`\n\n````{PurePosixPath(source).suffix[1:]}\n{text}\n````\n"
        for target in linked(text, source):
            if page_of(target) not in done and not target.startswith("docs/"):
                waiting[page_of(target)] = target
        made = LINK.sub(lambda found, at=(page, source): relinked(found[0], *at), text)
        add(files, config, page, made)
    add(files, config, "reference/commands.md", commands())
    add(files, config, "reference/configuration.md", configuration())
    add(files, config, "reference/python.md", python_names())
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Complain of a page that loads a script, a style or a picture from another server: people read in peace."""
    for place in re.findall(r"""<(?:script|img|iframe)[^>]* src=["']?(https?://[^"' >]+)""", output):
        LOG.warning("%s loads %s", page.file.src_uri, place)
    for place in re.findall(r"""<link[^>]* href=["']?(https?://[^"' >]+)[^>]*rel=["']?stylesheet""", output):
        LOG.warning("%s loads %s", page.file.src_uri, place)


def add(files: Files, config: MkDocsConfig, page: str, text: str) -> None:
    """Put a page among the files, in the place of one of that name."""
    copied = page.startswith("repository/")  # need not be in the menu
    inclusion = InclusionLevel.NOT_IN_NAV if copied else InclusionLevel.UNDEFINED
    if existing := files.get_file_from_path(page):
        files.remove(existing)
    files.append(File.generated(config, page, content=text, inclusion=inclusion))


def target_of(link: str, source: str) -> str | None:
    """The file that a relative link of the file `source` means, both as paths from the root; None if there is none."""
    target = os.path.normpath(PurePosixPath(source).parent / link)
    return target if (ROOT / target).is_file() else None


def linked(text: str, source: str) -> Iterator[str]:
    """Files of the repository that a file's text links to."""
    found = (target_of(link, source) for link in LINK.findall(text) if source.endswith(".md"))
    return (target for target in found if target)


def page_of(target: str) -> str:
    """Where a file of the repository is among the site's files."""
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"repository/{target}" if target.endswith(".md") else f"repository/{target}.md"


def relinked(link: str, page: str, source: str) -> str:
    """A link of the file `source` as it must be on its page; one that means no file stays, and mkdocs reports it."""
    target = target_of(link, source) if source.endswith(".md") else None
    return os.path.relpath(page_of(target), PurePosixPath(page).parent) if target else link


def commands() -> str:
    """Every command with its help."""
    root = get_command(app)
    parts = ["# Commands", "What `--help` says, of every command.", f"```text\n{help_of(root, 'physseg')}\n```"]
    for name, command in getattr(root, "commands", {}).items():
        parts += list(sections(command, f"physseg {name}", "##"))
    return "\n\n".join(parts)


def sections(command: click.Command, name: str, level: str) -> Iterator[str]:
    """A command's section, and those of the commands below it."""
    yield f"{level} {name}\n\n```text\n{help_of(command, name)}\n```"
    for word, below in getattr(command, "commands", {}).items():
        yield from sections(below, f"{name} {word}", "###")


def help_of(command: click.Command, name: str) -> str:
    """The text of `--help` in a terminal of 80 columns."""
    context = command.context_class(command, info_name=name, terminal_width=80, max_content_width=80)
    return command.get_help(context)


def configuration() -> str:
    """The example that `physseg train --example` prints, and the recipes."""
    example, recipes = ROOT / "train" / "example.toml", ROOT / "train" / "recipes"
    parts = ["# Configuration", "What `physseg train --example` prints: every key with its default.", toml(example)]
    parts += ["## Recipes", "`physseg train NAME` takes one of these; `physseg train --recipes` says what each is."]
    for recipe in sorted(recipes.glob("*.toml")):
        parts += [f"### {recipe.stem}", toml(recipe)]
    return "\n\n".join(parts)


def toml(file: Path) -> str:
    return f"```toml\n{file.read_text(encoding='utf-8')}```"


SHORT_NAMES = ("losses", "plugins", "testing")


def python_names() -> str:
    """Public names by module, each with its docstring: `__all__`, and where a module imports them from."""
    parts = ["# Python, by name", "From the docstrings. [Python](../python.md) has an example of each."]
    origins, public = names_in("__init__.py")
    names = [name for name in public if name not in SHORT_NAMES and name != "__version__"]
    parts += ["## physseg", *(documented(origins.get(name, f"physseg.{name}"), f"physseg.{name}") for name in names)]
    returned = sorted(origins.keys() - {*names, *SHORT_NAMES})
    parts += ["## What they take and return", *(documented(origins[name], name) for name in returned)]
    for short in SHORT_NAMES:
        origins, public = names_in(f"train/public/{short}.py")
        parts += [f"## physseg.{short}", *(documented(origins[name], f"physseg.{short}.{name}") for name in public)]
    return "\n\n".join(parts)


def documented(place: str, heading: str) -> str:
    return f"::: {place}\n    options:\n      heading: {heading}"


def names_in(file: str) -> tuple[dict[str, str], list[str]]:
    """Name -> where a module imports it from, as a dotted path below physseg; and the module's `__all__`."""
    origins: dict[str, str] = {}
    public: list[str] = []
    package = ["physseg", *PurePosixPath(file).parts[:-1]]
    module = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for node in [*module, *(node for block in module if isinstance(block, ast.If) for node in block.body)]:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            origins |= {name.name: ".".join([*base, name.name]) for name in node.names}
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = ast.literal_eval(node.value)
    return origins, public
