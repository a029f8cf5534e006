"""The training loop: exact resume, clean ends, and a bad number that changes no weight."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from physseg.train import checkpoint
from physseg.train.config import TrainConfig
from physseg.train.loop import train
from physseg.train.run_folder import RunFolder
from physseg.train.run_log import read_log

Make = Callable[..., TrainConfig]


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.path_of(RunFolder(run).checkpoints, None)
    return safetensors.torch.load_file(path / checkpoint.MODEL_FILE)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def test_resume_is_bitwise(make_config: Make, tmp_path: Path) -> None:
    """Six steps at once, and three and three in two processes' worth of state, end in the same bits."""
    whole = train(make_config(run=str(tmp_path / "whole")), progress=False)
    first = train(make_config(), stop_at=3, progress=False)
    second = train(make_config(), progress=False)
    assert (whole.step, first.step, second.first_step, second.step) == (6, 3, 3, 6)
    assert (whole.finished, first.finished, second.finished) == (True, False, True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    logs = [read_log(RunFolder(tmp_path / name).log_file, "step") for name in ("whole", "run")]
    assert [entry["loss/loss"] for entry in logs[0]] == [entry["loss/loss"] for entry in logs[1]]
