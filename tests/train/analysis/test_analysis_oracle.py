"""Oracles on images of a few pixels, worked out by hand."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from physseg.cli import app
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest
from physseg.manifests.vocabulary import Vocabulary
from physseg.train.analysis import oracle
from physseg.train.analysis.oracle import DRAWN, NAMED, PLAIN, best_overlap, patch_shares, run_oracles
from physseg.train.config import TrainConfig
from physseg.train.errors import EvaluationError
from physseg.train.evaluation.regions import split_regions
from physseg.train.loop.loop import train
from physseg.train.model.inference import InferenceSettings
from typer.testing import CliRunner

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
# Three classes. Class 2 wins two of class 0's pixels, but class 0 has the higher mean there (.6 .6 .5 .5 against
# .0 .0 .9 .6); over the labelled pixels of class 1 class 2 has it (.8 .8 .2 against 1 .1 .1).
MAPS = np.array(
    [
        [[0.6, 0.6, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]],
        [[0.1, 0.1, 1.0, 0.1], [0.1, 0.1, 0.1, 0.9]],
        [[0.0, 0.0, 0.8, 0.8], [0.9, 0.6, 0.2, 0.0]],
    ],
    np.float32,
)


def test_regions_of_a_class_and_connected_ones() -> None:
    ids = np.array([[1, 0, 1], [0, 1, 0], [255, 0, 0]])
    whole, owners = split_regions(ids, "class", ignore_index=255)
    assert whole.tolist() == [[1, 0, 1], [0, 1, 0], [-1, 0, 0]]
    assert owners.tolist() == [0, 1]
    parts, owners = split_regions(ids, "connected", ignore_index=255)
    assert owners.tolist() == [0, 1]  # diagonal neighbours are connected
    assert (parts == whole).all()
    parts, owners = split_regions(np.array([[3, 0, 3]]), "connected")
    assert (parts.tolist(), owners.tolist()) == ([[1, 0, 2]], [0, 3, 3])
    with pytest.raises(ConfigError, match="class"):
        split_regions(ids, "things")  # type: ignore[arg-type]


def test_best_overlap_counts_labelled_pixels_only() -> None:
    regions = np.array([[0, 0, 0, 1], [0, 2, 2, 1]], np.int32)
    labels = np.array([[2, 255, 255, 1], [255, 0, 1, 255]])
    assert best_overlap(regions, labels, 3, 255).tolist() == [2, 1, 0]  # a tie goes to the lower id
    assert best_overlap(regions, np.full((2, 4), 255), 3, 255).tolist() == [0, 0, 0]


def test_shares_of_patches() -> None:
    regions = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [-1, 1, 1, 1], [-1, 1, 1, 1]], np.int32)
    shares = patch_shares(regions, 2, 2)
    np.testing.assert_allclose(shares[0], [[3 / 4, 1 / 4], [0, 0]])
    np.testing.assert_allclose(shares[1], [[1 / 10, 3 / 10], [2 / 10, 4 / 10]])
    # Three pixels on two patches: the middle one's centre is on the border and counts to the second.
    np.testing.assert_allclose(patch_shares(np.zeros((1, 3), np.int32), 1, 2)[0].sum(axis=0), [1 / 3, 2 / 3])


class _Clip:
    """Says that the left half of every image looks like class 1, the right half like class 2, a little like 0."""

    def texts(self, classes: tuple[str, ...]) -> torch.Tensor:
        return torch.eye(3)

    def patches(self, image: np.ndarray) -> torch.Tensor:
        assert image.shape == (640, 1280, 3)
        left, right = torch.tensor([0.1, 0.9, 0.0]), torch.tensor([0.1, 0.0, 0.9])
        return torch.stack([left, right]).expand(2, 2, 3)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A manifest with that one image and one without labels; maps arrive two classes at a time."""

    def maps(
        model: Any, image: Any, texts: Any, settings: InferenceSettings, *, size: tuple[int, int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert image.shape == (640, 1280, 3), "the first resize; an image without labels need not be predicted"
        assert size == (2, 4)
        yield torch.tensor([0, 1]), torch.from_numpy(MAPS[:2])
        yield torch.tensor([2]), torch.from_numpy(MAPS[2:])

    monkeypatch.setattr(oracle, "probability_maps", maps)
    monkeypatch.setattr(oracle, "class_texts", lambda model, vocabulary: torch.zeros(3, 1, 4))
    monkeypatch.setattr(oracle, "usable_samples", lambda manifest, most: [0, 1])
    samples = [
        (np.zeros((2, 4, 3), np.uint8), TRUTH),
        (np.zeros((3, 3, 3), np.uint8), np.full((3, 3), 255, np.uint8)),
    ]
    monkeypatch.setattr(oracle, "load_each", lambda manifest, indices: iter(samples))
    return SimpleNamespace(vocabulary=Vocabulary(name="v", classes=("a", "b", "c")))


def test_oracles_by_hand(by_hand: Any) -> None:
    rows = {row.name: row for row in run_oracles(None, by_hand, clips={"CLIP": _Clip()})}  # type: ignore[arg-type, dict-item]
    assert list(rows) == [PLAIN, NAMED, "true regions, named by CLIP", DRAWN]
    # Predicted: 0 0 1 2 / 2 2 2 1.
    assert rows[PLAIN].confusion.matrix.tolist() == [[2, 0, 2], [0, 1, 2], [0, 0, 0]]
    assert rows[NAMED].confusion.matrix.tolist() == [[4, 0, 0], [0, 0, 3], [0, 0, 0]]
    assert (rows[NAMED].right, rows[NAMED].regions) == (1, 2)
    assert rows["true regions, named by CLIP"].confusion.matrix.tolist() == [[0, 4, 0], [0, 0, 3], [0, 0, 0]]
    # Predicted regions: 0 is all in label 0; 1 in label 1; 2 has two pixels of each, so the lower label.
    assert rows[DRAWN].confusion.matrix.tolist() == [[4, 0, 0], [2, 1, 0], [0, 0, 0]]
    assert rows[DRAWN].confusion.miou() == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert rows[PLAIN].confusion.miou() == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert rows[PLAIN].confusion.miou("union") == pytest.approx((2 / 4 + 1 / 3 + 0) / 3)


def test_the_table_names_both_means_where_they_differ(by_hand: Any) -> None:
    plain, _, drawn = run_oracles(None, by_hand)  # type: ignore[arg-type]
    header, row = oracle.table([plain])  # class c is predicted and never true
    assert "mIoU, union" in header and row[1:] == ("41.67%", "27.78%", "42.86%", "")
    header, row = oracle.table([drawn])
    assert "mIoU, union" not in header and row[1:] == ("50.00%", "71.43%", "")


def test_connected_regions_are_named_one_by_one(by_hand: Any) -> None:
    rows = {row.name: row for row in run_oracles(None, by_hand, regions="connected")}  # type: ignore[arg-type]
    assert rows[DRAWN].regions == 3  # of classes 1 and 2, too, all pixels touch, at corners
    by_parts = split_regions(np.array([[0, 1, 0, 1]]), "connected")[0]
    assert by_parts.max() == 3


def test_folded_classes_are_one(by_hand: Any) -> None:
    by_hand.vocabulary = Vocabulary(name="v", classes=("a", "b", "c"), fold_from=1)
    rows = {row.name: row for row in run_oracles(None, by_hand)}  # type: ignore[arg-type]
    assert rows[NAMED].confusion.matrix.tolist() == [[4, 0], [0, 3]]
    assert rows[PLAIN].confusion.matrix.tolist() == [[2, 2], [0, 3]]


def test_command_line(make_config: Callable[..., TrainConfig], train_manifest: Manifest, tmp_path: Path) -> None:
    run = train(make_config(steps=1), progress=False).run
    train_manifest.write(tmp_path / "m.parquet")
    arguments = ["analyse", "oracle", str(run), str(tmp_path / "m.parquet"), "--no-windows", "--num-images", "2"]
    files = ["--json", str(tmp_path / "o.json"), "--latex", str(tmp_path / "o.tex")]
    result = CliRunner().invoke(app, [*arguments, *files], catch_exceptions=False)
    assert result.exit_code == 0
    assert "regions named right" in (tmp_path / "o.tex").read_text().splitlines()[2]
    document = json.loads((tmp_path / "o.json").read_text())
    assert [(row["where"], row["what"]) for row in document["rows"]] == [
        ("model", "model"),
        ("truth", "model"),
        ("truth", "CLIP as trained in the run"),
        ("model", "truth"),
    ]
    pixels = {row["num_pixels"] for row in document["rows"]}
    assert len(pixels) == 1, "every row scores the same pixels"
    assert document["rows"][3]["pixel_accuracy"] >= document["rows"][0]["pixel_accuracy"]
    empty = Manifest(**{**_fields(train_manifest), "samples": []})
    with pytest.raises(EvaluationError, match="0 samples"):
        run_oracles(None, empty)  # type: ignore[arg-type]


def _fields(manifest: Manifest) -> dict[str, Any]:
    names = ("root", "dataset", "vocabulary", "raw_to_class", "raw_ignore")
    return {name: getattr(manifest, name) for name in names}
