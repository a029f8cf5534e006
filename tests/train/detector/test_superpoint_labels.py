"""Textures, labels of pictures, and training pictures drawn from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from physseg.structure_extractors.errors import ExtractorError
from physseg.train.detector import labelling
from physseg.train.detector.labelling import LabelSettings
from physseg.train.detector.labels import Labelled
from physseg.train.detector.pictures.files import find_pictures, read_grey
from physseg.train.detector.pictures.sources import LabelledImages
from PIL import Image


def write_pictures(folder: Path, number: int) -> None:
    labelling.write_textures(folder, number=number, seed=0, size=(64, 80))


def test_textures_do_not_depend_on_how_many_there_are(tmp_path):
    write_pictures(tmp_path, 2)
    first = (tmp_path / "texture_00001.png").read_bytes()
    write_pictures(tmp_path, 3)
    assert find_pictures(tmp_path) == [f"texture_0000{index}.png" for index in range(3)]
    assert (tmp_path / "texture_00001.png").read_bytes() == first
    assert np.asarray(Image.open(tmp_path / "texture_00002.png")).shape == (64, 80)


def test_a_damaged_picture_is_named_before_anything_is_learnt_of_it(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8))
    for form in ("PNG", "JPEG", "PPM", "BMP", "WEBP"):
        picture.save(tmp_path / "a", form, quality=100)
        assert read_grey(tmp_path / "a", (20, 30)).shape == (20, 30)
        assert abs(read_grey(tmp_path / "a").astype(int) - np.asarray(picture)).mean() < 3
    picture.save(tmp_path / "a", "JPEG", quality=95)
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:8192] + bytes(4096) + data[12288:])
    with pytest.raises(ExtractorError, match="a: libjpeg warns: Corrupt JPEG data"):
        read_grey(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ExtractorError, match="a: expected a picture, got 0 bytes"):
        read_grey(tmp_path / "a")
    with pytest.raises(ExtractorError, match="b: expected a picture, got: No such file"):
        read_grey(tmp_path / "b")


def test_labels_resume_and_read_back(tmp_path, tiny_weights, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "labels.npz"
    write_pictures(pictures, 2)
    options = LabelSettings(size=(64, 80), adaptation=2, threshold=0.0, max_points=9)
    labelling.label(pictures, out, tiny_weights, options)
    write_pictures(pictures, 3)
    labelled = labelling.label(pictures, out, tiny_weights, options)
    assert labelled.names == tuple(f"texture_0000{index}.png" for index in range(3))
    read = Labelled.read(out)
    for index in range(3):
        np.testing.assert_array_equal(read.keypoints(index), labelled.keypoints(index))
        assert read.keypoints(index).shape == (9, 2)
    assert ((read.points >= 4) & (read.points < (76, 60))).all()
    whole = labelling.label(pictures, tmp_path / "whole.npz", tiny_weights, options)
    np.testing.assert_array_equal(whole.points, labelled.points)
    with pytest.raises(ExtractorError, match="other settings"):
        labelling.label(pictures, out, tiny_weights, replace(options, adaptation=3))
    monkeypatch.setattr(labelling, "SPREAD_PX", 0.0)  # as labels of another version of the code
    with pytest.raises(ExtractorError, match="other settings"):
        labelling.label(pictures, out, tiny_weights, options)


def test_another_picture_of_the_same_name_is_labelled_anew_and_is_not_learnt_from(tmp_path, tiny_weights):
    pictures, out = tmp_path / "pictures", tmp_path / "labels.npz"
    write_pictures(pictures, 2)
    options = LabelSettings(size=(64, 80), adaptation=2, threshold=0.0, max_points=9)
    before = labelling.label(pictures, out, tiny_weights, options)
    (pictures / "texture_00001.png").write_bytes((pictures / "texture_00000.png").read_bytes())
    source = LabelledImages(pictures, Labelled.read(out), 0.0)
    with pytest.raises(ExtractorError, match=r"texture_00001\.png: another picture than was labelled"):
        for seed in range(20):
            source.draw(np.random.default_rng(seed), (32, 40))
    after = labelling.label(pictures, out, tiny_weights, options)
    np.testing.assert_array_equal(after.keypoints(0), before.keypoints(0))
    np.testing.assert_array_equal(after.keypoints(1), before.keypoints(0))
    assert not np.array_equal(after.keypoints(1), before.keypoints(1))


def test_labels_of_an_earlier_version_know_no_pictures_and_are_kept(tmp_path, tiny_weights, monkeypatch):
    pictures, out = tmp_path / "pictures", tmp_path / "labels.npz"
    write_pictures(pictures, 2)
    options = LabelSettings(size=(64, 80), adaptation=2, threshold=0.0, max_points=9)
    replace(labelling.label(pictures, out, tiny_weights, options), digests=()).write(out)
    assert LabelledImages(pictures, Labelled.read(out), 0.0).draw(np.random.default_rng(0), (32, 40))
    monkeypatch.setattr(labelling, "infer", lambda *_: pytest.fail("labelled again"))
    assert len(labelling.label(pictures, out, tiny_weights, options).digests) == 2


def test_of_corners_that_are_as_probable_the_strongest_are_taken(tmp_path, tiny_weights, monkeypatch):
    """Squares of rising contrast: strength grows with its square, and the points are those of the strongest."""
    picture = np.full((64, 80), 100, np.uint8)
    for number, left in enumerate((12, 36, 60)):
        picture[28:40, left : left + 12] = 100 + 20 * (number + 1)
    found = labelling.corner_strength(picture)
    np.testing.assert_allclose([found[28, 36] / found[28, 12], found[28, 60] / found[28, 12]], [4, 9], rtol=0.01)
    assert found[10, 40] == 0
    (tmp_path / "pictures").mkdir()
    Image.fromarray(picture).save(tmp_path / "pictures" / "squares.png")
    monkeypatch.setattr(labelling, "infer", lambda *_: np.full((64, 80), 0.5, np.float32))
    options = LabelSettings(size=(64, 80), adaptation=2, threshold=0.1, max_points=4)
    points = labelling.label(tmp_path / "pictures", tmp_path / "labels.npz", tiny_weights, options).points
    corners = np.array([(x, y) for x in (60, 71) for y in (28, 39)])
    assert sorted(np.linalg.norm(points[:, None] - corners, axis=-1).argmin(axis=1)) == [0, 1, 2, 3]
    assert np.linalg.norm(points[:, None] - corners, axis=-1).min(axis=1).max() < 4.5  # anywhere near is as strong


def test_a_faint_corner_is_stronger_than_noise():
    noise = np.random.default_rng(0).normal(128, 4, (64, 80)).round().astype(np.uint8)
    corner = np.full((64, 80), 128, np.uint8)
    corner[:32, :40] += 8
    # Its strength is 0.65 of the corner's, and would be 1.4 times it without the blur before the gradients.
    assert labelling.corner_strength(noise).max() < 0.8 * labelling.corner_strength(corner)[32, 40]


def test_a_part_of_a_labelled_picture_has_its_keypoints(tmp_path):
    picture = np.zeros((64, 80), np.uint8)
    points = np.array([[20.0, 30.0], [50.0, 12.0], [70.0, 60.0]], np.float32)
    picture[points[:, 1].astype(int), points[:, 0].astype(int)] = 255
    Image.fromarray(picture).save(tmp_path / "dots.png")
    labels = Labelled(names=("dots.png",), size=(64, 80), points=points, offsets=np.array([0, 3]))
    seen = 0
    for seed in range(20):
        part, keypoints = LabelledImages(tmp_path, labels, 0.0).draw(np.random.default_rng(seed), (32, 40))
        inside = ((keypoints >= 0) & (keypoints < (40, 32))).all(axis=1)
        for x, y in keypoints[inside].astype(int):
            assert part[y, x] == 255
        assert (part > 0).sum() == inside.sum()
        seen += inside.sum()
    assert seen > 5


def test_a_mixture_has_both(tmp_path):
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(tmp_path / "black.png")
    labels = Labelled(
        names=("black.png",), size=(32, 40), points=np.zeros((0, 2), np.float32), offsets=np.zeros(2, int)
    )
    source = LabelledImages(tmp_path, labels, 0.3)
    drawn = [source.draw(np.random.default_rng(seed), (32, 40))[0].any() for seed in range(300)]
    assert 0.2 < np.mean(drawn) < 0.4


def test_labels_of_others_tell_no_precision():
    def labelled(made_by: str) -> Labelled:
        return Labelled(names=(), size=(8, 8), points=np.zeros((0, 2)), offsets=np.zeros(1, int), made_by=made_by)

    assert labelled('{"precision": "bfloat16"}').precision == "bfloat16"
    assert [labelled(text).precision for text in ("", "by hand", "[1]", "{}")] == [None] * 4
