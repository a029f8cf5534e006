"""The page of a run: complete, by itself, and of runs that lack something."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physseg.cli import app
from physseg.common.settings import build
from physseg.manifests.vocabulary import Vocabulary
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.reader import StoreReader
from physseg.train.config import TrainConfig
from physseg.train.evaluation.metrics import ConfusionMatrix
from physseg.train.evaluation.result import Evaluation
from physseg.train.loop.loop import train
from physseg.train.report import page
from physseg.train.report.pictures import prediction_row, structure_rows
from physseg.train.runs.run_folder import RunFolder
from physseg.train.runs.run_log import read_log
from typer.testing import CliRunner

from ...conftest import write_shapes
from ..conftest import MODEL, TINIER, EchoStructures

Report = Callable[..., tuple[str, list[str]]]


class Reader(HTMLParser):
    """Addresses, captions of pictures, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.captions: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self.captions += [value or "" for name, value in attrs if name == "alt"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<line/>` opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, evaluated after each on two images; its store and its manifest."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = write_shapes(folder / "data", 7, ((100, 140), (240, 160), (96, 96), (80, 230)))
    frame = Frame(short_edge=96, max_long_edge=192, canvas=192)
    options: Any = {"structures": ["canny", "sift"], "frame": frame, "scheduler": "sync", "progress": False}
    preprocess(manifest, folder / "store.zarr", **options)
    manifest.write(folder / "val.parquet")
    values = {
        "run": str(folder / "<run>"),
        "data": {"store": str(folder / "store.zarr"), "crop": 96, "num_workers": 0},
        "model": MODEL | {"architecture": asdict(TINIER)},
        "steps": 2,
        "batch_size": 2,
        "log_every": 1,
        "device": "cpu",
        "eval": {"manifest": str(folder / "val.parquet"), "every": 1, "max_images": 2},
    }
    train(build(TrainConfig, values, base=folder), progress=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run, to be changed."""
    return RunFolder(shutil.copytree(trained / "<run>", tmp_path / "<run>"))


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """`report(run)`: the page's text and what is not shown."""

    def make(run: RunFolder, **options: Any) -> tuple[str, list[str]]:
        missing = page.write_report(run.path, tmp_path / "page.html", **{"step": None, "device": "cpu", **options})
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert not re.search(r"https?://|<script|<link|@import|url\(", text)
        assert all(address.startswith("data:image/") for address in Reader(text).addresses)
        for said in missing:
            assert said.partition(":")[0] in text
        return text, missing

    return make


def change(run: RunFolder, edit: Callable[[dict[str, Any]], None]) -> None:
    document = run.read()
    edit(document)
    run.config_file.write_text(json.dumps(document))


def test_a_page_has_curves_pictures_classes_and_settings(run: RunFolder, report: Report) -> None:
    text, missing = report(run)
    assert missing == []
    last = read_log(run.log_file, "step")[-1]
    assert f"<b>{last['eval/miou']:.1%}</b><span>last mIoU</span>" in text
    for name in ("loss/total", "loss/structure/canny", "learning_rate/clip/plain", "eval/miou", "gradient/norm"):
        assert f">{name}</text>" in text, name
    assert ">learning_rate/head/plain</text>" in text and ">learning_rate/head/norm</text>" not in text  # is the same
    captions = Reader(text).captions
    assert [name for name in captions if not name.startswith("prediction:")] == [
        *("000", "ground truth", "001", "ground truth"),
        *(
            f"{name}"
            for sample in ("000", "001", "003", "005")
            for name in (sample, "canny, cached", "canny, predicted", "sift, cached", "sift, predicted")
        ),
    ]
    assert sum(name.endswith(" of the pixels right") for name in captions) == 2
    assert "shapes, step 2: 2 images</summary>" in text and "Samples of eval.manifest" in text
    assert '<td>training.optim.learning_rate</td><td class="wide"><code>0.0002</code></td>' in text
    assert ">Confusion, shapes</text>" in text and ">IoU of classes, shapes</text>" not in text  # that is in the table
    assert "&lt;run&gt;</h1>" in text and "<run>" not in text
    assert "<b>finished</b>" in text and "<b>2</b><span>of 2 steps</span>" in text


def test_the_command_writes_into_the_run_or_where_it_is_told(run: RunFolder, trained: Path, tmp_path: Path) -> None:
    def call(*words: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["report", *map(str, words), "--device", "cpu"])
        assert result.exit_code == code, result.output
        return result.output if code == 0 else str(result.exception)

    assert f"{run.path}/report.html: " in call(run.path)
    assert "step 2" in (run.path / "report.html").read_text()
    call(run.path, "--out", tmp_path / "other.html", "--checkpoint", "best")
    assert (tmp_path / "other.html").stat().st_size > 10_000
    assert "not a run folder" in call(trained / "val.parquet", code=1)
    page = tmp_path / "none.html"
    assert "no checkpoint of step 77" in call(run.path, "--checkpoint", 77, "--out", page, code=1)
    assert not page.exists()
    assert not list(run.path.glob(".*"))


def test_a_run_of_the_version_before(run: RunFolder, report: Report) -> None:
    """It has no `log`, no result of its own evaluations, and no `classes_kept`."""
    for file in run.path.glob("evaluation*"):
        file.unlink()

    def older(document: dict[str, Any]) -> None:
        del document["training"]["log"], document["training"]["eval"]["classes_kept"]

    change(run, older)
    text, missing = report(run)
    assert missing == []
    assert ">eval/miou</text>" in text and "Nothing was evaluated" in text


def test_a_run_that_is_still_training(run: RunFolder, report: Report) -> None:
    lines = run.log_file.read_text().splitlines(keepends=True)
    run.log_file.write_text("".join(lines[:-1]) + lines[-1][:9])
    with run.locked():
        text, missing = report(run)
    assert missing == [] and "training, or killed" in text
    shutil.rmtree(run.checkpoints)
    text, missing = report(run)
    assert len(missing) == 1 and "pictures: " in missing[0] and "no checkpoint" in missing[0]
    assert ">loss/total</text>" in text


def test_a_run_without_evaluation_and_one_whose_store_is_gone(run: RunFolder, report: Report) -> None:
    """Training samples are shown instead."""

    def without(document: dict[str, Any]) -> None:
        document["training"]["eval"]["manifest"] = None

    change(run, without)
    for file in [*run.path.glob("evaluation*"), run.best_file]:
        file.unlink()
    entries = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    kept = [entry for entry in entries if "eval/miou" not in entry]
    run.log_file.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    text, missing = report(run)
    assert missing == [] and "the run has no eval.manifest" in text and "Nothing was evaluated" in text
    assert Reader(text).captions.count("ground truth") == 4
    change(run, lambda document: document["training"]["data"].update(store="/gone.zarr"))
    text, missing = report(run)
    assert [said.partition(":")[0] for said in missing] == ["predictions", "structure maps"]
    assert "/gone.zarr" in missing[0]


def test_imported_weights_have_a_page(run: RunFolder, report: Report) -> None:
    change(run, lambda document: document.update(training=None, data=None))
    for name in ("log.jsonl", "best.json", "evaluation.json"):
        (run.path / name).unlink()
    text, missing = report(run)
    assert [said.partition(":")[0] for said in missing] == ["curves"]
    assert "no training" in text and "model.hidden_dim" in text and "ground truth" not in text


def test_a_log_of_another_form_is_said(run: RunFolder, report: Report) -> None:
    run.log_file.write_text("{}\n")
    (run.evaluations / "x").parent.mkdir()
    (run.evaluations / "foreign.json").write_text("[]")
    text, missing = report(run)
    assert [said.partition(":")[0] for said in missing] == ["curves", "a result"]
    assert "Nothing was logged" in text


def test_classes_are_sorted_and_their_confusions_named() -> None:
    """By hand: rows are true classes, columns predicted ones."""
    confusion = ConfusionMatrix(4, 255)
    confusion.matrix = np.array([[6, 2, 2, 0], [0, 5, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0]])
    names, source = ("a", "b", "c", "d"), {"dataset": "letters", "step": 7}
    seen = (True, False, True, True)
    found = Evaluation(confusion=confusion, classes=names, seen=seen, num_images=1, quarantined=(), source=source)
    shown = page._confusions(found)
    rows = [(row["name"], round(row["iou"], 4), row["pixels"], row["called"], row["others"]) for row in shown]
    assert rows == [
        ("b (unseen)", 0.7143, 5, "", "a 28.6%"),
        ("a", 0.5455, 10, "b 20.0%, c 20.0%", "c 14.3%"),
        ("c", 0.5, 4, "a 25.0%", "a 40.0%"),
    ]


def test_a_prediction_stands_beside_its_truth() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    labels = np.zeros((8, 8), np.uint8)
    labels[4:], labels[0] = 1, 255
    predicted = np.zeros((8, 8), np.uint8)
    predicted[6:] = 1
    row = prediction_row("id", image, labels, predicted, Vocabulary(name="v", classes=("cat", "dog, hound", "sea")))
    assert [text for _, text in row.panels] == ["id", "ground truth", "prediction: 71.4% of the pixels right"]  # 40/56
    assert [(entry.name, entry.value) for entry in row.legend] == [
        ("cat", "37.5%"),  # the larger in both maps together; the shares are those of the truth
        ("dog", "50.0%"),
        ("(ignored)", "12.5%"),
    ]
    assert (row.panels[1][0][5, 2] == row.panels[2][0][7, 2]).all()  # the same class in the same colour
    assert row.tiled().shape[1] > 3 * 8


def test_structures_stand_beside_the_cached_ones(trained: Path) -> None:
    """A model that predicts red and green: opaque where the image is red, clear where it is not."""
    model: Any = EchoStructures()
    model.config.structures = ("canny", "sift")
    reader = StoreReader(trained / "store.zarr", ("labels", "canny", "sift"), images=True)
    row = list(structure_rows(model, reader, 96))[1]
    (image, _), (cached, _), (predicted, text), *_ = row.panels
    assert text == "canny, predicted"
    height, width = reader.frame_size(1)
    edges = reader.read(1)["canny"][:height, :width] > 0
    grey = (cached == cached[..., :1]).all(axis=2)
    np.testing.assert_array_equal(~grey, edges)
    ground = np.repeat(cv2_grey(image)[..., None], 3, axis=2)
    colour = cached[edges][0].astype(float)
    alpha = image[..., :1] / 255
    assert np.abs(predicted - (ground * (1 - alpha) + colour * alpha)).max() <= 255 / 30 + 2  # 16 levels


def cv2_grey(image: np.ndarray) -> np.ndarray:
    """Half the luma of BT.601, as a dimmed ground."""
    return image @ np.array([0.299, 0.587, 0.114]) / 2
