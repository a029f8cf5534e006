"""Pascal Context in all its forms; ids worked out by hand from the two lists."""

import json
import struct

import numpy as np
import pytest
from physseg.manifests.datasets import pascal_context, published
from physseg.manifests.datasets.annotations.context_json import paint_image
from physseg.manifests.datasets.pascal_context import category_to_class_59, context_ids, legacy_to_class_59
from physseg.manifests.errors import ManifestError
from physseg.manifests.labels.forms import voc_palette
from physseg.manifests.report import summary_lines
from physseg.manifests.vocabulary import published_vocabulary
from PIL import Image

KIT = "VOCdevkit/VOC2010"
# Ids of the list of 459: aeroplane 2, bag 9, table 397 ("diningtable" among the 59), wood 458, unknown 431, accordion 1
RAW = np.array([[2, 9, 397], [458, 431, 1]], np.uint16)
CLASSES_59 = [[0, 1, 49], [58, 255, 255]]
CLASSES_60 = [[1, 2, 50], [59, 0, 0]]


def write_mat(path, values):
    """An uncompressed MATLAB 5 file of the uint16 matrix `LabelMap`."""

    def element(kind, body):
        return struct.pack("<II", kind, len(body)) + body + b"\0" * (-len(body) % 8)

    numbers = np.asarray(values, "<u2").tobytes(order="F")
    shape = struct.pack("<ii", *np.shape(values))
    parts = (6, struct.pack("<II", 11, 0)), (5, shape), (1, b"LabelMap"), (4, numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = element(14, b"".join(element(*part) for part in parts))
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM" + matrix)


def photographs(toys, *names):
    for name in names:
        toys.image(f"{KIT}/JPEGImages/{name}.jpg", toys.photo(2, 3))


def archive(toys, *names, listed="ImageSets/Main/val.txt"):
    photographs(toys, *names, "not_listed")
    for name in names:
        write_mat(toys.folder / KIT / "trainval" / f"{name}.mat", RAW)
    toys.lines(f"{KIT}/{listed}", *names)


def rle(mask):
    """Uncompressed run lengths down the columns, outside first."""
    flat = np.asarray(mask, bool).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    return {"size": list(np.shape(mask)), "counts": [0, *counts] if flat[0] else counts}


def segments(values, image_id, categories):
    return [
        {"image_id": image_id, "category_id": category, "segmentation": rle(np.asarray(values) == category)}
        for category in categories
    ]


def merged_json(toys, *, names=("2008_000002",), annotations=None, categories=None, **changes):
    photographs(toys, *names)
    images = [
        {"file_name": f"{name}.jpg", "image_id": 7 + number, "phase": "val", "height": 2, "width": 3}
        for number, name in enumerate(names)
    ]
    images.append({"file_name": "x.jpg", "image_id": 99, "phase": "train", "height": 2, "width": 3})
    if annotations is None:
        annotations = [entry for image in images[:-1] for entry in segments(RAW, image["image_id"], np.unique(RAW))]
    if categories is None:
        order = published_vocabulary("pascal-context-459").classes
        categories = {raw: order[raw - 1] for raw in range(1, 460)}
    data = {
        "images": images,
        "annos_segmentation": json.loads(json.dumps(annotations, default=int)),
        "categories": [{"category_id": raw, "name": name} for raw, name in categories.items()],
    }
    path = toys.folder / KIT / "trainval_merged.json"
    path.write_text(json.dumps(data | changes))
    return path


def build(toys, num_classes=59, **options):
    return published.benchmark(f"pascal-context-{num_classes}", root=toys.folder, **options).checked.manifest


def test_a_dry_run_paints_nothing(toys, monkeypatch):
    merged_json(toys)
    monkeypatch.setattr(pascal_context, "paint_context", None)
    for options in ({}, {"form": "json"}, {"write_labels": toys.folder / "new"}):
        with pytest.raises(ManifestError, match=r"paint"):
            build(toys, dry_run=True, keep=False, **options)
    assert not (toys.folder / "new").exists()


# --- tables -----------------------------------------------------------------------------------------------------------


def test_convention_59_of_459_by_ascending_id():
    table = category_to_class_59()
    assert list(table.values()) == list(range(59))
    assert list(table) == sorted(table)
    names = published_vocabulary("pascal-context-59").classes
    expected = {2: "aeroplane", 9: "bag", 284: "person", 397: "diningtable", 427: "tvmonitor", 458: "wood"}
    assert {raw: names[table[raw]] for raw in expected} == expected
    assert table[397] == 49
    assert table[458] == 58


def test_convention_the_older_form_has_vocs_objects_first():
    names = published_vocabulary("pascal-context-59").classes
    expected = {1: "aeroplane", 11: "diningtable", 20: "tvmonitor", 21: "bag", 22: "bed", 42: "curtain", 59: "wood"}
    assert {raw: names[legacy_to_class_59()[raw]] for raw in expected} == expected
    assert sorted(legacy_to_class_59().values()) == list(range(59))


def test_convention_every_pixel_counts_among_459():
    ids = context_ids(459, "mat")
    assert ids.raw_ignore == ()
    assert ids.raw_to_class[1] == 0
    assert ids.raw_to_class[459] == 458
    assert ids.vocabulary.classes[ids.raw_to_class[431]] == "unknown"
    assert ids.vocabulary.ignore_index == 65535


@pytest.mark.parametrize("form", ["mat", "painted", "json", "colours"])
def test_convention_what_is_none_of_the_59_is_background_of_60(form):
    of_59, of_60 = context_ids(59, form), context_ids(60, form)
    assert of_60.vocabulary.classes[:2] == ("background", "aeroplane")
    assert {raw: index - 1 for raw, index in of_60.raw_to_class.items() if index} == of_59.raw_to_class
    assert of_60.raw_to_class[0] == 0
    assert of_60.raw_ignore == ((255,) if form == "colours" else ())
    assert of_60.label_form == of_59.label_form
    assert of_60.raw_to_class.keys() | {*of_60.raw_ignore} == of_59.raw_to_class.keys() | {*of_59.raw_ignore}


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listed", ["pascalcontext_val.txt", "ImageSets/SegmentationContext/val.txt", "ImageSets/Main/val.txt"]
)
def test_mat_files_give_459_and_59_classes(toys, listed):
    archive(toys, "2008_000002", "b", listed=listed)
    manifest = build(toys, 459)
    assert len(manifest) == 2
    image, labels = manifest.load(0)
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[1, 8, 396], [457, 430, 0]]
    assert image.shape == (2, 3, 3)
    assert build(toys, 59).load(0)[1].tolist() == CLASSES_59
    assert build(toys, 60).load(0)[1].tolist() == CLASSES_60


def test_zero_is_an_error_among_459(toys):
    archive(toys, "a", "b")
    write_mat(toys.folder / KIT / "trainval/b.mat", RAW * 0)
    assert "got id 0 (6 pixels)" in build(toys, 459).samples[1].problem


def test_the_merged_json_is_painted_with_16_bits(toys, tmp_path):
    merged_json(toys, names=("2008_000002", "b"))
    manifest = build(toys, write_labels=tmp_path / "painted")
    assert [sample.sample_id for sample in manifest.samples] == ["2008_000002", "b"]
    assert manifest.load(1)[1].tolist() == CLASSES_59
    painted = np.asarray(Image.open(tmp_path / "painted/b.png"))
    assert painted.tolist() == RAW.tolist()
    toys.lines("names.txt", "b")
    again = build(toys, form="painted", labels=tmp_path / "painted", listed=tmp_path / "names.txt")
    assert again.load(0)[1].tolist() == CLASSES_59
    assert build(toys, 60, write_labels=tmp_path / "painted60").load(1)[1].tolist() == CLASSES_60
    with pytest.raises(ManifestError, match="expected a new or empty folder"):
        build(toys, write_labels=tmp_path / "painted")


def test_later_segments_cover_earlier_ones_in_the_files_order():
    everywhere = [[1, 1, 1], [1, 1, 1]]
    left = [[1, 0, 0], [1, 0, 0]]
    image = {"file_name": "a.jpg", "height": 2, "width": 3}
    both = [{"category_id": 458, "segmentation": rle(everywhere)}, {"category_id": 2, "segmentation": rle(left)}]
    assert paint_image(image, both, (2, 458)).tolist() == [[2, 458, 458], [2, 458, 458]]
    assert paint_image(image, both[::-1], (2, 458)).tolist() == [[458] * 3] * 2
    assert paint_image(image, both[1:], (2, 458)).tolist() == [[2, 0, 0], [2, 0, 0]]
    beyond = [both[0], {"category_id": 460, "segmentation": rle(left)}]
    assert paint_image(image, beyond, (458, 460)).tolist() == [[0, 458, 458], [0, 458, 458]]


def test_an_image_without_annotations_is_kept_and_noted(toys, tmp_path):
    merged_json(toys, names=("a", "b"), annotations=segments(RAW, 7, [2]))
    samples = build(toys, write_labels=tmp_path / "painted").samples
    assert samples[1].note == "no annotation; no labelled pixel"


def test_the_older_colours(toys, tmp_path):
    photographs(toys, "a")
    legacy = np.array([[0, 1, 11], [59, 22, 20]])
    colours = Image.fromarray(voc_palette()[legacy])
    (tmp_path / "colours").mkdir()
    colours.save(tmp_path / "colours/a.png")
    toys.lines("names.txt", "a")
    manifest = build(toys, form="colours", labels=tmp_path / "colours", listed=tmp_path / "names.txt")
    assert manifest.load(0)[1].tolist() == [[255, 0, 49], [58, 2, 54]]
    manifest = build(toys, 60, form="colours", labels=tmp_path / "colours", listed=tmp_path / "names.txt")
    assert manifest.load(0)[1].tolist() == [[0, 1, 50], [59, 3, 55]]


def test_pictures_of_class_ids(toys, tmp_path):
    photographs(toys, "a")
    toys.label("ids/a.png", np.array([[0, 58, 255]] * 2, np.uint8), palette=True)
    toys.lines("names.txt", "a")
    manifest = build(toys, form="ids", labels=tmp_path / "ids", listed=tmp_path / "names.txt")
    assert manifest.load(0)[1].tolist() == [[0, 58, 255]] * 2


def test_pictures_of_60_class_ids_are_told_from_those_of_59(toys, tmp_path):
    photographs(toys, "a", "b")
    toys.label("ids/a.png", np.array([[0, 1, 59]] * 2, np.uint8))
    toys.label("ids/b.png", np.array([[0, 58, 255]] * 2, np.uint8))
    toys.lines("names.txt", "a", "b")
    manifest = build(toys, 60, form="ids", labels=tmp_path / "ids", listed=tmp_path / "names.txt")
    assert manifest.load(0)[1].tolist() == [[0, 1, 59]] * 2
    assert "id 255 (2 pixels)" in manifest.samples[1].problem


def test_a_set_of_labels_numbered_as_the_59_is_said_loudly(toys, tmp_path):
    """The first has no pixel of 255, and passes with every class one too low."""
    photographs(toys, "a", "b")
    toys.label("ids/a.png", np.array([[0, 1, 58]] * 2, np.uint8))
    toys.label("ids/b.png", np.array([[0, 58, 255]] * 2, np.uint8))
    toys.lines("names.txt", "a", "b")
    options = {"form": "ids", "labels": tmp_path / "ids", "listed": tmp_path / "names.txt"}
    for num_classes, warned in ((60, True), (59, False)):
        name = f"pascal-context-{num_classes}"
        checked = published.benchmark(name, root=toys.folder, **options).checked
        said = "\n".join(summary_lines(checked, None))
        assert ("WARNING" in said and "pascal-context-59 beside -60" in said) == warned


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"labels": "x"}, "what its numbers mean is not known, --form is missing"),
        ({"form": "colours"}, "--form colours: the folder of the pictures is missing"),
        ({"form": "json", "labels": "x"}, "--labels names others"),
        ({"form": "xml"}, "--form: expected json or mat or painted or ids or colours, got 'xml'"),
        ({"form": "json"}, "--write-labels is missing"),
        ({"form": "json", "write_labels": "new"}, "trainval_merged.json: cannot be read"),
        ({"num_classes": 459, "form": "ids"}, "--form: expected mat, got 'ids'"),
        ({"split": "test"}, "expected --split val or train, got 'test'"),
    ],
)
def test_options_that_do_not_go_together(toys, options, match):
    archive(toys, "a")
    paths = {
        name: toys.folder / value if name in ("labels", "write_labels") else value for name, value in options.items()
    }
    with pytest.raises(ManifestError, match=match):
        build(toys, **paths)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"annos_segmentation": None}, "a list of annos_segmentation"),
        ({"images": [{"file_name": "a.jpg"}]}, "an entry that is not as in trainval_merged.json: KeyError: 'phase'"),
        ({"images": []}, "expected images of phase 'val', got none"),
        (
            {"annotations": [{"image_id": 7, "category_id": 460, "segmentation": rle(RAW > 0)}]},
            "expected a category that the file lists, got 460",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 2, "segmentation": rle(RAW.T > 0)}]}, "got size"),
        ({"annotations": [{"image_id": 7, "category_id": 2}]}, "KeyError: 'segmentation'"),
        ({"categories": dict.fromkeys(range(1, 60), "thing")}, "59 of 59 have other names"),
    ],
)
def test_other_json_files_are_refused_and_nothing_is_left(toys, tmp_path, changes, match):
    merged_json(toys, **changes)
    with pytest.raises(ManifestError, match=match):
        build(toys, write_labels=tmp_path / "painted")
    assert not (tmp_path / "painted").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (
            lambda kit: (kit / "trainval").rename(kit / "elsewhere"),
            "expected .*trainval, none exists(.|\n)*merged.json",
        ),
        (lambda kit: (kit / "ImageSets/Main/val.txt").unlink(), "list of Pascal Context, val: expected .*none exists"),
        (lambda kit: (kit / "trainval/a.mat").unlink(), r"1 of the 2 names in .*val.txt have no label file .*\(a\)"),
        (lambda kit: kit.rename(kit.with_name("VOC2011")), "photographs of Pascal Context, val: .*none exists"),
    ],
)
def test_incomplete_archives_are_named_with_their_source(toys, spoil, match):
    archive(toys, "a", "b")
    spoil(toys.folder / KIT)
    with pytest.raises(ManifestError, match=match) as caught:
        build(toys)
    assert "trainval.tar.gz" in caught.value.hint
