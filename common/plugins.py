"""What packages bring under a name: structure extractors, losses, data sets and backbones, as entry points.

An entry point is a line of a package's metadata, so that all are found without importing one. physseg's own parts are
entry points of its pyproject.toml: there is one way in. Nothing of a package is imported before its name is asked for.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from .errors import ConfigError, PhyssegError
from .text import did_you_mean, preview

OURS: Final = "physseg"
KINDS: Final = {"extractors": "structure extractor", "losses": "loss", "datasets": "data set", "backbones": "backbone"}
"""What an entry point of the group `physseg.KIND` is, in words."""


class PluginError(ConfigError):
    """A name that no package offers, or whose package cannot give it."""


class ConformanceError(PhyssegError, AssertionError):
    """A part of another package does not keep its contract: what the checks of `physseg.testing` raise."""


def require(kept: bool, where: object, expected: object, got: object) -> None:
    """Raise ConformanceError unless a rule is kept."""
    if not kept:
        raise ConformanceError.mismatch(where, expected, got)


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
        with self.blamed(f"{self.entry.value} does not import: "):
            return self.entry.load()

    @contextmanager
    def blamed(self, doing: str = "", hint: str = "") -> Iterator[None]:
        """What fails inside is the other package's fault: PluginError, in one line. Errors that are a line of their own
        stay, and so do those of physseg's own parts.
        """
        try:
            yield
        except PhyssegError:
            raise
        except (Exception, SystemExit) as error:
            if self.package == OURS:
                raise
            hint = hint or f"`physseg --debug` shows where; tell its authors, or `pip uninstall {self.package}`"
            raise PluginError(f"{self.where}: {doing}{_told(error)}", hint=hint) from error

    def problem(self, limit_s: float = 60.0) -> str:
        """Why nobody can use it, in one line, or "": its name is taken, or it does not import, which this tries.

        Whatever an import raises becomes such a line, and so do Control-C and an import that takes longer than the
        limit: nothing ends a table of all. What an import prints goes to standard error.
        """
        rivals = [other.package for other in offers(self.kind) if other.name == self.name and other != self]
        if self.package != OURS and rivals:
            mine = OURS in rivals
            return f"not used: {self.name} is physseg's own" if mine else f"not used: also offered by {preview(rivals)}"

        def stop(*_: object) -> None:
            raise ImportTimeout(f"still importing after {limit_s:g} s")

        signal.signal(signal.SIGALRM, stop)
        try:
            with redirect_stdout(sys.stderr):
                signal.setitimer(signal.ITIMER_REAL, 0 if self.package == OURS else limit_s)
                self.entry.load()
        except BaseException as error:
            return f"does not load: {_told(error)}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return ""


class ImportTimeout(BaseException):
    """An import takes too long. No Exception, which `except Exception` around a part of it would hide."""


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


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
        message = f"unknown {KINDS[kind]} {name!r}, expected one of: {preview(names(kind), 12)}"
        hint = "is the package that offers it installed here? `physseg plugins` lists what was found; "
        hint += did_you_mean(name, names(kind))
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
