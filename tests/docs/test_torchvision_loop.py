"""Somebody else's loop: both losses on a plain model of torchvision are finite and are learnt."""

import importlib.util
import re
import sys
from pathlib import Path

import physseg
import pytest
import torch

from .conftest import DOCS

spec = importlib.util.spec_from_file_location("torchvision_loop", DOCS / "examples/torchvision_loop.py")
assert spec is not None and spec.loader is not None
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def test_every_loss_falls_on_one_batch(demo: Path) -> None:
    torch.manual_seed(0)
    store = physseg.open_store("physseg_demo/train.zarr")
    dataset = physseg.StoreDataset(store, crop=192, structures=("canny", "sift"))
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    model = example.WithAuxiliaryHeads(len(store.classes), num_structures=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(4):
        losses = example.losses_of(model, batch, store.vocabulary.ignore_index)
        seen.append(losses)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for name in ("segmentation", "structure", "alignment"):
        values = [losses[name].item() for losses in seen]
        assert all(map(torch.isfinite, map(torch.tensor, values)))
        assert values[-1] < values[0], f"{name}: {values}"
    assert seen[-1]["alignment"] < 0.5 * seen[0]["alignment"]


def test_it_runs_as_a_script(demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["torchvision_loop.py", "physseg_demo/train.zarr", "--epochs", "1"])
    example.main()
    assert (
        len(
            re.findall(
                r"^0 segmentation [0-9.]+ structure [0-9.]+ alignment [0-9.]+$", capsys.readouterr().out, re.MULTILINE
            )
        )
        == 1
    )
