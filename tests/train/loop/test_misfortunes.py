"""What happens to a training that is nobody's fault: a full disk, a second start, a kill in an evaluation, a clock."""

import io
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import tqdm as tqdm_package
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig, load_config
from physseg.train.errors import RunFolderError
from physseg.train.loop.loop import train
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log

from ...forked import Forked, calling

Make = Callable[..., TrainConfig]
Write = Callable[..., Path]
TIMES = ("time", "speed/images_per_second", "speed/data_wait")


@pytest.fixture
def read_config(write_config: Write) -> Make:
    """As `write_config`, read: the same settings for this process as for others."""
    return lambda **changes: load_config(write_config(**changes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.path_of(RunFolder(run).checkpoints, None)
    return safetensors.torch.load_file(path / checkpoint.MODEL_FILE)


def assert_same_runs(run: Path, expected: Path) -> None:
    """The same weights, and the same numbers in the log, of each step once."""
    ours, theirs = weights(run), weights(expected)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    logs = [
        [{key: value for key, value in entry.items() if key not in TIMES} for entry in read_log(folder, "step")]
        for folder in (RunFolder(run).log_file, RunFolder(expected).log_file)
    ]
    assert logs[0] == logs[1]


def training(config: Path, output: Path, before: str = "") -> Forked:
    """`physseg train` as a process of its own."""
    return Forked(calling("train", config, before=before), output)


def paused_at(what: str, file: Path) -> str:
    """Code that lets a function of the trainer wait at its second call, once it has made a file."""
    module, _, name = what.rpartition(".")
    return f"""
import importlib, pathlib, time
owner, calls = importlib.import_module({module!r}), []
real = getattr(owner, {name!r})
def pausing(*args, **options):
    calls.append(1)
    if len(calls) == 2:
        pathlib.Path({str(file)!r}).touch()
        while pathlib.Path({str(file)!r}).exists():
            time.sleep(0.02)
    return real(*args, **options)
setattr(owner, {name!r}, pausing)
"""


def wait_for(file: Path, process: Forked) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.text()
        time.sleep(0.02)


@pytest.mark.parametrize("room", [0.9, 1.5])
def test_a_disk_that_fills_while_a_checkpoint_is_written(
    room: float, write_config: Write, read_config: Make, tmp_path: Path
) -> None:
    """In the model's file, and in the trainer's, which is larger: files may be so many models large."""
    run = tmp_path / "run"
    train(read_config(checkpoint_every=2, run=str(run)), stop_at=2, progress=False)
    kept = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    model, trainer = (
        next((run / "checkpoints").rglob(name)).stat().st_size
        for name in (checkpoint.MODEL_FILE, checkpoint.TRAINER_FILE)
    )
    assert trainer > 1.5 * model
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({int(room * model)}, -1))"
    with training(write_config(checkpoint_every=2), tmp_path / "output.txt", limit) as process:
        assert process.wait(120) == 1
        said = process.text()
    assert "Traceback" not in said
    assert said.splitlines()[-2:] == [
        f"error: {run}/checkpoints/step_00000004: File too large",
        "  hint: make room (or raise `ulimit -f`), then run the same command again; what is complete stays",
    ]
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == kept
    assert not list(run.rglob(".*")), "nothing half-written stays"
    train(read_config(checkpoint_every=2, run=str(run)), progress=False)
    train(read_config(checkpoint_every=2, run=str(tmp_path / "whole")), progress=False)
    assert_same_runs(run, tmp_path / "whole")


def test_a_second_training_in_a_run_folder_is_refused_and_the_first_undisturbed(
    write_config: Write, read_config: Make, tmp_path: Path
) -> None:
    file = tmp_path / "paused"
    pause = paused_at("physseg.train.optim.require_finite", file)
    with training(write_config(), tmp_path / "first.txt", pause) as first:
        wait_for(file, first)
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        with training(write_config(), tmp_path / "second.txt") as second:
            assert second.wait(120) == 1
            said = second.text()
        assert f"error: {tmp_path}/run: another process is training in this run folder" in said
        assert "Traceback" not in said
        with pytest.raises(RunFolderError, match="another process is training"):
            train(read_config(), progress=False)
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
        file.unlink()
        assert first.wait(120) == 0
    train(read_config(run=str(tmp_path / "whole")), progress=False)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_is_killed_in_an_evaluation_resumes_as_if_nothing_had_been(
    write_config: Write, read_config: Make, tmp_path: Path, train_manifest: Manifest
) -> None:
    """SIGKILL in the second of three, whose step has its checkpoint: the evaluation alone is made up for."""
    train_manifest.write(tmp_path / "val.parquet")
    evaluated = {"steps": 6, "checkpoint_every": 100, "eval": {"manifest": str(tmp_path / "val.parquet"), "every": 2}}
    file = tmp_path / "paused"
    pause = paused_at("physseg.train.loop.loop.evaluate_model", file)
    with training(write_config(**evaluated), tmp_path / "output.txt", pause) as process:
        wait_for(file, process)
        process.kill()
        process.wait(20)
    assert checkpoint.steps(tmp_path / "run/checkpoints")[-1] == 4
    resumed = train(read_config(**evaluated), progress=False)
    assert (resumed.first_step, resumed.step) == (4, 6)
    train(read_config(**evaluated, run=str(tmp_path / "whole")), progress=False)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
    steps = [entry["step"] for entry in read_log(RunFolder(tmp_path / "run").log_file) if "eval/miou" in entry]
    assert steps == [2, 4, 6]
    bests = [RunFolder(tmp_path / name).best() for name in ("run", "whole")]
    assert bests[0] == bests[1]


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`jump(seconds)`: the time of day is so much later, or earlier, from then on."""
    offset, real = [0.0], time.time

    def jump(seconds: float) -> None:
        offset[0] += seconds

    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    monkeypatch.setattr(tqdm_package.std, "time", time.time)
    return jump


@pytest.mark.parametrize("seconds", [-3 * 3600, 86400 * 30])
def test_a_clock_that_jumps_changes_no_rate_and_no_remaining_time(
    seconds: float, jumping_clock: Callable[[float], None], read_config: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Once in the middle of each part of the run, and in between."""
    step, shown = torch.optim.AdamW.step, io.StringIO()
    numbers: Iterator[int] = itertools.count(1)

    def jump_at_times(self: torch.optim.AdamW, *args: Any) -> Any:
        if next(numbers) in (2, 5):
            jumping_clock(seconds)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", jump_at_times)
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", shown)
    started = time.monotonic()
    train(read_config(), stop_at=3)
    jumping_clock(seconds)
    result = train(read_config())
    took = time.monotonic() - started
    assert result.step == 6
    for line in filter(None, shown.getvalue().replace("\r", "\n").splitlines()):
        assert "-" not in line and ":00:" not in line, f"no negative and no endless time: {line}"
    assert "100%" in shown.getvalue()
    for entry in read_log(RunFolder(tmp_path / "run").log_file, "step"):
        assert all(math.isfinite(value) for value in entry.values() if isinstance(value, float))
        assert entry["speed/images_per_second"] > 3 / took and 0 <= entry["speed/data_wait"] <= 1
    assert 0 <= result.seconds <= took
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(read_config(run=str(tmp_path / "whole")), progress=False)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
