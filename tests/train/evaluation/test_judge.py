"""The referee: every form of predictions, values by an independent evaluator and by hand, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import physseg
import pytest
from physseg.cli import app
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.errors import EvaluationError
from physseg.train.evaluation.judge import ClassIous
from physseg.train.evaluation.result import Evaluation
from physseg.train.loop.loop import train
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

NUM = 5


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(4)


def guess(manifest: Manifest) -> dict[str, np.ndarray]:
    """The labels, shifted, and a fourth of the classes taken for the next."""
    found = {}
    for index, sample in enumerate(manifest.samples):
        labels = manifest.load(index)[1]
        moved = np.roll(np.where(labels == 255, 0, labels), (3, 2), (0, 1))
        moved[: 10 + index] = np.minimum(moved[: 10 + index] + 1, NUM - 2)
        found[sample.sample_id] = moved.astype(np.uint8)
    return found


def write_pngs(folder: Path, maps: dict[str, np.ndarray], ending: str = ".png") -> Path:
    for name, ids in maps.items():
        (folder / f"{name}{ending}").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(folder / f"{name}{ending}")
    return folder


def entries_of(maps: dict[str, np.ndarray], to_category: Callable[[int], int] = int) -> list[dict[str, Any]]:
    entries = []
    for name, ids in maps.items():
        for index in np.unique(ids):
            code = coco_mask.encode(np.asfortranarray(ids == index, np.uint8))
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            file_name = f"/data/set/images/{name}.jpg"
            entries.append(
                {"file_name": file_name, "category_id": to_category(int(index)), "segmentation": segmentation}
            )
    return entries


def by_formulas(manifest: Manifest, maps: dict[str, np.ndarray]) -> dict[str, float]:
    """The published formulas, class by class, over masks of all pixels: no confusion matrix."""
    true, predicted = [], []
    for index, sample in enumerate(manifest.samples):
        labels = manifest.load(index)[1]
        true.append(labels[labels != 255])
        predicted.append(maps[sample.sample_id][labels != 255])
    t, p = np.concatenate(true), np.concatenate(predicted)
    inter = [int(((t == c) & (p == c)).sum()) for c in range(NUM)]
    union = [int(((t == c) | (p == c)).sum()) for c in range(NUM)]
    of = [int((t == c).sum()) for c in range(NUM)]
    in_truth = [c for c in range(NUM) if of[c]]
    return {
        "miou_ground_truth": sum(inter[c] / union[c] for c in in_truth) / len(in_truth),
        "miou_union": sum(inter[c] / union[c] for c in in_truth) / sum(n > 0 for n in union),
        "frequency_weighted_iou": sum(of[c] / len(t) * inter[c] / union[c] for c in in_truth),
        "mean_accuracy": sum(inter[c] / of[c] for c in in_truth) / len(in_truth),
        "pixel_accuracy": sum(inter) / len(t),
    }


def judged(path: Path, manifest: Manifest | None = None, **options: Any) -> dict[str, Any]:
    found = physseg.evaluate_predictions(path, manifest, **options)
    assert isinstance(found, Evaluation)
    return json.loads(json.dumps(found.document(), allow_nan=False))


def test_every_form_gives_the_numbers_of_the_published_formulas(manifest: Manifest, tmp_path: Path) -> None:
    maps = guess(manifest)
    expected = by_formulas(manifest, maps)
    rle = tmp_path / "sem_seg_predictions.json"
    rle.write_text(json.dumps(entries_of(maps)))
    wide = {name: ids.astype(np.uint16) for name, ids in maps.items()}
    pictures = [write_pngs(tmp_path / "8", maps), write_pngs(tmp_path / "16", wide, "_labels.png"), rle]
    results = [judged(path, manifest, trained_on=["ground", "box"]) for path in pictures]
    for found in results:
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-12), key
        assert found["seen"]["classes"] == 2 and found["miou_interval"] and found["boundary_iou"] is not None
        assert found | {"predictions": ""} == results[0] | {"predictions": ""}
    matrix = np.zeros((NUM, NUM), np.int64)
    for index, sample in enumerate(manifest.samples):
        labels = manifest.load(index)[1]
        np.add.at(matrix, (labels[labels != 255], maps[sample.sample_id][labels != 255]), 1)
    np.savez(tmp_path / "c.npz", confusion=matrix.astype(np.float64))
    text = "\r\n".join(",".join(map(str, row)) for row in matrix.tolist())
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    for name in ("c.npz", "c.csv"):
        found = judged(tmp_path / name)
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-12), key
        assert "seen" not in found and found["miou_interval"] is None
        assert judged(tmp_path / name, manifest)["seen"]


def test_conventions_differ_where_a_class_is_predicted_and_not_true(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("3,1\n0,0\n")
    found = judged(tmp_path / "c.csv")
    assert (found["miou_ground_truth"], found["miou_union"]) == (0.75, 0.375)


def test_ids_of_the_data_set_are_mapped_as_found_or_given(manifest: Manifest, tmp_path: Path) -> None:
    maps, path = guess(manifest), tmp_path / "p.json"
    table = {index + 90: index for index in range(NUM)} | {index: index for index in range(NUM)}
    other = replace(manifest, raw_to_class=table)
    path.write_text(json.dumps(entries_of(maps, lambda index: index + 90)))
    expected = by_formulas(manifest, maps)["miou_ground_truth"]
    assert judged(path, other)["miou"] == pytest.approx(expected)
    pictures = write_pngs(tmp_path / "p", {name: ids + np.uint8(90) for name, ids in maps.items()})
    assert judged(pictures, other, ids="dataset")["miou"] == pytest.approx(expected)
    with pytest.raises(EvaluationError, match=r"expected 0..4, got id 90 \("):
        physseg.evaluate_predictions(pictures, other)
    with pytest.raises(EvaluationError, match="id 90"):
        physseg.evaluate_predictions(path, manifest)


def test_what_is_folded_is_folded_in_predictions_and_labels(manifest: Manifest, tmp_path: Path) -> None:
    maps = guess(manifest)
    folded = replace(manifest, vocabulary=replace(manifest.vocabulary, fold_from=2))
    hits = pixels = 0
    for index, sample in enumerate(manifest.samples):
        labels = manifest.load(index)[1]
        same = np.minimum(labels, 2) == np.minimum(maps[sample.sample_id], 2)
        hits, pixels = hits + int(same[labels != 255].sum()), pixels + int((labels != 255).sum())
    found = judged(write_pngs(tmp_path / "p", maps), folded)
    assert found["pixel_accuracy"] == pytest.approx(hits / pixels)
    assert [row["name"] for row in found["classes"]] == ["ground", "box", "background"]


def test_per_class_ious_give_two_means(tmp_path: Path) -> None:
    path = tmp_path / "i.csv"
    path.write_bytes(b'\xef\xbb\xbfclass,iou_percent\r\ncat,50\r\n"sofa, couch",25.0\r\ndog,nan\r\ncow,0\r\n')
    found = physseg.evaluate_predictions(path)
    assert isinstance(found, ClassIous)
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert (document["miou"], document["miou_union_lowest"]) == (0.25, 0.1875)
    assert "25.00%" in found.table() and "18.75%" in found.table() and "lowest" in found.table()


def test_missing_and_surplus_predictions_are_named(manifest: Manifest, tmp_path: Path) -> None:
    maps = guess(manifest)
    gone = maps.pop("001")
    folder = write_pngs(tmp_path / "p", maps | {"deep/other": gone})
    with pytest.raises(EvaluationError, match=r"1 of 4 samples have no prediction: 001; 1 are of no sample: deep/oth"):
        physseg.evaluate_predictions(folder, manifest)
    found = judged(folder, manifest, allow_missing=True)
    assert (found["num_images"], found["missing"], found["surplus"]) == (3, ["001"], ["deep/other.png"])
    assert len(found["notes"]) == 3
    write_pngs(folder, {"000": gone}, "_labels.png")
    with pytest.raises(EvaluationError, match="one prediction of sample 000"):
        physseg.evaluate_predictions(folder, manifest, allow_missing=True)


def test_sizes_ids_and_broken_files_are_one_line_each(manifest: Manifest, tmp_path: Path) -> None:
    maps = guess(manifest)
    maps["000"] = maps["000"][:-1]
    maps["001"][0, :3] = 200
    folder = write_pngs(tmp_path / "p", maps)
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:-20])
    with pytest.raises(EvaluationError) as caught:
        physseg.evaluate_predictions(folder, manifest)
    lines = str(caught.value.args[0]).splitlines()
    assert "3 predictions cannot be scored" in lines[0] and len(lines) == 4
    assert "sample 000: 47 x 64" in lines[1] and "got id 200 (3 px)" in lines[2] and "sample 002: " in lines[3]


def first_mask(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda entries: change(entries[0])


@pytest.mark.parametrize(
    ("damage", "token"),
    [
        (lambda entries: entries.append(dict(entries[0])), "second mask"),
        (lambda entries: entries[1].update(segmentation=entries[0]["segmentation"]), "earlier mask"),
        (lambda entries: entries.pop(0), "in no mask"),
        (lambda entries: entries.append(entries[0] | {"file_name": "/else/000.png"}), "one file"),
        (first_mask(lambda entry: entry.update(category_id=-1)), "category_id"),
        (first_mask(lambda entry: entry.update(category_id=1.0)), "category_id"),
        (first_mask(lambda entry: entry.update(category_id=10**9)), "category_id"),
        (first_mask(lambda entry: entry.pop("file_name")), "no file_name"),
        (first_mask(lambda entry: entry["segmentation"].update(size=[64, 48])), "48 x 64"),
        (first_mask(lambda entry: entry["segmentation"].update(counts="oooooooooo0")), "run"),
        (first_mask(lambda entry: entry["segmentation"].update(counts="")), "run"),
        (first_mask(lambda entry: entry.update(segmentation=None)), "category"),
        (list.clear, "empty list"),
    ],
)
def test_detectron2_files_that_are_wrong(
    manifest: Manifest, tmp_path: Path, damage: Callable[[list[Any]], Any], token: str
) -> None:
    entries = entries_of(guess(manifest))
    damage(entries)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(EvaluationError, match=token):
        physseg.evaluate_predictions(path, manifest)


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("1,2\n3\n", "line 2"),
        ("1,2,3\n4,5,6\n", "square"),
        ("1,-2\n3,4\n", "0 or more"),
        ("1,0.5\n3,4\n", "whole numbers"),
        ("1,nan\n3,4\n", "finite"),
        ("1,inf\n3,4\n", "finite"),
        ("1,x\n3,4\n", "a number"),
        (f"1,{2**63}\n3,4\n", "63 bits"),
        ("1e308,1e308\n1e308,1e308\n", "63 bits"),
        (f"1,{10**400}\n3,4\n", "finite"),
        ("class,iou_percent\na\x9bb,1\n", r"U\+009B"),
        ("", "square"),
        ("class,iou_percent\n", "a line for each class"),
        ("class,iou_percent\na,101\n", "0..100"),
        ("class,iou_percent\na,-1\n", "0..100"),
        ("class,iou_percent\na,b,1\n", "quote"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_tables_that_are_wrong(tmp_path: Path, text: str, token: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=token) as caught:
        physseg.evaluate_predictions(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("largest", "doubted"), [("0.7", True), ("1.0", True), ("1.2", False), ("0", False), ("nan", False)]
)
def test_ious_that_look_like_fractions_are_doubted_and_read(tmp_path: Path, largest: str, doubted: bool) -> None:
    """A model at chance has such IoUs, too."""
    (tmp_path / "t.csv").write_text(f"class,iou_percent\na,0\nb,{largest}\n")
    found = physseg.evaluate_predictions(tmp_path / "t.csv")
    assert ("fractions" in found.table()) == doubted
    assert found.document()["classes"][0]["iou"] == 0


def test_archives_and_places_that_are_wrong(manifest: Manifest, tmp_path: Path) -> None:
    np.savez(tmp_path / "no.npz", matrix=np.eye(2))
    np.savez(tmp_path / "names.npz", confusion=np.eye(2), classes=np.array(["a"]))
    images = {f"image_{part}": np.ones((1, 2), int) for part in ("hits", "true", "predicted")}
    np.savez(tmp_path / "images.npz", confusion=2 * np.eye(2), image_ids=np.array(["a"]), **images)
    np.savez(tmp_path / "object.npz", confusion=np.array([[{}]], dtype=object))
    np.savez(tmp_path / "text.npz", confusion=np.array([["a"]]))
    np.savez(tmp_path / "control.npz", confusion=np.eye(2), classes=np.array(["a", "b\x1b[2J"]))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    for name in (
        "no.npz",
        "names.npz",
        "images.npz",
        "object.npz",
        "text.npz",
        "torn.npz",
        "empty",
        "none",
        "none.npz",
        "none.json",
    ):
        with pytest.raises(EvaluationError, match=name):
            physseg.evaluate_predictions(tmp_path / name, manifest)
    with pytest.raises(EvaluationError, match=r"control\.npz: classes: .*U\+001B"):
        physseg.evaluate_predictions(tmp_path / "control.npz")
    (tmp_path / "result.json").write_text('{"miou": 0.5}')
    for known in (manifest, None):
        with pytest.raises(EvaluationError, match=rf"judge the counts: {tmp_path}/result\.npz"):
            physseg.evaluate_predictions(tmp_path / "result.json", known)
    (tmp_path / "wide.csv").write_bytes("1,2\n3,4\n".encode("utf-16"))
    with pytest.raises(EvaluationError, match="iconv -f UTF-16"):
        physseg.evaluate_predictions(tmp_path / "wide.csv")
    with pytest.raises(EvaluationError, match="name their manifest"):
        physseg.evaluate_predictions(tmp_path / "empty")


def test_judge_of_what_predict_writes_is_evaluate_to_the_last_digit(
    make_config: Callable[..., TrainConfig], train_manifest: Manifest, tmp_path: Path
) -> None:
    train(make_config(steps=1), progress=False)
    run, table = tmp_path / "run", tmp_path / "val.parquet"
    train_manifest.write(table)
    (tmp_path / "seen.txt").write_text("\n".join(train_manifest.vocabulary.classes))

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    call("evaluate", run, table, "--no-windows", "--device", "cpu")
    stem = run / "evaluations/val-step_00000001"
    expected = json.loads(stem.with_suffix(".json").read_text())
    numbers = {key: value for key, value in expected.items() if isinstance(value, list | dict | float | int)}
    for key in ("step", "protocol", "environment"):
        numbers.pop(key, None)
    assert numbers["boundary_iou"] is not None and numbers["miou_interval"] and numbers["classes"]
    for form, path in (("png", "png"), ("detectron2", "detectron2/sem_seg_predictions.json")):
        call("predict", run, table, "--format", form, "--out", tmp_path / form, "--no-windows", "--device", "cpu")
        options = [table, "--json", tmp_path / "found.json", "--trained-on", tmp_path / "seen.txt"]
        shown = call("judge", tmp_path / path, *options)
        found = json.loads((tmp_path / "found.json").read_text())
        assert {key: found[key] for key in numbers} == numbers
        assert "mIoU" in shown and "Boundary IoU" in shown
    images = Path(train_manifest.root) / "images"
    words = ["--classes-file", tmp_path / "seen.txt"]
    call(
        "predict",
        run,
        images,
        *words,
        "--format",
        "png",
        "--out",
        tmp_path / "files",
        "--no-windows",
        "--device",
        "cpu",
    )
    assert judged(tmp_path / "files", train_manifest)["miou"] == expected["miou"]
    from_matrix = judged(stem.with_suffix(".npz"))
    for key in ("miou", "miou_interval", "boundary_iou", "boundary_iou_interval"):
        assert from_matrix[key] == expected[key] is not None, key
    versions = {**expected["environment"], "device": "not known"}
    assert found["environment"] == from_matrix["environment"] == versions
