"""`physseg inspect`: the figures, the pictures of single samples, the command."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from physseg.cli import main
from physseg.common.storage.location import open_storage
from physseg.common.text import evenly, format_bytes
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.inspect.drawing.label_maps import blend_labels
from physseg.pipeline.inspect.drawing.layers import weight_layer
from physseg.pipeline.inspect.drawing.palette import STRUCTURE_COLOURS, class_colours
from physseg.pipeline.inspect.errors import InspectError
from physseg.pipeline.inspect.html_page import write_page
from physseg.pipeline.inspect.pictures import write_sample
from physseg.pipeline.inspect.sample_view import SampleViews
from physseg.pipeline.inspect.summary import summarise
from physseg.pipeline.inspect.table import keypoint_histograms, summary_lines
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.commits import commit_path
from physseg.pipeline.store.errors import StoreIncompleteError
from physseg.pipeline.store.frame import Frame
from physseg.pipeline.store.schema import LABEL_ARRAYS, STATUS, arrays_of
from physseg.structure_extractors.patch_counts import CELL_PX
from physseg.structure_extractors.registry import DEFAULT, build
from PIL import Image

from ...conftest import forget_fold

FRAME = Frame(short_edge=48, max_long_edge=72, canvas=72)  # 9 cells: the last patch has only one of two
CLASSES = ("ground, floor", "box", "disc, box", "square", "ball, disc")


def renamed(manifest: Manifest, ids: dict[int, str]) -> Manifest:
    samples = [
        dataclasses.replace(sample, sample_id=ids.get(i, sample.sample_id)) for i, sample in enumerate(manifest.samples)
    ]
    return dataclasses.replace(manifest, samples=samples, vocabulary=Vocabulary(name="shapes", classes=CLASSES))


def compute(manifest: Manifest, store: Path, structures: tuple[str, ...] = ("canny", "mask_edges", "sift")) -> Path:
    preprocess(manifest, store, scheduler="sync", frame=FRAME, structures=structures, progress=False)
    return store


@pytest.fixture
def store(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    """Five samples, the last one quarantined: its image changed after the manifest was made."""
    manifest = renamed(make_manifest(5), {1: "2", 3: "a/b: c"})
    Path(manifest.root, "images/004.jpg").write_bytes(b"no longer an image")
    return compute(manifest, tmp_path / "s.zarr")


@pytest.fixture
def unfinished(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    """66 samples in two shards, of which the second is not computed."""
    manifest = make_manifest(66, sizes=((16, 24),))
    path = tmp_path / "half.zarr"
    preprocess(
        manifest, path, scheduler="sync", frame=Frame(short_edge=16, max_long_edge=24, canvas=24), progress=False
    )
    open_storage(path).delete([commit_path(1)])
    (path / "status/c/1").unlink()
    for array in ("labels/c/1/0/0", "canny/c/1/0/0"):
        (path / array).unlink()
    return path


@pytest.fixture(params=["as written", "of before"])
def folded(request: pytest.FixtureRequest, make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    """Two samples whose ids 3 and 4 are background, which stores of before say in the manifest's copy alone."""
    manifest = make_manifest(2, sizes=((48, 64),))
    words = Vocabulary(name="shapes", classes=("ground", "disc, ring", "square", "bag, sack", "bed"), fold_from=3)
    manifest = dataclasses.replace(manifest, vocabulary=words, raw_to_class={0: 0, 1: 1, 2: 2, 3: 3, 4: 3})
    store = compute(manifest, tmp_path / "f.zarr")
    if request.param == "of before":
        forget_fold(store)
    return store


# --- figures ---


def test_what_is_there_is_counted(store: Path) -> None:
    summary = summarise(store)
    assert (summary.samples, summary.done, summary.missing, summary.quarantined) == (5, 4, 0, 1)
    assert (summary.shards, summary.shards_committed, summary.damaged) == (1, 1, ())
    (entry,) = summary.quarantine
    assert (entry.index, entry.sample_id) == (4, "004")
    assert "sha256" in entry.reason
    assert summary.measured_samples == 4


def test_every_array_of_the_schema_table_is_listed_with_its_bytes(store: Path) -> None:
    summary = summarise(store)
    layers = [array for extractor in build(sorted(DEFAULT)) for array in arrays_of(extractor)]
    expected = {spec.name: spec for spec in (*LABEL_ARRAYS, *layers, STATUS)}
    assert [array.name for array in summary.arrays] == list(expected)
    for array in summary.arrays:
        size = sum(file.stat().st_size for file in (store / array.name / "c").rglob("*") if file.is_file())
        assert array.disk_bytes == size
        assert array.bytes_per_image == size / 5
        raw = np.prod(array.shape) * np.dtype(array.dtype).itemsize
        assert array.compression == pytest.approx(raw / size)
        assert array.meaning == expected[array.name].meaning
    assert summary.bytes_per_image == pytest.approx(sum(array.disk_bytes for array in summary.arrays) / 5)
    assert summary.projected_bytes == pytest.approx(summary.bytes_per_image * 118_287)
    assert summary.disk_bytes == sum(file.stat().st_size for file in store.rglob("*") if file.is_file())


def test_fill_is_measured_inside_the_frame_only(store: Path) -> None:
    import zarr

    fills = {array.name: array.fill for array in summarise(store).arrays}
    group = zarr.open_group(store, mode="r")
    inside = [(i, *map(int, group["frame_size"][i])) for i in range(4)]
    labels = np.concatenate([group["labels"][i, :h, :w].ravel() for i, h, w in inside])
    canny = np.concatenate([group["canny"][i, :h, :w].ravel() for i, h, w in inside])
    cells = np.concatenate(
        [group["cell_counts"][i, :, : -(-h // CELL_PX), : -(-w // CELL_PX)].ravel() for i, h, w in inside]
    )
    assert fills["labels"] == pytest.approx((labels != 255).mean())
    keypoints = {array.name: array.keypoints for array in summarise(store).arrays}
    assert keypoints["sift"] == tuple(np.count_nonzero(group["sift"][i, :h, :w]) for i, h, w in inside)
    assert keypoints["canny"] is None
    assert fills["canny"] == pytest.approx((canny != 0).mean())
    assert fills["cell_counts"] == pytest.approx((cells != 0).mean())
    assert fills["frame_size"] == 1
    assert fills["status"] is None


def test_layers_come_with_settings_and_progress(store: Path) -> None:
    layers = {layer.name: layer for layer in summarise(store).layers}
    assert layers["canny"].settings["low"] == 100
    assert {layer.shards_current for layer in layers.values()} == {1}


def test_an_unfinished_store(unfinished: Path) -> None:
    summary = summarise(unfinished, measure=10)
    assert (summary.done, summary.missing, summary.shards_committed) == (64, 2, 1)
    assert summary.measured_samples == 10
    labels = next(array for array in summary.arrays if array.name == "labels")
    assert labels.bytes_per_image == labels.disk_bytes / 64
    assert {layer.shards_current for layer in summary.layers} == {1}
    assert "not finished" in "\n".join(summary_lines(summary))


def test_a_store_without_any_sample(store: Path) -> None:
    open_storage(store).delete([commit_path(0)])
    (store / "status/c/0").unlink()
    summary = summarise(store)
    assert (summary.done, summary.missing, summary.bytes_per_image, summary.projected_bytes) == (0, 5, None, None)
    assert all(array.fill is None for array in summary.arrays)
    assert summary_lines(summary)


def test_only_done_samples_are_read(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from physseg.pipeline.store.reader import StoreReader

    read: list[int] = []
    original = StoreReader.planes
    monkeypatch.setattr(StoreReader, "planes", lambda self, index: (read.append(index), original(self, index))[1])
    summarise(unfinished, measure=1000)
    assert read == list(range(64))


def test_damage_is_named(store: Path) -> None:
    (store / "cell_dropped/c/0").write_bytes((store / "cell_dropped/c/0").read_bytes())
    (store / "provenance/commits/000000.json").write_text("{}")
    summary = summarise(store)
    assert summary.shards_committed == 0
    assert "not a whole commit record" in summary.damaged[0]
    assert "damaged" in "\n".join(summary_lines(summary))


def test_a_lost_file_is_named(store: Path) -> None:
    (store / "canny/c/0/0/0").unlink()
    with pytest.raises(StoreIncompleteError, match="canny"):
        summarise(store)
    assert "canny/c/0/0/0: missing" in summarise(store, measure=0).damaged[0]


def test_the_json_holds_what_the_table_says(store: Path) -> None:
    summary = summarise(store)
    content = json.loads(json.dumps(asdict(summary)))
    assert content["quarantine"][0]["sample_id"] == "004"
    assert content["layers"][0].keys() == {"name", "settings", "shards_current"}
    text = "\n".join(summary_lines(summary))
    for words in ("4 done, 0 missing, 1 quarantined", "1 of 1 committed", "118,287", "004: ", "low=100.0"):
        assert words in text
    for array in summary.arrays:
        assert array.name in text


def test_many_quarantined_samples_are_cut(store: Path) -> None:
    summary = summarise(store)
    many = dataclasses.replace(summary, quarantine=summary.quarantine * 8)
    lines = summary_lines(many)
    assert sum("004: " in line for line in lines) == 5
    assert "  and 3 more; --json - lists them all" in lines


def test_samples_are_chosen_evenly() -> None:
    assert evenly(range(10), 3) == [0, 3, 6]
    assert evenly(range(100), 4) == [0, 25, 50, 75]
    assert evenly(range(3), 10) == [0, 1, 2]
    assert evenly([], 5) == []


# --- finding ---


def test_an_id_comes_before_an_index(store: Path) -> None:
    views = SampleViews(store)
    assert views.find("2") == 1
    assert views.find("002") == 2
    assert views.find("3") == 3
    assert views.find("a/b: c") == 3


@pytest.mark.parametrize("text", ["5", "-1", "a/b", "", "9" * 40])
def test_an_unknown_sample_is_refused_with_close_matches(store: Path, text: str) -> None:
    with pytest.raises(InspectError, match=re.escape(repr(text))) as error:
        SampleViews(store).find(text)
    if text == "a/b":
        assert "did you mean 'a/b: c'?" in str(error.value)


def test_classes_are_found_by_entry_and_by_synonym(store: Path) -> None:
    views = SampleViews(store)
    assert [views.find_class(name) for name in ("ground, floor", "Floor", "box", " disc,  box", "ball")] == [
        0,
        0,
        1,
        2,
        4,
    ]
    with pytest.raises(InspectError, match="'disc'") as error:
        views.find_class("disc")
    assert "'disc, box'; 'ball, disc'" in str(error.value)
    with pytest.raises(InspectError, match="'squre'") as error:
        views.find_class("squre")
    assert "did you mean 'square'" in str(error.value)


# --- views ---


def test_a_view_is_cut_to_the_frame(store: Path) -> None:
    view = SampleViews(store).view(1)
    assert view.labels.shape == view.image.shape[:2] == (64, 48)
    assert set(view.structures) == {"canny", "mask_edges", "sift"}
    assert all(plane.shape == (64, 48) for _, plane in view.structures.values())


def test_what_nobody_here_can_draw_is_left_out(make_manifest, install: Callable[..., Path], tmp_path: Path) -> None:
    """As a later version draws it; the store says so, and everything else of it is shown."""
    source = """
from dataclasses import dataclass
import numpy as np
from physseg.plugins import ArraySpec

@dataclass(frozen=True)
class Chalk:
    name, revision = "chalk", 1
    arrays = (
        ArraySpec("chalk", "uint8", ("y", "x"), 0, "bright pixels", "chalk"),
        ArraySpec("board", "uint8", ("y", "x"), 0, "dark pixels", "edges"),
        ArraySpec("depth", "float32", ("cell_y", "cell_x"), 0, "how deep it is", units="metre"),
    )
    def __call__(self, image, labels, *, ignore_index):
        cells = [-(-side // 8) for side in labels.shape]
        bright = np.uint8(255) * (image[..., 0] > 128)
        return {"chalk": bright, "board": 255 - bright, "depth": np.ones(cells, np.float32)}
"""
    install("physseg-chalk", "chalk = physseg_chalk:Chalk", source)
    store = compute(make_manifest(2), tmp_path / "chalk.zarr", ("chalk",))
    view = SampleViews(store).view(0)
    assert list(view.structures) == ["board"]
    written = write_sample(view, tmp_path / "out")
    assert {path.stem for path in written.with_suffix("").iterdir()} == {"image", "labels", "board", "weights_ground"}
    assert any("how deep it is" in line for line in summary_lines(summarise(store)))


@pytest.mark.parametrize("index", [0, 1])
def test_patch_weights_equal_counting_the_label_map(store: Path, index: int) -> None:
    view = SampleViews(store).view(index)
    height, width = view.labels.shape
    for class_id in range(5):
        padded = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16))
        padded[:height, :width] = view.labels == class_id
        expected = padded.reshape(padded.shape[0] // 16, 16, -1, 16).mean(axis=(1, 3))
        np.testing.assert_allclose(view.patch_weights(class_id), expected, atol=1e-6)


def test_patches_cover_a_frame_that_fills_an_odd_number_of_cells(
    make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    path = compute(make_manifest(1, sizes=((48, 72),)), tmp_path / "odd.zarr")
    view = SampleViews(path).view(0)
    assert view.labels.shape == (48, 72)
    assert view.patch_weights(0).shape == (3, 5)
    assert weight_layer(view.patch_weights(0)).over(view.image, side=16).shape == (48, 72, 3)


def test_pictures_show_the_sample(store: Path, tmp_path: Path) -> None:
    view = SampleViews(store).view(0)
    overview = np.array(Image.open(write_sample(view, tmp_path, [0, 4])))
    shown = {path.stem: np.array(Image.open(path)) for path in (tmp_path / "000").iterdir()}
    expected = {"image", "labels", "canny", "mask_edges", "sift", "weights_ground", "weights_ball"}
    assert shown.keys() == expected
    np.testing.assert_array_equal(shown["image"], view.image)
    edge = view.structures["canny"][1] > 0
    assert edge.any()
    assert (shown["canny"][edge] == STRUCTURE_COLOURS[0]).all()
    height, width = view.labels.shape
    labels = shown.pop("labels")
    assert labels.shape[1] > width, "the legend"
    assert all(picture.shape == view.image.shape for picture in shown.values())
    coloured = blend_labels(view.image, view.labels, class_colours(view.vocabulary.class_names), ignore_index=255)
    written = (labels[:height, :width] != coloured).any(axis=2)
    assert written.mean() < 0.2  # the names
    assert overview.shape[0] > 3 * height, "three rows of at most three"
    assert overview.shape[1] > 3 * width


def test_pictures_are_written_under_safe_names(store: Path, tmp_path: Path) -> None:
    views = SampleViews(store)
    assert write_sample(views.view(0), tmp_path / "out").name == "000.png"
    assert write_sample(views.view(3), tmp_path / "out", [2]).name == "a_b_c-3.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000", "000.png", "a_b_c-3", "a_b_c-3.png"}
    assert (tmp_path / "out/a_b_c-3/weights_disc.png").exists()
    with Image.open(tmp_path / "out/000.png") as picture:
        assert picture.mode == "RGB"


def test_a_quarantined_sample_is_refused_with_its_reason(store: Path) -> None:
    with pytest.raises(StoreIncompleteError, match=r"4 \(004\).*sha256"):
        SampleViews(store).view(4)


def test_a_missing_sample_is_refused(unfinished: Path) -> None:
    with pytest.raises(StoreIncompleteError, match="65"):
        SampleViews(unfinished).view(65)


def test_moved_images_are_found_below_another_root(store: Path, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(InspectError, match="data") as error:
        SampleViews(store).view(0)
    assert "--root DIR" in str(error.value)
    grey = SampleViews(store).view(0, need_image=False)
    assert (grey.image == 128).all()
    assert "readable file" in grey.image_problem
    assert SampleViews(store, root=str(tmp_path / "moved")).view(0).image_problem == ""


def test_an_image_that_changed_since_is_not_drawn(store: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "data/images/000.jpg")
    with pytest.raises(InspectError, match="sha256"):
        SampleViews(store).view(0)


# --- command ---

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def physseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; returns exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["physseg", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_the_command_prints_the_table(physseg: Run, store: Path) -> None:
    code, out, _ = physseg(store)
    assert (code, "1 quarantined" in out, "mask_edges" in out) == (0, True, True)
    code, out, _ = physseg(store, "--json", "-")
    assert (code, json.loads(out)["done"]) == (0, 4)


def test_keypoints_per_image_in_bins_of_round_widths(store: Path, tmp_path: Path) -> None:
    """By hand: of at most 850 keypoints bins of 200, as eight of 100 do not reach that far."""
    summary = summarise(store)
    by_name = {array.name: array for array in summary.arrays}
    few, many = (0, 3, 7, 7), (850, 199, 200, 0)
    arrays = tuple(dataclasses.replace(by_name[name], keypoints=few if name == "sift" else None) for name in by_name)
    assert keypoint_histograms(dataclasses.replace(summary, arrays=arrays)) == {
        "sift": [(str(number), {0: 1, 3: 1, 7: 2}.get(number, 0)) for number in range(8)]
    }
    summary = dataclasses.replace(summary, arrays=(dataclasses.replace(by_name["sift"], keypoints=many),))
    labels = ["0 to 199", "200 to 399", "400 to 599", "600 to 799", "800 to 999"]
    assert keypoint_histograms(summary) == {"sift": list(zip(labels, [2, 1, 0, 0, 1], strict=True))}
    lines = summary_lines(summary)
    start = lines.index("sift: keypoints  images")
    assert lines[start + 1 : start + 3] == [
        "       0 to 199       2  ####################",
        "     200 to 399       1  ##########",
    ]
    write_page(open_storage(store), tmp_path / "page.html", samples=[0])
    assert ">sift: keypoints per image</text>" in (tmp_path / "page.html").read_text()


def test_the_command_draws_samples_and_the_page(physseg: Run, store: Path, tmp_path: Path) -> None:
    code, out, _ = physseg(store, "--sample", "000", "--sample", 2, "--out", tmp_path / "out", "--class", "ball")
    assert code == 0
    assert out.splitlines() == [f"wrote {tmp_path / 'out/000.png'}", f"wrote {tmp_path / 'out/2.png'}"]
    assert (tmp_path / "out/000/weights_ball.png").exists()
    code, out, _ = physseg(
        store, "--html", tmp_path / "page.html", "--num-images", 3, "--json", tmp_path / "facts.json"
    )
    assert "schema_version" in (tmp_path / "facts.json").read_text()
    each = format_bytes((tmp_path / "page.html").stat().st_size / 3)
    assert (code, f"samples: 3, {each} each" in out) == (0, True)


@pytest.mark.parametrize(
    "words", [("--sample", "000"), ("--out", "x"), ("--class", "box"), ("--html", "x", "--class", "box")]
)
def test_options_that_do_not_go_together(physseg: Run, store: Path, words: tuple[str, ...]) -> None:
    code, _, err = physseg(store, *words)
    assert (code, "--sample goes with" in err) == (2, True)


def test_the_command_s_errors_are_one_line_and_a_hint(physseg: Run, store: Path, tmp_path: Path) -> None:
    code, _, err = physseg(store, "--sample", "00", "--out", tmp_path / "out")
    assert (code, err.startswith("error: "), "did you mean '000'" in err) == (1, True, True)
    code, _, err = physseg(tmp_path / "none.zarr")
    assert (code, "no store here" in err) == (1, True)


# --- a folded background ---


def test_convention_background_is_shown_and_found_by_its_name(folded: Path, tmp_path: Path) -> None:
    views = SampleViews(folded)
    assert views.find_class("Background") == 3
    assert views.find_class("ring") == 1
    for word in ("bag", "sack", "bed"):
        with pytest.raises(InspectError, match=rf"no class '{word}' in shapes \(4 classes\)"):
            views.find_class(word)
    assert 3 in dict(views.view(0).shares)
    write_sample(views.view(0), tmp_path / "out", [3])
    assert (tmp_path / "out/000/weights_background.png").is_file()
    summary = summarise(folded)
    assert summary.num_classes == 4
    assert "shapes, 4 classes" in "\n".join(summary_lines(summary))


def test_the_page_of_a_folded_vocabulary(folded: Path, tmp_path: Path) -> None:
    page = write_page(folded, tmp_path / "page.html").path.read_text(encoding="utf-8")
    assert '"name": "background"' in page or '"name":"background"' in page
    assert re.search(r'data-search="[^"]*\bbackground\b', page)
    assert not re.search(r"\b(bag|sack|bed)\b", page)


def test_a_store_of_before_learns_of_the_fold_without_computing(folded: Path) -> None:
    reader = SampleViews(folded).reader
    report = preprocess(reader.manifest, folded, scheduler="sync", progress=False)
    assert report.shards_computed == 0
    document = json.loads((folded / "zarr.json").read_bytes())["attributes"]["physseg"]["vocabulary"]
    assert verify(folded).faults == ()
    assert document["fold_from"] == 3
