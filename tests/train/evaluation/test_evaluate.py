"""Evaluation on a case worked out by hand, seen against unseen classes, and any vocabulary."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from physseg.common.text import Part
from physseg.manifests.manifest import Manifest, Sample, Vocabulary
from physseg.train.config import TrainConfig
from physseg.train.errors import CheckpointError, EvaluationError, RunFolderError
from physseg.train.evaluation import evaluate
from physseg.train.evaluation.evaluate import evaluate_model, seen_classes
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.evaluation.protocol import identity
from physseg.train.evaluation.result import Evaluation, merge, paper_table, read_evaluation
from physseg.train.loop.loop import train
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.inference import InferenceSettings
from physseg.train.prediction.load_run import load_run
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from PIL import Image

# Two images of 2x4 and 2x2 pixels; 255 is ignored.
TRUTH = {"a": [[0, 0, 1, 1], [2, 2, 255, 0]], "b": [[1, 1], [1, 1]]}
GUESS = {"a": [[0, 1, 1, 1], [2, 0, 2, 0]], "b": [[3, 3], [3, 3]]}
CONFUSION = [[2, 1, 0, 0], [0, 2, 0, 4], [1, 0, 1, 0], [0, 0, 0, 0]]
IOU = [2 / 4, 2 / 7, 1 / 2, 0.0]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    samples = []
    for name, labels in TRUTH.items():
        ids = np.array(labels, np.uint8)
        Image.fromarray(np.full((*ids.shape, 3), 9, np.uint8)).save(tmp_path / f"{name}.png")
        Image.fromarray(ids).save(tmp_path / f"{name}_ids.png")
        facts: dict[str, Any] = {"height": ids.shape[0], "width": ids.shape[1]}
        hashes = [_sha256(tmp_path / f"{name}{end}.png") for end in ("", "_ids")]
        samples.append(
            Sample(
                sample_id=name,
                image_path=f"{name}.png",
                label_path=f"{name}_ids.png",
                image_sha256=hashes[0],
                label_sha256=hashes[1],
                split="val",
                **facts,
            )
        )
    bad = replace(samples[0], sample_id="bad", problem="images/bad.png: truncated")
    return Manifest(
        root=str(tmp_path),
        dataset="hand",
        vocabulary=Vocabulary(name="hand", classes=("sofa, couch", "Tree", "sea star", "road")),
        raw_to_class={index: index for index in range(4)},
        raw_ignore=(255,),
        samples=[samples[0], bad, samples[1]],
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def evaluation(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    guesses = {np.array(labels).shape: np.array(labels, np.uint8) for labels in GUESS.values()}
    monkeypatch.setattr(evaluate, "segment_image", lambda model, image, text, settings: guesses[image.shape[:2]])
    return evaluate_model(_TextOnly(), manifest, trained_on=("couch", "tree, shrub", "car"), progress=False)


class _TextOnly(torch.nn.Module):
    """As much of a segmenter as evaluation touches besides `segment_image`."""

    config = SegmenterConfig(clip="tiny")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def tokenize(self, names: tuple[str, ...]) -> torch.Tensor:
        return torch.zeros(len(names), 1, 3, dtype=torch.int64)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(tokens.shape[0], 1, 4)


def test_confusion_by_hand(evaluation: Evaluation) -> None:
    assert evaluation.confusion.matrix.tolist() == CONFUSION
    np.testing.assert_allclose(evaluation.confusion.iou(), IOU)
    document = evaluation.document()
    assert document["miou"] == document["miou_ground_truth"] == pytest.approx(sum(IOU) / 3)
    assert document["miou_union"] == pytest.approx(sum(IOU) / 4)
    assert (document["miou_over"], document["unit"]) == ("ground_truth", "fraction")
    assert document["pixel_accuracy"] == pytest.approx(5 / 11)
    assert (document["num_images"], document["quarantined"]) == (2, ["bad"])


def test_seen_and_unseen_are_averaged_apart(evaluation: Evaluation) -> None:
    assert evaluation.seen == (True, True, False, False)
    assert evaluation.group_miou(True) == pytest.approx((IOU[0] + IOU[1]) / 2)
    assert evaluation.group_miou(False) == pytest.approx(IOU[2])  # "road" has no pixel in the labels
    table = evaluation.table()
    assert "sea star (unseen)" in table
    assert "unseen  classes mIoU 50.00%" in table
    assert "1 quarantined sample left out: bad" in table
    scalars = evaluation.scalars()
    assert scalars["eval/miou_unseen"] == pytest.approx(0.5)
    assert (scalars["eval/miou"], scalars["eval/miou_union"]) == pytest.approx((sum(IOU) / 3, sum(IOU) / 4))


def test_results_are_written_as_json_and_matrix(evaluation: Evaluation, tmp_path: Path) -> None:
    path = evaluation.write(tmp_path / "out", "val")
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["unseen"] == {"miou": 0.5, "classes": 2}
    assert [row["seen"] for row in document["classes"]] == [True, True, False, False]
    assert document["protocol"]["window_px"] == 384
    with np.load(tmp_path / "out/val.npz") as arrays:
        assert arrays["confusion"].tolist() == CONFUSION
        assert arrays["classes"].tolist() == ["sofa", "Tree", "sea star", "road"]


def test_one_image_only(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    guess = np.array(GUESS["a"], np.uint8)
    monkeypatch.setattr(evaluate, "segment_image", lambda *_: guess)
    result = evaluate_model(_TextOnly(), manifest, trained_on=("sofa",), max_images=1, progress=False)
    assert result.confusion.matrix.sum() == 7
    assert result.num_images == 1


def test_nothing_usable_is_refused(manifest: Manifest) -> None:
    empty = replace(manifest, samples=[manifest.samples[1]])
    with pytest.raises(EvaluationError, match="nothing to evaluate: 1 sample, 1 of them quarantined"):
        evaluate_model(_TextOnly(), empty, trained_on=(), progress=False)


def test_seen_by_any_synonym() -> None:
    assert seen_classes(["sofa, couch", "Tree", "trees", "x"], ["COUCH", "tree , shrub"]) == (True, True, False, False)


def test_a_loaded_run_is_the_one_that_was_trained(
    make_config: Callable[..., TrainConfig], train_manifest: Manifest, tmp_path: Path
) -> None:
    """The evaluation at the end of training, from memory, and that of the checkpoint agree to the last bit."""
    train_manifest.write(tmp_path / "val.parquet")
    evaluated = {"manifest": str(tmp_path / "val.parquet"), "max_images": 2, "classes_kept": 2}
    config = make_config(steps=2, eval=evaluated)
    train(config, progress=False)
    assert config.run is not None
    loaded = load_run(config.run)
    results = [
        evaluate_model(
            loaded.model,
            train_manifest,
            trained_on=loaded.classes,
            max_images=2,
            settings=InferenceSettings(windows=False, classes_kept=kept),
            progress=False,
        )
        for kept in (2, None)
    ]
    logged = read_log(RunFolder(config.run).log_file, "step")[-1]
    assert {key: logged[key] for key in results[0].scalars()} == results[0].scalars() != results[1].scalars()
    assert (loaded.step, loaded.classes) == (2, train_manifest.vocabulary.classes)
    assert not loaded.model.training
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are 2"):
        load_run(config.run, step=7)
    with pytest.raises(RunFolderError, match="not a run folder"):
        load_run(config.run.parent)


def hand_evaluation(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, part: Part | None) -> Evaluation:
    guesses = {np.array(labels).shape: np.array(labels, np.uint8) for labels in GUESS.values()}
    monkeypatch.setattr(evaluate, "segment_image", lambda model, image, text, settings: guesses[image.shape[:2]])
    return evaluate_model(_TextOnly(), manifest, trained_on=("couch",), part=part, progress=False)


def two_parts(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Path]:
    """The files of an evaluation in two parts."""
    return [hand_evaluation(manifest, monkeypatch, Part(number, 2)).write(folder, "val") for number in (1, 2)]


def test_parts_add_up_to_the_whole(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = hand_evaluation(manifest, monkeypatch, None)
    files = [hand_evaluation(manifest, monkeypatch, Part(number, 2)).write(tmp_path, "val") for number in (2, 1)]
    merged = merge(files)
    assert merged.document() == whole.document()
    assert merged.images is not None
    assert merged.images.image_ids == ("a", "b")
    read = read_evaluation(merged.write(tmp_path, "val"))
    assert read.document() == whole.document()


def edited(file: Path, **changes: Any) -> Path:
    """The JSON of a result with other values; without the keys whose value is None."""
    document = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in document.items() if value is not None or key == "part"}))
    return file


def test_parts_of_an_earlier_version_merge_with_each_other_only(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have one hash of protocol and version, no environment, and a `miou` over the union."""
    whole = hand_evaluation(manifest, monkeypatch, None)
    first, second, new = (
        hand_evaluation(manifest, monkeypatch, Part(number, 2)).write(tmp_path, name)
        for number, name in ((1, "old"), (2, "old"), (2, "new"))
    )
    protocol = {"physseg": "0.1.0", **whole.source["protocol"]}
    del protocol["miou_over"]
    for file in (first, second):
        old: dict[str, Any] = {"environment": None, "environment_fingerprint": None, "miou_over": None, "unit": None}
        edited(file, **old, protocol=protocol, fingerprint="0123456789ab", miou=0.5)
    merged = merge([first, second])
    assert merged.source["fingerprint"] == "0123456789ab" and "environment" not in merged.source
    assert merged.document()["miou"] == whole.document()["miou"] == pytest.approx(sum(IOU) / 3)  # counted anew
    with pytest.raises(EvaluationError, match="they differ in their version: one is of a physseg whose"):
        merge([first, new])


def test_boundary_iou_of_a_set_is_in_results_parts_and_the_log(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A 20x20 square of class 1 in 60x80, predicted 1 px to the right, and all of a 2x2 image's class 1 missed."""
    labels, guess = np.zeros((2, 60, 80), np.uint8)
    labels[20:40, 20:40] = guess[20:40, 21:41] = 1
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_ids.png")
    hashes = {"image_sha256": _sha256(tmp_path / "a.png"), "label_sha256": _sha256(tmp_path / "a_ids.png")}
    first, bad, second = manifest.samples
    squares = replace(manifest, samples=[replace(first, height=60, width=80, **hashes), bad, second])
    monkeypatch.setitem(GUESS, "a", guess.tolist())
    found = hand_evaluation(squares, monkeypatch, None)
    # Class 1: rings of 144 px each, 108 in common, and 4 px missed. Class 0: bands of 720 px, 676 in common.
    expected = [676 / (720 + 720 - 676), 108 / (144 + 144 - 108 + 4)]
    document = found.document()
    assert [row["boundary_iou"] for row in document["classes"]] == pytest.approx([*expected, None, 0.0])
    assert document["boundary_iou"] == found.scalars()["eval/boundary_iou"] == pytest.approx(sum(expected) / 2)
    low, high = document["boundary_iou_interval"]
    assert low < document["boundary_iou"] < high
    table = found.table().splitlines()
    assert f"Boundary IoU    {50 * sum(expected):.2f}%" in [line.strip() for line in table]
    assert any(line.startswith("Boundary IoU, about 95 %") for line in table)
    files = [hand_evaluation(squares, monkeypatch, Part(number, 2)).write(tmp_path, "val") for number in (1, 2)]
    merged = merge(files)
    assert merged.document() == document == read_evaluation(found.write(tmp_path, "whole")).document()


def test_boundary_iou_of_an_earlier_result_is_not_known(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = two_parts(manifest, monkeypatch, tmp_path)
    with np.load(files[0].with_suffix(".npz")) as arrays:
        old = {name: value for name, value in arrays.items() if "boundary" not in name}
    np.savez(files[0].with_suffix(".npz"), allow_pickle=False, **old)
    merged = merge(files)
    for result in (read_evaluation(files[0]), merged, read_evaluation(merged.write(tmp_path, "merged"))):
        document = result.document()
        assert document["miou"] is not None
        assert document["boundary_iou"] is document["boundary_iou_interval"] is None
        assert {row["boundary_iou"] for row in document["classes"]} == {None}
        assert "Boundary IoU    not known" in result.table()
        assert "eval/boundary_iou" not in result.scalars()
    assert merged.miou_interval() == hand_evaluation(manifest, monkeypatch, None).miou_interval()


def test_sizes_of_parts_add_up(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All objects of these images are small: their mIoU is the whole one."""

    def by_size(part: Part | None) -> Evaluation:
        hand_evaluation(manifest, monkeypatch, part)  # for its predictions
        return evaluate_model(_TextOnly(), manifest, trained_on=(), part=part, by_size=True, progress=False)

    whole = by_size(None)
    none = {"miou": None, "classes": 0}
    small = {"miou": pytest.approx(sum(IOU) / 3), "classes": 3}
    assert whole.document()["miou_by_size"] == {"small": small, "medium": none, "large": none}
    assert "mIoU, small" in whole.table() and "over 3 classes, objects of less than 32x32 px" in whole.table()
    files = [by_size(Part(number, 2)).write(tmp_path, "val") for number in (1, 2)]
    assert merge(files).document() == whole.document()
    without = hand_evaluation(manifest, monkeypatch, Part(2, 2)).write(tmp_path, "val")
    merged = merge([files[0], without])
    assert merged.document()["miou_by_size"] is None
    assert "mIoU by object size left out: known by 1 part of 2 only" in merged.table()


@pytest.mark.parametrize("damage", ["doubled", "an image less", "torn", "no classes", "no sizes"])
def test_counts_that_contradict_each_other_are_not_merged(
    damage: str, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = two_parts(manifest, monkeypatch, tmp_path)
    file = files[1].with_suffix(".npz")
    with np.load(file) as arrays:
        held = dict(arrays)
    if damage == "doubled":
        held["confusion"] *= 2
    elif damage == "an image less":
        held |= {name: array[:-1] for name, array in held.items() if name.startswith("image")}
    elif damage == "no classes":
        del held["classes"]
    elif damage == "no sizes":
        held["size_counts"] = np.zeros((2, 3, 4), int)
    np.savez(file, **held)
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EvaluationError, match=re.escape(str(files[1].with_suffix("")))):
        merge(files)


def test_parts_of_other_protocols_are_refused_by_the_setting(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = two_parts(manifest, monkeypatch, tmp_path)
    protocol = json.loads(second.read_text())["protocol"]
    named = {"classes", "fold_from", "templates", "synonyms", "preselected_classes", "max_images", "miou_over"}
    assert named | {"first_resize", "precision", "windows", "window_px", "stride_px", "canvas_px"} <= protocol.keys()
    for setting in protocol:
        edited(second, protocol=protocol | {setting: "another"})
        with pytest.raises(EvaluationError, match=rf"they differ in protocol\.{setting}\n"):
            merge([first, second])


@pytest.mark.parametrize(
    ("classes", "kept", "recorded"),
    [
        (4, None, 256),
        (4, 256, 256),
        (4, 4, 256),
        (4, 2, 2),
        (847, None, 256),
        (847, 256, 256),
        (847, 64, 64),
        (847, 847, 847),
        (847, 1000, 847),
    ],
)
def test_kept_classes_are_part_of_the_protocol_where_they_change_it(
    classes: int, kept: int | None, recorded: int
) -> None:
    """The hashes of 256 are those of results of before there was a choice."""
    before = {4: "a57f4d6bc811", 847: "b4a620160f66"}
    names = tuple(f"thing {number}" for number in range(classes))
    vocabulary = Vocabulary(name="hand", classes=names if classes > 4 else ("sofa, couch", "Tree", "sea star", "road"))
    table: Any = SimpleNamespace(dataset="d", fingerprint="f", vocabulary=vocabulary)
    found = identity(_TextOnly(), table, InferenceSettings(classes_kept=kept), None)  # type: ignore[arg-type]
    assert found["protocol"]["preselected_classes"] == recorded
    assert "classes_kept" not in found["protocol"]
    assert (found["fingerprint"] == before[classes]) == (recorded == 256)


def test_parts_of_other_environments_merge_with_one_note(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = two_parts(manifest, monkeypatch, tmp_path)
    environment = json.loads(first.read_text())["environment"]
    assert set(environment) == {"device", "physseg", "torch", "torchvision", "pillow", "opencv", "numpy"}
    assert "note" not in merge([first, second]).table()
    edited(second, environment=environment | {"pillow": "9.0", "device": "cuda"})
    read = read_evaluation(merge([first, second]).write(tmp_path, "val"))
    lines = [line for line in read.table().splitlines() if "environment" in line]
    assert lines == [
        f"note: from environments that differ in device (cpu, cuda), pillow ({environment['pillow']}, 9.0)"
    ]
    assert read.source["environment"]["pillow"] == [environment["pillow"], "9.0"]
    assert read.source["environment_fingerprint"] != json.loads(first.read_text())["environment_fingerprint"]
    assert read.source["fingerprint"] == json.loads(first.read_text())["fingerprint"]


def test_a_merged_result_is_the_single_one_to_the_last_bit(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of images whose names are not in the order of the manifest, in strided parts."""
    first, bad, second = manifest.samples
    samples = [replace(sample, sample_id=f"{name}") for name, sample in zip("zbyaxc", [first, second] * 3, strict=True)]
    many = replace(manifest, samples=[*samples, bad])
    whole = hand_evaluation(many, monkeypatch, None)
    files = [hand_evaluation(many, monkeypatch, Part(number, 4)).write(tmp_path, "val") for number in (1, 2, 3, 4)]
    merged = merge(files)
    assert merged.write(tmp_path, "merged").read_bytes() == whole.write(tmp_path, "whole").read_bytes()
    assert merged.miou_interval() is not None and merged.miou_interval() == whole.miou_interval()


def test_parts_that_are_no_whole_are_refused(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = (
        hand_evaluation(manifest, monkeypatch, Part(number, 2)).write(tmp_path, f"val{number}") for number in (1, 2)
    )
    with pytest.raises(EvaluationError, match="1 of 2 parts are missing: 2"):
        merge([first])
    with pytest.raises(EvaluationError, match="are both part 1 of 2"):
        merge([first, first])
    document = json.loads(second.read_text())
    second.write_text(json.dumps(document | {"weights": "others"}))
    with pytest.raises(EvaluationError, match="they differ in weights"):
        merge([first, second])
    second.write_text("{")
    with pytest.raises(EvaluationError, match="not a result of `physseg evaluate`"):
        merge([first, second])


def test_folded_classes_are_scored_as_one(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes 2 and 3 are background: of labels and of predictions; 255 stays ignored."""
    folded = hand_evaluation(replace(manifest, vocabulary=replace(manifest.vocabulary, fold_from=2)), monkeypatch, None)
    assert folded.classes == ("sofa", "Tree", "background")
    assert folded.confusion.matrix.tolist() == [[2, 1, 0], [0, 2, 4], [1, 0, 1]]
    assert folded.source["fingerprint"] != hand_evaluation(manifest, monkeypatch, None).source["fingerprint"]


def test_images_without_a_label_are_left_out(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = np.full((2, 2), 255, np.uint8)
    Image.fromarray(blank).save(Path(manifest.root) / "b_ids.png")
    samples = [
        replace(sample, label_sha256=_sha256(Path(manifest.root) / "b_ids.png")) if sample.sample_id == "b" else sample
        for sample in manifest.samples
    ]
    found = hand_evaluation(replace(manifest, samples=samples), monkeypatch, None)
    assert (found.num_images, found.unlabelled) == (1, ("b",))
    assert found.confusion.matrix.sum() == 7
    assert "1 unlabelled sample left out: b" in found.table()


def test_shared_prompts_are_reported(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = replace(manifest, vocabulary=Vocabulary(name="v", classes=("bag, sack", "Tree", "bag, handbag", "road")))
    found = hand_evaluation(twice, monkeypatch, None)
    assert found.document()["shared_prompts"] == {"bag": [0, 2]}
    assert "2 classes share their prompt with another and cannot be told apart: bag" in found.table()


def test_the_papers_columns(evaluation: Evaluation) -> None:
    table = paper_table("ours", {"pascal-voc-20": evaluation, "ade20k-847": evaluation})
    assert table[0] == ["mIoU", "A-847", "PC-459", "A-150", "PC-59", "PAS-20", "PAS-20b"]
    value, union = (f"{100 * sum(IOU) / number:.1f}%" for number in (3, 4))
    assert table[1:] == [
        ["ours", value, "-", "-", "-", value, "-"],
        ["ours, union", union, "-", "-", "-", union, "-"],
    ]
    even = replace(evaluation, confusion=ConfusionMatrix(2, 255))
    even.confusion.matrix[:] = 1
    assert paper_table("ours", {"pascal-voc-20": even})[1:] == [["ours", "-", "-", "-", "-", "33.3%", "-"]]


def test_a_part_without_images_is_a_part(manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = [
        hand_evaluation(manifest, monkeypatch, Part(number, 3)).write(tmp_path, f"val{number}") for number in (1, 2, 3)
    ]
    assert read_evaluation(files[2]).num_images == 0
    assert "mIoU" in read_evaluation(files[2]).table()
    assert merge(files).document() == hand_evaluation(manifest, monkeypatch, None).document()


def test_another_protocol_does_not_replace_a_result(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = hand_evaluation(manifest, monkeypatch, None)
    path = first.write(tmp_path, "val")
    folded = hand_evaluation(replace(manifest, vocabulary=replace(manifest.vocabulary, fold_from=2)), monkeypatch, None)
    other = folded.write(tmp_path, "val")
    assert other.name.startswith(f"val-{folded.source['fingerprint']}")
    assert json.loads(path.read_text()) == json.loads(json.dumps(first.document()))
    assert first.write(tmp_path, "val") == path
