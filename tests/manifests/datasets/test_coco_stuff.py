"""The COCO-Stuff id table, its published folder layouts, and manifests from label pictures."""

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.coco_stuff import (
    ABSENT_CATEGORIES,
    CATEGORY_TO_CLASS,
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    coco_stuff_ids,
    coco_stuff_vocabulary,
    find_folder,
)
from physseg.manifests.errors import ManifestError


def test_convention_171_classes_of_182_categories():
    ids = coco_stuff_ids()
    assert len(ids.raw_to_class) == 171 == 182 - 11 == ids.vocabulary.num_classes
    assert sorted(ids.raw_to_class.values()) == list(range(171))
    never = {0, *range(1, 182)} - ids.raw_to_class.keys()
    assert never == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert {value + 1 for value in never} == set(ABSENT_CATEGORIES)
    assert ids.raw_ignore == (255,)
    assert ids.vocabulary.ignore_index == 255


@pytest.mark.parametrize(
    ("raw", "class_id", "name"),
    [
        (0, 0, "person"),
        (10, 10, "fire hydrant"),
        (12, 11, "stop sign"),
        (89, 79, "toothbrush"),
        (91, 80, "banner"),
        (95, 84, "building-other"),
        (181, 170, "wood"),
    ],
)
def test_convention_label_pictures_hold_category_minus_one(raw, class_id, name):
    assert coco_stuff_ids().raw_to_class[raw] == class_id == CATEGORY_TO_CLASS[raw + 1]
    assert coco_stuff_vocabulary().classes[class_id] == name


def test_ids_keep_their_order():
    assert list(CATEGORY_TO_CLASS.values()) == sorted(CATEGORY_TO_CLASS.values())
    assert list(CATEGORY_TO_CLASS) == sorted(CATEGORY_TO_CLASS)


LAYOUTS = [
    ("train2017", "stuffthingmaps/train2017"),
    ("images/train2017", "annotations/train2017"),
    ("images/train2017", "stuffthingmaps_trainval2017/train2017"),
]


@pytest.mark.parametrize(("images", "labels"), LAYOUTS)
def test_published_layouts(images, labels, toys):
    toys.pairs(["000000000001", "000000000002"], images, labels)
    checked = published.benchmark("coco-stuff", root=toys.folder, split="train2017").checked
    manifest = checked.manifest
    assert (manifest.dataset, manifest.samples[0].split, len(manifest)) == ("coco-stuff", "train2017", 2)
    assert manifest.samples[0].image_path == f"{images}/000000000001.jpg"
    assert manifest.samples[0].label_path == f"{labels}/000000000001.png"
    assert (manifest.load(1)[1] == 1).all()


def test_missing_layout_names_all_candidates(toys):
    (toys.folder / "train2017").mkdir()
    assert find_folder(toys.folder, "train2017", IMAGE_FOLDERS, "photographs") == toys.folder / "train2017"
    with pytest.raises(ManifestError) as caught:
        find_folder(toys.folder, "val2017", IMAGE_FOLDERS, "photographs")
    for word in (
        "photographs of COCO-Stuff, val2017",
        f"{toys.folder}/val2017",
        f"{toys.folder}/images/val2017",
        "--images",
    ):
        assert word in str(caught.value)
    with pytest.raises(ManifestError, match="stuffthingmaps/train2017"):
        find_folder(toys.folder, "train2017", LABEL_FOLDERS, "label pictures")
    with pytest.raises(ManifestError, match="got nothing there"):
        find_folder(toys.folder / "nowhere", "train2017", IMAGE_FOLDERS, "photographs")


def test_ids_are_mapped_and_strangers_quarantined(toys):
    ids = np.full((24, 32), 181, np.uint8)
    ids[0], ids[1] = 255, 12
    toys.image("images/good.jpg")
    toys.label("labels/good.png", ids)
    for name, raw in (("absent", 11), ("other", 182)):
        toys.image(f"images/{name}.jpg")
        toys.label(f"labels/{name}.png", np.full((24, 32), raw, np.uint8))
    checked = published.benchmark("coco-stuff", images=toys.folder / "images", labels=toys.folder / "labels").checked
    assert [(s.sample_id, s.problem.split(", got ")[1]) for s in checked.manifest.quarantined] == [
        ("absent", "id 11 (768 pixels)"),
        ("other", "id 182 (768 pixels)"),
    ]
    labels = checked.manifest.load(1)[1]
    assert labels[:3, 0].tolist() == [255, 11, 170]


def test_explicit_folders_win_over_the_root(toys):
    toys.pairs(["a"], "train2017", "mine/labels")
    checked = published.benchmark(
        "coco-stuff", root=toys.folder, split="train2017", labels=toys.folder / "mine/labels"
    ).checked
    assert checked.manifest.samples[0].label_path == "mine/labels/a.png"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "expected the folders of images and labels"),
        ({"images": "i"}, "expected the folders of images and labels"),
        ({"root": "."}, "without --split"),
        ({"root": ".", "split": "x", "images": "i", "labels": "l"}, "--root is not used"),
        ({"images": "i", "labels": "l", "stuff_json": "s"}, "or annotation files"),
        ({"images": "i", "stuff_json": "s"}, "together with a new folder"),
        ({"images": "i", "labels": "l", "write_labels": "w"}, "together with a new folder"),
    ],
)
def test_contradictory_arguments(arguments, match, tmp_path):
    paths = {key: value if key == "split" else tmp_path / value for key, value in arguments.items()}
    with pytest.raises(ManifestError, match=match):
        published.benchmark("coco-stuff", **paths)
