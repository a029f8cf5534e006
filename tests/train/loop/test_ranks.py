"""Several processes, micro-batches, kills: the run that comes out is the one that one undisturbed process makes."""

import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.evaluation.evaluate import evaluate_model
from physseg.train.evaluation.result import read_evaluation
from physseg.train.loop.loop import train
from physseg.train.loop.ranks import Ranks
from physseg.train.model.inference import InferenceSettings
from physseg.train.prediction.load_run import load_run
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from torch.distributed import TCPStore

from ...forked import Forked, calling

Make = Callable[..., TrainConfig]
Write = Callable[..., Path]


def training(config: Path, *options: str, **environment: str) -> Forked:
    """`physseg train` as a process of its own."""
    output = config.with_name(f"{uuid.uuid4().hex}.txt")
    return Forked(calling("train", config, *options), output, **environment)


def in_ranks(number: int, config: Path, *options: str) -> list[Forked]:
    """`physseg train` in so many processes, told by their environment what torchrun would tell them; all have ended."""
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting.port}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                training(config, *options, **{key: str(value) for key, value in (common | own).items()})
            )
            for own in ({"RANK": rank, "LOCAL_RANK": rank} for rank in range(number))
        ]
        for process in started:
            process.wait(300)
    return started


def losses(run: Path) -> list[list[float]]:
    """Every loss part and the gradient norm of every step of a run."""
    return values_of(run, "loss/", "gradient/")


def values_of(run: Path, *prefixes: str) -> list[list[float]]:
    """Of every line of a run's log that has them, the numbers whose names begin so."""
    entries = read_log(RunFolder(run).log_file, "step")
    found = [[value for key, value in entry.items() if key.startswith(prefixes)] for entry in entries]
    return [values for values in found if values]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.path_of(RunFolder(run).checkpoints, None) / checkpoint.MODEL_FILE)


def same_bits(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ranks_and_micro_batches_take_the_same_steps(make_config: Make, write_config: Write, tmp_path: Path) -> None:
    """Four samples a step: by one process at once, in 2 and 4 micro-batches, by 2 ranks in 2, and by 4 ranks.

    The samples differ in valid pixels, labelled patches and edges, so means of each part's own means would not agree.
    """
    shared = {"steps": 4, "batch_size": 4, "losses": {"mask_ignored": True}, "log": {"gradients": 2}}
    train(make_config(run=str(tmp_path / "whole"), **shared), progress=False)
    for number in (2, 4):
        train(make_config(run=str(tmp_path / f"micro{number}"), accumulate=number, **shared), progress=False)
    for ranks, number in ((2, 2), (4, 1)):
        config = write_config(run=str(tmp_path / f"ranks{ranks}"), accumulate=number, **shared)
        done = in_ranks(ranks, config)
        said = [process.text() for process in done]
        assert [process.returncode for process in done] == [0] * ranks, said
        for once in ("finished at step 4", "tensorboard --logdir"):
            assert "".join(said).count(once) == 1, "said once, not once per rank"
    expected = losses(tmp_path / "whole")
    assert len(expected) == 4
    for name in ("micro2", "micro4", "ranks2", "ranks4"):
        torch.testing.assert_close(
            torch.tensor(losses(tmp_path / name)), torch.tensor(expected), rtol=2e-4, atol=1e-6, msg=name
        )
        pulls = [torch.tensor(values_of(tmp_path / run, "gradient_")) for run in (name, "whole")]
        assert pulls[1].shape == (2, 6)  # norms and cosines of three losses at two of the steps
        torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-3, atol=1e-5, msg=f"{name}: gradients of losses")
    assert not torch.allclose(torch.tensor(expected[0]), torch.tensor(expected[3]), rtol=1e-2)  # they did train


def test_two_ranks_resume_bitwise(write_config: Write, tmp_path: Path, train_manifest: Manifest) -> None:
    """Four steps of two ranks at once, and two and two with other data workers, with averages: the same bits.

    What both ranks found at the end is what one process finds.
    """
    train_manifest.write(tmp_path / "val.parquet")
    evaluation = {"manifest": str(tmp_path / "val.parquet"), "every": 4, "max_images": 3, "windows": False}
    shared = {"steps": 4, "batch_size": 4, "ema_decay": 0.9, "eval": evaluation}
    config = write_config(run=str(tmp_path / "parts"), **shared)
    for done in (
        in_ranks(2, write_config(run=str(tmp_path / "whole"), **shared)),
        in_ranks(2, config, "--stop-at", "2"),
        in_ranks(2, config, "--set", "data.num_workers=1"),
    ):
        assert [process.returncode for process in done] == [0, 0], [process.text() for process in done]
    assert checkpoint.steps(tmp_path / "parts/checkpoints") == [2, 4]
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    loaded = load_run(tmp_path / "whole")
    settings = InferenceSettings(windows=False)
    alone = evaluate_model(
        loaded.model, train_manifest, trained_on=loaded.classes, max_images=3, settings=settings, progress=False
    ).scalars()
    logged = read_log(RunFolder(tmp_path / "whole").log_file, "step")[-1]
    assert "eval/boundary_iou" in alone and {key: logged[key] for key in alone} == alone
    kept = read_evaluation(tmp_path / "whole/evaluation.json")
    assert (kept.num_images, kept.confusion.miou(), kept.part) == (3, alone["eval/miou"], None)


def test_sigterm_to_torchrun_leaves_a_checkpoint(write_config: Write, tmp_path: Path) -> None:
    config = write_config(run=str(tmp_path / "run"), steps=100_000, batch_size=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen([*torchrun, "-m", "physseg.cli", "train", str(config)]) as process:
        wait_for_steps(tmp_path / "run", 2, process)
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    (step,) = checkpoint.steps(tmp_path / "run/checkpoints")
    checkpoint.read_state(tmp_path / f"run/checkpoints/step_{step:08d}")
    (end,) = read_log(RunFolder(tmp_path / "run").log_file, "end")
    assert (end["step"], end["stopped_by"], end["finished"]) == (step, "SIGTERM", False)


def test_sigkill_at_any_moment_loses_nothing(make_config: Make, write_config: Write, tmp_path: Path) -> None:
    """Killed three times at random moments, in steps, in checkpoints or between, and started again each time."""
    shared = {"steps": 24, "checkpoint_every": 3, "ema_decay": 0.9}
    train(make_config(run=str(tmp_path / "whole"), **shared), progress=False)
    config = write_config(run=str(tmp_path / "killed"), data={"num_workers": 1}, **shared)
    moments = random.Random(7)
    for reached in (1, 7, 13):
        with training(config) as process:
            wait_for_steps(tmp_path / "killed", reached, process)
            time.sleep(moments.random() * 0.3)
            process.kill()
    assert training(config, "--set", "data.num_workers=0").wait(300) == 0
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed/checkpoints").iterdir() if path.name.startswith(".")] == []


def test_a_failing_rank_ends_all_with_a_checkpoint(write_config: Write, tmp_path: Path, store: Path) -> None:
    """A sample that only one rank reads has vanished: every rank ends after the step before, saved."""
    config = write_config(run=str(tmp_path / "run"), steps=50, batch_size=2)
    images = sorted((tmp_path / "data/images").glob("*.jpg"))
    images[0].unlink()
    done = in_ranks(2, config)
    said = "".join(process.text() for process in done)
    assert 0 not in [process.returncode for process in done], said
    assert images[0].name in said
    assert "failed" in said
    log = read_log(RunFolder(tmp_path / "run").log_file, "step")
    if log:  # the first batch may have held it already
        assert checkpoint.steps(tmp_path / "run/checkpoints") == [log[-1]["step"]]


def test_an_evaluation_that_fails_on_one_rank_loses_no_step(
    write_config: Write, tmp_path: Path, train_manifest: Manifest
) -> None:
    """The second rank cannot read its third image, which no picture shows: both end, and no step is lost."""
    other = tmp_path / "val"
    shutil.copytree(train_manifest.root, other)
    replace(train_manifest, root=str(other)).write(tmp_path / "val.parquet")
    (other / train_manifest.samples[5].image_path).unlink()
    evaluation = {"manifest": str(tmp_path / "val.parquet"), "every": 3, "max_images": 6}
    done = in_ranks(2, write_config(steps=6, batch_size=2, eval=evaluation))
    assert 0 not in [process.returncode for process in done]
    assert "because rank 1 failed" in "".join(process.text() for process in done)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [3]


def test_a_batch_that_cannot_be_spread_is_refused(make_config: Make) -> None:
    with pytest.raises(ConfigError, match="batch_size 3 cannot be spread evenly over 1 ranks x accumulate 2"):
        train(make_config(accumulate=2), progress=False)


def test_one_rank_agrees_with_itself() -> None:
    alone = Ranks(torch.device("cpu"))
    values = {"a": torch.tensor(2.0), "b": torch.ones(3)}
    assert alone.mean(values) == values
    assert (alone.any(True), alone.any(False), alone.gather("x"), alone.is_main) == (True, False, ["x"], True)


def wait_for_steps(run: Path, number: int, process: "subprocess.Popen[bytes] | Forked") -> None:
    """Until the run's log has so many steps."""
    log, deadline = RunFolder(run).log_file, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(read_log(log, "step")) >= number:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {number} steps within two minutes; exit status {process.poll()}")
