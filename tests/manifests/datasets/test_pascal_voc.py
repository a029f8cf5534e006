"""Pascal VOC 20, 20b and 21: ids, the published layout, lists, and what folding does."""

from dataclasses import replace

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.pascal_voc import voc_20_ids, voc_20b_ids, voc_21_ids
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest

RAW = np.array([[0, 1, 20], [255, 8, 15]], np.uint8)  # background, aeroplane, tvmonitor / void, cat, person


def devkit(toys, *, kit="VOCdevkit/VOC2012", labels="SegmentationClass", split="val", names=("2007_000033", "b")):
    for name in names:
        toys.image(f"{kit}/JPEGImages/{name}.jpg", toys.photo(2, 3))
        toys.label(f"{kit}/{labels}/{name}.png", RAW, palette=True)
    toys.image(f"{kit}/JPEGImages/not_listed.jpg")
    toys.lines(f"{kit}/ImageSets/Segmentation/{split}.txt", *names)


def manifest(toys, name, **options):
    return published.benchmark(name, root=toys.folder, **options).checked.manifest


@pytest.mark.parametrize("ids", [voc_20_ids(), voc_20b_ids()])
def test_convention_objects_are_1_to_20(ids):
    names = ids.vocabulary.classes
    assert [names[ids.raw_to_class[raw]] for raw in (1, 8, 15, 20)] == ["aeroplane", "cat", "person", "tvmonitor"]
    assert [ids.raw_to_class[raw] for raw in range(1, 21)] == list(range(20))


def test_convention_background_is_ignored_in_20_and_class_20_in_20b():
    assert voc_20_ids().raw_ignore == (0, 255)
    assert voc_20_ids().vocabulary.num_classes == 20
    assert voc_20b_ids().raw_ignore == (255,)
    assert voc_20b_ids().raw_to_class[0] == 20 == voc_20b_ids().vocabulary.fold_from
    assert voc_20b_ids().vocabulary.num_classes == 59
    assert voc_20b_ids().vocabulary.classes[19:22] == ("tvmonitor", "bag", "bed")


def test_convention_background_is_class_0_of_21():
    ids = voc_21_ids()
    assert ids.raw_to_class == {raw: raw for raw in range(21)}
    assert ids.raw_ignore == (255,)
    names = ids.vocabulary.class_names
    assert (names[0], names[1], names[8], names[20], len(names)) == ("background", "aeroplane", "cat", "tvmonitor", 21)


@pytest.mark.parametrize("root", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_labels_of_each_from_any_level_of_the_archive(toys, root):
    devkit(toys)
    folder = toys.folder / root
    plain = published.benchmark("pascal-voc-20", root=folder).checked.manifest
    assert [sample.sample_id for sample in plain.samples] == ["2007_000033", "b"]  # the list decides
    assert plain.load(0)[1].tolist() == [[255, 0, 19], [255, 7, 14]]
    with_background = published.benchmark("pascal-voc-20b", root=folder).checked.manifest
    assert with_background.load(0)[1].tolist() == [[20, 0, 19], [255, 7, 14]]
    as_in_the_files = published.benchmark("pascal-voc-21", root=folder).checked.manifest
    assert as_in_the_files.load(0)[1].tolist() == RAW.tolist()


def test_convention_folding_scores_21_classes_of_59_prompts(toys, tmp_path):
    devkit(toys)
    manifest(toys, "pascal-voc-20b").write(tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet")
    assert read.vocabulary.fold_from == 20
    assert read.vocabulary.class_names[-2:] == ("tvmonitor", "background")
    assert len(read.vocabulary.class_names) == 21
    predicted = np.array([0, 19, 20, 21, 58], np.int64)
    assert read.vocabulary.fold(predicted).tolist() == [0, 19, 20, 20, 20]
    labels = np.array([0, 20, 255], np.uint8)
    assert read.vocabulary.fold(labels).tolist() == [0, 20, 255]
    assert read.vocabulary.fold(labels).dtype == np.uint8
    plain = manifest(toys, "pascal-voc-20")
    assert plain.vocabulary.fold(predicted) is predicted
    assert len(plain.vocabulary.class_names) == 20


def test_folding_changes_the_manifest_but_no_store(toys):
    devkit(toys)
    folded = manifest(toys, "pascal-voc-20b")
    plain = replace(folded, vocabulary=replace(folded.vocabulary, fold_from=None))
    assert plain.fingerprint != folded.fingerprint
    assert plain.row_digests(0, 2) == folded.row_digests(0, 2)


def test_augmented_training_labels_have_their_own_list(toys):
    devkit(toys, labels="SegmentationClassAug", split="trainaug")
    assert len(manifest(toys, "pascal-voc-20", split="train_aug")) == 2


def test_lists_of_both_files_of_a_sample(toys):
    devkit(toys, labels="SegmentationClassAug", split="train_aug")
    lists = toys.folder / "VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt"
    lists.write_text("/JPEGImages/b.jpg /SegmentationClassAug/b.png\n")
    assert [sample.sample_id for sample in manifest(toys, "pascal-voc-20", split="train_aug").samples] == ["b"]
    lists.write_text("/JPEGImages/b.jpg /SegmentationClassAug/2007_000033.png\n")
    with pytest.raises(ManifestError, match="one name, or the two files"):
        manifest(toys, "pascal-voc-20", split="train_aug")


def test_folders_may_be_links(toys, tmp_path):
    devkit(toys)
    elsewhere = tmp_path / "disk/photographs"
    elsewhere.parent.mkdir()
    (toys.folder / "VOCdevkit/VOC2012/JPEGImages").rename(elsewhere)
    (toys.folder / "VOCdevkit/VOC2012/JPEGImages").symlink_to(elsewhere)
    assert manifest(toys, "pascal-voc-20").load(0)[1].tolist() == [[255, 0, 19], [255, 7, 14]]


def test_an_image_of_background_only_is_noted(toys):
    devkit(toys)
    toys.label("VOCdevkit/VOC2012/SegmentationClass/b.png", np.zeros((2, 3), np.uint8), palette=True)
    notes = [sample.note for sample in manifest(toys, "pascal-voc-20").samples]
    assert notes == ["", "no labelled pixel"]


def test_colours_instead_of_ids_are_quarantined(toys):
    devkit(toys)
    toys.image("VOCdevkit/VOC2012/SegmentationClass/b.png", toys.photo(2, 3))
    problems = [sample.problem for sample in manifest(toys, "pascal-voc-20").samples]
    assert problems[0] == ""
    assert "got mode RGB" in problems[1]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda kit: (kit / "JPEGImages/b.jpg").unlink(),
            r"1 of the 2 names in .*val.txt have no photograph .*\(b\)",
        ),
        (lambda kit: (kit / "SegmentationClass/b.png").unlink(), "have no label file in .*SegmentationClass"),
        (
            lambda kit: (kit / "ImageSets/Segmentation/val.txt").unlink(),
            r"list of Pascal VOC 2012, val: expected .*val.txt, none exists",
        ),
        (
            lambda kit: kit.rename(kit.with_name("VOC2007")),
            "photographs of Pascal VOC 2012, val: expected .*none exists",
        ),
    ],
)
def test_incomplete_archives_are_named_with_their_source(toys, spoil, match):
    devkit(toys)
    spoil(toys.folder / "VOCdevkit/VOC2012")
    with pytest.raises(ManifestError, match=match) as caught:
        manifest(toys, "pascal-voc-20")
    assert "VOCtrainval_11-May-2012.tar" in caught.value.hint


def test_unknown_splits_are_refused(toys):
    devkit(toys)
    with pytest.raises(ManifestError, match="val or train or trainval or train_aug, got 'test'"):
        manifest(toys, "pascal-voc-20", split="test")
