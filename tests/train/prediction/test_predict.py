"""Prediction of files: what is written, what a bad file does to the others, and the command line from end to end."""

import json
import os
import re
import struct
import tomllib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from physseg.cli import app, main
from physseg.common.settings import differing_keys, to_dict
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.inspect.drawing.label_maps import overlay
from physseg.train.config import TrainConfig
from physseg.train.errors import PredictionError
from physseg.train.loop.loop import train
from physseg.train.model.inference import Segmented
from physseg.train.prediction import predict
from physseg.train.prediction.predict import find_images, predict_files, read_words
from PIL import Image
from typer.testing import CliRunner

WORDS = Vocabulary(name="words", classes=("cat", "dog"))


class _TextOnly(torch.nn.Module):
    """As much of a segmenter as prediction touches besides `segment_image`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def tokenize(self, names: tuple[str, ...]) -> torch.Tensor:
        return torch.zeros(len(names), 1, 3, dtype=torch.int64)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(tokens.shape[0], 1, 4)


@pytest.fixture
def left_is_dog(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Predicts class 1 for the left quarter of an image, class 0 elsewhere."""

    def predicted(model: Any, image: np.ndarray, text: torch.Tensor, settings: Any) -> Segmented:
        labels = np.zeros(image.shape[:2], np.uint8 if len(text) <= 255 else np.uint16)
        labels[:, : image.shape[1] // 4] = len(text) - 1
        confidence = np.where(labels == 0, np.float32(0.4), np.float32(0.8))
        confidence[:, -1] = 0
        return Segmented(labels, confidence, np.linspace(0.5, 0.9, len(text), dtype=np.float32))

    monkeypatch.setattr(predict, "segment_with_scores", predicted)
    return _TextOnly()


def picture(path: Path, height: int = 40, width: int = 80, **options: Any) -> Path:
    Image.fromarray(np.full((height, width, 3), (200, 90, 10), np.uint8)).save(path, **options)
    return path


def test_labels_and_overlay_are_written(left_is_dog: torch.nn.Module, tmp_path: Path) -> None:
    (done,) = predict_files(left_is_dog, [picture(tmp_path / "a.jpg")], WORDS, tmp_path / "out")
    assert done.error == ""
    assert [(one.name, one.share) for one in done.classes] == [("cat", 0.75), ("dog", 0.25)]
    with Image.open(tmp_path / "out/a_labels.png") as file:
        assert file.mode == "L"
        labels = np.asarray(file)
    assert labels.shape == (40, 80)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 20:] == 0).all()
    with Image.open(tmp_path / "out/a_overlay.png") as file:
        drawn = np.asarray(file)
    with Image.open(tmp_path / "a.jpg") as file:
        image = np.asarray(file)
    np.testing.assert_array_equal(drawn, overlay(image, labels, ("cat", "dog"), ignore_index=255))


def test_scores_of_every_word_and_a_map_of_confidence(left_is_dog: torch.nn.Module, tmp_path: Path) -> None:
    """Of 80 columns 20 are dog at 0.8, 59 cat at 0.4 and one cat at 0; a sofa is nowhere."""
    words = Vocabulary(name="words", classes=("cat, kitten", "sofa", "dog"))
    image = picture(tmp_path / "a.png")
    (done,) = predict_files(left_is_dog, [image], words, tmp_path / "out", confidence=True)
    assert [(one.id, one.name, one.share) for one in done.classes] == [
        (0, "cat", 0.75),
        (2, "dog", 0.25),
        (1, "sofa", 0),
    ]
    assert [one.score for one in done.classes] == [pytest.approx(59 / 60 * 0.4), pytest.approx(0.8), None]
    assert [one.highest for one in done.classes] == pytest.approx([0.5, 0.9, 0.7])
    with Image.open(tmp_path / "out/a_confidence.png") as file:
        shades = np.asarray(file)
    assert (shades[:, :20] == 204).all() and (shades[:, 20:79] == 102).all() and not shades[:, 79].any()
    told = to_dict(done)
    assert told["confidence"] == str(tmp_path / "out/a_confidence.png") and told["image"] == str(image)
    assert json.loads(json.dumps(told))["classes"][2]["score"] is None


def test_more_than_255_classes_take_16_bits(left_is_dog: torch.nn.Module, tmp_path: Path) -> None:
    many = Vocabulary(name="many", classes=tuple(f"word {index}" for index in range(300)))
    (done,) = predict_files(left_is_dog, [picture(tmp_path / "a.png")], many, tmp_path)
    with Image.open(tmp_path / "a_labels.png") as file:
        assert file.mode == "I;16"
        assert np.asarray(file)[0, 0] == 299
    assert (done.classes[1].name, done.classes[1].share) == ("word 299", 0.25)


def test_orientation_is_applied(left_is_dog: torch.nn.Module, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (done,) = predict_files(left_is_dog, [picture(tmp_path / "a.jpg", exif=exif)], WORDS, tmp_path)
    assert done.labels is not None
    with Image.open(done.labels) as file:
        assert file.size == (40, 80)


def test_a_bad_image_is_one_line_and_the_others_are_done(left_is_dog: torch.nn.Module, tmp_path: Path) -> None:
    good = picture(tmp_path / "good.jpg")
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(good.read_bytes()[:-40])
    done = list(predict_files(left_is_dog, [torn, tmp_path / "none.jpg", good], WORDS, tmp_path / "out"))
    assert done[0].error.startswith(f"{torn}: ")
    assert done[1].error == f"{tmp_path / 'none.jpg'}: No such file or directory"
    assert all("\n" not in one.error for one in done)
    assert done[2].error == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good_labels.png", "good_overlay.png"]


def test_two_images_of_one_name_are_refused_before_anything_is_written(
    left_is_dog: torch.nn.Module, tmp_path: Path
) -> None:
    files = [picture(tmp_path / "a.jpg"), picture(tmp_path / "a.png")]
    with pytest.raises(PredictionError, match=r"a\.jpg and .*a\.png would both write a_labels\.png"):
        list(predict_files(left_is_dog, files, WORDS, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def cut_out(path: Path) -> None:
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(path.with_suffix(".png"))


def zeroed(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".jpg"))
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[:8192] + bytes(4096) + data[12288:])


def huge(path: Path) -> None:
    """The header of a PNG of 121 megapixels, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 11000, 11000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("write", "told"),
    [
        (cut_out, r"expected 8-bit RGB or greyscale, got RGBA; convert to 8-bit RGB, e\.g\. `magick"),
        (zeroed, r"libjpeg warns: Corrupt JPEG data: .*; copy or download again"),
        (huge, r"expected at most 100 megapixels, got 121 .*make it smaller \(`magick"),
        (lambda path: os.mkfifo(path.with_suffix(".png")), "a FIFO, not a regular file"),
    ],
    ids=["cut-out", "damaged", "huge", "FIFO"],
)
def test_what_a_manifest_quarantines_is_not_predicted(
    write: Callable[[Path], None], told: str, left_is_dog: torch.nn.Module, tmp_path: Path
) -> None:
    write(tmp_path / "bad")
    [file] = tmp_path.iterdir()
    [done] = predict_files(left_is_dog, [file], WORDS, tmp_path / "out")
    assert re.fullmatch(f"{file}: {told}.*", done.error)
    assert not list((tmp_path / "out").iterdir())


def test_folders_give_the_images_that_a_manifest_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ["b.JPG", "a.png", "notes.txt", ".DS_Store", "._a.png", ".c.jpg"]:
        (tmp_path / name).touch()
    assert find_images([tmp_path, Path("x.webp")]) == [tmp_path / "a.png", tmp_path / "b.JPG", Path("x.webp")]
    assert caplog.messages == [f"warning: {tmp_path}: not used: 1 .txt files, 2 hidden files"]
    (tmp_path / "notes.txt").write_text("a.png\n\n/there/b.jpg\n")
    assert find_images([tmp_path / "notes.txt"]) == [Path("a.png"), Path("/there/b.jpg")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"expected images \(\.jpg, \.jpeg, \.png\), got nothing"):
        find_images([tmp_path / "empty"])


def test_words(tmp_path: Path) -> None:
    assert read_words(" cat, red sofa ,", None).classes == ("cat", "red sofa")
    (tmp_path / "pets.txt").write_text("cat, kitten\ndog\n")
    assert read_words(None, tmp_path / "pets.txt").classes == ("cat, kitten", "dog")
    for words, file in ((None, None), ("cat", tmp_path / "pets.txt")):
        with pytest.raises(PredictionError, match="either --classes or --classes-file"):
            read_words(words, file)
    with pytest.raises(ManifestError, match="both 'cat'"):
        read_words("cat, dog, cat", None)
    with pytest.raises(ManifestError, match="at least one class"):
        read_words(" , ", None)


# --- the commands ---------------------------------------------------------------------------------------------------


def test_train_evaluate_predict_from_the_command_line(
    make_config: Callable[..., TrainConfig],
    train_manifest: Manifest,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = to_dict(make_config().model)
    del model["alignment"]
    sizes = model.pop("architecture")
    (tmp_path / "c.toml").write_text(
        f"""
        batch_size = 2
        log_every = 1
        data = {{ store = "{store.name}", crop = 96, num_workers = 0 }}
        [model]
        """
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in model.items() if value is not None)
        + "\n[model.architecture]\n"
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in sizes.items())
    )
    monkeypatch.setenv("PHYSSEG_CACHE", str(tmp_path / "cache"))
    run, val = tmp_path / "run", tmp_path / "val.parquet"
    train_manifest.write(val)

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    trained = ["train", tmp_path / "c.toml", "--out", run, "--set", "steps=2", "--set", "device=cpu"]
    assert "stopped at step 1; re-running the command resumes" in call(*trained, "--stop-at", 1)
    assert "finished at step 2" in call(*trained)
    assert "finished already" in call(*trained)
    shown = call("evaluate", run, val, "--no-windows", "--num-images", 2, "--device", "cpu", "--by-size", "--figures")
    assert "mIoU" in shown and "Boundary IoU" in shown and "mIoU, small" in shown
    assert {path.name for path in (run / "evaluations").iterdir()} == {
        *("val-step_00000002.json", "val-step_00000002.npz", "val-step_00000002.tex"),
        *(f"val-step_00000002.{name}.{form}" for name in ("classes", "confusion", "sizes") for form in ("svg", "png")),
    }
    results = json.loads((run / "evaluations/val-step_00000002.json").read_text())
    for part in ("1/2", "2/2"):
        once = ("--no-windows", "--num-images", 2, "--device", "cpu", "--by-size", "--part", part)
        call("evaluate", run, val, *once)
    parts = sorted((run / "evaluations").glob("val-*.part-*.json"))
    assert {path.suffix for path in (run / "evaluations").glob("*.part-*")} == {".json", ".npz"}  # nothing is drawn
    old = ("--no-windows", "--num-images", 2, "--device", "cpu", "--first-resize", "none", "--out", tmp_path / "old")
    call("evaluate", run, val, *old)
    protocol = json.loads((tmp_path / "old/val-step_00000002.json").read_text())["protocol"]
    assert differing_keys(results["protocol"], protocol) == {"first_resize": ("short-640", "none")}
    few = ("--no-windows", "--num-images", 2, "--device", "cpu", "--classes-kept", 1, "--out", tmp_path / "few")
    call("evaluate", run, val, *few)
    fewer = json.loads((tmp_path / "few/val-step_00000002.json").read_text())
    assert differing_keys(results["protocol"], fewer["protocol"]) == {"preselected_classes": (8, 1)}
    assert fewer["fingerprint"] != results["fingerprint"]
    assert "2 images in 2 parts" in call("evaluate", "--merge", *parts, "--out", tmp_path / "merged", "--figures")
    assert json.loads((tmp_path / "merged/val-step_00000002.json").read_text()) == results
    assert (tmp_path / "merged/val-step_00000002.classes.svg").exists()
    image = Path(train_manifest.root) / "images/000.jpg"
    out = tmp_path / "out"
    shown = call("predict", run, image, "--classes", "cat, blue sofa", "--out", out, "--no-windows", "--device", "cpu")
    assert "000_overlay.png: " in shown
    asked = ("--classes", "blue sofa, cat", "--json", tmp_path / "p.json", "--confidence", "--no-windows")
    call("predict", run, image, *asked, "--out", out, "--device", "cpu")
    scores = json.loads((tmp_path / "p.json").read_text())
    assert scores["vocabulary"] == ["blue sofa", "cat"] and scores["step"] == 2
    assert sum(one["share"] for one in scores["images"][0]["classes"]) == pytest.approx(1)
    assert Path(scores["images"][0]["confidence"]).exists()
    words = ", ".join(f"thing {number}" for number in range(120))
    for kept in (1, 120):
        few = ("--classes-kept", kept, "--out", tmp_path / f"kept{kept}", "--no-windows", "--device", "cpu")
        call("predict", run, image, "--classes", words, *few)
    with Image.open(tmp_path / "kept1/000_labels.png") as one, Image.open(tmp_path / "kept120/000_labels.png") as all_:
        assert len(one.getcolors()) == 1 < len(all_.getcolors(120))  # one crop, one class
    assert len(list((tmp_path / "cache/texts").iterdir())) == 1
    failed = CliRunner().invoke(
        app, ["predict", str(run), str(image), "none.jpg", "--classes", "cat", "--out", str(out), "--no-windows"]
    )
    assert failed.exit_code == 1
    assert "error: none.jpg: No such file or directory" in failed.stderr
    assert "1 of 2 images could not be predicted" in failed.stderr


def test_example_and_errors_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = CliRunner().invoke(app, ["train", "--recipes"]).stdout
    assert re.search(r"^vit-l-14 +ViT-L-14-336 +openai +336 px$", listed, re.MULTILINE)
    assert re.search(r"^eva02-b-16 +EVA02-B-16 +merged2b_s8b_b131k +384 px$", listed, re.MULTILINE)
    result = CliRunner().invoke(app, ["train", "--example"])
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["data"] == {"store": "coco.zarr"}
    monkeypatch.setattr("sys.argv", ["physseg", "train", str(tmp_path / "none.toml")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none.toml'}: no such configuration file\n  hint: ")


def test_test_sets_by_name(
    make_config: Callable[..., TrainConfig], install: Callable[..., Path], tmp_path: Path
) -> None:
    """VOC as it is unpacked; of 20b, what is no object is background, id 20, in labels and in predictions. Then one of
    another package in the same folder, of a turned picture, whose label is not.
    """
    source = (
        "class Own:\n    name, description = 'own', 'Two pictures.'\n"
        "    def find(self, root, split):\n"
        "        at = root / 'VOCdevkit/VOC2012'\n"
        "        rows = [(n, at / f'JPEGImages/{n}.jpg', at / f'SegmentationClass/{n}.png') for n in ('one', 'two')]\n"
        "        return rows, {0: 'ground', 1: 'plane', 15: 'plane', 20: 'screen', 255: None}\n"
    )
    install("own-pictures", "own = own_pictures:Own", source, "datasets")
    train(make_config(steps=1), progress=False)
    voc = tmp_path / "archives/VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("one\ntwo\n")
    for name, ids in (("one", [0, 1, 255]), ("two", [0, 20, 15])):
        turned = Image.Exif()
        turned[0x0112] = 6  # the benchmarks' tools do not turn pictures, nor does `physseg manifest` of one
        Image.fromarray(np.full((60, 90, 3), 90, np.uint8)).save(voc / f"JPEGImages/{name}.jpg", exif=turned)
        labels = Image.fromarray(np.repeat(np.array(ids, np.uint8), 30)[None].repeat(60, axis=0), mode="P")
        labels.putpalette(list(range(256)) * 3)
        labels.save(voc / f"SegmentationClass/{name}.png")
    arguments = ["evaluate", str(tmp_path / "run"), "--root", str(tmp_path / "archives")]
    done = CliRunner().invoke(
        app,
        [
            *(*arguments, *(f"--benchmark={name}" for name in ("pascal-voc-20", "pascal-voc-20b", "own"))),
            *("--device=cpu", "--figures"),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    assert "| mIoU | A-847 | PC-459 | A-150 | PC-59 | PAS-20 | PAS-20b |" in done.stdout
    latex = (tmp_path / "run/evaluations/paper-step_00000001.tex").read_text()
    assert "mIoU & A-847 & PC-459 & A-150 & PC-59 & PAS-20 & PAS-20b" in latex
    documents = [
        json.loads((tmp_path / f"run/evaluations/{name}-step_00000001.json").read_text())
        for name in ("pascal-voc-20", "pascal-voc-20b", "own")
    ]
    true = [{row["name"]: row["true_pixels"] for row in document["classes"]} for document in documents]
    assert [sum(pixels.values()) for pixels in true] == [
        3 * 1800,
        5 * 1800,
        5 * 1800,
    ]  # void and (in 20) background out
    assert [len(pixels) for pixels in true] == [20, 21, 3]
    assert true[1]["background"] == 2 * 1800
    assert {name for name, pixels in true[0].items() if pixels} == {"aeroplane", "person", "tvmonitor"}
    assert true[2] == {"ground": 2 * 1800, "plane": 2 * 1800, "screen": 1800}
    unknown = CliRunner().invoke(app, [*arguments, "--benchmark", "voc"])
    assert unknown.exit_code == 2


def test_a_manifests_samples_in_every_form_and_a_bad_one_among_them(
    left_is_dog: torch.nn.Module, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = make_manifest(3)
    (Path(manifest.root) / manifest.samples[1].image_path).write_bytes(b"torn")
    names = {"pictures": ("_labels.png", "_overlay.png"), "png": (".png",), "detectron2": ()}
    for form, endings in names.items():
        out = tmp_path / form
        done = list(predict_files(left_is_dog, manifest, WORDS, out, form=form))  # type: ignore[arg-type]
        assert [bool(one.error) for one in done] == [False, True, False]
        assert done[1].error.startswith("sample 001: ") and "\n" not in done[1].error
        written = {f"{name}{ending}" for name in ("000", "002") for ending in endings}
        assert {path.name for path in out.iterdir()} == (written or {"sem_seg_predictions.json"})
    entries = json.loads((tmp_path / "detectron2/sem_seg_predictions.json").read_text())
    assert [Path(entry["file_name"]).stem for entry in entries] == ["000", "000", "002", "002"]


def test_confidence_goes_with_pictures() -> None:
    done = CliRunner().invoke(app, ["predict", "run", "a.jpg", "--classes", "cat", "--confidence", "--format", "png"])
    assert done.exit_code == 2 and "--confidence" in done.output


def test_root_without_a_manifest_is_refused() -> None:
    for form in ([], ["--format", "png"]):
        done = CliRunner().invoke(app, ["predict", "run", "a.jpg", "--classes", "cat", "--root", "there", *form])
        assert done.exit_code == 2 and "--root" in done.output


@pytest.mark.parametrize(
    ("form", "folder", "image"), [("png", "images", True), ("png", "labels", False), ("pictures", "images", True)]
)
def test_nothing_that_is_read_is_overwritten(
    form: Any,
    folder: str,
    image: bool,
    left_is_dog: torch.nn.Module,
    make_manifest: Callable[..., Manifest],
    tmp_path: Path,
) -> None:
    """Of a manifest, its labels are not either; a link does not hide the folder."""
    manifest = make_manifest(2)
    file = Path(manifest.root) / manifest.samples[0].label_path
    images: Any = manifest
    if image:
        file = tmp_path / f"photographs/cat{'' if form == 'png' else '_overlay'}.png"
        file.parent.mkdir()
        Image.new("RGB", (8, 8)).save(file)
        Image.new("RGB", (8, 8)).save(file.with_name("cat.jpg"))
        images = [file] if form == "png" else [file, file.with_name("cat.jpg")]
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file.parent)
    with pytest.raises(PredictionError, match=f"{file.name} is read.*\n.*--out"):
        list(predict_files(left_is_dog, images, WORDS, tmp_path / "link", form=form))
    assert file.read_bytes() == before
    assert all(not one.error for one in predict_files(left_is_dog, images, WORDS, tmp_path / "out", form=form))
