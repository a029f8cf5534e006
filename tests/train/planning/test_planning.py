"""What a dry run promises is what a step takes: held against real steps, counted and allocated by PyTorch itself."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from physseg.cli import app
from physseg.common.errors import ConfigError
from physseg.train import optim
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import TrainSamples, to_device
from physseg.train.errors import PlanningError
from physseg.train.loop.objective import Objective
from physseg.train.model import config as model_config
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.convnext import ConvNextArchitecture
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.model.bounded import bounded_parts
from physseg.train.model.segmenter import Segmenter
from physseg.train.planning import estimate
from physseg.train.planning.estimate import fitting, largest, plan, rehearse, usable_bytes
from physseg.train.planning.rate import named_rates
from physseg.train.planning.rehearsal import Reading, Rehearsal
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ...forked import Forked, calling

Make = Callable[..., TrainConfig]
aten = torch.ops.aten


def attention(query: tuple[int, ...], key: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Scores, and values gathered by them: two products."""
    return 2 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]


def attention_backward(_: Any, query: tuple[int, ...], key: tuple[int, ...], *__: Any, **___: Any) -> int:
    """Scores again, and gradients of scores, values, queries and keys: five products."""
    return 5 * attention(query, key) // 2


def convolution_backward(grad: Any, image: Any, weight: Any, *args: Any, **_: Any) -> int:
    """FLOP of the gradients that are wanted: each those of the forward pass. PyTorch's formula ignores groups."""
    *_, transposed, _, _, wanted = args
    return 2 * math.prod(image if transposed else grad) * math.prod(weight[1:]) * sum(wanted[:2])


FORMULAS = {
    aten.convolution_backward: convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


class RealStep:
    """The training step with values: its second one, when optimizer states are there."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.samples = TrainSamples(config.data, config.model.structures, True, config.seed)
        vocabulary = self.samples.reader.vocabulary
        model = Segmenter(config.model)
        for part in bounded_parts(model):
            part.recompute = config.recompute
        self.objective = Objective(model, config, vocabulary.classes, vocabulary.ignore_index).train()
        self.optimizer = optim.build_optimizer(model, config.optim)
        self()

    def __call__(self) -> None:
        batch = to_device(self.samples.batch(range(self.config.batch_size)), torch.device("cpu"))
        self.objective(batch)["loss"].backward()
        optim.clip_gradients(self.optimizer, self.config.optim.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def flop(self) -> int:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            self()
        return counter.get_total_flops()

    def peak_bytes(self, trace: Path) -> int:
        """What the CPU's allocator gave out and did not get back, at the most: events of PyTorch's profiler."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self()
        profiled.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event["ts"]):
            held += event["args"]["Bytes"]
            peak = max(peak, held)
        return peak


def check_against_a_real_step(config: TrainConfig, tmp_path: Path) -> None:
    real, reading = RealStep(config), rehearse(config, 1).step()
    promised = reading.work["product"] + reading.work["convolution"]
    assert promised == pytest.approx(real.flop(), rel=0.02)
    of_step = reading.peak_bytes - reading.memory["weights"] - reading.memory["optimizer"]
    assert of_step == pytest.approx(real.peak_bytes(tmp_path / "trace.json"), rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"recompute": True, "batch_size": 2}, marks=pytest.mark.torture),
        pytest.param({"precision": "bf16"}, marks=pytest.mark.torture),
    ],
    ids=["fp32", "recompute", "bf16"],
)
def test_work_and_memory_are_those_of_a_real_step(changes: dict[str, Any], make_config: Make, tmp_path: Path) -> None:
    check_against_a_real_step(make_config(**changes), tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize(("clip", "layers"), [("tiny", 6), ("ViT-B-16", 2)])
def test_work_and_memory_of_larger_networks(clip: str, layers: int, make_config: Make, tmp_path: Path) -> None:
    arch = replace(clip_architecture(clip), image_px=96, vision_layers=layers, text_layers=2, guidance_blocks=(0, 1))
    model = {"clip": clip, "architecture": asdict(arch), "structures": ["canny", "sift"], "window": 6}
    config = make_config(batch_size=2)
    check_against_a_real_step(replace(config, model=replace(config.model, **model | {"architecture": arch})), tmp_path)


def test_an_empty_batch_has_the_shapes_of_a_real_one(make_config: Make) -> None:
    config = make_config()
    for cells in (True, False):
        samples = TrainSamples(config.data, config.model.structures, cells, 0)
        real, empty = samples.batch([0, 1]), samples.empty(2)
        kinds = [
            {name: (x.shape, x.dtype) for name, x in batch.items() if isinstance(x, torch.Tensor)}
            for batch in (real, empty)
        ]
        assert kinds[0] == kinds[1] and real.keys() == empty.keys()


@pytest.fixture
def rehearsal(make_config: Make) -> Rehearsal:
    return rehearse(make_config(), 1)


def test_gradients_are_held_by_buckets_and_by_passes_before(make_config: Make, rehearsal: Rehearsal) -> None:
    trained = sum(-(-each.nbytes // 512) * 512 for each in rehearsal.trained)
    assert rehearsal.step(several=True).memory["gradients"] == trained
    shared = rehearse(make_config(batch_size=4), 2)
    assert shared.at_once == 2
    assert shared.step().memory["gradients"] == trained
    assert shared.step(several=True).memory["gradients"] == 2 * trained


@pytest.mark.torture
def test_averages_are_counted(make_config: Make, rehearsal: Rehearsal) -> None:
    averaged = rehearse(make_config(ema_decay=0.9), 1).step().memory["optimizer"]
    trained = sum(-(-each.nbytes // 512) * 512 for each in rehearsal.trained)
    assert averaged - rehearsal.step().memory["optimizer"] == trained


class Affine:
    """A rehearsal by hand: 100 bytes, 60 a sample or 20 recomputed, 10 for gradients of passes before; 300 at least."""

    gpus = 1

    def __init__(self, batch_size: int, accumulate: int = 1, *, recompute: bool = False) -> None:
        self.config = SimpleNamespace(batch_size=batch_size, accumulate=accumulate, recompute=recompute)
        self.at_once = batch_size // accumulate
        self.rehearsed = 0

    def step(self, number: int = 0, *, recompute: bool | None = None, several: bool | None = None) -> Reading:
        recompute = self.config.recompute if recompute is None else recompute
        several = self.config.accumulate > 1 if several is None else several
        each = 20 if recompute else 60
        self.rehearsed += 1
        return Reading({"all": max(300, 100 + each * (number or self.at_once) + 10 * several)}, {})


@pytest.mark.parametrize("batch_size", [1, 2, 8, 64])
def test_the_largest_batch_is_found_on_lines(batch_size: int) -> None:
    stand_in: Any = Affine(batch_size)
    for limit, expected in ((299, 0), (300, 3), (339, 3), (340, 4), (100 + 60 * 77, 77), (100 + 60 * 77 - 1, 76)):
        stand_in.rehearsed = 0
        assert largest(stand_in, limit) == expected and stand_in.rehearsed <= 6


def test_settings_that_fit_change_little() -> None:
    stand_in: Any = Affine(12)  # 820 bytes
    expected = {820: (1, False), 819: (2, False), 470: (2, False), 469: (3, False), 350: (3, False), 349: (4, False)}
    expected |= {310: (4, False), 300: (4, False)}
    for limit, (accumulate, recompute) in expected.items():
        assert fitting(stand_in, limit) == {"accumulate": accumulate, "recompute": recompute}
    assert fitting(stand_in, 299) is None
    single: Any = Affine(5)  # 400 bytes; five passes hold 300
    assert fitting(single, 399) == {"accumulate": 5, "recompute": False}
    spread: Any = Affine(12, 4, recompute=True)  # what is recomputed stays so
    assert fitting(spread, 300) == {"accumulate": 4, "recompute": True}


@pytest.mark.torture
def test_recomputed_steps_beyond_the_rehearsed_are_on_their_line(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = rehearsal.step(12, recompute=True)
    rehearsed = rehearsal._rehearsed(12, True, False)
    assert beyond.peak_bytes == pytest.approx(rehearsed.peak_bytes, rel=0.02)
    assert beyond.work["product"] == pytest.approx(rehearsed.work["product"], rel=0.01)


@pytest.mark.torture
def test_a_plan_adds_up(make_config: Make) -> None:
    config = make_config(batch_size=4, accumulate=2, steps=90)
    one, two = (plan(config, gpus=gpus, gpu_memory=2**34, rates=named_rates(1.0)) for gpus in (1, 2))
    work = rehearse(config, 1).step(2).work
    assert one.flop == 2 * (work["product"] + work["convolution"])
    assert one.step_seconds == pytest.approx(one.flop / 1e12)
    assert one.hours == pytest.approx(90 * one.step_seconds / 3600)
    assert two.images_per_second == pytest.approx(4 / two.step_seconds)
    assert two.step_seconds < one.step_seconds and two.settings["at_once"] == 1
    assert usable_bytes(2**34) < 2**34 and one.largest is not None and one.largest > 2


def test_the_command_says_it_and_writes_it(write_config: Callable[..., Path], tmp_path: Path) -> None:
    out, options = tmp_path / "plan.json", ["--gpus", "3", "--gpu-memory", "2GiB", "--device-rate", "5"]
    config = str(write_config())
    result = CliRunner().invoke(app, ["train", config, "--dry-run", *options, "--json", str(out)])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert written["fitting"] == {"accumulate": 1, "recompute": False} and written["settings"]["gpus"] == 3
    assert "3 GPUs, 1 sample at once" in result.output and re.search("fits +yes", result.output)
    assert not (tmp_path / "run").exists()
    measured = CliRunner().invoke(app, ["train", config, "--dry-run"])
    assert measured.exit_code == 0 and "this CPU in fp32, measured" in measured.output
    assert "fits" not in measured.output  # no GPU, and none named
    assert CliRunner().invoke(app, ["train", config, "--gpus", "2"]).exit_code == 2
    assert "'nowhere'" in str(CliRunner().invoke(app, ["train", config, "--dry-run", "-d", "nowhere"]).exception)
    assert CliRunner().invoke(app, ["train", config, "--dry-run", "--gpu-memory", "much"]).exit_code == 2


def test_what_cannot_be_planned_is_said(make_config: Make, install_losses: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="3 cannot be spread evenly over 2 ranks"):
        rehearse(make_config(), 2)
    source = (
        "class Picky:\n"
        "    def __call__(self, batch, outputs, model):\n"
        "        return outputs.logits[outputs.logits > 0].sum(), outputs.logits.new_ones(())\n"
    )
    install_losses(source, picky="Picky")
    with pytest.raises(PlanningError, match="shapes alone"):
        rehearse(make_config(losses={"picky": {}}), 1).step()


Gpu = Callable[[int], None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """`gpu(bytes)`: PyTorch says that there is a GPU of so much memory; nothing of ours is changed."""

    def put(memory: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory))

    return put


@pytest.mark.torture
def test_train_refuses_what_a_gpu_cannot_hold(
    make_config: Make, write_config: Callable[..., Path], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a GiB of a GPU is never a step's, so the settings that fit leave that much more."""
    config, larger = write_config(batch_size=16, steps=1), make_config(batch_size=16, device="auto")
    train = ["train", str(config), "--set", "device=auto"]
    rehearsal = rehearse(larger, 1)
    memory = rehearsal.step().peak_bytes - 1
    gpu(memory)
    result = CliRunner().invoke(app, train)
    assert isinstance(result.exception, ConfigError)
    assert "16 samples at once" in str(result.exception) and "no `accumulate`" in (result.exception.hint or "")
    monkeypatch.setattr(estimate, "CONTEXT_BYTES", 0)
    result = CliRunner().invoke(app, train)
    assert isinstance(result.exception, ConfigError) and "accumulate = 2" in (result.exception.hint or "")
    assert not larger.run.exists()  # type: ignore[union-attr]
    estimate.refuse_what_cannot_fit(replace(larger, accumulate=2))
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first rank speaks for all of a machine
    estimate.refuse_what_cannot_fit(larger)
    monkeypatch.delenv("LOCAL_RANK")
    (larger.run / "checkpoints/step_00000001").mkdir(parents=True)  # type: ignore[operator]
    estimate.refuse_what_cannot_fit(larger)  # the run has a checkpoint: it did fit


def test_a_refusal_is_one_line_of_a_process(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """A GPU of a megabyte, by PyTorch's word; where it is for its own use, PyTorch knows better."""
    small = "import torch, types; from physseg.train.planning import estimate\n"
    small += "estimate.choose_device = lambda _: torch.device('cuda')\n"
    small += "torch.cuda.get_device_properties = lambda _: types.SimpleNamespace(total_memory=2**20)"
    words = calling("train", write_config(batch_size=1), before=small)
    with Forked(words, tmp_path / "output.txt") as process:
        assert process.wait(240) == 1
    error, hint = process.text().splitlines()
    assert error.startswith("error: 1 sample at once (fp32) take ") and error.endswith("cuda has 1.0 MB")
    assert "no `accumulate` and `recompute` fit" in hint and "Traceback" not in process.text()
    assert not (tmp_path / "run").exists()


@pytest.mark.torture
def test_activations_follow_the_weights(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GELU and QuickGELU have other operations: weights that are here are looked at. A plan says what it is without."""
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path / "cache"))
    absent = plan(make_config(clip_weights="openai", compile=True), gpus=1, gpu_memory=None, rates=named_rates(1.0))
    assert len(absent.uncounted) == 3
    assert all(word in absent.describe() for word in ("evaluations", "compile", "clip_weights openai"))
    file, found = tmp_path / "cache/clip/tinier/openai/weights.pt", {}
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    record = {"clip": "tinier", "tag": "openai", "file": file.name, "url": "", "num_bytes": 7, "version": "0"}
    record["sha256"] = hashlib.sha256(b"weights").hexdigest()
    for quick in (True, False):
        (file.parent / "weights.json").write_text(json.dumps(record | {"quick_gelu": quick}))
        found[quick] = rehearse(make_config(clip_weights="openai"), 1).step()
        assert found[quick] == rehearse(make_config(model={"quick_gelu": quick}), 1).step()
    assert found[True].work["bytes"] > found[False].work["bytes"]
    present = rehearse(make_config(clip_weights="openai"), 1)
    assert len(list(estimate._uncounted(present.config))) == 1


@pytest.mark.torture
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("clip", ["EVA02-B-16", "PE-Core-B-16"])
def test_work_and_memory_of_image_encoders_of_timm(
    clip: str, recompute: bool, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"embed_dim": 32, "vision_width": 64, "vision_layers": 4, "vision_heads": 4, "text_layers": 1}
    arch = replace(find_architecture(clip), image_px=96, text_width=64, text_heads=2, **sizes)
    monkeypatch.setattr(model_config, "find_architecture", lambda _: arch)
    model = {"clip": clip, "architecture": None, "image_px": None, "finetune": "qv", "alignment_dim": 0}
    config = make_config(batch_size=2, recompute=recompute)
    check_against_a_real_step(replace(config, model=replace(config.model, **model)), tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize("recompute", [False, True])
def test_work_of_a_pyramid(recompute: bool, make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory: the gradient of oneDNN's depthwise convolution takes 3 MB more, half of what a step holds."""
    sizes = {"embed_dim": 32, "image_px": 96, "text_width": 32, "text_layers": 2, "text_heads": 2}
    arch = ConvNextArchitecture(trunk="test_convnext", channels=(24, 32, 48, 64), projection="mlp", **sizes)
    monkeypatch.setattr(model_config, "find_architecture", lambda _: arch)
    model = {"clip": "any", "architecture": None, "image_px": None, "finetune": "preset", "alignment_dim": 0}
    config = make_config(batch_size=2, recompute=recompute)
    config = replace(config, model=replace(config.model, **model, window=3))
    reading = rehearse(config, 1).step()
    assert reading.work["product"] + reading.work["convolution"] == pytest.approx(RealStep(config).flop(), rel=0.02)
