"""The configuration file: the example shows every setting and its default; what does not fit together is refused."""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from physseg.common.errors import ConfigError
from physseg.common.settings import differing_keys, to_dict
from physseg.train.config import RESUMABLE_KEYS, TrainConfig, example_config, load_config


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


def test_example_is_a_working_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, example_config()))
    assert config.data.store == str(tmp_path / "coco.zarr")
    assert config.model.structures == ("canny",)
    assert config.model.alignment


def test_example_shows_every_key_with_its_default(tmp_path: Path) -> None:
    """Guards against a setting that is added or changed in code only."""
    shown = load_config(write(tmp_path, example_config()))
    all_lines = re.sub(r"^#(?=\w+ =)", "", example_config(), flags=re.MULTILINE)
    everything = load_config(write(tmp_path, all_lines))
    table, keys = "", set()
    for line in all_lines.splitlines():
        if match := re.match(r"\[(\w+)\]", line):
            table = f"{match[1]}."
        elif match := re.match(r"(\w+) =", line):
            keys.add(table + match[1])
    not_shown = {"model.alignment", "model.architecture", "model.text_encoder"}  # lambda_sac, imports, exports set them
    assert keys == dotted_keys(TrainConfig) - not_shown
    assert differing_keys(to_dict(shown), to_dict(everything)) == {
        "clip_weights": (None, "openai"),
        "model.quick_gelu": (None, True),
        "run": (None, str(tmp_path / "runs/first")),
        "data.images": (None, "/data/coco"),
        "data.cache": (None, "/scratch/physseg"),
        "eval.manifest": (None, str(tmp_path / "val.parquet")),
    }


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
    with pytest.raises(ConfigError, match=r"not a TOML file: .*line 1"):
        load_config(write(tmp_path, "store = coco"))


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
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be in"),
        ({"eval": {"every": 0}}, "[eval] every and max_images must be at least 1"),
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
        (["steps=2"], "c.toml: log_every must be"),
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
