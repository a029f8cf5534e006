"""The pretraining of the demo's CLIP: it learns, resumes with the same bytes, and the product loads its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from physseg.cli import app
from physseg.train.demo import pretrain as pretraining
from physseg.train.demo.pretrain import WEIGHTS, Contrast, PretrainSettings, judge, pretrain
from physseg.train.demo.world import Caption, Thing
from physseg.train.errors import CheckpointError, NonFiniteLossError, RunFolderError
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.text import clip_tokens
from physseg.train.runs.run_log import read_log
from physseg.train.weights.clip_weights import load_clip_weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

DEFAULTS = PretrainSettings.__init__.__kwdefaults__
SMALL = PretrainSettings(steps=12, scenes=6, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that was interrupted after five steps."""
    out = tmp_path_factory.mktemp("pretrain") / "run"
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        loss_of = torch.nn.functional.binary_cross_entropy_with_logits
        patch.setattr(
            pretraining.F,
            "binary_cross_entropy_with_logits",
            lambda *args, **named: losses.append(loss_of(*args, **named)) or losses[-1],
        )
        pretrain(out, SMALL, stop_at=5, say=lambda _: None)
        pretrain(out, SMALL, say=lambda _: None)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    return out


def test_what_is_not_finite_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        pretraining.F, "binary_cross_entropy_with_logits", lambda logits, *_, **__: logits.sum() * float("nan")
    )
    with pytest.raises(NonFiniteLossError, match="step 2: expected finite weights"):
        pretrain(tmp_path, SMALL, stop_at=2, say=lambda _: None)
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_an_interrupted_pretraining_ends_with_the_same_bytes(run: Path, tmp_path: Path):
    whole = pretrain(tmp_path / "whole", SMALL, say=lambda _: None)
    assert whole.read_bytes() == (run / WEIGHTS).read_bytes()
    assert [line["step"] for line in read_log(run / "log.jsonl") if "loss" in line] == [5, 12]


def test_another_seed_is_another_training(run: Path):
    with pytest.raises(RunFolderError, match="seed"):
        pretrain(run, PretrainSettings(steps=12, scenes=6, batch_size=4, seed=4), say=lambda _: None)


def test_the_file_is_half_precision_and_loads_as_any_weights(run: Path):
    """The segmenter's CLIP, with its whole tokenizer, embeds captions as the network that was trained did."""
    assert (run / WEIGHTS).stat().st_size < 3e6
    trained = Contrast()
    state = load_file(run / WEIGHTS)
    assert all(tensor.dtype == torch.float16 for name, tensor in state.items() if not name.endswith("rows"))
    rows = state.pop("text.token_embedding.rows")
    trained.clip.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    loaded = SegmenterConfig(clip="tiny", image_px=192).arch.build()
    load_clip_weights(loaded, run / WEIGHTS)
    texts = ["a photo of scarlet spots on the beach", "red dots", "snow"]
    compact = torch.tensor([[rows.tolist().index(int(token)) for token in row] for row in clip_tokens(texts)])
    torch.testing.assert_close(loaded.encode_text(clip_tokens(texts)), trained.clip.encode_text(compact))
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 192, 192)).astype(np.float32))
    torch.testing.assert_close(loaded.encode_image(images).patches, trained.clip.encode_image(images).patches)


@pytest.mark.parametrize("ids", [torch.tensor([3, 49408]), torch.tensor([-1, 5]), torch.tensor([3])])
def test_rows_that_do_not_fit_are_refused(run: Path, tmp_path: Path, ids: Tensor):
    state = load_file(run / WEIGHTS)
    width = state["text.token_embedding.weight"].shape[1]
    changed = {"text.token_embedding.rows": ids, "text.token_embedding.weight": torch.zeros(2, width)}
    save_file(state | changed, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="token_embedding"):
        load_clip_weights(SegmenterConfig(clip="tiny", image_px=192).arch.build(), tmp_path / "bad.safetensors")


def test_a_text_fits_where_all_that_it_says_is_there():
    red, blue = Thing("red", "dots", "ball"), Thing("blue", "dots", "box")
    pictures = [["sand", red], ["snow", red, blue]]
    claims = (
        {"sand"},
        {Thing("red", "dots", "")},
        {Thing("", "dots", ""), "snow"},
        {Thing("blue", "", "ball")},
        {Thing("red", "", "box")},
        {red, blue},
    )
    told = [Caption("", frozenset(each)) for each in claims]
    assert pretraining._fits(told, pictures).tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]]


def test_the_command_pretrains_and_tells_its_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretraining, "judge", lambda weights: {"image to text": float(weights.stat().st_size < 3e6)})
    monkeypatch.setattr(pretraining.PretrainSettings.__init__, "__kwdefaults__", {**DEFAULTS, "batch_size": 2})
    result = CliRunner().invoke(app, ["demo", "pretrain", "--out", str(tmp_path / "run"), "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert "image to text  100.0%" in result.output
    assert not (tmp_path / "demo.json").exists(), "the demo itself did not run"


def test_judgement_tells_retrieval_and_zero_shot_segmentation(run: Path):
    found = judge(run / WEIGHTS, pairs=4, scenes=2)
    splits = ("seen", "combinations", "words", "shifted")
    assert set(found) == {"image to text", "text to image", *(f"mIoU, {split}" for split in splits)}
    assert all(0 <= value <= 1 for value in found.values())
