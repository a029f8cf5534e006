"""Every reason of quarantine: named in the row, counted, never dropped; and the notes on what is handled."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from physseg.manifests import checking
from physseg.manifests.checking import REPAIRS, CheckSettings, check_samples, count_classes, shifted_ids
from physseg.manifests.datasets.coco_stuff import coco_stuff_ids
from physseg.manifests.errors import ManifestError
from physseg.manifests.labels.ids import LabelIds
from physseg.manifests.manifest import Vocabulary
from physseg.manifests.pairing import pair_files
from physseg.manifests.report import summary_lines
from PIL import Image

IDS = LabelIds(vocabulary=Vocabulary(name="ab", classes=("a", "b")), raw_to_class={0: 0, 1: 1}, raw_ignore=(255,))


def check(toys, **settings):
    """Manifest of the toy folder, which gets one good sample "good" beside whatever is there."""
    toys.pairs(["good"])
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    return check_samples(pairs, IDS, dataset="toys", split="train", settings=CheckSettings(**settings))


def row(checked, sample_id="bad"):
    return next(sample for sample in checked.manifest.samples if sample.sample_id == sample_id)


def test_good_samples(toys):
    toys.pairs(["x", "y", "z"])
    checked = check(toys)
    assert [sample.sample_id for sample in checked.manifest.samples] == ["good", "x", "y", "z"]
    sample = row(checked, "y")
    assert (sample.height, sample.width, sample.split, sample.orientation) == (24, 32, "train", 1)
    assert (sample.image_path, sample.label_path) == ("images/y.jpg", "labels/y.png")
    assert sample.image_sha256 == hashlib.sha256((toys.folder / "images/y.jpg").read_bytes()).hexdigest()
    assert sample.label_sha256 == hashlib.sha256((toys.folder / "labels/y.png").read_bytes()).hexdigest()
    assert (sample.problem, sample.note) == ("", "")
    assert checked.class_pixels.tolist() == [3 * 24 * 32, 24 * 32]
    assert checked.ignored_pixels == 0
    assert checked.manifest.root == str(toys.folder.resolve())


def test_workers_do_not_change_the_result(toys):
    toys.pairs([f"s{i}" for i in range(9)])
    assert check(toys, workers=1).manifest == check(toys, workers=4).manifest


def test_order_is_by_id_whatever_the_order_of_the_pairs(toys):
    toys.pairs(["c", "a", "b"])
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    one, other = (check_samples(given, IDS, dataset="t", split="").manifest for given in (pairs, pairs[::-1]))
    assert [sample.sample_id for sample in other.samples] == ["a", "b", "c"]
    assert one.fingerprint == other.fingerprint


def expect_problem(checked, reason, *words, sample_id="bad"):
    assert len(checked.manifest) == 2, "the table is never shorter"
    sample = row(checked, sample_id)
    assert sample.problem.split(":")[0] == reason
    assert reason in REPAIRS
    for word in words:
        assert word in sample.problem
    assert [s.sample_id for s in checked.manifest.quarantined] == [sample_id]
    assert checked.class_pixels.sum() + checked.ignored_pixels == 24 * 32, "only the good sample's pixels count"


def test_truncated_image(toys):
    toys.label("labels/bad.png")
    path = toys.image("images/bad.jpg")
    path.write_bytes(path.read_bytes()[:-40])
    checked = check(toys)
    expect_problem(checked, "unreadable image", "images/bad.jpg", "truncated")
    assert (row(checked).height, row(checked).width) == (0, 0)


@pytest.mark.parametrize(
    ("path", "reason"), [("images/bad.jpg", "unreadable image"), ("labels/bad.png", "unreadable label")]
)
def test_empty_files(path, reason, toys):
    toys.label("labels/bad.png")
    toys.image("images/bad.jpg")
    (toys.folder / path).write_bytes(b"")
    expect_problem(check(toys), reason, path, "0 bytes")


@pytest.mark.parametrize("missing", [1, 30])
def test_truncated_label(missing, toys):
    toys.image("images/bad.jpg")
    path = toys.label("labels/bad.png")
    path.write_bytes(path.read_bytes()[:-missing])
    expect_problem(check(toys), "unreadable label", "labels/bad.png")


def test_flipped_bit_in_a_label(toys):
    toys.image("images/bad.jpg")
    path = toys.label("labels/bad.png", np.random.default_rng(0).integers(0, 2, (24, 32), np.uint8))
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    expect_problem(check(toys), "unreadable label", "labels/bad.png")


def test_both_files_broken_are_both_named(toys):
    for path in (toys.image("images/bad.jpg"), toys.label("labels/bad.png")):
        path.write_bytes(b"")
    expect_problem(check(toys), "unreadable image", "images/bad.jpg", "; unreadable label: labels/bad.png")


def test_colour_label(toys):
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png", toys.photo())
    expect_problem(check(toys), "label format", "labels/bad.png", "RGB")
    assert "ids" in REPAIRS["label format"]


def test_size_mismatch(toys):
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png", np.zeros((32, 24), np.uint8))
    expect_problem(check(toys), "size mismatch", "expected 24 x 32 pixels (h x w) as images/bad.jpg, got 32 x 24")


def test_unknown_ids_are_named_with_their_pixels(toys):
    ids = np.zeros((24, 32), np.uint8)
    ids[0, :5], ids[1, 0], ids[2, :] = 7, 254, 255
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png", ids, palette=True)
    expect_problem(check(toys), "unknown ids", "labels/bad.png", "2 classes", "id 7 (5 pixels), id 254 (1 pixel)")


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("RGBA", "png"), ("LA", "png"), ("I;16", "png")])
def test_image_modes_that_decoders_read_differently(mode, suffix, toys):
    toys.label("labels/bad.png")
    if mode == "I;16":
        Image.fromarray(np.full((24, 32), 4000, np.uint16)).save(toys.image("images/bad.png"))
    else:
        toys.image(f"images/bad.{suffix}", mode=mode)
    expect_problem(check(toys), "image mode", f"images/bad.{suffix}", "expected 8-bit RGB or greyscale", mode)


def test_other_image_formats(toys):
    toys.label("labels/bad.png")
    Image.fromarray(toys.photo()).save(toys.image("images/bad.jpg"), "GIF")
    expect_problem(check(toys), "image format", "images/bad.jpg", "expected JPEG or PNG, got GIF")


def test_absurd_sizes(toys):
    toys.label("labels/bad.png")
    toys.image("images/bad.png", np.zeros((200, 200, 3), np.uint8))
    expect_problem(check(toys, max_megapixels=0.03), "image too large", "at most 0.03 megapixels, got 0.04 (200 x 200")


def test_damaged_jpegs(toys):
    """A page that a disk lost, as it is read back."""
    toys.label("labels/bad.png", np.zeros((200, 200), np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    path = toys.image("images/bad.jpg", noise)
    data = path.read_bytes()
    path.write_bytes(data[:8192] + bytes(4096) + data[12288:])
    expect_problem(check(toys), "JPEG warning", "images/bad.jpg: libjpeg warns: Corrupt JPEG data: ")
    allowed = check(toys, allow_jpeg_warnings=True)
    assert row(allowed).problem == ""
    assert row(allowed).note.startswith("JPEG warning allowed: Corrupt JPEG data: ")
    assert "note         1 x JPEG warning allowed" in list(summary_lines(allowed, None))


def test_animated_pictures(toys):
    for path, reason in (("images/bad.png", "images/bad.png"), ("labels/bad.png", "labels/bad.png")):
        toys.image("images/bad.png")
        toys.label("labels/bad.png")
        frames = [Image.fromarray(np.full((24, 32), value, np.uint8)) for value in (0, 1)]
        frames[0].save(toys.folder / path, save_all=True, append_images=frames[1:])
        expect_problem(check(toys), "animated picture", f"{reason}: expected a still picture")


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("RGB", (32, 24), (1, 1, 1)), "equal channels"),
        (Image.fromarray(np.ones((24, 32), np.float32)), "label numbers"),
        (Image.new("L", (250, 200)), "label too large"),
    ],
    ids=["three equal channels", "floating point", "large"],
)
def test_labels_with_a_repair_of_their_own(picture, reason, toys):
    toys.image("images/bad.jpg")
    toys.label("labels/bad.tif")
    picture.save(toys.folder / "labels/bad.tif")
    expect_problem(check(toys, max_megapixels=0.04), reason, "labels/bad.tif")


def test_greyscale_is_noted(toys):
    toys.label("labels/grey.png")
    toys.image("images/grey.jpg", mode="L")
    checked = check(toys)
    assert row(checked, "grey").note == "greyscale image, read as three equal channels"
    assert not checked.manifest.quarantined
    assert checked.manifest.load_image(1).shape == (24, 32, 3)


def test_palette_images_are_noted(toys):
    toys.label("labels/p.png")
    toys.image("images/p.png", mode="P")
    assert row(check(toys), "p").note == "palette image, read as its colours"


def test_unlabelled_samples_are_noted(toys):
    toys.image("images/void.jpg")
    toys.label("labels/void.png", np.full((24, 32), 255, np.uint8))
    checked = check(toys)
    assert row(checked, "void").note == "no labelled pixel"
    assert checked.ignored_pixels == 24 * 32


# --- EXIF orientation -------------------------------------------------------------------------------------------------


def turned(toys, label_size, orientation=6):
    toys.image("images/bad.jpg", orientation=orientation)
    toys.label("labels/bad.png", np.zeros(label_size, np.uint8))


@pytest.mark.parametrize(
    ("label_size", "orientation", "fits"),
    [
        ((24, 32), 6, "fits the stored image only"),
        ((32, 24), 6, "fits the turned image only"),
        ((24, 32), 3, "fits both"),
        ((9, 9), 6, "fits neither"),
    ],
)
def test_orientation_is_an_error_by_default(label_size, orientation, fits, toys):
    turned(toys, label_size, orientation)
    expect_problem(check(toys), "EXIF orientation", "images/bad.jpg", f"expected 1, got {orientation}", fits)
    assert "--exif apply" in REPAIRS["EXIF orientation"]


def test_orientation_applied(toys):
    turned(toys, (32, 24))
    checked = check(toys, exif="apply")
    sample = row(checked)
    assert (sample.height, sample.width, sample.orientation, sample.problem) == (32, 24, 6, "")
    assert sample.note == "EXIF orientation applied"
    image, labels = checked.manifest.load(0)
    assert image.shape[:2] == labels.shape == (32, 24)
    assert image[2, 20].min() > 240  # the white mark is at the top right now


def test_orientation_ignored(toys):
    turned(toys, (24, 32))
    checked = check(toys, exif="ignore")
    sample = row(checked)
    assert (sample.height, sample.width, sample.orientation, sample.problem) == (24, 32, 1, "")
    assert sample.note == "EXIF orientation ignored"
    assert checked.manifest.load(0)[0][2, 2].min() > 240


def test_the_wrong_choice_about_orientation_is_a_size_mismatch(toys):
    turned(toys, (24, 32))
    expect_problem(check(toys, exif="apply"), "size mismatch", "expected 32 x 24")


# --- the whole run ----------------------------------------------------------------------------------------------------


def test_when_nothing_is_usable_the_arguments_are_wrong(toys):
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png", np.full((24, 32), 77, np.uint8))
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    with pytest.raises(ManifestError, match=r"none of 1 samples(.|\n)*bad: unknown ids.*id 77"):
        check_samples(pairs, IDS, dataset="toys", split="")


def test_no_pairs():
    with pytest.raises(ManifestError, match="at least one"):
        check_samples([], IDS, dataset="toys", split="")


def test_a_file_that_vanishes_stops_the_run(toys):
    toys.pairs(["a", "b"])
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    (toys.folder / "labels/b.png").unlink()
    with pytest.raises(ManifestError, match=r"b\.png: cannot be read: No such file"):
        check_samples(pairs, IDS, dataset="toys", split="")


@pytest.mark.parametrize(
    "settings",
    [
        {"exif": "guess"},
        {"max_megapixels": 0},
        {"max_megapixels": float("nan")},
        {"max_megapixels": 500},
        {"workers": -1},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(ManifestError):
        CheckSettings(**settings)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_count_classes_by_hand(dtype):
    raw = np.array([[0, 1, 1], [255, 9, 1]], dtype)
    counted, unknown, seen = count_classes(raw, IDS)
    assert counted.tolist() == [1, 3, 2]
    assert unknown == "id 9 (1 pixel)"
    assert seen == {0, 1, 9, 255}


def test_ids_shifted_by_one_are_said_loudly(toys):
    """Labels of 1..2 for the classes 0..1: those that hold no 2 pass, with every class taken for the next one."""
    for stem, value in (("a", 1), ("b", 2)):
        toys.image(f"images/{stem}.jpg")
        toys.label(f"labels/{stem}.png", np.full((24, 32), value, np.uint8))
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    checked = check_samples(pairs, IDS, dataset="toys", split="")
    assert checked.raw_ids == {1, 2}
    assert [sample.sample_id for sample in checked.manifest.quarantined] == ["b"]
    [line] = [line for line in summary_lines(checked, None) if line.startswith("WARNING")]
    assert "no label holds id 0 ('a'), some hold id 2, which is one past the last class" in line
    assert "--first-id 1" in line
    with pytest.raises(ManifestError, match="none of 1 samples") as caught:
        check_samples(pairs[1:], IDS, dataset="toys", split="")
    assert "--first-id 1" in caught.value.hint
    toys.label("labels/a.png", np.array([[0, 1], [1, 2]], np.uint8).repeat(12, 0).repeat(16, 1))
    toys.label("labels/b.png")
    again = check_samples(pairs, IDS, dataset="toys", split="")
    assert not any("WARNING" in line for line in summary_lines(again, None)), "a quarantined label holds id 0"


@pytest.mark.parametrize(
    ("raw_ids", "raw_ignore", "doubted"),
    [
        ({1, 2}, (255,), True),
        ({1, 2, 255}, (255,), True),
        ({0, 1, 2}, (255,), False),  # one wrong label, not all
        ({1}, (255,), False),  # a class that is absent
        ({1, 2}, (2,), False),  # id 2 means no class
        ({1, 7}, (255,), False),
    ],
)
def test_when_ids_look_shifted(raw_ids, raw_ignore, doubted):
    assert bool(shifted_ids(replace(IDS, raw_ignore=raw_ignore), raw_ids)) == doubted


def test_coco_stuff_with_category_ids_looks_shifted():
    """The published pictures hold id - 1; tools that paint the ids themselves give 1..182."""
    assert "'person'" in shifted_ids(coco_stuff_ids(), {1, 65, 182, 255})
    assert not shifted_ids(coco_stuff_ids(), {0, 64, 181, 255})


def test_manifest_and_check_agree_on_ids(toys):
    ids = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (24, 32))
    toys.image("images/x.jpg")
    toys.label("labels/x.png", ids)
    checked = check(toys)
    labels = [checked.manifest.load(i)[1] for i in range(2)]
    assert checked.class_pixels.tolist() == [sum(int((label == c).sum()) for label in labels) for c in (0, 1)]
    assert checked.ignored_pixels == sum(int((label == 255).sum()) for label in labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (33, 1), (40, 50)])
def test_counting_by_runs_is_counting_by_pixels(shape, dtype):
    raw = np.random.default_rng(1).choice(np.array([0, 0, 0, 1, 255], dtype), shape)
    counted, _, seen = count_classes(raw, IDS)
    assert counted.tolist() == [(raw == 0).sum(), (raw == 1).sum(), (raw == 255).sum()]
    assert seen == set(raw.ravel().tolist())


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 17), (33, 8)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_sizes_that_eight_does_not_divide(size, suffix, toys):
    toys.image(f"images/odd.{suffix}", toys.photo(*size), orientation=6 if suffix == "jpg" else 1)
    toys.label("labels/odd.png", np.zeros(size[::-1] if suffix == "jpg" else size, np.uint8))
    checked = check(toys, exif="apply")
    assert not checked.manifest.quarantined
    image = checked.manifest.load_image(1)
    assert image.shape[:2] == (row(checked, "odd").height, row(checked, "odd").width)


def test_decoders_that_disagree_on_a_size(toys, monkeypatch):
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png")
    monkeypatch.setattr(checking, "decode_image", lambda *_, **__: np.zeros((4, 4, 3), np.uint8))
    toys.pairs(["good"])
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    with pytest.raises(ManifestError, match="decoders disagree on its size, 24 x 32 or about 32 x 32"):
        check_samples(pairs, IDS, dataset="toys", split="")
