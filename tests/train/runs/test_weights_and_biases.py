"""Weights & Biases: missing is one line; offline, all that the log has is in the run folder."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.loop.loop import train
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_missing_package_is_one_line_before_anything_begins(
    left_behind: bool, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder `wandb`, which the package makes where it runs, is no package."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    if left_behind:
        (tmp_path / "wandb").mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        del sys.modules["wandb"]
    with pytest.raises(ConfigError, match=r"log\.wandb: the package wandb is not installed") as caught:
        train(make_config(log={"wandb": True}), progress=False)
    assert caught.value.hint == "pip install 'physseg[wandb]'"
    assert not (tmp_path / "run").exists()


def two_calls(make_config: Make, manifest: Manifest, folder: Path) -> list[dict[str, Any]]:
    """A run that is resumed, and evaluated at its end; the numbers in its log."""
    manifest.write(folder / "val.parquet")
    evaluation = {"manifest": str(folder / "val.parquet"), "every": 2, "max_images": 1}
    config = make_config(steps=2, log={"wandb": True}, eval=evaluation)
    train(config, stop_at=1, progress=False)
    train(config, progress=False)
    logged = read_log(RunFolder(folder / "run").log_file, "step")
    assert [entry["step"] for entry in logged] == [1, 2, 2] and "eval/miou" in logged[2]
    return [{key: value for key, value in entry.items() if key not in ("event", "time")} for entry in logged]


def test_it_is_told_what_the_log_is_told(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Mock()
    monkeypatch.setitem(sys.modules, "wandb", there)
    logged = two_calls(make_config, train_manifest, tmp_path)
    assert [call.args[0] for call in there.init.return_value.log.call_args_list] == logged
    first, second = (call.kwargs for call in there.init.call_args_list)
    assert first == second and first["resume"] == "allow"  # a resumed run is the same there
    assert first["config"]["training"]["seed"] == 5 and first["dir"] == str(tmp_path / "run")
    assert there.init.return_value.finish.call_count == 2


def test_offline_its_own_file_has_the_numbers(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="an optional package: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged = two_calls(make_config, train_manifest, tmp_path)
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1
    written = b"".join(file.read_bytes() for file in files)
    for number in (logged[0]["loss/total"], logged[1]["loss/total"], logged[2]["eval/miou"]):
        assert json.dumps(number).encode() in written
