"""Runs side by side: scores by hand, which samples are the most changed, the pictures, the page."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from physseg.cli import app
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.inspect.drawing.palette import class_colours
from physseg.train.analysis import compare
from physseg.train.analysis.compare import Pictured, Scored, compare_runs, in_words, picture, score, summary
from physseg.train.config import TrainConfig
from physseg.train.errors import AnalysisError
from physseg.train.loop.loop import train
from PIL import Image
from typer.testing import CliRunner

CLASSES = ("ground", "box", "disc", "square", "ball")


def test_score_by_hand() -> None:
    labels = np.array([[0, 1, 255], [2, 2, 255]])
    found = score(
        labels,
        [np.array([[0, 0, 255], [2, 2, 1]]), np.array([[1, 1, 255], [1, 1, 1]])],
        sample_id="a",
        ignore_index=255,
    )
    assert (found.labelled, found.correct) == (4, (3, 1))
    assert found.shares == (0.75, 0.25)
    assert found.change == -0.5


def test_summary_counts_better_and_worse() -> None:
    scores = [Scored(sample_id=str(right), labelled=10, correct=(5, right)) for right in (8, 5, 1, 9)]
    assert summary(scores) == {"images": 4, "better": 2, "worse": 1, "mean_change": pytest.approx(0.075)}
    assert in_words(scores) == "4 images: 2 better, 1 worse, mean change +7.50 points of pixel accuracy"
    assert in_words([]) == "no labelled pixel in any image"


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model "perfect" is right everywhere but in the image's first `wrong` rows; "lazy" says ground."""
    monkeypatch.setattr(compare, "class_texts", lambda model, vocabulary: None)

    def predicted(model: Any, image: np.ndarray, texts: Any, settings: Any) -> np.ndarray:
        return model(image)

    monkeypatch.setattr(compare, "segment_image", predicted)


def _models(manifest: Manifest) -> dict[str, Any]:
    truth = {manifest.load(index)[0].tobytes(): manifest.load(index)[1] for index in range(len(manifest))}
    lazy = lambda image: np.zeros(image.shape[:2], np.uint8)  # noqa: E731
    return {"lazy": lazy, "perfect": lambda image: np.where(truth[image.tobytes()] == 255, 0, truth[image.tobytes()])}


def test_the_most_changed_come_first(make_manifest: Callable[..., Manifest], predictions: None) -> None:
    manifest = make_manifest(6)
    pictured, scores = compare_runs(_models(manifest), manifest, most_changed=3)
    changes = {item.sample_id: item.change for item in scores}
    assert len(changes) == 6
    expected = {
        sample.sample_id: float((labels[labels != 255] != 0).mean())
        for sample, (_, labels) in ((manifest.samples[i], manifest.load(i)) for i in range(6))
    }
    assert changes == pytest.approx(expected)
    order = sorted(changes, key=lambda name: -changes[name])
    assert [item.scored.sample_id for item in pictured] == order[:3]
    # Loss counts as change, too.
    backwards = dict(reversed(_models(manifest).items()))
    pictured, _ = compare_runs(backwards, manifest, most_changed=3)
    assert [item.scored.sample_id for item in pictured] == order[:3]
    assert pictured[0].scored.change < 0


def test_chosen_samples_keep_their_order(make_manifest: Callable[..., Manifest], predictions: None) -> None:
    manifest = make_manifest(4)
    models = _models(manifest)
    pictured, scores = compare_runs(models, manifest, sample_ids=["003", "001"], most_changed=1)
    assert [item.scored.sample_id for item in pictured] == ["003", "001"]
    assert len(scores) == 2
    with pytest.raises(AnalysisError, match="shapes, '9': no sample of this id"):
        compare_runs(models, manifest, sample_ids=["9"])
    with pytest.raises(AnalysisError, match="expected two runs or more to compare, got 1"):
        compare_runs({"lazy": models["lazy"]}, manifest)


def test_one_row_of_pictures_with_one_legend() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 40:] = 3
    wrong = np.full_like(labels, 1)
    image = np.full((60, 80, 3), 100, np.uint8)
    scored = score(labels, [wrong, labels], sample_id="<a>", ignore_index=255)
    shown = Pictured(scored=scored, image=image, labels=labels, predictions=(wrong, labels))
    drawn = picture(shown, ["baseline", "ours"], Vocabulary(name="v", classes=CLASSES))
    assert drawn.shape[1] >= 4 * 80
    # What stands there: the photograph as it is, all three classes' colours in the legend, none of the others'.
    colours = class_colours(CLASSES)
    pixels = {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}
    assert (100, 100, 100) in pixels
    present = [tuple(colour) in pixels for colour in colours.tolist()]
    assert present == [True, True, False, True, False]


def test_large_pictures_are_made_smaller_without_new_ids() -> None:
    labels = np.zeros((700, 1000), np.uint8)
    labels[:, 500:] = 4
    scored = score(labels, [labels, labels], sample_id="a", ignore_index=255)
    image = np.zeros((700, 1000, 3), np.uint8)
    shown = Pictured(scored=scored, image=image, labels=labels, predictions=(labels, labels))
    drawn = picture(shown, ["a", "b"], Vocabulary(name="v", classes=CLASSES))
    assert 4 * 480 <= drawn.shape[1] < 4 * 520


def test_command_line(make_config: Callable[..., TrainConfig], train_manifest: Manifest, tmp_path: Path) -> None:
    runs = [
        str(train(make_config(steps=1, seed=seed, run=str(tmp_path / f"r{seed}")), progress=False).run)
        for seed in (1, 2)
    ]
    train_manifest.write(tmp_path / "m.parquet")
    common = [str(tmp_path / "m.parquet"), "--no-windows", "--num-images", "3", "--most-changed", "2"]
    out = tmp_path / "out"
    arguments = ["analyse", "compare", f"<base>={runs[0]}", runs[1], *common, "--out", str(out)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "2 pictures in" in result.output
    page = (out / "index.html").read_text()
    assert "<base>" not in page
    assert "&lt;base&gt; / r2 on shapes" in page
    document = json.loads((out / "compare.json").read_text())
    assert [len(document["shown"]), len(document["images"])] == [2, 3]
    for entry in document["shown"]:
        assert f'src="{entry["file"]}"' in page
        assert Image.open(out / entry["file"]).size[0] > 300
    assert set(document["images"][0]["correct"]) == {"<base>", "r2"}
    few = ["--classes-kept", "1", "--out", str(tmp_path / "few")]
    assert CliRunner().invoke(app, ["analyse", "compare", f"<base>={runs[0]}", runs[1], *common, *few]).exit_code == 0
    assert json.loads((tmp_path / "few/compare.json").read_text())["images"] != document["images"]
    same = CliRunner().invoke(app, ["analyse", "compare", runs[0], runs[0], *common])
    assert same.exit_code == 2
    assert "two runs are called 'r1'" in same.output
    assert CliRunner().invoke(app, ["analyse", "compare", runs[0], *common]).exit_code == 2


def test_a_quarantined_sample_cannot_be_chosen() -> None:
    manifest = SimpleNamespace(
        dataset="d",
        table=SimpleNamespace(find={"a": 0, "b": 1}.get),
        usable=[0],
        samples=[SimpleNamespace(sample_id="a"), SimpleNamespace(problem="torn")],
    )
    assert compare.find_samples(manifest, ["a"]) == [0]  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="'b': quarantined: torn"):
        compare.find_samples(manifest, ["b"])  # type: ignore[arg-type]
