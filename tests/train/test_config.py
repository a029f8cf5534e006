"""The configuration file: the example shows every setting and its default; what does not fit together is refused."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from physseg.common.errors import ConfigError
from physseg.common.settings import differing_keys, to_dict
from physseg.train.analysis.ablation import read_table
from physseg.train.config import RESUMABLE_KEYS, TrainConfig, example_config, load_config
from physseg.train.errors import AnalysisError
from physseg.train.model.backbones.clip_presets import ClipArchitecture, clip_architecture
from physseg.train.model.backbones.interface import OPENAI_MEAN, OPENAI_STD
from physseg.train.optim import OptimConfig

from ..fuzzing import mutants, survives
from .conftest import TINIER


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def dotted_keys(cls: type[Any], prefix: str = "") -> set[str]:
    keys = set()
    for field in fields(cls):
        if isinstance(field.type, type) and is_dataclass(field.type):
            keys |= dotted_keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.add(prefix + field.name)
    return keys


def all_lines() -> str:
    """The example with every key of it set."""
    return re.sub(r"^#(?=\w+ =|\[[\w.]+\]$)", "", example_config(), flags=re.MULTILINE)


def keys_of_example() -> set[str]:
    table, keys = "", set()
    for line in all_lines().splitlines():
        if match := re.match(r"\[([\w.]+)\]", line):
            table = f"{match[1]}."
        elif match := re.match(r"(\w+) =", line):
            keys.add(table + match[1])
    return keys


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


NOT_SET = {"model.alignment", "model.text_encoder", "model.structure_classes"}
"""What lambda_sac, imports, exports and the store set."""


def test_example_is_a_working_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, example_config()))
    assert config.data.store == str(tmp_path / "coco.zarr")
    assert config.model.structures == ("canny",)
    assert config.model.alignment


def test_example_shows_every_key_with_its_default(tmp_path: Path) -> None:
    """Guards against a setting that is added or changed in code only."""
    shown = load_config(write(tmp_path, example_config()))
    everything = load_config(write(tmp_path, all_lines()))
    architecture = {f"model.architecture.{key}" for key in dotted_keys(ClipArchitecture)}
    assert keys_of_example() == (dotted_keys(TrainConfig) | architecture) - {"model.architecture", *NOT_SET}
    differing = differing_keys(to_dict(shown), to_dict(everything))
    differing = {key: pair for key, pair in differing.items() if key not in architecture}
    assert everything.model.architecture == clip_architecture("tiny")
    assert differing == {
        "optim.clip_scale": (None, 1.0),
        "clip_weights": (None, "openai"),
        "model.quick_gelu": (None, True),
        "model.image_px": (None, 384),
        "model.image_mean": (None, list(OPENAI_MEAN)),
        "model.image_std": (None, list(OPENAI_STD)),
        "run": (None, str(tmp_path / "runs/first")),
        "data.images": (None, "/data/coco"),
        "data.cache": (None, "/scratch/physseg"),
        "eval.manifest": (None, str(tmp_path / "val.parquet")),
        "eval.classes_kept": (None, 64),
    }


def test_every_key_of_a_saved_configuration_is_explained(make_config: Callable[..., TrainConfig]) -> None:
    """With its comments: what nobody sets is named in one of them."""
    saved = to_dict(make_config(model={"architecture": asdict(TINIER)}))
    keys = set(leaves(saved))
    assert {"model.architecture.guidance_blocks", "model.alignment", "losses.gamma", "steps"} <= keys
    assert keys - keys_of_example() == NOT_SET
    for name in (key.removeprefix("model.") for key in NOT_SET):
        assert re.search(rf"^# .*\b{name} \(", example_config(), re.MULTILINE), name


def test_overrides_win_and_errors_name_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[losses]\nlambda_p = 0\n[data]\nstore = "s.zarr"\n[model]\nclip = "tiny"\nstructures = ["sift"]\n'
    )
    config = load_config(path, ["losses.lambda_sac=0", "seed=7", "run=/r"])
    assert (config.seed, config.run, config.losses.lambda_sac, config.model.alignment) == (7, Path("/r"), 0.0, False)
    with pytest.raises(
        ConfigError, match=re.escape("--set losses.lamda_p=0: unknown key `losses.lamda_p`; did you mean `lambda_p`?")
    ):
        load_config(path, ["losses.lamda_p=0"])


def test_a_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        load_config(tmp_path / "none.toml")
    assert "--example" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match=r"not a TOML file .*line 1"):
        load_config(write(tmp_path, "store = coco"))


DEEP = {
    "lists": b"a = " + b"[" * 5000 + b"]" * 5000,
    "tables": b"a." * 5000 + b"b = 1",
    "moderate": b"a = " + b"[" * 200 + b"]" * 200,
    "digits": b"seed = " + b"9" * 5000,
    "hexadecimal": b"seed = 0x" + b"f" * 5000,
    "Latin-1": 'run = "Straße"'.encode("latin-1"),
    "UTF-16": 'run = "run"'.encode("utf-16"),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
}
"""Files that no parser, or no message, gets through; and files of another kind."""


@pytest.mark.parametrize("kind", DEEP)
def test_malformed_files_are_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(DEEP[kind])
    for read, error in ((load_config, ConfigError), (read_table, AnalysisError)):
        with pytest.raises(error, match=r"c\.toml: (not|expected) a ") as caught:
            read(str(tmp_path / "c.toml"))
        assert len(str(caught.value.args[0])) < 600 and "\n" not in caught.value.args[0]


def test_a_folder_and_a_pipe_are_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="expected a TOML file"):
            load_config(path)
        with pytest.raises(AnalysisError, match="expected a table of rows"):
            read_table(str(path))


def test_overrides_of_any_nesting_and_size_are_one_line(tmp_path: Path) -> None:
    for written in ("[" * 5000, "9" * 5000, "0x" + "f" * 5000):
        with pytest.raises(ConfigError, match="`seed` must be an integer"):
            load_config(write(tmp_path, '[data]\nstore = "s"'), [f"seed={written}"])


ABSURD = ["losses.lambda_p=inf", "losses.lambda_sac=nan", "losses.lambda_p=1e30", "optim.learning_rate=1e30"]
ABSURD += ["data.num_workers=1_000_000", "data.prefetch=1_000_000", "model.hidden_dim=1_000_000_000"]
ABSURD += ["model.num_layers=2000", "model.decoder_dims=[1_000_000_000, 16]", "batch_size=1_000_000_000"]
ABSURD += ["ema_decay=1", "losses.sigma_cells=0", "losses.gamma=nan", "optim.max_gradient_norm=inf"]
ABSURD += ["model.pooling=25", "model.image_std=[0.5, 0, 0.5]", "model.image_std=[0.5, 0.5, -0.5]"]


@pytest.mark.parametrize("form", ["option", "file"])
@pytest.mark.parametrize("override", ABSURD)
def test_absurd_settings_are_refused_when_read(override: str, form: str, tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nstore = "s"\n[model]\nstructures = ["canny"]\nclip = "tiny"')
    key, options = override.partition("=")[0].rpartition(".")[2], [override]
    if form == "file":  # dotted keys come before tables
        path, options = (
            write(tmp_path, f'{override}\ndata.store = "s"\nmodel.structures = ["canny"]\nmodel.clip = "tiny"'),
            [],
        )
    with pytest.raises(
        ConfigError, match=rf"{key}: expected (a number in [\[(]\d|a finite number|at most the 24)"
    ) as c:
        load_config(path, options)
    assert "\n" not in c.value.args[0]


# What earlier versions took a step with: intervals that mean never, exponents that switch a term off, wide windows.
TRAINED = ["steps=1_000_000_000_000_000_000", "checkpoint_every=10_000_000_000", "log_every=1_000_000_000_000"]
TRAINED += ["keep_last=1_000_000_000_000", "eval.every=1_000_000_000_000", "eval.max_images=1_000_000_000_000"]
TRAINED += ["losses.gamma=1e6", "losses.lambda_p=1e18", "losses.sigma_cells=1e4", "optim.learning_rate=1e6"]
TRAINED += ["model.window=100_000", "model.alignment_dim=70_000", "model.pad_len=100_000", "optim.epsilon=1e20"]


@pytest.mark.parametrize("override", TRAINED)
def test_what_an_earlier_version_could_train_with_is_read(override: str, tmp_path: Path) -> None:
    assert load_config(write(tmp_path, '[data]\nstore = "s"\n[model]\nstructures = ["canny"]'), [override])


def test_configurations_of_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    example = example_config().encode()
    short = b'steps = 20\n[data]\nstore = "s"\ncrop = 384\n[losses]\nlambda_p = 0.0\n[model]\nprompts = "single"\n'
    read = 0
    for number, data in enumerate([*mutants(example, seed=5, count=50), *mutants(short, seed=6, count=100)]):
        path.write_bytes(data)
        read += survives(lambda: load_config(path), f"mutant {number}")
        survives(lambda: read_table(str(path)), f"mutant {number} as a table")
    assert 0 < read < 150


def test_a_bug_of_ours_shows_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OptimConfig, "__post_init__", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_config(write(tmp_path, '[data]\nstore = "s"\n[losses]\nlambda_p = 0'))


def test_lambdas_switch_the_heads(make_config: Callable[..., TrainConfig]) -> None:
    """The four rows of the paper's Table 3 from one file."""
    heads = {
        (p, sac): (config.model.structures, config.model.alignment)
        for p in (0, 1)
        for sac in (0, 1)
        for config in [make_config(losses={"lambda_p": p, "lambda_sac": sac})]
    }
    both = ("canny", "sift")
    assert heads == {(0, 0): ((), False), (0, 1): ((), True), (1, 0): (both, False), (1, 1): (both, True)}


def test_structure_loss_needs_a_structure(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"lambda_p is 1, but model\.structures names no structure"):
        make_config(model={"structures": []})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected a number in [1, inf), got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"eval": {"every": 0}}, "[eval] every: expected"),
        ({"precision": "fp16"}, "`precision` must be one of 'tf32', 'fp32', 'bf16', got 'fp16'"),
    ],
)
def test_values_out_of_range(make_config: Callable[..., TrainConfig], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(**changes)
    assert message in str(caught.value)


def test_harmless_keys_exist() -> None:
    assert dotted_keys(TrainConfig) >= RESUMABLE_KEYS


@pytest.mark.parametrize(
    ("overrides", "blamed"),
    [
        (["data.crop=96", "steps=abc"], "--set steps=abc: `steps`"),
        (["steps=2", "optim.foo=1"], "--set optim.foo=1: unknown key"),
        (["seed=-1"], "--set seed=-1: seed must be"),
        (["seed=-1", "steps=abc"], "--set steps=abc: `steps`"),
        (["steps"], "--set steps: expected KEY=VALUE"),
        (["steps=2"], "c.toml: log_every: expected"),
    ],
)
def test_the_option_with_the_fault_is_named(overrides: list[str], blamed: str, tmp_path: Path) -> None:
    faulty = "log_every = 0\n" if "c.toml" in blamed else ""
    (tmp_path / "c.toml").write_text(f'{faulty}[losses]\nlambda_p = 0\n[data]\nstore = "s.zarr"\n')
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.toml", overrides)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(blamed)


def test_out_wins_over_set(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[losses]\nlambda_p = 0\n[data]\nstore = "s.zarr"\n')
    assert load_config(tmp_path / "c.toml", ["run=a"], run=tmp_path / "b").run == tmp_path / "b"
