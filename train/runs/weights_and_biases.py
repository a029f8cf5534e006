"""Weights & Biases, an optional package (`physseg[wandb]`): what `log.wandb` sends a run's numbers to."""

from typing import Any

from ...common.errors import ConfigError
from .run_folder import RunFolder


def find_wandb() -> Any:
    """What begins a run there. Raises ConfigError where the package is not installed."""
    try:
        from wandb import init
    except ImportError as error:  # also of a folder of that name, such as the package itself leaves behind
        missing = "log.wandb: the package wandb is not installed"
        raise ConfigError(missing, hint="pip install 'physseg[wandb]'") from error
    return init


def open_wandb(run: RunFolder) -> Any:
    """The run's counterpart there, which a resumed run finds again. Files, and all if offline, are in RUN/wandb."""
    known = {"project": "physseg", "name": run.path.name, "dir": str(run.path), "config": run.read()}
    begun, init = str(run.config_file.stat().st_mtime_ns), find_wandb()
    try:
        there = init(**known, id=begun, resume="allow", settings={"console": "off"})
    except Exception as error:
        raise ConfigError(f"log.wandb: {error}", hint="`wandb login`, or WANDB_MODE=offline") from error
    there.define_metric("*", step_metric="step")  # by its own count, steps that are computed again would be dropped
    return there
