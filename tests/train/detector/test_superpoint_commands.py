"""The commands as typed, and the recipe that runs them all."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from physseg.cli import main
from physseg.structure_extractors.superpoint.weights import load_detector
from physseg.train.detector import loop, recipe, settings
from physseg.train.detector.judging import evaluation
from physseg.train.detector.labelling import LabelSettings
from physseg.train.detector.labels import Labelled
from physseg.train.detector.loop import WEIGHTS
from physseg.train.detector.recipe import Recipe, Round, reproduce
from physseg.train.detector.settings import TrainSettings
from physseg.train.runs.run_folder import RunFolder
from PIL import Image
from safetensors.torch import load as load_safetensors


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["physseg", "superpoint", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def use(given_settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands make settings that differ from these only in what they choose."""
    for module in (settings, recipe):
        monkeypatch.setattr(module, "TrainSettings", lambda **given: replace(given_settings, **given))


def test_the_same_command_goes_on_in_the_precision_that_it_began_with(tmp_path, tiny, monkeypatch):
    """Also on a machine where auto would choose another."""
    use(tiny, monkeypatch)
    again = ("train-synthetic", tmp_path / "run", "--steps", 1, "--batch-size", 2)
    assert run_command(monkeypatch, *again, "--precision", "bfloat16") == 0
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert run_command(monkeypatch, *again) == 0
    assert RunFolder(tmp_path / "run").read()["training"]["precision"] == "bfloat16"


def test_the_commands_in_their_order(tmp_path, tiny, monkeypatch, capsys):
    """shapes, textures, labels, training on them, figures: each command with next to no work."""
    use(tiny, monkeypatch)
    run, textures, labels = tmp_path / "shapes", tmp_path / "textures", tmp_path / "labels.npz"
    few = ("--steps", 2, "--batch-size", 2, "--precision", "float32")
    assert run_command(monkeypatch, "train-synthetic", run, *few) == 0
    assert run_command(monkeypatch, "textures", textures, "--num-images", 2) == 0
    assert run_command(monkeypatch, "label", textures, labels, "--weights", run / WEIGHTS, "--adaptation", 2) == 0
    more = ("--start", run / WEIGHTS, "--shapes", 0.5, *few)
    assert run_command(monkeypatch, "train", tmp_path / "on", textures, labels, *more) == 0
    figures = tmp_path / "figures.json"
    judged = ("--per-kind", 1, "--out", figures, "--pictures", tmp_path / "pictures", "--photographs", textures)
    assert run_command(monkeypatch, "evaluate", tmp_path / "on" / WEIGHTS, *judged) == 0
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"shapes_clean.png", "shapes_noisy.png"}
    tables = json.loads(figures.read_text())
    assert set(tables) == {"weights", "figures", "localisation_px", "nearest_px", "coverage"}
    assert set(tables["coverage"]["FAST"]) == {"viewpoint", "light", "light+noise", "compressed"}
    rows = tables["figures"]
    assert {"ours", "Harris", "Shi-Tomasi", "FAST", "SIFT"} <= set(rows)
    assert all(0 <= rows["Harris"][measure] <= 1 for measure in ("AP clean r2", "AP noisy r4"))
    out = capsys.readouterr().out
    assert "2 textures" in out and "2 pictures" in out and "Shi-Tomasi" in out
    assert run_command(monkeypatch, "train-synthetic", run, *few[:-1], "float64") == 1
    assert "expected float32, bfloat16 or auto, got 'float64'" in capsys.readouterr().err


def test_the_recipe_runs_through_and_goes_on(tmp_path, tiny, monkeypatch):
    """All its parts with next to no work; the second time everything is there and nothing is done again."""
    use(tiny, monkeypatch)
    few = Recipe(
        shape_steps=2,
        batch_size=2,
        labels=LabelSettings(size=(64, 80), adaptation=2, threshold=0.005, max_points=300),
        rounds=(
            Round(textures=2, textures_seed=0, steps=2, shapes=0.5, seed=1),
            Round(textures=3, textures_seed=5, steps=1, shapes=0.5, seed=2),
        ),
    )
    options = {"precision": "float32", "device": "cpu", "workers": None}
    said: list[str] = []
    weights = reproduce(tmp_path, few, **options, say=said.append)
    assert weights == tmp_path / WEIGHTS
    parts = [load_safetensors((tmp_path / part / WEIGHTS).read_bytes()) for part in ("shapes", "round2")]
    for key, value in load_safetensors(weights.read_bytes()).items():
        assert value.dtype == torch.float16
        np.testing.assert_allclose(
            value, (parts[0][key].double() + 2 * parts[1][key].double()) / 3, rtol=1e-3, atol=1e-7
        )
    detector = load_detector(weights.read_bytes(), where="made")
    assert (detector.format, detector.threshold) == ("physseg", few.threshold)
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
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", '{"precision": '])
def test_settings_that_do_not_read_are_named(tmp_path, monkeypatch, capsys, content):
    RunFolder(tmp_path).config_file.write_text(content)
    assert run_command(monkeypatch, "train-synthetic", tmp_path, "--steps", 1) == 1
    error = capsys.readouterr().err
    assert "config.json is missing or unreadable" in error and "Traceback" not in error


def test_full_width_is_the_published_one(tmp_path, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train", lambda source, settings, run, **_: seen.append(settings) or run)
    assert run_command(monkeypatch, "train-synthetic", tmp_path, "--full-width") == 0
    assert (seen[0].widths, seen[0].head_width) == ((64, 64, 64, 64, 128, 128, 128, 128), 256)
