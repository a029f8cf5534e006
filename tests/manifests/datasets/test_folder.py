"""Data sets of one's own: class files, ids, layouts."""

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.folder import find_folders, folder_ids
from physseg.manifests.errors import ManifestError


def folder(**options):
    return published.benchmark("folder", **options).checked


def test_convention_class_id_is_the_line_index(toys):
    ids = folder_ids(toys.lines("classes.txt", "sky", "road, street", "car"))
    assert ids.raw_to_class == {0: 0, 1: 1, 2: 2}
    assert ids.raw_ignore == (255,)
    assert ids.vocabulary.prompt_names == ("sky", "road", "car")


@pytest.mark.parametrize("wrong", [{"ignore": (-1,)}, {"ignore": (70000,)}, {"first_id": 65535}])
def test_ids_that_no_picture_can_hold_are_refused_before_any_is_read(wrong, toys):
    with pytest.raises(ManifestError, match=r"expected 0\.\.65535, got"):
        folder_ids(toys.lines("classes.txt", "a", "b"), **({"ignore": (0,)} | wrong))


def test_first_id_and_several_ignored_ids(toys):
    ids = folder_ids(toys.lines("classes.txt", "a", "b"), first_id=1, ignore=(0, 255))
    assert ids.raw_to_class == {1: 0, 2: 1}
    assert ids.raw_ignore == (0, 255)


@pytest.mark.parametrize(("count", "ignore"), [(255, (255,)), (256, (65535,)), (847, (65535,))])
def test_default_ignored_id_is_never_a_class(count, ignore, toys):
    assert folder_ids(toys.lines("classes.txt", *map(str, range(count)))).raw_ignore == ignore


def test_an_ignored_class_is_a_contradiction(toys):
    path = toys.lines("classes.txt", "background", "cat")
    with pytest.raises(ManifestError, match=r"classes\.txt, line 1: id 0 .*'background'") as caught:
        folder_ids(path, ignore=(255, 0))
    assert "--first-id 1 --ignore 0" in str(caught.value)


@pytest.mark.parametrize(
    ("split", "images", "labels"), [("val", "images/val", "labels/val"), (None, "images", "labels")]
)
def test_layouts(split, images, labels, toys):
    toys.pairs(["a", "b"], images, labels)
    classes = toys.lines("classes.txt", "x", "y")
    checked = folder(root=toys.folder, split=split, classes=classes)
    assert len(checked.manifest) == 2
    assert checked.manifest.samples[0].split == (split or "")
    assert checked.manifest.samples[0].image_path == f"{images}/a.jpg"
    assert checked.manifest.dataset == toys.folder.name
    assert (checked.manifest.load(1)[1] == 1).all()


def masks(toys, value, count=2, dtype=np.uint8):
    for number in range(count):
        toys.image(f"images/{number}.jpg")
        ids = np.zeros((24, 32), dtype)
        ids[:9, number] = value
        toys.label(f"labels/{number}.png", ids)


@pytest.mark.parametrize("classes", [("background", "boat"), ("boat",)])
def test_a_foreground_of_255_is_not_lost_to_the_default(classes, toys):
    masks(toys, 255)
    listed = toys.lines("classes.txt", *classes)
    with pytest.raises(ManifestError, match=rf"ids are 0 and 255 only.* all that is left is '{classes[0]}'") as caught:
        folder(root=toys.folder, classes=listed)
    assert "> 0).astype(np.uint8)" in caught.value.hint
    said = folder(root=toys.folder, classes=listed, ignore=(255,))
    assert said.ignored_pixels == 18
    masks(toys, 1)
    if len(classes) == 2:
        assert folder(root=toys.folder, classes=listed).class_pixels.tolist() == [2 * 24 * 32 - 18, 18]


def test_an_ignored_id_beside_several_classes_is_as_usual(toys):
    masks(toys, 255)
    toys.label("labels/1.png", np.ones((24, 32), np.uint8))
    assert folder(root=toys.folder, classes=toys.lines("classes.txt", "a", "b")).ignored_pixels == 9


def test_missing_folders_list_the_splits_that_are_there(toys):
    toys.pairs(["a"], "images/train", "labels/train")
    with pytest.raises(ManifestError, match=r"images/test: (.|\n)*splits there: train"):
        find_folders(toys.folder, "test")
    toys.pairs(["a"], "flat/images", "flat/labels")
    with pytest.raises(ManifestError, match="leave --split out"):
        find_folders(toys.folder / "flat", "train")
    with pytest.raises(ManifestError, match="images: expected a folder"):
        find_folders(toys.folder / "images", "")
    with pytest.raises(ManifestError, match="got nothing there"):
        find_folders(toys.folder / "nowhere", "")


def test_folders_in_different_places(toys):
    toys.pairs(["a"], "one/photos", "two/deep/masks")
    checked = folder(
        images=toys.folder / "one/photos",
        labels=toys.folder / "two/deep/masks",
        classes=toys.lines("classes.txt", "x"),
        split="test",
        name="mine",
    )
    assert checked.manifest.root == str(toys.folder.resolve())
    assert checked.manifest.samples[0].label_path == "two/deep/masks/a.png"
    assert (checked.manifest.dataset, checked.manifest.samples[0].split) == ("mine", "test")


def test_neither_root_nor_folders(toys):
    classes = toys.lines("classes.txt", "x")
    with pytest.raises(ManifestError, match="got neither"):
        folder(classes=classes, images=toys.folder)


def test_palette_grey_and_low_bit_labels_agree(toys, low_bit_png):
    """One label map in every 8-bit form that people have: all give the same class ids."""
    ids = (np.arange(24 * 32, dtype=np.uint8) % 3).reshape(24, 32)
    for name in ("grey", "palette", "bits4", "bits2", "palette4"):
        toys.image(f"images/{name}.jpg")
    toys.label("labels/grey.png", ids)
    toys.label("labels/palette.png", ids, palette=True)
    (toys.folder / "labels/bits4.png").write_bytes(low_bit_png(ids, 4, 0))
    (toys.folder / "labels/bits2.png").write_bytes(low_bit_png(ids, 2, 0))
    (toys.folder / "labels/palette4.png").write_bytes(low_bit_png(ids, 4, 3))
    checked = folder(root=toys.folder, classes=toys.lines("classes.txt", "a", "b", "c"))
    assert not checked.manifest.quarantined
    for index in range(5):
        assert (checked.manifest.load(index)[1] == ids).all()


def test_ids_beyond_255(toys):
    ids = np.full((24, 32), 299, np.uint16)
    ids[0], ids[1] = 65535, 256
    toys.image("images/a.jpg")
    toys.label("labels/a.png", ids)
    checked = folder(root=toys.folder, classes=toys.lines("classes.txt", *(f"c{i}" for i in range(300))))
    labels = checked.manifest.load(0)[1]
    assert labels.dtype == np.uint16
    assert labels[:3, 0].tolist() == [65535, 256, 299]
    assert checked.class_pixels[299] == 22 * 32
    assert checked.ignored_pixels == 32


def test_sixteen_bit_ids_outside_the_classes(toys):
    toys.pairs(["good"])
    toys.image("images/a.jpg")
    toys.label("labels/a.png", np.full((24, 32), 300, np.uint16))  # in 8 bits this would be 44, then maybe a class
    checked = folder(root=toys.folder, classes=toys.lines("classes.txt", *(f"c{i}" for i in range(100))))
    assert "got id 300 (768 pixels)" in checked.manifest.quarantined[0].problem
