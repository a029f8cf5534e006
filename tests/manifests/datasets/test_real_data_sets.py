"""Genuine samples of published data sets, where the shared folder is at hand; figures counted independently."""

import json
from pathlib import Path

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.annotations.coco_json import paint, read_annotations
from physseg.manifests.datasets.coco_stuff import coco_stuff_ids, coco_stuff_vocabulary
from physseg.manifests.errors import ManifestError
from PIL import Image
from pycocotools import mask as coco_mask

DATA = Path(__file__).parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="no shared folder with real photographs beside the repository"
)


def test_coco_stuff_table_equals_the_independent_one():
    tables = json.loads((DATA / "id_maps.json").read_text())["coco_stuff_171"]
    assert coco_stuff_ids().raw_to_class == {int(k): v for k, v in tables["png_value_to_index"].items()}
    names = json.loads((DATA / "vocabularies.json").read_text())["coco_stuff_171"]
    assert list(coco_stuff_vocabulary().classes) == names


def test_coco_stuff_pictures():
    checked = published.benchmark(
        "coco-stuff", images=DATA / "coco_stuff/images", labels=DATA / "coco_stuff/stuffthingmaps"
    ).checked
    assert len(checked.manifest) == 13
    assert not checked.manifest.quarantined
    table = {
        int(k): v
        for k, v in json.loads((DATA / "id_maps.json").read_text())["coco_stuff_171"]["png_value_to_index"].items()
    }
    for index in (0, 12):
        image, labels = checked.manifest.load(index)
        sample = checked.manifest.samples[index]
        raw = np.asarray(Image.open(DATA / "coco_stuff" / sample.label_path))
        assert image.shape[:2] == labels.shape == raw.shape
        assert (labels == np.vectorize(lambda value: table.get(value, 255))(raw)).all()


def test_coco_stuff_json_segments_cover_their_areas():
    path = DATA / "coco_stuff_json/stuff_examples.json"
    data = json.loads(path.read_text())
    for number, image in read_annotations([path]).items():
        label = paint(image)
        entries = [e for e in data["annotations"] if e["image_id"] == number and e["category_id"] != 183]
        for entry in entries:
            painted = label == entry["category_id"] - 1
            assert painted.sum() == entry["area"]
            assert (painted == coco_mask.decode(entry["segmentation"])).all()
        assert (label == 255).sum() == label.size - sum(entry["area"] for entry in entries)


def test_panoptic_annotations_are_refused(tmp_path):
    panoptic = DATA / "coco_panoptic"
    with pytest.raises(ManifestError, match=r"annotation 15: .*got 184"):
        published.benchmark(
            "coco-stuff",
            stuff_json=panoptic / "detection_format_rle.json",
            images=panoptic / "images",
            write_labels=tmp_path / "labels",
        )


def test_voc_palette_pictures(tmp_path):
    names = json.loads((DATA / "vocabularies.json").read_text())["pascal_voc_20"]
    (tmp_path / "voc.txt").write_text("\n".join(["background", *names]))
    voc = DATA / "voc"
    checked = published.benchmark(
        "folder",
        images=voc / "JPEGImages",
        labels=voc / "SegmentationClassAug",
        classes=tmp_path / "voc.txt",
        name="voc",
    ).checked
    assert len(checked.manifest) == 240
    assert not checked.manifest.quarantined
    assert [name for name, n in zip(names, checked.class_pixels[1:], strict=True) if not n] == ["aeroplane"]
    sample = checked.manifest.samples[100]
    assert (checked.manifest.load(100)[1] == np.asarray(Image.open(voc / sample.label_path))).all()


def test_msrc_with_a_split_list(tmp_path):
    msrc = DATA / "msrc"
    (tmp_path / "msrc.txt").write_text("\n".join(json.loads((msrc / "classes.json").read_text())["classes"]))
    (tmp_path / "val.txt").write_text("\n".join(json.loads((msrc / "splits.json").read_text())["val"]))
    checked = published.benchmark(
        "folder",
        images=msrc / "images",
        labels=msrc / "labels",
        classes=tmp_path / "msrc.txt",
        listed=tmp_path / "val.txt",
        split="val",
    ).checked
    assert len(checked.manifest) == 100
    assert not checked.manifest.quarantined
    assert (checked.class_pixels > 0).sum() >= 20
