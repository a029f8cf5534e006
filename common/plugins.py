"""What packages bring under a name: structure extractors, losses, data sets and backbones, as entry points.

An entry point is a line of a package's metadata, so that all are found without importing one. physseg's own parts are
entry points of its pyproject.toml: there is one way in. Nothing of a package is imported before its name is asked for.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from .errors import ConfigError
from .text import preview

OURS: Final = "physseg"
KINDS: Final = {"extractors": "structure extractor", "losses": "loss", "datasets": "data set", "backbones": "backbone"}
"""What an entry point of the group `physseg.KIND` is, in words."""


class PluginError(ConfigError):
    """A name that no package offers, or whose package cannot give it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One name that one package offers."""

    kind: str
    """Its group, without `physseg.`; see `KINDS`."""
    name: str
    package: str
    """Name of the distribution, as pip knows it."""
    version: str
    entry: EntryPoint

    @property
    def where(self) -> str:
        """The offer in a message."""
        return f"{KINDS[self.kind]} {self.name} of the package {self.package} {self.version}"

    def load(self) -> Any:
        """The object itself; raises PluginError where importing it fails, whatever is wrong with it."""
        try:
            return self.entry.load()
        except Exception as error:
            if self.package == OURS:
                raise
            told = " ".join(f"{type(error).__name__}: {error}".split())
            hint = f"`python -c 'import {self.entry.module}'` shows where; or `pip uninstall {self.package}`"
            raise PluginError(f"{self.where}: {self.entry.value} does not import: {told}", hint=hint) from error


@cache
def offers(kind: str) -> tuple[Offer, ...]:
    """Everything that is offered of a kind: physseg's own first, then by package and name. Imports nothing."""
    found = [
        Offer(kind, entry.name, entry.dist.name, entry.dist.version, entry)
        for entry in entry_points(group=f"{OURS}.{kind}")
        if entry.dist is not None
    ]
    return tuple(sorted(found, key=lambda offer: (offer.package != OURS, offer.package, offer.name)))


def find(kind: str, name: str) -> Offer:
    """The offer of a name. A name of physseg's own is physseg's, whoever else offers it.

    Raises:
        PluginError: Nobody offers it (the message lists what there is), or two packages do.
    """
    found = [offer for offer in offers(kind) if offer.name == name]
    if not found:
        message = f"unknown {KINDS[kind]} {name!r}, expected one of: {', '.join(names(kind))}"
        hint = "is the package that offers it installed here? `physseg plugins` lists what was found"
        if not any(offer.package == OURS for offer in offers(kind)):
            hint = "physseg's own are missing: what is installed is older than its code, run `pip install` again"
        raise PluginError(message, hint=hint)
    if found[0].package != OURS and len(found) > 1:
        packages = preview([offer.package for offer in found])
        hint = "uninstall one of them, or ask its author for another name"
        raise PluginError(f"the {KINDS[kind]} {name!r} is offered by several packages: {packages}", hint=hint)
    return found[0]


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, physseg's own first."""
    return tuple(dict.fromkeys(offer.name for offer in offers(kind)))
