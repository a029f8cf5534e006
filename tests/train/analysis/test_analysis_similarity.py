"""Vocabulary similarity: two and three vectors by hand, vocabularies by name, manifest and file, both text encoders."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from physseg.cli import app
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.train.analysis.encoders import ClipEncoder, find_encoder
from physseg.train.analysis.similarity import TABLE_1, compare_vocabularies, find_vocabulary, neighbours_csv
from physseg.train.config import TrainConfig
from physseg.train.errors import AnalysisError
from physseg.train.loop.loop import train
from physseg.train.model.backbones.clip import Clip
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from safetensors.torch import save_file
from typer.testing import CliRunner

PETS = Vocabulary(name="pets", classes=("cat, kitten", "dog"))
ROOM = Vocabulary(name="room", classes=("chair", "table", "cat"))


def directions(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_similarity_by_hand() -> None:
    # cat lies on chair, dog 60 degrees from it; of the room, "cat" is 120 degrees from cat and 60 from dog.
    found = compare_vocabularies(PETS, ROOM, directions(0, 60), directions(0, 0, 120))
    assert found.nearest.tolist() == [0, 0]  # dog is as far from chair, table and cat: the lowest id
    np.testing.assert_allclose(found.cosine, [1, 0.5])
    np.testing.assert_allclose(found.reverse, [1, 1, 0.5])
    assert found.measures["hausdorff"] == pytest.approx(0.5)
    assert found.measures["mean_best_cosine"] == pytest.approx(0.75)
    assert found.measures["symmetric_hausdorff"] == pytest.approx(0.5)
    assert found.neighbours() == [("dog", "chair", pytest.approx(0.5)), ("cat", "chair", pytest.approx(1))]


def test_the_directed_one_forgives_what_only_the_reference_has() -> None:
    found = compare_vocabularies(PETS, ROOM, directions(0, 10), directions(0, 10, 180))
    assert found.measures["hausdorff"] == pytest.approx(1)
    assert found.measures["symmetric_hausdorff"] == pytest.approx(np.cos(np.deg2rad(170)))
    turned = compare_vocabularies(ROOM, PETS, directions(0, 10, 180), directions(0, 10))
    assert turned.measures["hausdorff"] == pytest.approx(np.cos(np.deg2rad(170)))
    assert turned.measures["symmetric_hausdorff"] == found.measures["symmetric_hausdorff"]


def test_vocabularies_by_name_manifest_and_file(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    assert [find_vocabulary(name).num_classes for name in TABLE_1] == [20, 59, 459, 150, 847]
    assert find_vocabulary("coco-stuff").num_classes == 171
    manifest = make_manifest(1)
    manifest.write(tmp_path / "m.parquet")
    assert find_vocabulary(str(tmp_path / "m.parquet")) == manifest.vocabulary
    (tmp_path / "mine.txt").write_text("cat, kitten\ndog\n")
    assert find_vocabulary(str(tmp_path / "mine.txt")).classes == PETS.classes
    with pytest.raises(AnalysisError, match="cityscapes: no published vocabulary") as caught:
        find_vocabulary("cityscapes")
    assert "ade20k-847" in str(caught.value)
    assert "ids" not in str(caught.value)


def test_text_vectors_are_the_mean_direction_of_the_templates() -> None:
    class Spoken(Segmenter):
        def encode_text(self, tokens: torch.Tensor, shared: int | None = None) -> torch.Tensor:
            # Two templates: 3 long at 0 degrees, 5 long at 90; lengths must not matter.
            return torch.tensor([[[3.0, 0.0], [0.0, 5.0]]])

    model = Spoken(SegmenterConfig(clip="tiny", templates=("a {}", "one {}")))
    found = ClipEncoder(model, {}).texts(("cat",))
    np.testing.assert_allclose(found.numpy(), directions(45), rtol=1e-6)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_file(Clip(clip_architecture("tiny")).state_dict(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def test_pretrained_weights_and_any_number_of_templates(weights: Path) -> None:
    one = find_encoder(str(weights), clip="tiny").texts(PETS.classes)
    named = find_encoder(str(weights), clip="tiny", prompts="{}").texts(PETS.classes)
    many = find_encoder(str(weights), clip="tiny", prompts="imagenet")
    assert one.shape == named.shape == many.texts(PETS.classes).shape == (2, 64)
    assert len(many.model.config.templates) == 80
    assert not torch.allclose(one, named)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2))
    mean = find_encoder(str(weights), clip="tiny", synonyms="mean").texts(PETS.classes)
    assert not torch.allclose(one[0], mean[0])
    torch.testing.assert_close(one[1], mean[1])


def test_the_source_is_a_run_or_weights_with_a_preset(weights: Path) -> None:
    with pytest.raises(AnalysisError, match="not a run folder") as caught:
        find_encoder(str(weights))
    assert "--clip PRESET" in str(caught.value)


def test_command_line(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    run = train(make_config(steps=1), progress=False).run
    (tmp_path / "pets.txt").write_text("cat, kitten\ndog\nbox\n")
    arguments = ["analyse", "similarity", str(run), str(tmp_path / "pets.txt"), "--to", str(tmp_path / "to.txt")]
    (tmp_path / "to.txt").write_text("box\nball\n")
    files = ["--json", str(tmp_path / "s.json"), "--csv", str(tmp_path / "s.csv"), "--latex", str(tmp_path / "s.tex")]
    result = CliRunner().invoke(app, [*arguments, *files], catch_exceptions=False)
    assert result.exit_code == 0
    assert "to to (2 classes)" in result.output
    [found] = json.loads((tmp_path / "s.json").read_text())["vocabularies"]
    assert found["hausdorff"] == pytest.approx(min(row["cosine"] for row in found["classes"]))
    assert found["mean_best_cosine"] == pytest.approx(sum(row["cosine"] for row in found["classes"]) / 3)
    assert found["classes"][-1] == {"name": "box", "nearest": "box", "cosine": pytest.approx(1, abs=1e-6)}
    assert (tmp_path / "s.tex").read_text().splitlines()[4].startswith("pets & 3 & ")
    rows = list(csv.reader((tmp_path / "s.csv").open()))
    assert rows[0] == ["vocabulary", "class", "nearest", "cosine"]
    assert rows[-1] == ["pets", "box", "box", "1.000000"]
    with pytest.raises(AnalysisError, match="a run folder, and a preset"):
        CliRunner().invoke(app, [*arguments, "--clip", "tiny"], catch_exceptions=False)


def test_csv_quotes_names() -> None:
    found = compare_vocabularies(Vocabulary(name='my "v"', classes=("a",)), ROOM, directions(0), directions(0, 9, 99))
    assert neighbours_csv([found]).splitlines()[1] == '"my ""v""",a,chair,1.000000'
