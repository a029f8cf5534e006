"""The training loop: exact resume, clean ends, and a bad number that changes no weight."""

import json
import math
import os
import shutil
import signal
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from physseg.common.documents import digest_of_json
from physseg.common.errors import ConfigError
from physseg.manifests.errors import ContentError
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.train.config import EvalConfig, TrainConfig
from physseg.train.data.dataset import TrainSamples
from physseg.train.errors import CheckpointError, NonFiniteLossError, RunFolderError, WeightsError
from physseg.train.evaluation.evaluate import evaluate_model
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.evaluation.result import read_evaluation
from physseg.train.loop import objective
from physseg.train.loop.loop import train
from physseg.train.loop.process import StopSignals
from physseg.train.losses.total import total_loss
from physseg.train.model import bounded
from physseg.train.model.device import choose_device
from physseg.train.model.inference import InferenceSettings
from physseg.train.model.segmenter import Segmenter
from physseg.train.prediction.load_run import load_run
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..conftest import TINIER

Make = Callable[..., TrainConfig]


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.path_of(RunFolder(run).checkpoints, None)
    return safetensors.torch.load_file(path / checkpoint.MODEL_FILE)


def differing(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_resume_is_bitwise_with_any_number_of_workers(make_config: Make, tmp_path: Path) -> None:
    """Six steps at once, and three and three with another number of data workers, end in the same bits."""
    whole = train(make_config(run=str(tmp_path / "whole")), progress=False)
    first = train(make_config(), stop_at=3, progress=False)
    halfway = weights(tmp_path / "run")
    second = train(make_config(data={"num_workers": 1}), progress=False)
    assert (whole.step, first.step, second.first_step, second.step) == (6, 3, 3, 6)
    assert (whole.finished, first.finished, second.finished) == (True, False, True)
    assert differing(halfway, weights(tmp_path / "run"))  # the second half did train
    assert not differing(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    logs = [read_log(RunFolder(tmp_path / name).log_file, "step") for name in ("whole", "run")]
    assert [entry["step"] for entry in logs[1]] == [1, 2, 3, 4, 5, 6]
    for key in ("loss/total", "loss/structure/sift", "loss/alignment", "gradient/norm", "learning_rate/clip/plain"):
        assert [entry[key] for entry in logs[0]] == [entry[key] for entry in logs[1]]


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 5 while it wrote: the checkpoint of step 4 counts, and what was logged later is logged anew."""

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    config = make_config(checkpoint_every=2)
    with monkeypatch.context() as patch:
        save = checkpoint.save
        patch.setattr(
            checkpoint, "save", lambda folder, state, *rest: die() if state.step > 4 else save(folder, state, *rest)
        )
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    with (RunFolder(tmp_path / "run").log_file).open("a") as log:
        log.write('{"event": "step", "st')
    again = train(config, progress=False)
    assert (again.first_step, again.step) == (4, 6)
    assert [entry["step"] for entry in read_log(RunFolder(tmp_path / "run").log_file, "step")] == [1, 2, 3, 4, 5, 6]
    whole = train(make_config(run=str(tmp_path / "whole")), progress=False)
    assert whole.step == 6
    assert not differing(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_finished_run_says_so_and_keeps_the_last_checkpoints(make_config: Make, tmp_path: Path) -> None:
    config = make_config(steps=3, checkpoint_every=1, keep_last=2)
    train(config, progress=False)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [2, 3]
    again = train(config, progress=False)
    assert (again.finished, again.first_step, again.step) == (True, 3, 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_with_a_checkpoint(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    optimizer_step = torch.optim.AdamW.step

    def step_and_signal(self: torch.optim.AdamW, *args: Any) -> Any:
        os.kill(os.getpid(), number)
        return optimizer_step(self, *args)

    before = signal.getsignal(number)
    monkeypatch.setattr(torch.optim.AdamW, "step", step_and_signal)
    result = train(make_config(), progress=False)
    assert (result.step, result.finished, result.stopped_by) == (1, False, number.name)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [1]
    assert signal.getsignal(number) == before


def test_a_non_finite_loss_changes_no_weight(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.nn.Module, dict[str, torch.Tensor]]] = []
    forward = objective.Objective.forward

    def poisoned(self: objective.Objective, batch: Any, counts: Any = None) -> dict[str, torch.Tensor]:
        seen.append((self.model, {name: value.clone() for name, value in self.model.state_dict().items()}))
        parts = forward(self, batch, counts)
        return parts | {"loss": parts["loss"] * (float("nan") if len(seen) == 2 else 1.0)}

    monkeypatch.setattr(objective.Objective, "forward", poisoned)
    with pytest.raises(NonFiniteLossError) as caught:
        train(make_config(), progress=False)
    model, before = seen[-1]
    assert not differing(before, model.state_dict())
    assert differing(seen[0][1], before)  # the first step was a good one
    fields = caught.value.fields
    assert fields["step"] == 1
    assert len(fields["sample_ids"]) == 3
    assert str(fields["parts"]["loss"]) == "nan"
    (entry,) = read_log(RunFolder(tmp_path / "run").log_file, "non_finite")
    assert entry["sample_ids"] == fields["sample_ids"]
    assert entry["parts"]["loss"] == "nan"
    assert not differing(before, weights(tmp_path / "run"))  # the last good weights are saved
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [1]


def test_other_settings_are_refused_by_name(make_config: Make, tmp_path: Path, store: Path) -> None:
    train(make_config(steps=1), progress=False)
    with pytest.raises(RunFolderError) as caught:
        train(make_config(steps=2, optim={"learning_rate": 1e-3}, model={"hidden_dim": 32}), progress=False)
    message = str(caught.value)
    assert "steps: run 1, now 2" in message
    assert "optim.learning_rate: run 0.0002, now 0.001" in message
    assert "model.hidden_dim: run 16, now 32" in message
    harmless = make_config(steps=1, keep_last=9, log_every=5, data={"prefetch": 7, "images": "/nowhere"})
    assert train(harmless, progress=False).finished
    moved = store.rename(store.with_name("moved.zarr"))
    assert train(make_config(steps=1, data={"store": str(moved)}), progress=False).finished


def test_a_tiny_run_keeps_the_clip_scale_it_began_with(make_config: Make, tmp_path: Path) -> None:
    """Earlier versions had 0.01 where it was not set, and wrote so into the run."""
    config = make_config(steps=2, model={"clip": "tiny", "architecture": asdict(TINIER)})
    train(replace(config, run=tmp_path / "new"), stop_at=1, progress=False)
    train(replace(config, optim=replace(config.optim, clip_scale=0.01)), stop_at=1, progress=False)
    train(config, progress=False)
    for name, scales in (("new", [1.0]), ("run", [0.01, 0.01])):
        run = RunFolder(tmp_path / name)
        steps = read_log(run.log_file, "step")
        assert [e["learning_rate/clip/plain"] / e["learning_rate/head/plain"] for e in steps] == pytest.approx(scales)
        assert run.read()["training"]["optim"]["clip_scale"] == scales[0]
    with pytest.raises(RunFolderError, match=r"--set optim\.clip_scale=0\.01"):
        train(replace(config, optim=replace(config.optim, clip_scale=1.0)), progress=False)


def test_a_run_of_before_some_settings_of_the_model_resumes(make_config: Make, tmp_path: Path) -> None:
    """Earlier versions wrote neither the normalisation nor what an architecture has since."""
    config, run = make_config(steps=2), RunFolder(tmp_path / "run")
    train(config, stop_at=1, progress=False)
    for file in (run.config_file, run.checkpoints / "step_00000001/state.json"):
        document = json.loads(file.read_text())
        for part, new in ((document["model"], "image_"), (document["model"]["architecture"], "mlp_ratio")):
            for key in [key for key in part if key.startswith(new)]:
                del part[key]
        if document.pop("sha256", None):
            document["sha256"] = digest_of_json(document)
        file.write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match=r"model\.architecture\.mlp_ratio: run 4\.0, now 3\.0"):
        train(make_config(steps=2, model={"architecture": asdict(replace(TINIER, mlp_ratio=3.0))}), progress=False)
    assert train(config, progress=False).finished
    assert load_run(run.path).step == 2


def test_another_store_in_the_same_place_is_refused(
    make_config: Make, make_manifest: Callable[..., Manifest], store: Path
) -> None:
    train(make_config(steps=1), progress=False)
    shutil.rmtree(store)
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    preprocess(make_manifest(8), store, structures=["canny", "sift"], frame=frame, scheduler="sync", progress=False)
    with pytest.raises(RunFolderError, match=r"store\.num_usable: run 7, now 8"):
        train(make_config(steps=1), progress=False)


def test_a_sample_that_vanishes_stops_with_a_checkpoint(
    make_config: Make, tmp_path: Path, train_manifest: Manifest
) -> None:
    first = TrainSamples(make_config().data, ("canny", "sift"), True, make_config().seed).batch(range(6, 7))
    image = Path(train_manifest.root) / f"images/{first['sample_ids'][0]}.jpg"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ContentError, match="expected a readable file"):
        train(make_config(), progress=False)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [2]  # step 3's batch was asked for during step 2
    image.write_bytes(content)
    train(make_config(), progress=False)
    train(make_config(run=str(tmp_path / "whole")), progress=False)
    assert not differing(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_second_interrupt_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)


def test_a_torn_checkpoint_stops_the_resume(make_config: Make, tmp_path: Path) -> None:
    train(make_config(), stop_at=1, progress=False)
    path = tmp_path / "run/checkpoints/step_00000001/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="torn or changed since it was written") as caught:
        train(make_config(), progress=False)
    assert f"delete {path.parent} and `train` begins anew" in str(caught.value)
    shutil.rmtree(path.parent)
    assert train(make_config(), stop_at=1, progress=False).first_step == 0


def test_evaluation_during_training_is_logged(make_config: Make, tmp_path: Path, train_manifest: Manifest) -> None:
    train_manifest.write(tmp_path / "val.parquet")
    evaluation = EvalConfig(manifest=tmp_path / "val.parquet", every=2, max_images=1)
    with_evaluation = replace(make_config(steps=3), eval=evaluation)
    train(with_evaluation, progress=False)
    logged = [entry for entry in read_log(RunFolder(tmp_path / "run").log_file, "step") if "eval/miou" in entry]
    assert [entry["step"] for entry in logged] == [2, 3]
    assert all(0 <= entry["eval/miou"] <= 1 and "eval/miou_unseen" not in entry for entry in logged)
    kept = read_evaluation(tmp_path / "run/evaluation.json")
    assert (kept.source["step"], kept.num_images, kept.part) == (3, 1, None)
    assert kept.confusion.miou() == logged[1]["eval/miou"]
    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    chosen = {f"structures/{name}" for name in ("000", "001", "003", "005")}  # of seven, evenly spread
    assert set(board.Tags()["images"]) == {"predictions/000", *chosen}
    assert [event.step for event in board.Images("predictions/000")] == [2, 3]
    other = make_config(steps=3, run=str(tmp_path / "without"))
    train(other, progress=False)
    assert not differing(weights(tmp_path / "run"), weights(tmp_path / "without"))  # looking changes nothing


def test_pretrained_clip_weights_are_where_a_run_begins(make_config: Make, tmp_path: Path) -> None:
    """Their file is read once: a resumed run takes what it had learned."""
    clip = Segmenter(make_config().model).clip
    with torch.no_grad():
        clip.visual.ln_post.weight.fill_(3.5)
    safetensors.torch.save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    config = make_config(clip_weights=str(tmp_path / "clip.safetensors"), optim={"learning_rate": 1e-9})
    train(config, stop_at=1, progress=False)
    torch.testing.assert_close(weights(tmp_path / "run")["clip.visual.ln_post.weight"], torch.full((32,), 3.5))
    (tmp_path / "clip.safetensors").unlink()
    assert train(config, stop_at=2, progress=False).step == 2
    with pytest.raises(WeightsError, match=r"clip\.safetensors: no such file"):
        train(replace(config, run=tmp_path / "other"), progress=False)


def test_tf32_is_cudas_alone_and_ends_with_the_training(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the weights are those of fp32, bit for bit; what the process multiplies with is as before."""
    seen = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return total_loss(*arguments, **options)

    monkeypatch.setattr(objective, "total_loss", watched)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision in ("fp32", "tf32"):
        train(make_config(steps=2, precision=precision, run=str(tmp_path / precision)), progress=False)
    assert seen == [(False, False)] * 2 + [(True, True)] * 2
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    assert not differing(weights(tmp_path / "fp32"), weights(tmp_path / "tf32"))


def test_a_run_of_another_precision_says_how_it_resumes(make_config: Make, tmp_path: Path) -> None:
    train(make_config(steps=2, precision="bf16"), stop_at=1, progress=False)
    with pytest.raises(RunFolderError, match="--set precision=bf16"):
        train(make_config(steps=2, precision="tf32"), progress=False)


def test_bf16_trains_float32_weights(make_config: Make, tmp_path: Path) -> None:
    train(make_config(steps=1, precision="bf16"), progress=False)
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


def test_run_folder_and_device_errors(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run folder given"):
        train(make_config(run=None), progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not empty and not a run folder"):
        train(make_config(run=str(tmp_path / "full")), progress=False)
    with RunFolder(tmp_path / "run").locked(), pytest.raises(RunFolderError, match="another process is training"):
        train(make_config(), progress=False)
    with pytest.raises(ConfigError, match="device: cannot use 'abacus'"):
        choose_device("abacus")


def test_the_best_checkpoint_is_kept(make_config: Make, tmp_path: Path, train_manifest: Manifest) -> None:
    manifest = tmp_path / "val.parquet"
    train_manifest.write(manifest)
    config = make_config(
        steps=6, checkpoint_every=1, keep_last=1, eval={"manifest": str(manifest), "every": 2}, ema_decay=0.5
    )
    train(config, progress=False)
    run = RunFolder(tmp_path / "run")
    found = {entry["step"]: entry["eval/miou"] for entry in read_log(run.log_file, "step") if "eval/miou" in entry}
    assert list(found) == [2, 4, 6]
    best = run.best()
    assert best is not None
    assert best["step"] == max(found, key=lambda step: (found[step], -step))
    assert best["miou"] == found[best["step"]]
    assert checkpoint.steps(run.checkpoints) == sorted({best["step"], 6})
    loaded = load_run(run.path, step="best")
    assert loaded.step == best["step"]
    result = evaluate_model(
        loaded.model,
        train_manifest,
        trained_on=loaded.classes,
        max_images=config.eval.max_images,
        settings=InferenceSettings(windows=False),
        progress=False,
    )
    assert result.confusion.miou() == best["miou"]  # the checkpoint holds what was evaluated: the averages
    assert best["miou_over"] == "ground_truth" and best["of"]["protocol"] == result.source["fingerprint"]
    shutil.rmtree(run.checkpoints / f"step_{best['step']:08d}")
    shutil.rmtree(run.checkpoints / "step_00000006", ignore_errors=True)
    train(config, progress=False)  # from its beginning: every score comes again, none is higher
    again = run.best()
    assert again is not None
    assert again["step"] in checkpoint.steps(run.checkpoints)


def test_a_best_of_an_earlier_version_is_not_compared(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its mIoU is over other classes: were it compared, no later step could be the best."""
    train_manifest.write(tmp_path / "val.parquet")
    evaluation = {"manifest": str(tmp_path / "val.parquet"), "every": 1}
    config = make_config(steps=3, checkpoint_every=1, eval=evaluation)
    train(config, stop_at=1, progress=False)
    run = RunFolder(tmp_path / "run")
    first = run.best()
    assert first is not None
    of = {key: value for key, value in first["of"].items() if key != "protocol"}
    run.set_best({"step": 1, "miou": 2.0, "of": of})
    capsys.readouterr()
    train(config, stop_at=2, progress=False)
    best = run.best()
    assert best is not None and best["step"] == 2 and best["miou"] < 1
    assert "step 1 was the best by another protocol: now it is step 2" in capsys.readouterr().out
    run.set_best(best | {"miou": 2.0})
    train(config, progress=False)
    assert run.best() == best | {"miou": 2.0}
    assert "by another protocol" not in capsys.readouterr().out


def test_an_miou_over_nothing_is_no_best(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, of labels that are all ignored: no later number is larger, and JSON cannot say it."""
    train_manifest.write(tmp_path / "val.parquet")
    config = make_config(steps=2, eval={"manifest": str(tmp_path / "val.parquet"), "every": 1})
    with monkeypatch.context() as patch:
        patch.setattr(ConfusionMatrix, "miou", lambda *_: math.nan)
        train(config, stop_at=1, progress=False)
    assert RunFolder(tmp_path / "run").best() is None
    train(config, progress=False)
    assert (RunFolder(tmp_path / "run").best() or {})["step"] == 2


def test_a_runs_settings_are_checked_once(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(RunFolder, "check_same", lambda *_, **__: checked.append(1))
    train(make_config(), stop_at=1, progress=False)
    assert len(checked) == 0
    train(make_config(), stop_at=2, progress=False)
    assert len(checked) == 1


def test_an_evaluation_that_a_kill_cut_off_is_made_up_for(
    make_config: Make, tmp_path: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "val.parquet"
    train_manifest.write(manifest)
    config = make_config(steps=4, checkpoint_every=2, eval={"manifest": str(manifest), "every": 2})

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("physseg.train.loop.loop.evaluate_model", die)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [2]
    train(config, progress=False)
    log = read_log(RunFolder(tmp_path / "run").log_file, "step")
    assert [entry["step"] for entry in log if "eval/miou" in entry] == [2, 4]


def test_no_best_checkpoint_is_a_clear_error(make_config: Make, tmp_path: Path) -> None:
    train(make_config(steps=1), progress=False)
    with pytest.raises(CheckpointError, match="nothing was evaluated during training"):
        load_run(tmp_path / "run", step="best")


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.torture)])
def test_a_compiled_step_is_the_same_step(
    accumulate: int, make_config: Make, tmp_path: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by torch.compile, run without its code generator, which takes minutes.

    It is one graph, made once, though batches differ and an evaluation with averages lies between two steps.
    """
    options = {"backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, **options))
    train_manifest.write(tmp_path / "val.parquet")
    evaluation = {"manifest": str(tmp_path / "val.parquet"), "every": 2, "max_images": 1}
    shared = {"steps": 4, "accumulate": accumulate, "ema_decay": 0.5, "eval": evaluation}
    train(make_config(run=str(tmp_path / "eager"), **shared), progress=False)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(make_config(run=str(tmp_path / "compiled"), compile=True, **shared), progress=False)
    logs = [read_log(RunFolder(tmp_path / name).log_file, "step") for name in ("eager", "compiled")]
    logs = [[entry for entry in log if "loss/total" in entry] for log in logs]
    assert len(logs[0]) == 4
    for eager, compiled in zip(*logs, strict=True):
        assert eager["loss/total"] == pytest.approx(compiled["loss/total"], rel=1e-5)
        assert eager["gradient/norm"] == pytest.approx(compiled["gradient/norm"], rel=1e-4)


def test_recomputing_activations_changes_nothing(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a bit where everything fits into one piece; rounding where each class is a piece of its own."""
    for name, recompute in (("kept", False), ("recomputed", True), ("pieces", True)):
        if name == "pieces":
            monkeypatch.setattr(bounded, "RECOMPUTED_BYTES", 1)
        train(make_config(run=str(tmp_path / name), steps=2, recompute=recompute), progress=False)
    assert not differing(weights(tmp_path / "kept"), weights(tmp_path / "recomputed"))
    kept, pieces = (read_log(RunFolder(tmp_path / name).log_file, "step") for name in ("kept", "pieces"))
    for ours, theirs in zip(kept, pieces, strict=True):
        assert ours["loss/total"] == pytest.approx(theirs["loss/total"], rel=1e-5)
        assert ours["gradient/norm"] == pytest.approx(theirs["gradient/norm"], rel=1e-4)
    assert differing(weights(tmp_path / "kept"), weights(tmp_path / "pieces"))  # they were pieces


def test_a_run_folder_respects_the_umask(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(steps=1)
    before = os.umask(0o027)
    try:
        run = train(config, progress=False).run
    finally:
        os.umask(before)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [run, *run.rglob("*")]}
    assert modes == {(True, 0o750), (False, 0o640)}


@pytest.mark.parametrize("content", [None, {"vision_model.x": torch.zeros(4)}])
def test_a_run_that_cannot_begin_leaves_no_folder(
    content: dict[str, torch.Tensor] | None, make_config: Make, tmp_path: Path
) -> None:
    weights, words = tmp_path / "clip.safetensors", "no such file"
    if content is not None:
        safetensors.torch.save_file(content, weights)
        words = "open_clip_model.safetensors"
    with pytest.raises((WeightsError, CheckpointError), match=words):
        train(make_config(run=str(tmp_path / "new" / "run"), clip_weights=str(weights)), progress=False)
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_place_of_a_run_folder_is_named(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match="a file in the way"):
            train(make_config(run=str(path)), progress=False)
