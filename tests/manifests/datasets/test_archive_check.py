"""`physseg manifest NAME --check`: complete archives, half of them, cut lists; what it says and returns."""

import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from physseg.manifests.datasets import ade20k, archive, builtin, coco_stuff, pascal_context, pascal_voc
from physseg.manifests.datasets.archive import Release
from physseg.manifests.manifest import Manifest
from physseg.manifests.vocabulary import published_vocabulary


def challenge(toys, numbers):
    for number in numbers:
        toys.image(f"ADEChallengeData2016/images/validation/ADE_val_{number:08d}.jpg", toys.photo(4, 6))
        toys.label(
            f"ADEChallengeData2016/annotations/validation/ADE_val_{number:08d}.png", np.full((4, 6), number, np.uint8)
        )


@pytest.fixture
def four_published(monkeypatch):
    """The challenge's validation split as if it had four images."""
    monkeypatch.setitem(ade20k.CHALLENGE, "validation", replace(ade20k.CHALLENGE["validation"], counts=(4,)))


def test_the_published_counts():
    counts = {name: release.counts for name, release in coco_stuff.RELEASES.items()}
    assert counts == {"train2017": (118287,), "val2017": (5000,)}
    assert ade20k.CHALLENGE["validation"].counts == ade20k.FULL["validation"].counts == (2000,)
    assert pascal_context.RELEASES["val"].counts == (5105, 5104)
    assert pascal_voc.RELEASES["val"].counts == (1449,)
    assert {data_set.name: data_set.splits[0] for data_set in builtin.DATA_SETS if data_set.splits} == {
        "ade20k-150": "validation",
        "ade20k-847": "validation",
        "pascal-voc-20": "val",
        "pascal-voc-20b": "val",
        "pascal-voc-21": "val",
        "pascal-context-59": "val",
        "pascal-context-60": "val",
        "pascal-context-459": "val",
    }


def test_the_id_tables_never_change():
    """They were compared with independent ones once (test_real_benchmarks does it where those are at hand)."""
    ids = ade20k.ade20k_847_ids(), pascal_context.context_ids(59, "mat"), pascal_context.context_ids(59, "colours")
    tables = [json.dumps([sorted(entry.raw_to_class.items()), list(entry.raw_ignore)]) for entry in ids]
    assert [hashlib.sha256(table.encode()).hexdigest()[:16] for table in tables] == [
        "7a48015b68f726cd",
        "4b46b289c643661f",
        "af13d43fd3c887b4",
    ]


def test_a_whole_voc_of_1449_images(toys, physseg, tmp_path):
    kit = tmp_path / "VOCdevkit/VOC2012"
    names = [f"2007_{number:06d}" for number in range(1449)]
    first = toys.image("VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg", toys.photo(4, 6))
    label = toys.label("VOCdevkit/VOC2012/SegmentationClass/2007_000000.png", np.full((4, 6), 3, np.uint8))
    for name in names[1:]:
        os.link(first, kit / f"JPEGImages/{name}.jpg")
        os.link(label, kit / f"SegmentationClass/{name}.png")
    toys.lines("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", *names)
    code, out, _ = physseg("manifest", "pascal-voc-20b", "--root", ".", "--check")
    assert code == 0
    assert "checked      Pascal VOC 2012, val: 1449 samples, every id known" in out.splitlines()
    assert "background   39 of 59 prompts count as one class" in out
    assert not list(tmp_path.glob("*.parquet"))


def test_a_complete_archive_is_checked_and_written(toys, physseg, four_published):
    challenge(toys, (1, 2, 3, 4))
    code, out, _ = physseg("manifest", "ade20k-150", "--root", ".", "--check", "--out", "m.parquet")
    assert code == 0
    assert "checked      ADE20K-150, validation: 4 samples, every id known" in out.splitlines()
    assert "next         physseg evaluate RUN m.parquet" in out.splitlines()
    assert len(Manifest.read("m.parquet")) == 4


def test_half_an_archive_is_said_and_nothing_is_written(toys, physseg, four_published, tmp_path):
    challenge(toys, (1, 3))
    toys.image("ADEChallengeData2016/images/validation/ADE_val_00000004.jpg", toys.photo(4, 6))
    labels = tmp_path / "ADEChallengeData2016/annotations/validation"
    code, out, _ = physseg("manifest", "ade20k-150", "--root", ".", "--check", "--out", "m.parquet")
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith(("incomplete", "get it"))] == [
        "incomplete   ADE20K-150, validation: expected 4 samples, got 3; missing: ADE_val_00000002",
        f"incomplete   1 of the 3 names have no label file in {labels} (ADE_val_00000004)",
        f"get it       {ade20k.CHALLENGE_SOURCE}",
    ]
    assert "samples      2: 2 usable, 0 quarantined" in out
    assert not (tmp_path / "m.parquet").exists()


def test_without_check_a_wrong_number_is_a_warning_and_a_missing_file_an_error(toys, physseg, four_published, caplog):
    challenge(toys, (1, 3))
    assert physseg("manifest", "ade20k-150", "--root", ".", "--out", "m.parquet")[0] == 0
    assert "expected 4 samples, got 2; missing: ADE_val_00000002, ADE_val_00000004" in caplog.text
    toys.image("ADEChallengeData2016/images/validation/ADE_val_00000004.jpg", toys.photo(4, 6))
    code, _, err = physseg("manifest", "ade20k-150", "--root", ".", "--out", "n.parquet")
    assert code == 1
    assert "error: 1 of the 3 names have no label file" in err
    assert "hint: complete the archive: unpack http" in err


def test_a_list_selects_and_names_absent_files(toys, physseg, four_published):
    challenge(toys, (1, 3))
    toys.lines("one.txt", "ADE_val_00000003")
    code, out, err = physseg("manifest", "ade20k-150", "--root", ".", "--list", "one.txt", "--check")
    assert (code, err) == (0, "")
    assert "checked      ADE20K-150, validation: 1 samples" in out
    toys.lines("two.txt", "ADE_val_00000003", "ADE_val_00000009")
    code, out, _ = physseg("manifest", "ade20k-150", "--root", ".", "--list", "two.txt", "--check")
    assert code == 1
    assert "1 of the 2 names in two.txt have no photograph" in out
    assert "1 of the 2 names in two.txt have no label file" in out
    toys.lines("three.txt", "ADE_val_00000003.jpg")
    code, _, err = physseg("manifest", "ade20k-150", "--root", ".", "--list", "three.txt", "--check")
    assert code == 1
    assert "hint: list names without their extension" in err


def test_unknown_ids_are_quarantine_not_incompleteness(toys, physseg, four_published):
    challenge(toys, (1, 2, 3, 4))
    toys.label("ADEChallengeData2016/annotations/validation/ADE_val_00000004.png", np.full((4, 6), 151, np.uint8))
    code, out, err = physseg("manifest", "ade20k-150", "--root", ".", "--check")
    assert code == 3
    assert "checked      ADE20K-150, validation: 4 samples, 3 of them usable, see above" in out
    assert "got id 151 (24 pixels)" in out
    assert "--allow-quarantine" in err
    assert physseg("manifest", "ade20k-150", "--root", ".", "--check", "--allow-quarantine")[0] == 0


def test_coco_stuff_is_counted_by_split(toys, physseg, monkeypatch):
    toys.pairs(["1", "2"], "images/val2017", "stuffthingmaps/val2017")
    base = ("manifest", "coco-stuff", "--root", ".", "--split", "val2017", "--check")
    code, out, _ = physseg(*base)
    assert code == 1
    assert "incomplete   COCO-Stuff, val2017: expected 5000 samples, got 2" in out.splitlines()
    assert "get it       unpack http://images.cocodataset.org/zips/val2017.zip" in out
    folders = ("--images", "images/val2017", "--labels", "stuffthingmaps/val2017")
    code, out, _ = physseg("manifest", "coco-stuff", *folders, "--check")
    assert code == 0
    assert "checked      COCO-Stuff, not counted (--split train2017 or val2017): 2 samples, every id known" in out
    monkeypatch.setitem(coco_stuff.RELEASES, "val2017", Release(title="COCO-Stuff, val2017", counts=(2,), source=""))
    code, out, _ = physseg(*base)
    assert code == 0
    assert "checked      COCO-Stuff, val2017: 2 samples, every id known" in out


def test_coco_json_is_checked_without_a_folder_for_its_pictures(toys, physseg, tmp_path):
    toys.image("val2017/a.jpg", toys.photo(2, 3))
    segment = {"id": 5, "image_id": 1, "category_id": 182, "segmentation": {"size": [2, 3], "counts": [0, 6]}}
    (tmp_path / "stuff.json").write_text(
        json.dumps(
            {
                "images": [{"file_name": "a.jpg", "id": 1, "height": 2, "width": 3}],
                "annotations": [segment],
                "categories": [{"id": 182, "name": "wood"}],
            }
        )
    )
    before = sorted(tmp_path.rglob("*"))
    base = ("manifest", "coco-stuff", "--root", ".", "--split", "val2017", "--stuff-json", "stuff.json")
    code, out, _ = physseg(*base, "--check")
    assert code == 1
    assert "classes      1 of 171 occur; 0.0% of the pixels are unlabelled" in out
    assert "COCO-Stuff, val2017: expected 5000 samples, got 1" in out
    assert sorted(tmp_path.rglob("*")) == before
    code, _, err = physseg(*base, "--out", "m.parquet")
    assert code == 1
    assert "--write-labels DIR" in err


def test_context_json_is_checked_without_a_folder_for_its_pictures(toys, physseg, tmp_path):
    (tmp_path / "VOCdevkit/VOC2010").mkdir(parents=True)
    toys.image("VOCdevkit/VOC2010/JPEGImages/a.jpg", toys.photo(2, 3))
    names = dict(enumerate(published_vocabulary("pascal-context-459").classes, start=1))
    (tmp_path / "VOCdevkit/VOC2010/trainval_merged.json").write_text(
        json.dumps(
            {
                "images": [{"file_name": "a.jpg", "image_id": 1, "phase": "val", "height": 2, "width": 3}],
                "annos_segmentation": [
                    {"image_id": 1, "category_id": 2, "segmentation": {"size": [2, 3], "counts": [0, 6]}}
                ],
                "categories": [{"category_id": raw, "name": name} for raw, name in names.items()],
            }
        )
    )
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = physseg("manifest", "pascal-context-59", "--root", ".", "--check")
    assert code == 1
    assert "expected 5105 or 5104 samples, got 1 names in" in out
    assert "classes      1 of 59 occur; 0.0% of the pixels are unlabelled" in out
    assert sorted(tmp_path.rglob("*")) == before
    code, _, err = physseg("manifest", "pascal-context-59", "--root", ".", "--out", "m.parquet")
    assert code == 1
    assert "hint: --write-labels DIR, a new folder; or --form mat" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("ade20k-150", "--root", "."),
            2,
            "expected --out FILE for a manifest, --check to look at the archive, or both",
        ),
        (("ade20k-150", "--root", "nowhere", "--check"), 1, "nowhere: expected the folder of ADE20K-150"),
        (("pascal-voc-20", "--root", ".", "--check"), 1, "hint: unpack VOCtrainval_11-May-2012.tar"),
        (("ade20k-847", "--root", ".", "--check"), 1, "hint: ask for the full data set, release 2021_17_01"),
        (("pascal-context-459", "--root", ".", "--check"), 1, "hint: unpack VOCtrainval_03-May-2010.tar"),
        (
            ("coco-stuff", "--root", ".", "--split", "val2017", "--check"),
            1,
            "hint: unpack http://images.cocodataset.org/zips/val2017.zip and stuffthingmaps",
        ),
    ],
)
def test_missing_archives_are_a_line_and_a_hint(arguments, code, message, physseg):
    got, _, err = physseg("manifest", *arguments)
    assert got == code
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_a_count_of_several_allows_any():
    release = Release(title="t", counts=(3, 2), source="", numbering="n{}")
    assert archive.miscounted(release, ["n1", "n2"]) == []
    assert archive.miscounted(release, ["n1"]) == ["t: expected 3 or 2 samples, got 1; missing: n2, n3"]
    assert archive.miscounted(release, ["a", "b", "c", "d"]) == [
        "t: expected 3 or 2 samples, got 4; missing: n1, n2, n3"
    ]
