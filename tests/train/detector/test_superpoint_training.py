"""The training loop: it learns, it resumes to the same weights, its files load; labels; the commands as typed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from physseg.cli import main
from physseg.common.errors import ConfigError
from physseg.structure_extractors.errors import ExtractorError, WeightsError
from physseg.structure_extractors.superpoint.network import Architecture, DetectorNetwork
from physseg.structure_extractors.superpoint.weights import load_detector
from physseg.train.detector import labelling, loop, recipe, run_files, settings
from physseg.train.detector.judging import evaluation
from physseg.train.detector.labels import Labelled
from physseg.train.detector.loop import train, training_batch
from physseg.train.detector.pictures.files import find_pictures
from physseg.train.detector.pictures.sources import LabelledImages, Mixed, Shapes, draw_batch
from physseg.train.detector.recipe import Recipe, Round, reproduce
from physseg.train.detector.run_files import CHECKPOINT, LOG, SETTINGS, WEIGHTS, weights_file
from physseg.train.detector.settings import TrainSettings, chosen_precision, drawing_processes
from PIL import Image
from safetensors.torch import load as load_safetensors

TINY = TrainSettings(
    steps=6, batch_size=4, size=(32, 40), widths=(4, 4, 4, 4, 8, 8, 8, 8), head_width=8, precision="float32"
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    yield
    torch.set_num_threads(before)


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["physseg", "superpoint", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def make_settings_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (settings, recipe):
        monkeypatch.setattr(module, "TrainSettings", lambda **given: replace(TINY, **given))


def batch_of(settings: TrainSettings, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return training_batch(draw_batch(Shapes(), settings, step), settings, step)


def test_a_batch_follows_from_seed_and_step():
    one, again, other = (batch_of(TINY, step) for step in (3, 3, 4))
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a, b)
    images, classes, valid = one
    assert images.shape == (4, 1, 32, 40) and images.min() >= 0 and images.max() <= 1
    assert classes.shape == valid.shape == (4, 4, 5)
    assert not torch.equal(images, other[0])
    assert not torch.equal(images, batch_of(replace(TINY, seed=1), 3)[0])


def test_pictures_that_are_not_warped_keep_their_keypoints():
    plain = replace(TINY, warped=0.0, photometric=replace(TINY.photometric, probability=0.0), size=(96, 128))
    images, classes, valid = batch_of(plain, 0)
    drawn, keypoints = draw_batch(Shapes(), plain, 0)
    assert torch.equal(images, drawn)
    assert valid.all()
    for picture, points in zip(classes, keypoints, strict=True):
        cells = {(int(y + 0.5) // 8, int(x + 0.5) // 8) for x, y in points[torch.isfinite(points[:, 0])].tolist()}
        assert {tuple(cell) for cell in (picture < 64).nonzero().tolist()} == cells


def test_the_loss_falls(tmp_path):
    settings = replace(TINY, steps=60, batch_size=8, learning_rate=2e-2)
    train(Shapes(), settings, tmp_path, log_every=15)
    losses = [json.loads(line)["loss"] for line in (tmp_path / LOG).read_text().splitlines()]
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
    with pytest.raises(ConfigError, match="device: cannot use 'abacus'"):
        chosen_precision("auto", "abacus", None)
    with pytest.raises(ExtractorError, match=r"expected float32, bfloat16 or auto, got 'float16'"):
        chosen_precision("float16", "cpu", None)


def test_the_same_command_goes_on_in_the_precision_that_it_began_with(tmp_path, monkeypatch):
    """Also on a machine where auto would choose another."""
    make_settings_tiny(monkeypatch)
    again = ("train-synthetic", tmp_path / "run", "--steps", 1, "--batch-size", 2)
    assert run_command(monkeypatch, *again, "--precision", "bfloat16") == 0
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert run_command(monkeypatch, *again) == 0
    assert json.loads((tmp_path / "run" / SETTINGS).read_text())["precision"] == "bfloat16"


@pytest.mark.parametrize("interrupted", [WEIGHTS, CHECKPOINT])
def test_an_end_between_two_files_leaves_no_older_weights(tmp_path, monkeypatch, interrupted):
    train(Shapes(), TINY, tmp_path / "whole")
    atomic_write = run_files.atomic_write

    def fails_at_the_end(path: Path, data: bytes) -> None:
        if path.name == interrupted:
            raise OSError("power cut")
        atomic_write(path, data)

    train(Shapes(), TINY, tmp_path / "cut", stop_at=3)
    monkeypatch.setattr(run_files, "atomic_write", fails_at_the_end)
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
        (b"no picture", "got a file that cannot be decoded"),
        (b"", "got a file that cannot be decoded"),
        (None, "got: No such file or directory"),
    ],
)
def test_an_error_of_a_process_that_draws_arrives_as_it_is(tmp_path, content, got, workers):
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    labels = Labelled(
        names=("broken.png",), size=(32, 40), points=np.zeros((0, 2), np.float32), offsets=np.zeros(2, int)
    )
    with pytest.raises(ExtractorError, match=rf"^\S*broken\.png: expected a picture, {got}$"):
        train(Mixed(LabelledImages(tmp_path, labels), 0.0), TINY, tmp_path / "run", workers=workers)


class Deadly(Shapes):
    """A source that kills the process that draws."""

    def draw(self, rng, size):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_while_it_draws_is_an_error(tmp_path):
    with pytest.raises(ExtractorError, match="a process that drew training pictures died"):
        train(Deadly(), TINY, tmp_path / "run", workers=1)


TRAINS_FOR_EVER = """
import sys
from pathlib import Path
from physseg.train.detector.loop import train
from physseg.train.detector.pictures.sources import Shapes
from physseg.train.detector.settings import TrainSettings
tiny = TrainSettings(steps=10**6, batch_size=1, size=(32, 40), widths=(4,) * 8, head_width=8, precision="float32")
train(Shapes(), tiny, Path(sys.argv[1]), workers=2, log_every=1, say=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_is_left_behind_when_a_training_is_killed(tmp_path, number):
    command = [sys.executable, "-c", TRAINS_FOR_EVER, str(tmp_path / "run")]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert "step 1/" in training.stdout.readline()  # so its workers are there
        training.send_signal(number)
        training.communicate(timeout=30)  # returns when the last process that holds the other end of the pipe is gone
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)


def test_other_settings_need_another_folder(tmp_path):
    train(Shapes(), TINY, tmp_path, stop_at=1)
    with pytest.raises(ExtractorError, match="a training with other settings is here: seed 0, now 3"):
        train(Shapes(), replace(TINY, seed=3), tmp_path)


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


@pytest.mark.parametrize(("wrong", "message"), [({"size": (30, 40)}, "multiples of 8"), ({"steps": 0}, "at least one")])
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ExtractorError, match=message):
        replace(TINY, **wrong)


def write_pictures(folder: Path, number: int) -> None:
    labelling.write_textures(folder, number=number, seed=0, size=(64, 80))


def test_textures_do_not_depend_on_how_many_there_are(tmp_path):
    write_pictures(tmp_path, 2)
    first = (tmp_path / "texture_00001.png").read_bytes()
    write_pictures(tmp_path, 3)
    assert find_pictures(tmp_path) == [f"texture_0000{index}.png" for index in range(3)]
    assert (tmp_path / "texture_00001.png").read_bytes() == first
    assert np.asarray(Image.open(tmp_path / "texture_00002.png")).shape == (64, 80)


@pytest.fixture
def tiny_weights(tmp_path: Path) -> Path:
    return train(Shapes(), replace(TINY, steps=1), tmp_path / "tiny")


def test_labels_resume_and_read_back(tmp_path, tiny_weights, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "labels.npz"
    write_pictures(pictures, 2)
    options = {"size": (64, 80), "adaptation": 2, "threshold": 0.0, "max_points": 9}
    labelling.label(pictures, out, tiny_weights, **options)
    write_pictures(pictures, 3)
    labelled = labelling.label(pictures, out, tiny_weights, **options)
    assert labelled.names == tuple(f"texture_0000{index}.png" for index in range(3))
    read = Labelled.read(out)
    for index in range(3):
        np.testing.assert_array_equal(read.keypoints(index), labelled.keypoints(index))
        assert read.keypoints(index).shape == (9, 2)
    assert ((read.points >= 4) & (read.points < (76, 60))).all()
    whole = labelling.label(pictures, tmp_path / "whole.npz", tiny_weights, **options)
    np.testing.assert_array_equal(whole.points, labelled.points)
    with pytest.raises(ExtractorError, match="labels made with other settings are here"):
        labelling.label(pictures, out, tiny_weights, **options | {"adaptation": 3})
    monkeypatch.setattr(labelling, "SPREAD_PX", 0.0)  # as labels of another version of the code
    with pytest.raises(ExtractorError, match="labels made with other settings are here"):
        labelling.label(pictures, out, tiny_weights, **options)


def test_a_part_of_a_labelled_picture_has_its_keypoints(tmp_path):
    picture = np.zeros((64, 80), np.uint8)
    points = np.array([[20.0, 30.0], [50.0, 12.0], [70.0, 60.0]], np.float32)
    picture[points[:, 1].astype(int), points[:, 0].astype(int)] = 255
    Image.fromarray(picture).save(tmp_path / "dots.png")
    labels = Labelled(names=("dots.png",), size=(64, 80), points=points, offsets=np.array([0, 3]))
    seen = 0
    for seed in range(20):
        part, keypoints = LabelledImages(tmp_path, labels).draw(np.random.default_rng(seed), (32, 40))
        inside = ((keypoints >= 0) & (keypoints < (40, 32))).all(axis=1)
        for x, y in keypoints[inside].astype(int):
            assert part[y, x] == 255
        assert (part > 0).sum() == inside.sum()
        seen += inside.sum()
    assert seen > 5


def test_a_mixture_has_both(tmp_path):
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(tmp_path / "black.png")
    labels = Labelled(
        names=("black.png",), size=(32, 40), points=np.zeros((0, 2), np.float32), offsets=np.zeros(2, int)
    )
    source = Mixed(LabelledImages(tmp_path, labels), 0.3)
    drawn = [source.draw(np.random.default_rng(seed), (32, 40))[0].any() for seed in range(300)]
    assert 0.2 < np.mean(drawn) < 0.4


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "labels.npz").write_bytes(b"no archive")
    with pytest.raises(ExtractorError, match="expected keypoint labels"):
        Labelled.read(tmp_path / "labels.npz")
    with pytest.raises(ExtractorError, match="expected pictures"):
        find_pictures(tmp_path)
    with pytest.raises(WeightsError, match="none: expected a file of SuperPoint weights"):
        train(Shapes(), TINY, tmp_path / "run", start=tmp_path / "none")


def test_the_commands_in_their_order(tmp_path, monkeypatch, capsys):
    """shapes, textures, labels, training on them, figures: each command with next to no work."""
    make_settings_tiny(monkeypatch)
    run, textures, labels = tmp_path / "shapes", tmp_path / "textures", tmp_path / "labels.npz"
    few = ("--steps", 2, "--batch-size", 2, "--precision", "float32")
    assert run_command(monkeypatch, "train-synthetic", run, *few) == 0
    assert run_command(monkeypatch, "textures", textures, "--number", 2) == 0
    assert run_command(monkeypatch, "label", textures, labels, "--weights", run / WEIGHTS, "--adaptation", 2) == 0
    more = ("--start", run / WEIGHTS, "--shapes", 0.5, *few)
    assert run_command(monkeypatch, "train", tmp_path / "on", textures, labels, *more) == 0
    figures = tmp_path / "figures.json"
    judged = ("--per-kind", 1, "--out", figures, "--pictures", tmp_path / "pictures")
    assert run_command(monkeypatch, "evaluate", tmp_path / "on" / WEIGHTS, *judged) == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"shapes_clean.png", "shapes_noisy.png"}
    rows = json.loads(figures.read_text())["figures"]
    assert {"ours", "Harris", "Shi-Tomasi", "FAST", "SIFT"} <= set(rows)
    assert all(0 <= rows["Harris"][measure] <= 1 for measure in ("AP clean r2", "AP noisy r4"))
    out = capsys.readouterr().out
    assert "2 textures" in out and "2 pictures" in out and "Shi-Tomasi" in out
    assert run_command(monkeypatch, "train-synthetic", run, *few[:-1], "float64") == 1
    assert "expected float32, bfloat16 or auto, got 'float64'" in capsys.readouterr().err


def test_the_recipe_runs_through_and_goes_on(tmp_path, monkeypatch):
    """All its parts with next to no work; the second time everything is there and nothing is done again."""
    make_settings_tiny(monkeypatch)
    few = Recipe(
        shape_steps=2,
        batch_size=2,
        texture_size=(64, 80),
        adaptation=2,
        rounds=(
            Round(textures=2, textures_seed=0, steps=2, shapes=0.5, seed=1),
            Round(textures=3, textures_seed=5, steps=1, shapes=0.5, seed=2),
        ),
    )
    options = {"precision": "float32", "device": "cpu", "workers": None}
    said: list[str] = []
    weights = reproduce(tmp_path, few, **options, say=said.append)
    assert weights == tmp_path / WEIGHTS
    rounds = [load_safetensors((tmp_path / f"round{number}" / WEIGHTS).read_bytes()) for number in (1, 2)]
    for key, value in load_safetensors(weights.read_bytes()).items():
        assert value.dtype == torch.float16
        np.testing.assert_allclose(value, (rounds[0][key].double() + rounds[1][key].double()) / 2, rtol=1e-3, atol=1e-7)
    assert load_detector(weights.read_bytes(), where="made").format == "physseg"
    assert [len(Labelled.read(tmp_path / f"labels{number}.npz").names) for number in (1, 2)] == [2, 3]
    assert any("step 2/2" in line for line in said)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(f"round*/{WEIGHTS}")}
    said.clear()
    assert reproduce(tmp_path, few, **options, say=said.append) == weights
    assert not any("loss" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_places_are_looked_at_before_anything_is_measured(tmp_path, tiny_weights, monkeypatch, capsys):
    sequences = [tmp_path / place / "graf" for place in ("here", "there")]
    for folder in sequences:
        folder.mkdir(parents=True)
        Image.fromarray(np.eye(48, dtype=np.uint8) * 255).save(folder / "img1.png")
        Image.fromarray(np.eye(48, dtype=np.uint8) * 255).save(folder / "img2.png")
        np.savetxt(folder / "H1to2p", np.eye(3))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("measured"))
    words = ("evaluate", tiny_weights, "--sequence", sequences[0], "--sequence")
    assert run_command(monkeypatch, *words, sequences[1]) == 1
    assert "expected sequences of different names" in capsys.readouterr().err
    assert run_command(monkeypatch, *words, tmp_path) == 1
    assert "expected img1 and homographies" in capsys.readouterr().err
    assert run_command(monkeypatch, *words, tmp_path / "nowhere") == 1
    assert "nowhere: expected a folder of img1, img2" in capsys.readouterr().err
    assert run_command(monkeypatch, "evaluate", tiny_weights, "--pictures", tiny_weights) == 1
    assert "expected a folder for pictures" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", '{"precision": '])
def test_settings_that_do_not_read_are_named(tmp_path, monkeypatch, capsys, content):
    (tmp_path / SETTINGS).write_text(content)
    assert run_command(monkeypatch, "train-synthetic", tmp_path, "--steps", 1) == 1
    error = capsys.readouterr().err
    assert "settings.json: expected the settings of a training" in error and "Traceback" not in error


def test_labels_of_others_tell_no_precision():
    def labelled(made_by: str) -> Labelled:
        return Labelled(names=(), size=(8, 8), points=np.zeros((0, 2)), offsets=np.zeros(1, int), made_by=made_by)

    assert labelled('{"precision": "bfloat16"}').precision == "bfloat16"
    assert [labelled(text).precision for text in ("", "by hand", "[1]", "{}")] == [None] * 4


def test_full_width_is_the_published_one(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train", lambda source, settings, run, **_: seen.append(settings) or run)
    assert run_command(monkeypatch, "train-synthetic", tmp_path, "--full-width") == 0
    assert (seen[0].widths, seen[0].head_width) == ((64, 64, 64, 64, 128, 128, 128, 128), 256)


def test_a_weights_file_leaves_counters_out():
    network = DetectorNetwork(Architecture(widths=(4,) * 8, head_width=4, order="conv-bn-relu", norm_logits=True))
    assert not any("num_batches" in key for key in load_safetensors(weights_file(network)))


def test_a_device_that_is_not_there_and_a_damaged_checkpoint_are_named(tmp_path):
    with pytest.raises(ConfigError, match="device: cannot use 'abacus'"):
        train(Shapes(), TINY, tmp_path / "run", device="abacus")
    train(Shapes(), TINY, tmp_path / "run", stop_at=1)
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"damage")
    with pytest.raises(ExtractorError, match=r"checkpoint\.pt: expected a checkpoint of this training"):
        train(Shapes(), TINY, tmp_path / "run")
