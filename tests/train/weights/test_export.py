"""Exported models: no auxiliary heads, the same bits, one call to load; faults are named."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import physseg
import pytest
import safetensors.torch
import torch
from physseg.cli import app
from physseg.common.errors import ConfigError
from physseg.manifests.errors import DecodeError
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.errors import CheckpointError, PredictionError, RunFolderError, ShapeError
from physseg.train.loop.loop import train
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.prediction.load_run import load_run
from physseg.train.prediction.trained_model import TrainedModel, as_rgb
from physseg.train.runs.run_folder import RunFolder
from physseg.train.weights.export import read_export, write_export
from PIL import Image
from typer.testing import CliRunner

from ...fuzzing import as_json, mutants, mutated, survives

WORDS = ["ball", "blue sofa, couch", "ground"]


@pytest.fixture
def run(make_config: Callable[..., TrainConfig], tmp_path: Path) -> Path:
    """A run of two steps with both auxiliary heads, synonyms averaged."""
    config = make_config(steps=2, model={"synonyms": "mean", "templates": ["a {}", "the {} there"]})
    train(config, progress=False)
    return tmp_path / "run"


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "model")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "step 2 of" in result.stdout
    return tmp_path / "model"


def picture(height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- what is in an export -------------------------------------------------------------------------------------------


def test_no_auxiliary_head_and_the_same_bits(run: Path, exported: Path, tmp_path: Path) -> None:
    trained = safetensors.torch.load_file(RunFolder(run).checkpoints / "step_00000002/model.safetensors")
    kept = safetensors.torch.load_file(exported / "model.safetensors")
    gone = {name.partition(".")[0] for name in trained.keys() - kept.keys()}
    assert gone == {"structure_head", "alignment_head"}
    assert all(torch.equal(kept[name], trained[name]) for name in kept)
    whole, lean = physseg.load(run, device="cpu"), physseg.load(exported, device="cpu")
    assert whole.segmenter.structure_head is not None
    assert lean.segmenter.structure_head is None
    assert lean.segmenter.alignment_head is None
    for image in (picture(), picture(130, 64)):
        np.testing.assert_array_equal(whole.probabilities(image, WORDS), lean.probabilities(image, WORDS))
        np.testing.assert_array_equal(whole.segment(image, WORDS), lean.segment(image, WORDS))


def test_the_description_says_everything(exported: Path, train_manifest: Manifest) -> None:
    document = json.loads((exported / "model.json").read_text())
    assert document["vocabulary"] == list(train_manifest.vocabulary.classes)
    model = document["model"]
    assert model["templates"] == ["a {}", "the {} there"]
    assert (model["synonyms"], model["clip"], model["structures"], model["alignment"]) == ("mean", "tinier", [], False)
    assert model["architecture"]["vision_width"] == 32
    assert (document["physseg"], document["step"]) == (physseg.__version__, 2)
    assert document["origin"]["run"] == "run"
    assert document["origin"]["data"]["manifest"] == train_manifest.fingerprint
    assert str(exported.parent) not in json.dumps(document)  # nothing of the machine it was made on


def test_an_export_needs_no_name_of_a_backbone(exported: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backbone 'tinier'"):
        find_architecture("tinier")
    assert physseg.load(exported, device="cpu").segment(picture(), WORDS).shape == (50, 70)


def test_evaluate_and_predict_take_an_export(exported: Path, train_manifest: Manifest, tmp_path: Path) -> None:
    train_manifest.write(tmp_path / "val.parquet")
    common = ["--no-windows", "--device", "cpu"]
    result = CliRunner().invoke(
        app,
        ["evaluate", str(exported), str(tmp_path / "val.parquet"), "--num-images", "1", "--synonyms", "first", *common],
    )
    assert result.exit_code == 0, result.output
    (written,) = (exported / "evaluations").glob("*.json")
    protocol = json.loads(written.read_text())["protocol"]
    assert (protocol["synonyms"], protocol["templates"]) == ("first", ["a {}", "the {} there"])
    image = Path(train_manifest.root) / "images/000.jpg"
    result = CliRunner().invoke(
        app, ["predict", str(exported), str(image), "--classes", "ball, box", "--out", str(tmp_path / "out"), *common]
    )
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out/000_labels.png") as file:
        labels = np.asarray(file)
    loaded = physseg.load(exported, device="cpu", windows=False)
    np.testing.assert_array_equal(labels, loaded.segment(image, ["ball", "box"]))


def test_exporting_an_export_changes_nothing(exported: Path, tmp_path: Path) -> None:
    loaded = load_run(exported)
    write_export(tmp_path / "again", loaded.model, classes=loaded.classes, step=loaded.step, origin=loaded.origin)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


# --- faults ---------------------------------------------------------------------------------------------------------


def test_faults_are_named(exported: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="model: exists already"):
        loaded = load_run(run)
        write_export(exported, loaded.model, classes=loaded.classes, step=2, origin=None)
    with pytest.raises(CheckpointError, match="an exported model of step 2, got --checkpoint 7"):
        load_run(exported, step=7)
    with pytest.raises(ConfigError, match=r"templates: this model was trained with 2, got 1"):
        load_run(exported, prompts="single")
    with pytest.raises(ConfigError, match=r"synonyms: expected first or mean, got 'all'"):
        load_run(exported, synonyms="all")
    weights, description = exported / "model.safetensors", exported / "model.json"
    document = json.loads(description.read_text())
    del document["sha256"]  # as of an earlier version: what is changed here has no digest to tell
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0")
    with pytest.raises(
        CheckpointError, match=r"torn or changed since it was exported: expected sha256 [0-9a-f]{64}, got"
    ):
        read_export(exported)
    weights.write_bytes(whole)
    description.write_text(json.dumps(document | {"model": document["model"] | {"hidden_dim": 32}}))
    with pytest.raises(CheckpointError, match=r"does not fit the sizes in model\.json: .*cost_embedding"):
        read_export(exported)
    description.write_text(json.dumps(document | {"model": document["model"] | {"colour": 1}}))
    with pytest.raises(CheckpointError, match=r"model\.json: unknown key `colour`"):
        read_export(exported)
    description.write_text(json.dumps(document | {"format": 9}))
    with pytest.raises(CheckpointError, match="format 9, this physseg reads 1"):
        read_export(exported)
    description.write_text("{")
    with pytest.raises(CheckpointError, match="not the description of an exported model"):
        read_export(exported)
    with pytest.raises(RunFolderError, match="not a run folder"):
        physseg.load(tmp_path / "nowhere")


def test_a_changed_description_is_refused_and_an_older_one_opens(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = exported / "model.json"
    document = json.loads(description.read_text())
    description.write_text(json.dumps(document | {"step": 3}))
    with pytest.raises(CheckpointError, match=r"model\.json: damaged or changed"):
        read_export(exported)
    del document["sha256"]
    description.write_text(json.dumps(document))
    capsys.readouterr()
    assert read_export(exported)[1]["step"] == 2
    assert capsys.readouterr().err.count("without a digest") == 1


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1.0, torch.float64)])
def test_unfit_weights_are_named(value: float, dtype: torch.dtype, exported: Path) -> None:
    weights = exported / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], value, dtype=dtype)
    reseal(exported, safetensors.torch.save(tensors))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*(NaN|float64)"):
        read_export(exported)


def test_our_own_bugs_show(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    for name in ("build", "read_tensors", "check_weights", "blank_segmenter", "check_seal"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError, match="planted"):
            patch.setattr(f"physseg.train.weights.export.{name}", planted)
            read_export(exported)


def test_damaged_exports_are_read_or_refused(exported: Path) -> None:
    weights, description = exported / "model.safetensors", exported / "model.json"
    good, document, draw = weights.read_bytes(), json.loads(description.read_text()), random.Random(0)
    sealed = description.read_bytes()
    del document["sha256"]
    descriptions = [*mutants(sealed, seed=1, count=30), *(as_json(mutated(document, draw)) for _ in range(60))]
    for number, data in enumerate(descriptions):
        description.write_bytes(data)
        survives(lambda: load_run(exported), f"description {number}")
    description.write_bytes(sealed)
    # Only the header's end of the file: a flipped bit among the weights is another number, and no fault.
    for number, data in enumerate(mutants(good[:4096], seed=2, count=30)):
        reseal(exported, data + good[4096:])
        survives(lambda: load_run(exported), f"weights {number}")


def reseal(exported: Path, weights: bytes) -> None:
    """Exchange the weights, with size and hash to match: of somebody's making, not of a bad disk."""
    (exported / "model.safetensors").write_bytes(weights)
    document = json.loads((exported / "model.json").read_text())
    del document["sha256"]
    document["weights"] |= {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (exported / "model.json").write_text(json.dumps(document | {"sha256": hashlib.sha256(canonical).hexdigest()}))


# --- physseg.load ---------------------------------------------------------------------------------------------------


def test_any_form_of_an_image_gives_the_same_label_map(exported: Path, tmp_path: Path) -> None:
    model = physseg.load(exported, device="cpu", windows=False)
    assert repr(model) == "TrainedModel(tinier, step 2, trained on 5 classes)"
    image = picture()
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = model.segment(image, WORDS)
    assert expected.dtype == np.uint8
    assert expected.shape == (50, 70)
    for form in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(model.segment(form, WORDS), expected)
    probabilities = model.probabilities(image, WORDS)
    assert probabilities.shape == (3, 50, 70)
    np.testing.assert_array_equal(probabilities.argmax(axis=0), expected)


def test_orientation_is_applied_to_files_and_pillow_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(16, 32)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as file:
        np.testing.assert_array_equal(as_rgb(file), as_rgb(tmp_path / "turned.png"))
    assert as_rgb(tmp_path / "turned.png").shape == (32, 16, 3)
    assert as_rgb(Image.new("L", (4, 3), 7)).tolist() == [[[7, 7, 7]] * 4] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "I;16", "F"])
def test_colours_that_a_manifest_does_not_take_are_refused_in_any_form(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 3))
    with pytest.raises(DecodeError, match=f"expected 8-bit RGB or greyscale, got {mode}") as caught:
        as_rgb(image)
    assert 'image.convert("RGB")' in str(caught.value)
    if mode in ("RGBA", "LA", "I;16"):
        image.save(tmp_path / "a.png")
        with pytest.raises(DecodeError, match=f"expected 8-bit RGB or greyscale, got {mode}"):
            as_rgb(tmp_path / "a.png")


def test_without_words_the_vocabulary_is_asked(exported: Path) -> None:
    model = physseg.load(exported, device="cpu", windows=False)
    assert model.vocabulary == ["ground", "box", "disc", "square", "ball"]
    np.testing.assert_array_equal(model.segment(picture()), model.segment(picture(), model.vocabulary))


def test_text_features_are_worked_out_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = physseg.load(exported, device="cpu", windows=False)
    asked = []
    encode = model.segmenter.encode_text
    monkeypatch.setattr(model.segmenter, "encode_text", lambda tokens: asked.append(len(tokens)) or encode(tokens))
    first = model.segment(picture(), WORDS)
    model.segment(picture(), WORDS)
    assert asked == [3]
    model.segment(picture(), WORDS[:2])
    assert asked == [3, 2]
    model.segmenter.set_prompts(templates=("{}", "{} {}".replace("{} ", "my ")))
    model.segment(picture(), WORDS[:2])
    assert asked == [3, 2, 2]
    assert first.max() <= 2


def test_words_and_images_that_are_none(exported: Path, tmp_path: Path) -> None:
    model: TrainedModel = physseg.load(exported, device="cpu", windows=False)
    with pytest.raises(PredictionError, match=r"expected a list of words, got 'cat, dog'"):
        model.segment(picture(), "cat, dog")
    with pytest.raises(PredictionError, match=r"expected a list of words, got \[1, 2\]"):
        model.segment(picture(), [1, 2])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="at least one"):
        model.segment(picture(), [])
    with pytest.raises(ShapeError, match=r"expected uint8 \(H, W, 3\) RGB, got float64"):
        model.segment(picture() / 255, WORDS)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="a Pillow image or a path, got NoneType"):
        model.segment(None, WORDS)  # type: ignore[arg-type]
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DecodeError):
        model.segment(tmp_path / "text.jpg", WORDS)


def test_a_run_folder_loads_by_step(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    train(make_config(steps=2, checkpoint_every=1), progress=False)
    RunFolder(tmp_path / "run").set_best({"step": 1, "miou": 0.5, "of": {}})
    named = {1: 1, "2": 2, "latest": 2, "previous": 1, "best": 1}
    found = {word: physseg.load(tmp_path / "run", device="cpu", checkpoint=word).step for word in named}  # type: ignore[arg-type]
    assert found == named and physseg.load(tmp_path / "run", device="cpu").step == 2
    with pytest.deprecated_call(match="step is now checkpoint"):
        assert physseg.load(tmp_path / "run", device="cpu", step=1).step == 1
    with pytest.raises(ConfigError, match="expected a step, latest, previous or best, got 'newest'"):
        physseg.load(tmp_path / "run", checkpoint="newest")  # type: ignore[arg-type]


def test_importing_physseg_loads_nothing_heavy() -> None:
    code = "import sys, physseg; physseg.load; assert not {'torch', 'numpy', 'PIL', 'cv2'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_an_export_says_where_an_imported_file_came_from(exported: Path, tmp_path: Path) -> None:
    loaded = load_run(exported)
    origin = {"imported": {"file": "model_base.pth", "sha256": "00"}}
    write_export(tmp_path / "b", loaded.model, classes=loaded.classes, step=0, origin=origin)
    assert physseg.load(tmp_path / "b", device="cpu").origin == origin
    assert replace(loaded, origin={}).origin == {}
