"""Structure maps against true ones: lines and points of a few pixels by hand, BSDS's layout, the commands."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from physseg.cli import app
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.reader import StoreReader
from physseg.structure_extractors.mask_edges import MaskEdges
from physseg.train.analysis import structure
from physseg.train.analysis.boundary_score import (
    BoundaryScore,
    distances,
    edge_maps,
    keypoint_maps,
    peaks,
    precision_recall_f,
    thin,
    tolerance_of,
)
from physseg.train.analysis.structure import (
    find_bsds,
    match_bsds,
    match_store,
    read_bsds,
    training_crop,
)
from physseg.train.config import TrainConfig
from physseg.train.errors import AnalysisError
from physseg.train.loop.loop import train
from PIL import Image
from typer.testing import CliRunner

from ..conftest import EchoStructures

BSDS = Path(__file__).parents[3].parent / "shared" / "data" / "bsds500"
needs_bsds = pytest.mark.skipif(not BSDS.is_dir(), reason="no shared folder with BSDS500 beside the repository")


def column(at: int, *, rows: int = 6, width: int = 12, height: int = 6) -> np.ndarray:
    """A vertical line of so many rows."""
    mask = np.zeros((height, width), np.bool_)
    mask[:rows, at] = True
    return mask


def test_matching_within_a_tolerance_by_hand() -> None:
    score = BoundaryScore((0.5,))
    # Two columns right of the truth, and half of it: at 2 px all is near, but for the true pixels further below.
    score.add([column(4, rows=3)], [column(2)], 2.0)
    assert score.counts[0].tolist() == [[3, 3, 6, 3]]
    assert score.best == pytest.approx({"threshold": 0.5, "precision": 1, "recall": 0.5, "f": 2 / 3, "f_mirrored": 0})
    further = BoundaryScore((0.5,))
    further.add([column(4, rows=3)], [column(2)], 2.5)  # the next row is sqrt(5) = 2.24 away
    assert further.counts[0].tolist() == [[3, 3, 6, 4]]
    near = BoundaryScore((0.5,))
    near.add([column(4)], [column(2)], 1.9)
    assert near.counts[0].tolist() == [[6, 0, 6, 0]]
    assert near.best["f"] == 0


def test_mirrored_maps_say_what_chance_gives() -> None:
    score = BoundaryScore((0.5,))
    score.add([column(1)], [column(10)], 1.0)  # of 12 columns: mirrored, it lies on the truth
    assert (score.best["f"], score.best["f_mirrored"]) == (0, 1)


def test_several_people_any_of_them_makes_right_all_of_them_are_to_be_found() -> None:
    score = BoundaryScore((0.5,))
    score.add([column(2)], [column(2), column(2, rows=2), column(9)], 1.0)
    assert score.counts[0].tolist() == [[6, 6, 14, 8]]


def test_nothing_predicted_and_nothing_true() -> None:
    empty = np.zeros((6, 12), np.bool_)
    assert np.isinf(distances(empty)).all()
    score = BoundaryScore((0.1, 0.9))
    score.add([column(2), empty], [column(2)], 1.0)
    score.add([empty, empty], [empty], 1.0)
    assert [point["f"] for point in score.curve] == [1, 0]
    assert score.counts[1].tolist() == [[0, 0, 0, 0]] * 2


def test_ods_and_ois_by_hand() -> None:
    score = BoundaryScore((0.3, 0.6))
    full, none = column(2), np.zeros((6, 12), np.bool_)
    # The first image is best at 0.3, the second at 0.6, where the first loses all it had.
    score.add([full, none], [full], 0.0)
    score.add([full | column(8), full], [full], 0.0)
    # 0.3: 18 predicted, 12 right, 12 true, 12 found. 0.6: 6, 6, 12, 6.
    assert [point["f"] for point in score.curve] == pytest.approx([2 * (2 / 3) / (5 / 3), 2 * 0.5 / 1.5])
    assert score.best["threshold"] == 0.3
    assert score.ois == 1


def test_precision_recall_f() -> None:
    precision, recall, f = precision_recall_f(np.array([[8, 4, 10, 9], [0, 0, 5, 0], [0, 0, 0, 0]]))
    assert precision.tolist() == [0.5, 0, 0]
    assert recall.tolist() == [0.9, 0, 0]
    np.testing.assert_allclose(f, [0.9 / 1.4, 0, 0])


def test_distances_are_euclidean() -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[1, 2] = True
    np.testing.assert_allclose(distances(mask)[4, 5], np.hypot(3, 3), rtol=1e-6)


def test_thinning_leaves_lines_one_pixel_wide_up_to_the_border() -> None:
    bar = np.zeros((9, 12), np.bool_)
    bar[:, 4:7] = True
    found = thin(bar)
    assert (found.sum(axis=1)[2:-2] == 1).all()  # ends lose a pixel or two
    assert (np.abs(np.argwhere(found)[:, 1] - 5) <= 1).all()
    assert (thin(column(3)) == column(3))[1:-1].all()
    assert [mask.sum() for mask in edge_maps(bar.astype(np.float32), [0.5, 1.1], thinned=False)] == [27, 0]


def test_keypoints_are_peaks() -> None:
    plane = np.zeros((20, 20), np.float32)
    plane[5, 5], plane[5, 8], plane[15, 15] = 0.9, 0.8, 0.4  # 3 px apart: the lower one is suppressed
    assert np.argwhere(peaks(plane)).tolist() == [[5, 5], [15, 15]]
    assert [int(mask.sum()) for mask in keypoint_maps(plane, [0.3, 0.5, 0.95])] == [2, 1, 0]


def test_tolerance_is_a_share_of_the_diagonal() -> None:
    assert tolerance_of(300, 400, None) == pytest.approx(3.75)
    assert tolerance_of(300, 400, 2.0) == 2.0


def test_edges_of_classes_are_scored_whatever_the_classes(
    store: Path, train_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that says where any two classes meet has every edge right; one that says it a third lower, none."""
    preprocess(train_manifest, store, structures=["canny", "semantic_edges"], scheduler="sync", progress=False)
    model = SimpleNamespace(config=SimpleNamespace(structures=("canny", "semantic_edges")))
    reader = StoreReader(store, ("labels",))
    truths = []
    for index in reader.usable[:2].tolist():
        height, width = reader.frame_size(index)
        labels = reader.read(index)["labels"][:height, :width]
        ignored = MaskEdges(ignore_borders=False)(np.zeros((1, 1, 3), np.uint8), labels, ignore_index=255)
        truths.append(ignored["mask_edges"] > 0)
    for shift in (0, 1):
        maps = [np.stack([truth, np.roll(truth, shift * len(truth) // 3, axis=0)]).astype(float) for truth in truths]
        monkeypatch.setattr(structure, "structure_maps", lambda *_, left=maps: left.pop(0))
        scores = match_store(model, store, window_px=96, max_images=2, tolerance_px=0.5)  # type: ignore[arg-type]
        assert list(scores) == ["canny", "semantic_edges"]
        assert (scores["semantic_edges"].best["f"] == 1) == (shift == 0)


def test_a_runs_crop(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    assert training_crop(train(make_config(steps=1), progress=False).run) == 96
    assert training_crop(tmp_path) == 384


@pytest.fixture
def bsds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published layout with a picture of one vertical step, that one of two people drew."""
    for folder in ("images/val", "groundTruth/val"):
        (tmp_path / "BSR/BSDS500/data" / folder).mkdir(parents=True)
    image = np.full((40, 48, 3), 20, np.uint8)
    image[:, 24:] = 220
    Image.fromarray(image).save(tmp_path / "BSR/BSDS500/data/images/val/1.jpg", quality=98)
    (tmp_path / "BSR/BSDS500/data/groundTruth/val/1.mat").write_bytes(b"a")
    drawn = [np.zeros((40, 48), np.uint8), np.zeros((40, 48), np.uint8)]
    drawn[0][:, 23] = 1
    monkeypatch.setattr(structure, "read_cells", lambda data, name, field: drawn)
    return tmp_path


def test_canny_and_a_head_against_people(bsds: Path) -> None:
    [pair] = find_bsds(bsds, "val")
    scores = match_bsds([pair], None, tolerance_px=2.0)
    assert list(scores) == ["canny 100/200", "canny, swept", "people"]
    # One person drew 40 pixels, the other none: the one has nothing right, the other finds nothing.
    assert [counts.tolist() for counts in scores["people"].counts] == [[[40, 0, 0, 0]], [[0, 0, 40, 0]]]
    best = scores["canny 100/200"].best
    assert best["precision"] == 1
    assert best["recall"] > 0.9
    assert scores["canny, swept"].best["f"] >= best["f"]
    # The image's own brightness, as an edge map, is a whole half of the image: thinned, a line far from the step.
    scores = match_bsds([pair], EchoStructures(), window_px=32, tolerance_px=2.0)  # type: ignore[arg-type]
    assert list(scores)[3:] == ["head: canny", "head: mask_edges"]
    assert scores["head: canny"].best["f"] < 0.5


def test_bsds_folders_that_are_none(bsds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnalysisError, match="expected images/test and groundTruth/test of BSDS500"):
        find_bsds(bsds, "test")
    [pair] = find_bsds(bsds / "BSR/BSDS500/data", "val")
    monkeypatch.setattr(structure, "read_cells", lambda *_: [np.zeros((48, 40), np.uint8)])
    with pytest.raises(AnalysisError, match=r"1.mat: expected boundaries of \(40, 48\) px, got \[\(48, 40\)\]"):
        read_bsds(*pair)
    monkeypatch.undo()
    with pytest.raises(AnalysisError, match=r"1\.mat: expected a MATLAB 5 file"):
        read_bsds(*pair)
    pair[1].unlink()
    with pytest.raises(AnalysisError, match="1 of 1 images have no ground truth"):
        find_bsds(bsds, "val")


@needs_bsds
def test_genuine_bsds_files() -> None:
    pairs = find_bsds(BSDS, "val")
    image, boundaries = read_bsds(*pairs[0])
    assert image.shape[:2] in {(321, 481), (481, 321)}
    assert len(boundaries) >= 4
    assert all(0.002 < boundary.mean() < 0.1 for boundary in boundaries)
    # A person's boundaries against themselves are all right, and all of their own are found.
    score = BoundaryScore((0.5,))
    score.add([boundaries[0]], [boundaries[0]], 0.0)
    assert score.best["f"] == 1


def test_command_line(make_config: Callable[..., TrainConfig], store: Path, bsds: Path, tmp_path: Path) -> None:
    run = str(train(make_config(steps=1), progress=False).run)
    common = ["analyse", "structure", run, "--num-images", "2", "--json", str(tmp_path / "s.json")]
    common += ["--latex", str(tmp_path / "s.tex")]
    result = CliRunner().invoke(app, [*common, "--store", str(store), "--tolerance", "4"], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads((tmp_path / "s.json").read_text())
    assert (document["window_px"], document["tolerance_px"], document["thinned"]) == (96, 4, True)
    assert list(document["maps"]) == ["canny", "sift"]
    assert [line.split(" & ")[0] for line in (tmp_path / "s.tex").read_text().splitlines()[4:6]] == ["canny", "sift"]
    for scored in document["maps"].values():
        assert scored["num_maps"] == 2
        assert scored["ods"]["f"] == max(point["f"] for point in scored["curve"])
    result = CliRunner().invoke(app, [*common, "--bsds", str(bsds)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "head: canny" in result.output
    assert "1 image\n" in result.output
    alone = CliRunner().invoke(app, ["analyse", "structure", "--bsds", str(bsds)], catch_exceptions=False)
    assert alone.exit_code == 0
    for arguments in (["--bsds", str(bsds), "--store", str(store)], [], ["--store", str(store)]):
        assert CliRunner().invoke(app, ["analyse", "structure", *arguments]).exit_code == 2


def test_a_run_without_structures(make_config: Callable[..., TrainConfig], store: Path) -> None:
    changes: dict[str, Any] = {"model": {"structures": []}, "losses": {"lambda_p": 0.0}}
    run = str(train(make_config(steps=1, **changes), progress=False).run)
    with pytest.raises(AnalysisError, match="no structure: no map of edges or keypoints") as caught:
        CliRunner().invoke(app, ["analyse", "structure", run, "--store", str(store)], catch_exceptions=False)
    assert "model.structures" in str(caught.value)
