"""The generated data set: what is in which split, label maps that fit the pictures, same bytes from the same seed."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from physseg.train.demo import drawing, scenes, world
from physseg.train.demo.scenes import SceneFolders, write_scenes
from PIL import Image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SceneFolders:
    return write_scenes(tmp_path_factory.mktemp("scenes"), num_train=16, num_val=8, seed=3)


def labels_of(drawn: SceneFolders, split: str) -> dict[str, np.ndarray]:
    return {path.stem: np.array(Image.open(path)) for path in sorted(drawn.labels(split).glob("*.png"))}


def test_unseen_pairs_hold_out_each_colour_and_each_shape_once():
    assert [name.split()[0] for name in scenes.UNSEEN_THINGS] == list(scenes.COLOURS)
    assert sorted(name.split()[1] for name in scenes.UNSEEN_THINGS) == sorted(scenes.SHAPES)
    assert not set(scenes.UNSEEN_THINGS) & set(scenes.SEEN_THINGS)
    for word in (*scenes.COLOURS, *scenes.SHAPES):
        assert sum(word in name.split() for name in scenes.SEEN_THINGS) == 3, word


def test_training_classes_are_a_prefix_that_names_no_unseen_pair(drawn: SceneFolders):
    train = drawn.classes("train").read_text(encoding="utf-8").splitlines()
    val = drawn.classes("val").read_text(encoding="utf-8").splitlines()
    assert val[: len(train)] == train
    assert set(val[len(train) :]) == set(scenes.UNSEEN_THINGS)


def test_each_split_shows_its_own_classes_and_no_other(drawn: SceneFolders):
    seen, everything = len(scenes.SEEN_CLASSES), len(scenes.ALL_CLASSES)
    for split, classes in (("train", seen), ("val", everything)):
        present = np.unique(np.concatenate([labels.ravel() for labels in labels_of(drawn, split).values()]))
        assert present.tolist() == [*range(classes), 255], split


def test_files_have_the_form_of_coco_stuff(drawn: SceneFolders):
    sizes = set()
    for split, count in (("train", 16), ("val", 8)):
        images = sorted(drawn.images(split).glob("*.jpg"))
        labels = sorted(drawn.labels(split).glob("*.png"))
        assert [p.stem for p in images] == [p.stem for p in labels]
        assert len(images) == count
        for image_path, label_path in zip(images, labels, strict=True):
            with Image.open(image_path) as image, Image.open(label_path) as label:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert (label.format, label.mode) == ("PNG", "L")
                assert image.size == label.size
                sizes.add(image.size)
    assert sizes <= {(width, height) for height, width in world.SIZES}
    assert len(sizes) >= 3


def test_label_maps_fit_the_pictures(drawn: SceneFolders):
    """Inside a thing the pixels have about its colour: a swap of RGB, of x and y, or of two names would show here."""
    for stem, labels in labels_of(drawn, "train").items():
        image = cv2.imread(str(drawn.images("train") / f"{stem}.jpg"))[..., ::-1].astype(float)
        for index in np.unique(labels):
            if index == 255 or scenes.ALL_CLASSES[index] in scenes.STUFF:
                continue
            inside = cv2.erode((labels == index).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            if inside.sum() < 100:
                continue
            mean = image[inside].mean(axis=0)
            colours = {name: world.COLOURS[name][0] for name in scenes.COLOURS}
            unit = {name: np.array(rgb) / np.linalg.norm(rgb) for name, rgb in colours.items()}
            nearest = max(unit, key=lambda name: float(unit[name] @ mean))
            assert nearest == scenes.ALL_CLASSES[index].split()[0], (stem, scenes.ALL_CLASSES[index], mean)


def test_convention_pixel_edges_are_at_whole_numbers():
    covered = drawing.coverage(np.array([(3.0, 2), (9, 2), (9, 7), (3, 7)]), 12, 14)
    expected = np.zeros((12, 14))
    expected[2:7, 3:9] = 1
    np.testing.assert_array_equal(covered, expected)
    half = drawing.coverage(np.array([(3.5, 2), (9, 2), (9, 7), (3.5, 7)]), 12, 14)
    np.testing.assert_array_equal(half[2:7, 3], 0.5)


@pytest.mark.parametrize(
    "corners",
    [drawing.polar(np.full(64, 0.9)), drawing.pebble(np.random.default_rng(0)), drawing.polar(np.tile((1.1, 0.5), 5))],
)
def test_coverage_sums_to_the_area_of_the_outline(corners: np.ndarray):
    corners = corners * 41.7 + 60.3
    x, y = corners.T
    area = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    covered = drawing.coverage(corners, 120, 120)
    assert covered.sum() == pytest.approx(area, rel=0.005)
    partly_outside = drawing.coverage(corners - (60.3, 0), 120, 120)
    assert 0.2 * area < partly_outside.sum() < 0.8 * area


@pytest.mark.parametrize(
    ("shape", "share"), [("plain", 1), ("stripes", 0.5), ("dots", np.pi * 0.32**2), ("checks", 0.5)]
)
def test_shapes_cover_their_share_whatever_the_turn(shape: str, share: float):
    for seed in range(5):
        painted = drawing.painted(shape, (240, 320), 12, seed, np.random.default_rng(seed))
        assert painted.mean() == pytest.approx(share, abs=0.03)
        assert (painted.min(), painted.max()) == ((1, 1) if shape == "plain" else (0, 1))


def test_shapes_differ_in_the_way_their_names_say():
    """Along a stripe nothing changes; every dot is an island; the corners of checks touch."""
    shapes = ("stripes", "dots", "checks")
    flat = [drawing.painted(shape, (240, 240), 12, 1, np.random.default_rng(1)) > 0.5 for shape in shapes]
    islands = [cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] for mask in flat]
    assert islands[0] < 40 < islands[1]
    assert cv2.connectedComponents((~flat[1]).astype(np.uint8))[0] < 60, "the ground between dots hangs together"


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_settings_same_bytes_and_more_scenes_change_no_earlier_one(tmp_path: Path):
    write_scenes(tmp_path / "a", num_train=3, num_val=2, seed=5)
    write_scenes(tmp_path / "b", num_train=3, num_val=2, seed=5)
    write_scenes(tmp_path / "more", num_train=5, num_val=3, seed=5)
    write_scenes(tmp_path / "other", num_train=3, num_val=2, seed=6)
    a, b, more, other = (digests(tmp_path / name) for name in ("a", "b", "more", "other"))
    assert a == b
    assert a.items() <= more.items()
    pictures = [name for name in a if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 10
    assert all(a[name] != other[name] for name in pictures)
