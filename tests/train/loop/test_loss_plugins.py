"""Losses of another package in training: one step however it is spread; parameters that train and are left out."""

import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import physseg
import pytest
import safetensors.torch
import torch
from physseg.common import plugins
from physseg.common.errors import ConfigError
from physseg.common.plugins import PluginError
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import TrainSamples
from physseg.train.errors import CheckpointError, NonFiniteLossError, RunFolderError
from physseg.train.evaluation.evaluate import evaluate_model
from physseg.train.loop.loop import train
from physseg.train.model.inference import InferenceSettings
from physseg.train.prediction.load_run import load_run
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from physseg.train.weights.export import write_export

from .test_ranks import in_ranks, losses

Make = Callable[..., TrainConfig]
Install = Callable[..., Path]

SOURCE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass(frozen=True)
class Labels:
    '''The mean label of labelled pixels, which no model changes.'''
    def __call__(self, batch, outputs, model):
        labels = batch["labels"]
        return torch.where(labels == model.ignore_index, 0, labels).sum().float(), self.count(batch)

    def count(self, batch):
        return (batch["labels"] != batch["ignore_index"]).sum().float()

class Margin:
    '''Brightness where the first class is likely and true: how much that is only the outputs tell.'''
    def __call__(self, batch, outputs, model):
        likely = (outputs.logits[:, 0].float() - outputs.logits[:, 1].float()).sigmoid()
        likely = likely.where(batch["labels"][:, 2::4, 2::4] == 0, 0.0)
        return (likely * batch["images"][:, 1, 2::4, 2::4] / 255).sum(), likely.sum()

class Learned(nn.Module):
    '''Two parameters, and all that a loss may see.'''
    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([start, start]))
        self.noise = nn.Parameter(torch.randn(3))
        self.register_buffer("fixed", torch.tensor([2.0]))

    def forward(self, batch, outputs, model):
        assert self.training and self.scale.device == outputs.logits.device
        assert model.text_features.shape[:2] == (len(model.classes), 1) == (outputs.logits.shape[1], 1)
        tokens = model.encode_image(batch["images"].float()).patches
        assert tokens.shape[:2] == (len(batch["sample_ids"]), model.grid ** 2), tokens.shape
        each = tokens.mean((1, 2)) * self.scale[0] + outputs.logits.mean((1, 2, 3)) * self.scale[1]
        return (each - self.fixed).square().sum() + len(each) * self.noise.square().sum(), self.count(batch)

    def count(self, batch):
        return torch.tensor(float(len(batch["sample_ids"])), device=batch["labels"].device)

class Miscounted(Labels):
    def count(self, batch):
        return torch.tensor(float(batch["labels"].amax()))  # of a batch, it is not that of its parts added up

class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
    def forward(self, batch, outputs, model):
        self.seen += 1
        value = outputs.logits.mean()
        return value / (0.0 if self.seen > 1 else 1.0) * 0.0, torch.ones(())
"""
CLASSES = {name.lower(): name for name in ("Labels", "Margin", "Learned", "Miscounted", "Broken")}
THREE = {"labels": {"weight": 0.1}, "margin": {"weight": 0.2}, "learned": {"weight": 0.5, "start": 0.25}}


@pytest.fixture(autouse=True)
def site(install_losses: Install) -> Path:
    return install_losses(SOURCE, **CLASSES)


def trained(run: Path, *, trainer: bool = False) -> dict[str, Any]:
    path = checkpoint.path_of(RunFolder(run).checkpoints, None)
    if trainer:
        return checkpoint.load_trainer(path)
    return dict(safetensors.torch.load_file(path / checkpoint.MODEL_FILE))


def same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_one_two_and_four_parts_take_the_same_steps(
    make_config: Make, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """One loss with `count`, one whose count only its outputs tell, one with parameters."""
    shared = {"steps": 2, "batch_size": 4, "losses": THREE}
    for number in (1, 2, 4):
        config = make_config(run=str(tmp_path / f"parts{number}"), accumulate=number, recompute=number == 2, **shared)
        train(config, progress=False)
    done = in_ranks(2, write_config(run=str(tmp_path / "ranks"), accumulate=2, **shared))
    assert [process.returncode for process in done] == [0, 0], [process.text() for process in done]
    expected = losses(tmp_path / "parts1")
    for name in ("parts2", "parts4", "ranks"):
        torch.testing.assert_close(
            torch.tensor(losses(tmp_path / name)), torch.tensor(expected), rtol=2e-4, atol=1e-6, msg=name
        )
        ours, theirs = (trained(tmp_path / run, trainer=True)["losses"] for run in (name, "parts1"))
        torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-6)
    log = read_log(RunFolder(tmp_path / "parts1").log_file, "step")
    assert log[0]["loss/margin"] > 0 and log[0]["loss/learned"] != pytest.approx(log[1]["loss/learned"], rel=1e-5)
    # By hand: the mean label over the four crops of the first step.
    config = make_config(**shared)
    labels = TrainSamples(config.data, config.model.structures, True, config.seed).batch(range(4))["labels"].numpy()
    assert log[0]["loss/labels"] == pytest.approx(float(np.mean(labels[labels != 255])), rel=1e-6)
    (start,) = read_log(RunFolder(tmp_path / "parts1").log_file, "start")
    assert start["losses"] == [f"loss {name} of the package far-losses 1.5" for name in THREE]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_wrong_count_ends_the_run_where_it_would_matter(make_config: Make, accumulate: int) -> None:
    config = make_config(steps=1, accumulate=accumulate, losses={"miscounted": {}})
    if accumulate == 1:
        assert train(config, progress=False).finished
        return
    with pytest.raises(ConfigError, match=r"losses\.miscounted: `count` of a step: expected \d+\.0, what the loss"):
        train(config, progress=False)
    assert not checkpoint.steps(RunFolder(config.run or Path()).checkpoints)


def test_parameters_resume_bitwise_and_are_averaged(make_config: Make, tmp_path: Path) -> None:
    """Four steps at once, and two and two. The checkpoint has their averages and what training resumes from."""
    shared = {"steps": 4, "ema_decay": 0.5, "losses": {"learned": {}}}
    train(make_config(run=str(tmp_path / "whole"), **shared), progress=False)
    train(make_config(**shared), stop_at=2, progress=False)
    halfway = trained(tmp_path / "run", trainer=True)
    train(make_config(**shared), progress=False)
    whole, parts = (trained(tmp_path / name, trainer=True) for name in ("whole", "run"))
    names = ["learned.scale", "learned.noise", "learned.fixed"]
    assert list(parts["losses"]) == names
    assert same_tensors(whole["losses"], parts["losses"]) and same_tensors(whole["weights"], parts["weights"])
    assert same_tensors(trained(tmp_path / "whole"), trained(tmp_path / "run"))
    assert not torch.equal(halfway["losses"]["learned.scale"], parts["losses"]["learned.scale"])
    assert not torch.equal(parts["losses"]["learned.scale"], parts["weights"]["loss_modules.learned.scale"])
    # A head's learning rate; weight decay as of any bare parameter.
    groups = {group["name"]: group for group in parts["optimizer"]["param_groups"]}
    without = make_config(run=str(tmp_path / "without"), steps=1)
    train(without, progress=False)
    alone = {group["name"]: group for group in trained(tmp_path / "without", trainer=True)["optimizer"]["param_groups"]}
    more = {name: len(group["params"]) - len(alone[name]["params"]) for name, group in groups.items()}
    assert more == {name: 2 * (name == "head/plain") for name in alone}
    # The same initial weights of the model with and without the loss.
    assert not any(name.startswith("loss") for name in trained(tmp_path / "without"))


def test_a_loss_of_weight_0_changes_nothing(make_config: Make, tmp_path: Path) -> None:
    train(make_config(run=str(tmp_path / "without"), steps=2), progress=False)
    off = make_config(run=str(tmp_path / "off"), steps=2, losses={"learned": {"weight": 0}, "broken": {"weight": 0.0}})
    train(off, progress=False)
    assert same_tensors(trained(tmp_path / "off"), trained(tmp_path / "without"))
    assert (
        RunFolder(tmp_path / "off").read()["training"]["losses"]
        == RunFolder(tmp_path / "without").read()["training"]["losses"]
    )


def test_the_model_is_used_where_the_package_is_gone(
    make_config: Make, write_config: Callable[..., Path], tmp_path: Path, train_manifest: Manifest, site: Path
) -> None:
    """Evaluation and export hold nothing of the loss; resuming says in one line what is missing."""
    values = {"steps": 2, "losses": {"learned": {"start": 2.0}}}
    config = make_config(**values)
    train(config, stop_at=1, progress=False)
    (site / "far_losses.py").unlink()
    shutil.rmtree(site / "far_losses-1.5.dist-info")
    plugins.offers.cache_clear()
    loaded = load_run(tmp_path / "run")
    assert not [name for name in loaded.model.state_dict() if "learned" in name]
    evaluate_model(
        loaded.model,
        train_manifest,
        trained_on=loaded.classes,
        max_images=1,
        settings=InferenceSettings(windows=False),
        progress=False,
    )
    write_export(tmp_path / "export", loaded.model, classes=loaded.classes, step=1, origin=None)
    assert load_run(tmp_path / "export").step == 1
    assert not [name for name in safetensors.torch.load_file(tmp_path / "export/model.safetensors") if "learn" in name]
    with pytest.raises(PluginError, match="unknown loss 'learned'"):
        make_config(**values)
    with pytest.raises(RunFolderError) as caught:
        train(make_config(steps=2), progress=False)
    assert "losses.learned.weight: run 1.0, now None; losses.learned.start: run 2.0, now None" in str(caught.value)
    assert "Resume with --set losses.learned.weight=1.0 --set losses.learned.start=2.0" in str(caught.value)


def test_another_version_of_the_loss_does_not_resume(make_config: Make, install_losses: Install) -> None:
    train(make_config(steps=2, losses={"learned": {}}), stop_at=1, progress=False)
    install_losses(SOURCE.replace("torch.randn(3)", "torch.randn(4)"), **CLASSES)
    with pytest.raises(CheckpointError, match=r"parameters of losses do not fit: .*learned\.noise") as caught:
        train(make_config(steps=2, losses={"learned": {}}), progress=False)
    assert "\n" not in caught.value.args[0]


def test_a_loss_that_is_not_finite_is_named(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 1: expected finite numbers, got loss = nan, broken = nan"):
        train(make_config(losses={"broken": {}}), progress=False)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [1]


def test_the_example_of_the_docs_trains(make_config: Make, install_losses: Install, tmp_path: Path) -> None:
    """With gamma 0 it is cross-entropy: log T at first, give or take what random logits say."""
    page = (Path(physseg.__file__).parent / "docs/plugins.md").read_text(encoding="utf-8").split("## Losses")[1]
    name, cls = re.findall(r'(\w+) = "physseg_focal:(\w+)"', page)[0]
    (source,), (_, table) = (re.findall(rf"^```{kind}\n(.*?)^```", page, re.M | re.S) for kind in ("python", "toml"))
    install_losses(source, **{name: cls})
    assert len(source.strip().splitlines()) < 30
    values = tomllib.loads(table)["losses"]
    values[name] |= {"gamma": 0.0}
    train(make_config(steps=1, losses=values), progress=False)
    (step,) = read_log(RunFolder(tmp_path / "run").log_file, "step")
    assert step["loss/focal_ce"] == pytest.approx(np.log(5), abs=0.4)
    parts = [step[f"loss/{part}"] for part in ("segmentation", "structure", "alignment")]
    assert step["loss/total"] == pytest.approx(sum(parts) + 0.5 * step["loss/focal_ce"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"^\[losses\.focal_ce\] gamma = -1\.0: expected 0 or more$"):
        make_config(losses={name: {"gamma": -1.0}})
