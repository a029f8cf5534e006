"""Losses of other packages: a table of the configuration to settings, and their place in the sum."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.common.plugins import PluginError, find, names
from physseg.common.settings import build, differing_keys, to_dict
from physseg.train.config import load_config
from physseg.train.errors import ShapeError
from physseg.train.losses.alignment import AlignmentLoss
from physseg.train.losses.interface import Counted, ModelView
from physseg.train.losses.named import BUILT_IN
from physseg.train.losses.segmentation import SegmentationLoss
from physseg.train.losses.structure import StructureLoss
from physseg.train.losses.total import LossConfig, build_losses, loss_counts, total_loss
from torch import Tensor

Install = Callable[..., None]

SOURCE = '''
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from torch import nn
import torch

@dataclass(frozen=True)
class Hard:
    """Sum of the labelled pixels' labels, times the first logit's value."""
    power: float = 2.0
    mode: Literal["plain", "square"] = "plain"
    file: Path | None = None

    def __post_init__(self):
        if self.power < 0:
            raise ValueError(f"power = {self.power}: expected 0 or more")

    def __call__(self, batch, outputs, model):
        labels, known = batch["labels"], batch["labels"] != model.ignore_index
        return self.power * outputs.logits.flatten()[0] * labels.where(known, 0).sum(), known.sum().float()

    def count(self, batch):
        return (batch["labels"] != batch["ignore_index"]).sum().float()

class Learned(nn.Module):
    def __init__(self, size: int, *, bias: bool = True, **rest: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 1, bias=bias)
    def forward(self, batch, outputs, model):
        return self.layer(outputs.logits.mean((2, 3))).sum(), outputs.logits.mean().abs() + 1

class Untyped:
    def __init__(self, power=1.0): ...
    def __call__(self, batch, outputs, model): ...

class Weighty:
    def __init__(self, weight: float = 1.0): ...
    def __call__(self, batch, outputs, model): ...

class Mean:
    def __call__(self, batch, outputs, model):
        return outputs.logits.mean()

class Moody:
    def __init__(self, mood: str = "good", place: torch.device | None = None, many: dict[str, int] | None = None):
        if mood == "bad":
            raise RuntimeError("in a bad\\nmood")
        if mood == "worse":
            raise ValueError
    def __call__(self, batch, outputs, model): ...

class Uncallable: ...

def function(batch, outputs, model): ...
'''
CLASSES = {
    "hard": "Hard",
    "learned": "Learned",
    "untyped": "Untyped",
    "weighty": "Weighty",
    "mean": "Mean",
    "moody": "Moody",
    "uncallable": "Uncallable",
    "function": "function",
    "update": "Hard",
}
OFF = {"lambda_p": 0, "lambda_sac": 0}


@dataclass
class Output:
    logits: Tensor
    structure_logits: Tensor | None = None
    similarity: Tensor | None = None


def settings(**tables: Any) -> LossConfig:
    return build(LossConfig, OFF | tables, base=Path("/base"), where="losses")


@pytest.fixture(autouse=True)
def installed(install_losses: Install) -> None:
    install_losses(SOURCE, **CLASSES)


def test_our_own_losses_are_entry_points() -> None:
    ours = [find("losses", name).load() for name in ("segmentation", "structure", "alignment")]
    assert ours == [SegmentationLoss, StructureLoss, AlignmentLoss]
    assert names("losses")[:3] == ("alignment", "segmentation", "structure") and set(BUILT_IN) == set(
        names("losses")[:3]
    )
    assert all(isinstance(loss(), Counted) for loss in ours)
    config = LossConfig()
    for loss in ours:  # the same settings by both ways
        assert build_losses(config)[loss.__name__.removesuffix("Loss").lower()][0] == loss()


def test_a_table_becomes_settings_and_comes_back() -> None:
    config = settings(hard={"weight": 0.5, "mode": "square", "file": "a.txt"}, learned={"size": 3})
    assert to_dict(config) == to_dict(LossConfig(lambda_p=0, lambda_sac=0)) | {
        "hard": {"weight": 0.5, "power": 2.0, "mode": "square", "file": "/base/a.txt"},
        "learned": {"weight": 1.0, "size": 3, "bias": True},
    }
    again = build(LossConfig, to_dict(config), base=Path("/elsewhere"))
    assert not differing_keys(to_dict(again), to_dict(config))
    losses = build_losses(again)
    assert list(losses) == ["segmentation", "hard", "learned"] and losses["hard"][1] == 0.5
    assert losses["learned"][0].layer.in_features == 3  # type: ignore[attr-defined]


def test_without_tables_nothing_is_new() -> None:
    assert type(settings()) is LossConfig and not settings().named
    assert "hard" not in {field.name for field in fields(LossConfig)}


def test_weight_0_is_as_if_the_table_were_not_there() -> None:
    config = settings(hard={"weight": 0, "power": -1})  # not built: power would be refused
    assert not config.named and to_dict(config) == to_dict(settings())
    with pytest.raises(PluginError, match="unknown loss 'hart', expected one of: alignment, segmentation, structure, "):
        settings(hart={"weight": 0})


def test_a_loss_is_built_to_be_checked_without_drawing_a_random_number() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    settings(learned={"size": 4})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"hard": {"powr": 1}}, "unknown key `losses.hard.powr`; did you mean `power`?"),
        ({"hard": {"power": "high"}}, "`losses.hard.power` must be a number, got text 'high'"),
        ({"hard": {"mode": "cube"}}, "`losses.hard.mode` must be one of 'plain', 'square', got 'cube'"),
        ({"hard": {"power": -1.0}}, "[losses.hard] power = -1.0: expected 0 or more"),
        ({"hard": {"weight": -1.0}}, "[losses.hard] weight: expected a number in [0, 1e18], got -1.0"),
        ({"hard": {"weight": float("nan")}}, "losses.hard.weight: expected a finite number, got nan"),
        ({"hard": 1.0}, "unknown key `losses.hard`"),
        ({"learned": {}}, "`losses.learned.size` is missing"),
        ({"alpha": {}}, "`losses.alpha` must be a number, got table"),
        (
            {"untyped": {}},
            "of the package far-losses 1.5: far_losses:Untyped has no settings to read: TypeError: parameter power",
        ),
        (
            {"weighty": {}},
            "Weighty has no settings to read: TypeError: parameter weight: expected an annotation, and another name",
        ),
        (
            {"uncallable": {}},
            "far_losses:Uncallable has no settings to read: TypeError: expected a class whose objects are called",
        ),
        ({"function": {}}, "expected a class whose objects are called, got <function"),
        (
            {"moody": {"mood": "bad"}},
            "[losses.moody] loss moody of the package far-losses 1.5: RuntimeError: in a bad mood",
        ),
        ({"moody": {"mood": "worse"}}, "[losses.moody] ValueError()"),
        ({"moody": {"place": "cpu"}}, "`losses.moody.place` cannot be read: it is annotated as <class 'torch.device'>"),
        ({"moody": {"many": {"a": 1}}}, "`losses.moody.many` cannot be read: it is annotated as dict[str, int]"),
        ({"update": {}}, "`losses.update` cannot be the name of a loss"),
        (
            {"structure": {"weight": 2}},
            "`losses.structure` is no table\n  hint: its settings in [losses]: lambda_p, st",
        ),
        ({"segmentation": {}}, "its settings in [losses]: mask_ignored"),
    ],
)
def test_what_does_not_fit_is_one_line(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        settings(**table)
    assert "\n" not in caught.value.args[0]


def test_the_hints_name_every_flat_key_once() -> None:
    hinted = re.findall(r"\w+", " ".join(BUILT_IN.values()).replace(" and ", " "))
    assert sorted(hinted) == sorted(field.name for field in fields(LossConfig))


def test_the_command_line_and_the_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[data]\nstore = "s"\n[losses]\nlambda_p = 0\n[losses.hard]\nfile = "w.txt"\n')
    config = load_config(file, ["losses.hard.weight=0.25", "losses.hard.power=3"])
    hard: Any = config.losses.named["hard"]
    assert (hard.weight, hard.power, hard.file) == (0.25, 3.0, tmp_path / "w.txt")
    assert not load_config(file, ["losses.hard.weight=0"]).losses.named
    with pytest.raises(ConfigError, match=r"--set losses\.hart\.weight=0: unknown loss 'hart'"):
        load_config(file, ["losses.hart.weight=0"])
    file.write_text(file.read_text().replace("hard", "hart"))
    with pytest.raises(ConfigError, match=r"c\.toml: unknown loss 'hart'.*\n  hint: is the package .* installed here"):
        load_config(file)


def test_hand_values_in_one_and_in_two_parts() -> None:
    """Labels 1 and 2 count, 255 does not: 2 x 3 x (1 + 2) / 2 = 9 in one; and so in halves of 2 and 0 pixels."""
    labels = torch.tensor([[[1, 2]], [[255, 255]]])
    output = Output(torch.full((2, 3, 4, 4), 3.0))
    config = settings(hard={"weight": 0.5})
    parts = total_loss(output, {"labels": labels}, config, ignore_index=255)
    assert list(parts) == ["loss", "segmentation", "hard"]
    assert parts["hard"].item() == 9
    assert parts["loss"].item() == pytest.approx(parts["segmentation"].item() + 4.5, rel=1e-6)
    halves = [({"labels": labels[i : i + 1]}, Output(output.logits[i : i + 1])) for i in (0, 1)]
    counts = [loss_counts(batch, config, ignore_index=255, grid=1) for batch, _ in halves]
    assert [count["hard"].item() for count in counts] == [2, 0]
    mean = {name: (counts[0][name] + counts[1][name]) / 2 for name in counts[0]}
    each = [total_loss(half, batch, config, ignore_index=255, counts=mean)["hard"].item() for batch, half in halves]
    assert each == [18, 0]  # whose mean is 9


def test_nothing_is_trained_through_a_count() -> None:
    """The count of `learned` grows with the logits; its gradient is that of the sum over it as a number."""
    config = settings(learned={"size": 3, "bias": False})
    losses = build_losses(config)
    with torch.no_grad():
        losses["learned"][0].layer.weight.fill_(1.0)  # type: ignore[attr-defined]
    logits = torch.full((1, 3, 4, 4), 2.0, requires_grad=True)
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}
    value = total_loss(Output(logits), batch, losses, ignore_index=255)["learned"]
    assert value.item() == 6 / 3  # (2 + 2 + 2) / (2 + 1)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 16 / 3))
    assert "learned" not in loss_counts(batch, losses, ignore_index=255, grid=1)


def test_a_loss_that_gives_something_else_is_named() -> None:
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}
    with pytest.raises(
        ShapeError, match=re.escape("losses.mean: expected a tuple (sum, count)") + r".*got a tensor \(\)"
    ):
        total_loss(Output(torch.zeros(1, 3, 4, 4)), batch, settings(mean={}), ignore_index=255)


CARELESS = """
import sys
from dataclasses import dataclass

@dataclass(frozen=True)
class Careless:
    what: str

    def __call__(self, batch, outputs, model):
        ones = outputs.logits.new_ones
        total, count = outputs.logits.sum(), ones(())
        if self.what == "labels":
            batch["labels"].zero_()
        elif self.what == "logits":
            outputs.logits.mul_(0)
        elif self.what == "key":
            batch.pop("labels")
        elif self.what == "exit":
            sys.exit(0)
        elif self.what == "bug":
            return 1 / 0
        elif self.what == "shapes":
            total, count = ones(3), ones(2)
        elif self.what == "whole":
            total = ones(()).long()
        elif self.what in ("-2", "nan"):
            count = ones(()) * float(self.what)
        return total, count
"""


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("labels", PluginError, "loss careless of the package .*: it changes labels in place"),
        ("logits", PluginError, "loss careless of the package .*: it changes logits in place"),
        ("exit", PluginError, "loss careless of the package .*: SystemExit: 0"),
        ("bug", PluginError, "loss careless of the package .*: ZeroDivisionError"),
        ("shapes", ShapeError, r"losses.careless: .*got a tensor \(3,\), a tensor \(2,\)"),
        ("whole", ShapeError, "losses.careless: expected a tuple"),
    ],
)
def test_what_a_careless_loss_does_is_one_line_that_names_it(
    what: str, error: type[Exception], message: str, install_losses: Install
) -> None:
    install_losses(CARELESS, careless="Careless")
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}
    output = Output(torch.zeros(1, 3, 4, 4, requires_grad=True) * 1)
    with pytest.raises(error, match=message):
        total_loss(output, batch, settings(careless={"what": what}), ignore_index=255)


def test_a_batch_without_a_key_is_the_careless_losss_own(install_losses: Install) -> None:
    install_losses(CARELESS, careless="Careless")
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}
    total_loss(Output(torch.zeros(1, 3, 4, 4)), batch, settings(careless={"what": "key"}), ignore_index=255)
    assert "labels" in batch


@pytest.mark.parametrize("what", ["-2", "nan"])
def test_a_count_below_0_is_no_number(what: str, install_losses: Install) -> None:
    install_losses(CARELESS, careless="Careless")
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}
    found = total_loss(Output(torch.ones(1, 3, 4, 4)), batch, settings(careless={"what": what}), ignore_index=255)
    assert found["careless"].isnan() and found["loss"].isnan()


def test_losses_of_others_compile_into_the_one_graph() -> None:
    """A break would cost a step of `compile = true` most of what it gains."""
    config = settings(hard={}, learned={"size": 3})
    losses, model = build_losses(config), ModelView(ignore_index=255, grid=1)
    batch = {"labels": torch.zeros(1, 4, 4, dtype=torch.int64)}

    def whole(logits: Tensor) -> dict[str, Tensor]:
        return total_loss(Output(logits), batch, losses, ignore_index=255, model=model)

    compiled: Any = torch.compile(whole, backend="aot_eager", fullgraph=True)
    logits = torch.linspace(-1, 2, 48).view(1, 3, 4, 4)
    torch.testing.assert_close(compiled(logits), whole(logits))
