"""What a training run is: the settings of its parts in one tree, read from TOML.

    physseg train config.toml --set losses.lambda_p=0 --set seed=1

`example.toml` beside this file shows every key with its default; `physseg train --example` prints it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..common.documents import parse_toml, read_text
from ..common.errors import ConfigError
from ..common.settings import NameOrPath, PathText, apply_override, build, check_ranges
from ..pipeline.store.frame import CELL_PX
from .data.dataset import DataConfig
from .losses.total import LossConfig
from .model.config import SegmenterConfig
from .model.device import Precision
from .optim import OptimConfig

_DATA_KEYS = ("store", "images", "cache", "verify", "num_workers", "prefetch")  # a store is compared on its own
_EVAL_KEYS = ("manifest", "every", "max_images", "windows", "classes_kept", "keep_best")
_OWN_KEYS = ("run", "device", "log_every", "checkpoint_every", "keep_last", "accumulate", "recompute", "compile")
_LOG_KEYS = ("log.wandb", "log.gradients")
_KEYS = (*(f"data.{key}" for key in _DATA_KEYS), *(f"eval.{key}" for key in _EVAL_KEYS), *_OWN_KEYS, *_LOG_KEYS)
RESUMABLE_KEYS = frozenset(_KEYS)
"""Keys of settings that may differ when a run is resumed: none of them touches a weight but by rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Evaluation during training. Raises ConfigError for values out of their range."""

    manifest: PathText | None = None
    """Manifest to evaluate on, a file or a URL. Without one there is no evaluation."""
    every: int = 5000
    """Number of steps between evaluations. There is always one after the last step."""
    max_images: int | None = 100
    """Number of images to evaluate on, from the first one on; None takes all."""
    windows: bool = False
    """Whether windows are predicted besides the whole image, as published. The whole image alone takes a fifth."""
    classes_kept: int | None = None
    """Number of classes that are aggregated in each crop, those of the highest cosines. None: `model.pad_len`."""
    keep_best: bool = True
    """Whether the checkpoint of the highest mIoU is kept besides the last ones."""

    def __post_init__(self) -> None:
        check_ranges(self, every="[1, inf)", max_images="[1, inf)", classes_kept="[1, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is logged, and where numbers and pictures go besides the run folder. Raises ConfigError for a bad number."""

    wandb: bool = False
    """Whether they go to Weights & Biases, too, which is a package of its own (`pip install "physseg[wandb]"`)."""
    gradients: int = 0
    """Number of steps between looks at each loss's gradient in the image encoder: norms, and cosines between losses.
    A look takes a backward pass more per loss. 0: none."""

    def __post_init__(self) -> None:
        check_ranges(self, gradients="[0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run; what a file does not say has the value here. Raises ConfigError for values that do not fit."""

    data: DataConfig
    model: SegmenterConfig = field(default_factory=SegmenterConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    clip_weights: NameOrPath | None = None
    """Pretrained CLIP to begin with: a tag of `physseg weights list`, or a file (OpenAI's .pt, open_clip's .bin or
    .safetensors). Without one, or with "", the weights are random."""
    run: Path | None = None
    """Run folder; `--out` says the same on the command line."""
    seed: int = 0
    """Seed of initial weights, sample order and augmentation."""
    steps: int = 80_000
    """Number of optimizer steps. The schedule ends there, so a run cannot be resumed with another value."""
    batch_size: int = 4
    """Number of samples per step, over all ranks and micro-batches."""
    accumulate: int = 1
    """Number of micro-batches that each rank takes its share of a step in: the same step in less memory."""
    device: str = "auto"
    """Device to train on: "auto" (CUDA if there is one), or a PyTorch device such as "cpu" or "cuda:1"."""
    precision: Precision = "fp32"
    """Precision of the model: tf32 as the baseline is trained (on a CPU it is fp32); bf16 is autocast of the forward
    pass, faster and coarser. Weights, losses and optimizer are float32 in all three."""
    recompute: bool = False
    """Whether activations are computed again for the gradients instead of kept: the same step in two fifths of the
    memory, a third slower (ViT-B/16 and 171 classes on a CPU: 4.1 GB instead of 10.3)."""
    compile: bool = False
    """Whether torch.compile compiles the training step: minutes at the start, faster steps on a GPU."""
    ema_decay: float = 0.0
    """Decay of a moving average of the weights, such as 0.9998, which is then evaluated and saved; 0: none."""
    log_every: int = 10
    """Number of steps between log lines. A line holds means over the steps since the one before."""
    checkpoint_every: int = 1000
    """Number of steps between checkpoints. There is always one after the last step."""
    keep_last: int = 3
    """Number of checkpoints kept, from the last one back."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2^63), got {self.seed}")
        counts = ("steps", "accumulate", "log_every", "checkpoint_every", "keep_last")
        check_ranges(self, **dict.fromkeys(counts, "[1, inf)"), batch_size="[1, 1e7]", ema_decay="[0, 1)")
        object.__setattr__(self, "clip_weights", self.clip_weights or None)  # a row of a table sets "", not None
        # The losses are the switches; a head without its loss would only take memory.
        structures = self.model.structures if self.losses.lambda_p > 0 else ()
        classes = self.model.structure_classes if structures else None
        alignment = self.losses.lambda_sac > 0
        if self.compile and self.log.gradients:
            hint = "set one of them to its default; a run resumes with either"
            raise ConfigError("log.gradients needs a graph for each loss, compile = true makes one of all", hint=hint)
        if self.log.gradients and self.model.finetune == "none":
            expected, hint = "an image encoder that trains", "set log.gradients = 0"
            raise ConfigError.mismatch("log.gradients", expected, "model.finetune = 'none'", hint=hint)
        model = replace(self.model, structures=structures, structure_classes=classes, alignment=alignment)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "data", replace(self.data, crop=self.data.crop or model.arch.crop_px))
        grid = model.arch.grid
        if model.pooling > grid:
            raise ConfigError.mismatch("model.pooling", f"at most the {grid} patches of a side", model.pooling)
        self._check_crop()
        if self.losses.lambda_p > 0 and not structures:
            hint = 'Write `structures = ["canny"]` in [model], or `lambda_p = 0` in [losses].'
            weight = f"losses.lambda_p is {self.losses.lambda_p:g}"
            raise ConfigError(f"{weight}, but model.structures names no structure to predict", hint=hint)

    def _check_crop(self) -> None:
        """A patch must hold whole cells of the cached counts, and a structure logit whole pixels."""
        grid = self.model.arch.grid
        for name, weight, multiple in (
            ("lambda_sac", self.losses.lambda_sac, grid * CELL_PX),
            ("lambda_p", self.losses.lambda_p, grid * 4),
        ):
            if weight > 0 and self.data.crop % multiple:
                fits = max(1, self.data.crop // multiple) * multiple
                hint = f"Set data.crop to {fits} (0 takes {self.model.arch.crop_px}), or {name} to 0."
                needs = (
                    f"losses.{name} with the {grid}x{grid} patches of {self.model.clip} needs a multiple of {multiple}"
                )
                raise ConfigError(f"data.crop is {self.data.crop} px; {needs}", hint=hint)


def load_config(path: Path | str, overrides: Sequence[str] = (), *, run: Path | None = None) -> TrainConfig:
    """Read a TOML file, whose paths are relative to it, or one of `recipes`, with paths relative to the current folder.

    `overrides`, texts `key.sub=value`, win over the file, and the run folder `run` over both. Raises ConfigError, which
    names the file, the key and the repair.
    """
    file, base = Path(path), Path(path).resolve().parent
    if str(path) in recipes():
        text, base = _resource(f"recipes/{path}.toml"), Path.cwd()
    elif file.exists():
        text = read_text(file, ConfigError, "a TOML file")
    else:
        hint = f"`physseg train --example > config.toml` writes one; recipes by name: {', '.join(recipes())}."
        raise ConfigError(f"{file}: no such configuration file", hint=hint)
    values = parse_toml(text, ConfigError, f"{file}: not a TOML file")
    try:
        config = _overridden(values, overrides, base)
        return config if run is None else replace(config, run=run.resolve())
    except ConfigError as error:
        raise error.prefixed(_to_blame(values, overrides, base, error) or file) from error


def _overridden(values: dict[str, Any], overrides: Sequence[str], base: Path) -> TrainConfig:
    values = deepcopy(values)
    for text in overrides:
        apply_override(values, text, base=Path.cwd())
    return build(TrainConfig, values, base=base)


def _to_blame(values: dict[str, Any], overrides: Sequence[str], base: Path, fault: ConfigError) -> str:
    """The option `--set` without which there is no fault, or else another one; "" where all have the same."""
    blamed = ""
    for text in overrides:
        try:
            _overridden(values, [other for other in overrides if other != text], base)
        except ConfigError as error:
            blamed = blamed or (f"--set {text}" if str(error) != str(fault) else "")
        else:
            return f"--set {text}"
    return blamed


def example_config() -> str:
    """The commented example, every key with its default."""
    return _resource("example.toml")


def recipes() -> tuple[str, ...]:
    """Names of the configurations that come with physseg: the paper's full model for each backbone."""
    folder = resources.files(__package__).joinpath("recipes")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
