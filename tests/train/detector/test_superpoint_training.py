"""The training loop: it learns, it resumes to the same weights, its files load."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.structure_extractors.errors import ExtractorError, WeightsError
from physseg.structure_extractors.superpoint.network import Architecture, DetectorNetwork
from physseg.structure_extractors.superpoint.weights import load_detector
from physseg.train.detector import batches, loop, settings
from physseg.train.detector.batches import draw_batch
from physseg.train.detector.labels import Labelled
from physseg.train.detector.loop import WEIGHTS, train, weights_file
from physseg.train.detector.pictures.files import find_pictures, picture_digest
from physseg.train.detector.pictures.sources import LabelledImages, Shapes
from physseg.train.detector.settings import TrainSettings, chosen_precision, drawing_processes
from physseg.train.errors import CheckpointError, NonFiniteLossError, RunFolderError
from physseg.train.runs import checkpoint
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from PIL import Image
from safetensors.torch import load as load_safetensors

from ...forked import Forked

TINY = TrainSettings(
    steps=6, batch_size=4, size=(32, 40), widths=(4, 4, 4, 4, 8, 8, 8, 8), head_width=8, precision="float32"
)


def test_a_batch_follows_from_seed_and_step():
    one, again, other = (draw_batch(Shapes(), TINY, step) for step in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a, b)
    images, classes, valid = one
    assert images.shape == (4, 1, 32, 40) and images.min() >= 0 and images.max() <= 1
    assert classes.shape == valid.shape == (4, 4, 5)
    assert not torch.equal(images, other[0])
    assert not torch.equal(images, draw_batch(Shapes(), replace(TINY, seed=1), 3)[0])


class Constant(Shapes):
    """A source of one picture of soft dots on grey: whatever differs between two batches was changed after it."""

    BACKGROUND = 64

    def draw(self, rng, size):
        height, width = size
        y, x = np.indices(size)
        points = np.array([(a, b) for b in range(12, height, 24) for a in range(16, width, 24)])
        dots = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 2) for a, b in points)
        return (self.BACKGROUND + (255 - self.BACKGROUND) * dots).round().astype(np.uint8), points.astype(np.float32)


UNTOUCHED = replace(TINY.photometric, probability=0.0, processed=0.0)


def test_the_changes_follow_from_seed_and_step_by_themselves():
    one, *others = (
        draw_batch(Constant(), replace(TINY, seed=seed), step)[0] for seed, step in ((0, 3), (0, 4), (1, 3))
    )
    for other in others:
        assert not any(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("warped", [0.0, 0.3, 1.0])
def test_the_share_of_warped_pictures_is_as_said(warped):
    settings = replace(TINY, warped=warped, photometric=UNTOUCHED, batch_size=400)
    images, *_ = draw_batch(Constant(), settings, 0)
    drawn = torch.from_numpy(Constant().draw(None, TINY.size)[0]) / 255
    share = np.mean([not torch.equal(image[0], drawn) for image in images])
    assert share == pytest.approx(warped, abs=0.0 if warped in (0, 1) else 0.1)  # 0.1 is over four standard deviations


def test_warped_pictures_labels_and_valid_cells_agree():
    settings = replace(TINY, warped=1.0, photometric=UNTOUCHED, size=(96, 128), batch_size=8)
    images, classes, valid = draw_batch(Constant(), settings, 0)
    assert 0.2 < valid.float().mean() < 0.95
    off: list[int] = []
    for image, row, shows in zip(images[:, 0], classes, valid, strict=True):
        cells = image.unfold(0, 8, 8).unfold(1, 8, 8)  # (H/8, W/8, 8, 8)
        # Outside of what was warped is black, darker than the background.
        assert torch.equal(cells.amin(dim=(2, 3)) > 0.9 * Constant.BACKGROUND / 255, shows)
        for at in (shows & (row < 64)).nonzero().tolist():
            brightest, wanted = int(cells[*at].argmax()), int(row[*at])
            off.append(max(abs(brightest // 8 - wanted // 8), abs(brightest % 8 - wanted % 8)))
        # A dot of another cell lies at least 2.5 px from the inner pixels of this one.
        assert cells[shows & (row == 64)][:, 2:6, 2:6].max() < 0.85
    assert len(off) > 50 and max(off) <= 1 and np.mean(off) < 0.15  # px; rounding is off by one at times


def test_pictures_that_are_not_warped_keep_their_keypoints():
    plain = replace(TINY, warped=0.0, photometric=UNTOUCHED, size=(96, 128))
    images, classes, valid = draw_batch(Shapes(), plain, 0)
    assert valid.all()
    for index in range(TINY.batch_size):
        drawn, points = Shapes().draw(np.random.default_rng([TINY.seed, 0, index]), plain.size)
        assert torch.equal(images[index, 0], torch.from_numpy(drawn).float() / 255)
        cells = {(int(y + 0.5) // 8, int(x + 0.5) // 8) for x, y in points.tolist()}
        assert {tuple(cell) for cell in (classes[index] < 64).nonzero().tolist()} == cells


def test_pictures_are_compressed_before_the_warp_and_behind_the_noise(monkeypatch):
    """The one turns the blocks of JPEG, the other finds noise to compress."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(batches, "as_from_file", lambda images, *_: seen.append(images) or torch.ones_like(images))
    settings = replace(TINY, warped=1.0)
    assert (draw_batch(Shapes(), settings, 0)[0] == 1).all()
    drawn, changed = seen
    assert torch.equal(drawn, (255 * drawn).round() / 255)
    assert (changed == 0).any() and changed.unique().numel() > 256  # outside of what was warped; noise


def test_the_loss_falls(tmp_path):
    settings = replace(TINY, steps=60, batch_size=8, learning_rate=2e-2)
    train(Shapes(), settings, tmp_path, log_every=15)
    losses = [entry["loss"] for entry in read_log(RunFolder(tmp_path).log_file, "step")]
    assert losses[0] > 3  # ln 65 = 4.2 to begin with
    assert losses[-1] < 0.85 * losses[0]


def test_an_interruption_changes_nothing(tmp_path):
    train(Shapes(), TINY, tmp_path / "whole")
    said: list[str] = []
    train(Shapes(), TINY, tmp_path / "parts", stop_at=2)
    assert load_safetensors((tmp_path / "parts" / WEIGHTS).read_bytes())
    train(Shapes(), TINY, tmp_path / "parts", stop_at=5)
    train(Shapes(), TINY, tmp_path / "parts", say=said.append)
    assert "resumes at step 5 of 6" in said[0]
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "parts" / WEIGHTS).read_bytes()
    before = (tmp_path / "whole" / WEIGHTS).stat().st_mtime_ns
    train(Shapes(), TINY, tmp_path / "whole")  # finished: nothing to do
    assert (tmp_path / "whole" / WEIGHTS).stat().st_mtime_ns == before


def test_what_is_not_finite_replaces_nothing(tmp_path, monkeypatch):
    losses = iter([1.0, 1.0, 1.0, float("nan"), 1.0, 1.0])
    loss = loop.detector_loss
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "detector_loss", lambda *batch: loss(*batch) * next(losses))
    with pytest.raises(NonFiniteLossError, match="step 4: expected finite weights, got others in"):
        train(Shapes(), TINY, tmp_path, log_every=3)
    assert all(value.isfinite().all() for value in load_safetensors((tmp_path / WEIGHTS).read_bytes()).values())
    said: list[str] = []
    monkeypatch.setattr(loop, "detector_loss", loss)
    train(Shapes(), TINY, tmp_path, say=said.append)
    assert "resumes at step 3 of 6" in said[0]


def test_a_counter_of_many_steps_is_finite():
    network = torch.nn.BatchNorm2d(1)
    network.num_batches_tracked += 10**6  # more than half precision holds
    checkpoint.require_finite(network, step=10**6)


def test_labels_of_other_tools_may_be_of_other_types(tmp_path):
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(tmp_path / "a.png")
    drawn = []
    for kind in (np.float32, np.float64, np.int64):
        points = np.array([[9, 20]], kind)
        labels = Labelled(names=("a.png",), size=(32, 40), points=points, offsets=np.array([0, 1]))
        drawn.append(draw_batch(LabelledImages(tmp_path, labels, 0.5), TINY, 0))
    for batch in drawn[1:]:
        assert all(torch.equal(one, other) for one, other in zip(drawn[0], batch, strict=True))


def test_a_loss_that_is_not_finite_is_an_error(tmp_path, monkeypatch):
    loss = loop.detector_loss
    monkeypatch.setattr(loop, "detector_loss", lambda *batch: loss(*batch) * float("nan"))
    with pytest.raises(ExtractorError, match="the loss is nan at step 2"):
        train(Shapes(), TINY, tmp_path, log_every=2)


def test_processes_that_draw_change_nothing(tmp_path):
    train(Shapes(), TINY, tmp_path / "here")
    train(Shapes(), TINY, tmp_path / "there", stop_at=2, workers=2)
    train(Shapes(), TINY, tmp_path / "there", workers=2)
    assert (tmp_path / "here" / WEIGHTS).read_bytes() == (tmp_path / "there" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("capability", "precision"), [("amx_bf16", "bfloat16"), ("avx2", "float32")])
def test_the_precision_is_one_that_the_cpu_computes_in(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    assert chosen_precision("auto", "cpu", None) == precision
    assert chosen_precision("auto", "cpu", "bfloat16") == "bfloat16"  # what goes on goes on as it was
    assert chosen_precision("float32", "cpu", "bfloat16") == "float32"
    with pytest.raises(ConfigError, match="abacus"):
        chosen_precision("auto", "abacus", None)
    with pytest.raises(ExtractorError, match="float16"):
        chosen_precision("float16", "cpu", None)


@pytest.mark.parametrize(("owner", "interrupted"), [(loop, "atomic_write"), (checkpoint, "save")])
def test_an_end_between_two_files_leaves_no_older_weights(tmp_path, monkeypatch, owner, interrupted):
    train(Shapes(), TINY, tmp_path / "whole")

    def fails(*_: object) -> None:
        raise OSError("power cut")

    train(Shapes(), TINY, tmp_path / "cut", stop_at=3)
    monkeypatch.setattr(owner, interrupted, fails)
    with pytest.raises(OSError, match="power cut"):
        train(Shapes(), TINY, tmp_path / "cut")
    monkeypatch.undo()
    path = train(Shapes(), TINY, tmp_path / "cut")
    assert path.read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_anything_but_a_cpu_gets_other_processes_that_draw(monkeypatch):
    cpu, other = torch.device("cpu"), torch.device("meta")
    monkeypatch.setattr(settings, "available_cpus", lambda: 6)
    assert drawing_processes(None, cpu) == drawing_processes(None, torch.device("cpu:0")) == 0
    assert drawing_processes(None, other) == 5
    assert drawing_processes(2, other) == 2
    monkeypatch.setattr(settings, "available_cpus", lambda: 64)
    assert drawing_processes(None, other) == 8


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"no picture", "cannot be decoded"),
        (b"", "expected a picture, got 0 bytes"),
        (None, "expected a picture, got: No such file or directory"),
    ],
)
def test_an_error_of_a_process_that_draws_arrives_as_it_is(tmp_path, content, got, workers):
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    labels = Labelled(
        names=("broken.png",), size=(32, 40), points=np.zeros((0, 2), np.float32), offsets=np.zeros(2, int)
    )
    with pytest.raises(ExtractorError, match=rf"^\S*broken\.png: {got}"):
        train(LabelledImages(tmp_path, labels, 0.0), TINY, tmp_path / "run", workers=workers)


class Deadly(Shapes):
    """A source that kills the process that draws."""

    def draw(self, rng, size):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_while_it_draws_is_an_error(tmp_path):
    with pytest.raises(ExtractorError, match="died"):
        train(Deadly(), TINY, tmp_path / "run", workers=1)


TRAINS_FOR_EVER = """
from pathlib import Path
from physseg.train.detector.loop import train
from physseg.train.detector.pictures.sources import Shapes
from physseg.train.detector.settings import TrainSettings
tiny = TrainSettings(steps=10**6, batch_size=1, size=(32, 40), widths=(4,) * 8, head_width=8, precision="float32")
train(Shapes(), tiny, Path("run"), workers=2, log_every=1, say=print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_is_left_behind_when_a_training_is_killed(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    with Forked(TRAINS_FOR_EVER, tmp_path / "output.txt") as training:
        training.wait_for_text("step 1/")  # so its workers are there
        assert len(training.group()) > 2
        training.send_signal(number)
        training.wait_until_gone()


def test_other_labels_of_as_many_points_need_another_folder(tmp_path):
    picture = np.zeros((32, 40), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    digest = picture_digest(tmp_path / "a.png")
    one, other = (
        Labelled(
            names=("a.png",), size=(32, 40), points=np.full((1, 2), at), offsets=np.array([0, 1]), digests=(digest,)
        )
        for at in (np.float32(9), np.float32(20))
    )
    train(LabelledImages(tmp_path, one, 0.0), TINY, tmp_path / "run", stop_at=1)
    with pytest.raises(RunFolderError, match="source"):
        train(LabelledImages(tmp_path, other, 0.0), TINY, tmp_path / "run")


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with RunFolder(tmp_path).locked(), pytest.raises(RunFolderError, match="another process"):
        train(Shapes(), TINY, tmp_path)
    assert not RunFolder(tmp_path).exists()


def test_other_settings_need_another_folder(tmp_path):
    train(Shapes(), TINY, tmp_path, stop_at=1)
    with pytest.raises(RunFolderError, match="seed: run 0, now 3"):
        train(Shapes(), replace(TINY, seed=3), tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/settings.json").write_bytes(b"{}")  # somebody's
    with pytest.raises(RunFolderError, match="not a run folder"):
        train(Shapes(), TINY, tmp_path / "old")


def test_weights_are_written_in_half_precision_and_load(tmp_path):
    path = train(Shapes(), TINY, tmp_path)
    assert {value.dtype for value in load_safetensors(path.read_bytes()).values()} == {torch.float16}
    detector = load_detector(path.read_bytes(), where="own")
    assert detector.format == "physseg"
    assert detector.network.architecture.widths == TINY.widths
    # Going on from weights begins where they end: the first answers are the same.
    started = train(Shapes(), TINY, tmp_path / "on", start=path, stop_at=1)
    assert load_detector(started.read_bytes(), where="on").network.architecture == detector.network.architecture


def test_the_learning_rate_rises_and_falls():
    settings = replace(TINY, steps=100, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (4, 5)
    assert rates[-1] < 1e-3
    assert rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"size": (30, 40)}, "multiples of 8"), ({"learning_rate": 1e30}, "learning_rate: expected")]
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises((ExtractorError, ConfigError), match=message):
        replace(TINY, **wrong)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "labels.npz").write_bytes(b"no archive")
    with pytest.raises(ExtractorError, match=r"labels\.npz"):
        Labelled.read(tmp_path / "labels.npz")
    with pytest.raises(ExtractorError, match="none"):
        find_pictures(tmp_path)
    with pytest.raises(WeightsError, match="none"):
        train(Shapes(), TINY, tmp_path / "run", start=tmp_path / "none")


def test_a_weights_file_leaves_counters_out():
    network = DetectorNetwork(Architecture(widths=(4,) * 8, head_width=4, order="conv-bn-relu", norm_logits=True))
    assert not any("num_batches" in key for key in load_safetensors(weights_file(network)))


def test_float32_on_a_gpu_is_not_tf32(tmp_path, monkeypatch):
    rounded, loss = [], loop.detector_loss

    def looking(*given: torch.Tensor) -> torch.Tensor:
        rounded.append(torch.backends.cudnn.allow_tf32)
        return loss(*given)

    monkeypatch.setattr(loop, "detector_loss", looking)
    train(Shapes(), TINY, tmp_path, stop_at=1)
    assert rounded == [False] and torch.backends.cudnn.allow_tf32, "and PyTorch's own default after it"


def test_a_device_that_is_not_there_and_a_damaged_checkpoint_are_named(tmp_path):
    with pytest.raises(ConfigError, match="abacus"):
        train(Shapes(), TINY, tmp_path / "run", device="abacus")
    train(Shapes(), TINY, tmp_path / "run", stop_at=1)
    (checkpoint.path_of(RunFolder(tmp_path / "run").checkpoints, None) / checkpoint.TRAINER_FILE).write_bytes(b"damage")
    with pytest.raises(CheckpointError, match=r"trainer\.pt"):
        train(Shapes(), TINY, tmp_path / "run")
