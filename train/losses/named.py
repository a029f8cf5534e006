"""Losses of other packages: a table `[losses.NAME]` of a configuration to settings, and settings to the loss.

The settings are read from the constructor of the entry point's class, so that they exist in exactly one place.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from keyword import iskeyword
from typing import Any, ClassVar, Final, TypeVar, get_type_hints

import torch
from torch import nn

from ...common.errors import ConfigError
from ...common.plugins import Offer, find
from ...common.settings import check_ranges
from .interface import Loss

C = TypeVar("C")

BUILT_IN: Final = {
    "segmentation": "mask_ignored",
    "structure": "lambda_p, structure_form, structure_target, alpha, gamma, beta and sigma_cells",
    "alignment": "lambda_sac and alignment_form",
}
"""Losses of physseg's own by name, and their settings in `[losses]` itself."""


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Settings of one loss; a subclass, made for its class, has a field for each parameter of the constructor.

    Raises:
        ConfigError: The weight is out of its range, or the class refuses its settings: it is built once to see.
    """

    OFFER: ClassVar[Offer]
    """Where the class comes from."""

    weight: float = 1.0
    """Factor of the loss in the sum."""

    def __post_init__(self) -> None:
        check_ranges(self, weight="[0, 1e18]")
        with torch.random.fork_rng(devices=()), self.OFFER.blamed():
            try:
                make_loss(self)
            except (TypeError, ValueError) as error:
                raise ConfigError(" ".join(str(error).split()) or repr(error)) from error


def make_loss(settings: LossSettings) -> Loss:
    values = {one.name: getattr(settings, one.name) for one in fields(settings) if one.name != "weight"}
    loss: Loss = settings.OFFER.load()(**values)
    return loss


def with_named(config: type[C], values: Mapping[str, Any]) -> tuple[type[C], Mapping[str, Any]]:
    """A subclass of `LossConfig` with a field for each table among its values, and the values; see `settings.build`.

    A table with `weight = 0` is left out as if it were not there; its name has to be known all the same, so that a
    misspelt one cannot leave a loss on.

    Raises:
        ConfigError: A table has the name of a loss of physseg's own, or one that no field can have.
        PluginError: Nobody offers the loss, or its package cannot give it.
    """
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    tables = {name: table for name, table in values.items() if isinstance(table, Mapping) and name not in known}
    for name in tables:
        _check_name(name, config)
    used = [(name, _settings_type(name)) for name, table in tables.items() if table.get("weight") != 0]
    if used:
        config = make_dataclass(config.__name__, used, bases=(config,), frozen=True, kw_only=True, slots=True)
    return config, {name: value for name, value in values.items() if name not in tables or name in dict(used)}


def _check_name(name: str, config: type[Any]) -> None:
    if name in BUILT_IN:
        raise ConfigError(f"`losses.{name}` is no table", hint=f"its settings in [losses]: {BUILT_IN[name]}")
    find("losses", name)
    if name in reserved_names(config) or not name.isidentifier() or iskeyword(name):
        raise ConfigError(f"`losses.{name}` cannot be the name of a loss", hint="ask its author for another one")


def reserved_names(config: type[Any]) -> set[str]:
    """Names that no loss of another package can have: those of the log, of settings, and of what keeps the losses."""
    return {"loss", "total", "gradient_norm", *dir(config), *dir(nn.ModuleDict)}


def _settings_type(name: str) -> type[LossSettings]:
    """The subclass of LossSettings for the loss of a name."""
    offer = find("losses", name)
    loss = offer.load()
    with offer.blamed(f"{offer.entry.value} has no settings to read: ", "docs/plugins.md says what a loss may take"):
        if not isinstance(loss, type) or not any("__call__" in vars(base) for base in loss.__mro__):
            raise TypeError(f"expected a class whose objects are called, got {loss!r}")
        hints, own = get_type_hints(loss.__init__, include_extras=True), []  # type: ignore[misc]
        for key, parameter in inspect.signature(loss).parameters.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if key == "weight" or key not in hints:
                    raise TypeError(f"parameter {key}: expected an annotation, and another name than weight")
                default = {} if parameter.default is parameter.empty else {"default": parameter.default}
                own.append((key, hints[key], field(**default)))
        made: dict[str, Any] = {"bases": (LossSettings,), "namespace": {"OFFER": offer}}
        return make_dataclass(f"{loss.__name__}Settings", own, frozen=True, kw_only=True, **made)
