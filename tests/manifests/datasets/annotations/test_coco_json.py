"""COCO annotation files become label pictures: segments by hand, painting order, and every file that does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from physseg.manifests.datasets import published
from physseg.manifests.datasets.annotations.coco_json import read_annotations
from physseg.manifests.datasets.annotations.coco_segments import run_lengths, segment_mask
from physseg.manifests.datasets.coco_stuff import CATEGORY_TO_CLASS, coco_stuff_vocabulary
from physseg.manifests.decoding import decode_label
from physseg.manifests.errors import ManifestError
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 24, 32
PERSON, DOG, GRASS, WOOD, OTHER = 1, 18, 124, 182, 183


def box_mask(top, bottom, left, right):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask):
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def uncompressed(mask):
    """Run lengths in column order, starting with the zeros; independent of pycocotools."""
    flat = mask.astype(np.uint8).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def polygon(top, bottom, left, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number, category, segmentation, image_id=1, **more):
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": segmentation, **more}


def coco(annotations, images=(1,), categories=None, size=(HEIGHT, WIDTH)):
    names = coco_stuff_vocabulary().classes
    default = [{"id": c, "name": names[i]} for c, i in CATEGORY_TO_CLASS.items()] + [{"id": OTHER, "name": "other"}]
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": size[0], "width": size[1]} for i in images],
        "annotations": annotations,
        "categories": default if categories is None else categories,
    }


class Files:
    def __init__(self, toys):
        self.toys = toys

    def stuff(self, *annotations, **more):
        return self.toys.lines("stuff.json", json.dumps(coco(list(annotations), **more)))

    def instances(self, *annotations, **more):
        return self.toys.lines("instances.json", json.dumps(coco(list(annotations), **more)))

    def build(self, *, images=(1,), **arguments):
        for number in images:
            self.toys.image(f"images/{number:012d}.jpg")
        folder = self.toys.folder
        return published.benchmark(
            "coco-stuff", images=folder / "images", write_labels=folder / "labels", **arguments
        ).checked

    def label(self, number=1):
        return decode_label((self.toys.folder / f"labels/{number:012d}.png").read_bytes())


@pytest.fixture
def files(toys):
    return Files(toys)


# --- segments ---------------------------------------------------------------------------------------------------------


def test_all_three_forms_of_a_segment_agree():
    mask = box_mask(3, 9, 4, 20)
    for segmentation in (polygon(3, 9, 4, 20), uncompressed(mask), compressed(mask)):
        assert (segment_mask(segmentation, HEIGHT, WIDTH) == mask).all()


def test_polygons_are_filled_as_pycocotools_does_and_united():
    triangle, square = [2.5, 1, 20, 3.2, 9, 15.7], [15, 2, 25, 2, 25, 20, 15, 20]
    codes = coco_mask.frPyObjects([triangle, square], HEIGHT, WIDTH)
    expected = coco_mask.decode(codes).any(axis=-1)
    assert (segment_mask([triangle, square], HEIGHT, WIDTH) == expected).all()


def test_polygons_reaching_outside_are_cut():
    assert segment_mask(polygon(-10, 60, -10, 90), HEIGHT, WIDTH).all()


def test_run_lengths_by_hand():
    assert uncompressed(np.array([[0, 1], [1, 1]]))["counts"] == [1, 3]
    assert run_lengths("13").tolist() == [1, 3]
    assert run_lengths("34=").tolist() == [3, 4, 13]
    assert run_lengths("d0").tolist() == [20]  # more than 15 needs two characters


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(0, 1)))
def test_any_mask_survives_both_codes(mask):
    code = compressed(mask)
    assert run_lengths(code["counts"]).tolist() == uncompressed(mask)["counts"]
    for segmentation in (code, uncompressed(mask)):
        assert (segment_mask(segmentation, *mask.shape) == mask).all()


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        ([[1, 1, 5, 5]], "three points"),  # pycocotools takes it for a box
        ([[1, 1, 5, 1, 5, 5, 2]], "three points"),  # ... and drops the odd coordinate
        ([], "three points"),
        ([1, 1, 5, 1, 5, 5], "one flat list of numbers: put it into a list"),
        ([[1, 1, 5, 1, float("nan"), 5]], "in or near"),
        ([[1, 1, 5, 1, 1e9, 5]], "in or near"),  # pycocotools would ask for memory by the length of the edge
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "24 x 32 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [700]}, "= 768 pixels, got 700"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, 100]}, "got 800"),
        ({"size": [HEIGHT, WIDTH], "counts": [1000, -232]}, "768"),
        ({"size": [HEIGHT, WIDTH], "counts": "34="}, "got 20"),  # pycocotools leaves the rest uninitialised
        ({"size": [HEIGHT, WIDTH], "counts": "\x01"}, "other characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "other characters"),  # cut off inside a number
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "other characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPPPPPPP0"}, "32 bits"),
    ],
)
def test_segments_that_do_not_fit(segmentation, match):
    with pytest.raises(ValueError, match=match):
        segment_mask(segmentation, HEIGHT, WIDTH)


# --- painting ---------------------------------------------------------------------------------------------------------


def test_stuff_first_then_instances_in_file_order(files):
    stuff = files.stuff(
        annotation(1, GRASS, compressed(box_mask(0, 24, 0, 20))),
        annotation(2, WOOD, uncompressed(box_mask(0, 6, 10, 20))),
        annotation(3, OTHER, compressed(box_mask(0, 24, 0, 32))),
    )
    instances = files.instances(
        annotation(9, PERSON, polygon(4, 12, 4, 16)),
        annotation(8, DOG, uncompressed(box_mask(8, 16, 8, 24)), iscrowd=1),
    )
    checked = files.build(stuff_json=stuff, instances_json=instances)
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:, :20] = GRASS - 1
    expected[:6, 10:20] = WOOD - 1
    expected[4:12, 4:16] = PERSON - 1
    expected[8:16, 8:24] = DOG - 1
    assert (files.label() == expected).all()
    assert Image.open(files.toys.folder / "labels/000000000001.png").mode == "L"
    labels = checked.manifest.load(0)[1]
    assert {int(v) for v in np.unique(labels)} == {CATEGORY_TO_CLASS[c] for c in (GRASS, WOOD, PERSON, DOG)} | {255}


@pytest.mark.parametrize("which", ["stuff_json", "instances_json"])
def test_either_file_alone(which, files):
    path = files.stuff(annotation(1, GRASS, polygon(0, 4, 0, 4)))
    files.build(**{which: path})
    assert (files.label() == GRASS - 1).sum() == 16
    assert (files.label() == 255).sum() == HEIGHT * WIDTH - 16


def test_images_without_annotation_stay_with_a_note(files):
    stuff = files.stuff(annotation(1, GRASS, polygon(0, 4, 0, 4)), images=(1, 2))
    instances = files.instances(images=(1,))
    checked = files.build(images=(1, 2), stuff_json=stuff, instances_json=instances)
    assert len(checked.manifest) == 2
    assert (files.label(2) == 255).all()
    note = checked.manifest.samples[1].note
    assert note == "not listed in instances.json; no annotation, nothing labelled; no labelled pixel"
    assert not checked.manifest.quarantined


def test_a_photograph_of_another_size_is_quarantined(files):
    stuff = files.stuff(
        annotation(1, GRASS, polygon(0, 4, 0, 4)), annotation(2, GRASS, polygon(0, 4, 0, 4), 2), images=(1, 2)
    )
    files.toys.image("images/000000000002.jpg", files.toys.photo(20, 20))
    files.toys.image("images/000000000001.jpg")
    checked = files.build(images=(), stuff_json=stuff)
    (broken,) = checked.manifest.quarantined
    assert broken.problem.startswith("size mismatch: labels/000000000002.png: expected 20 x 20")


def test_a_list_selects(files):
    stuff = files.stuff(annotation(1, GRASS, polygon(0, 4, 0, 4)), images=(1, 2, 3))
    checked = files.build(images=(1, 4), stuff_json=stuff, listed=files.toys.lines("list.txt", "000000000001"))
    assert [path.name for path in (files.toys.folder / "labels").iterdir()] == ["000000000001.png"]
    assert len(checked.manifest) == 1
    with pytest.raises(ManifestError, match=r"images \(000000000002\)"):
        published.benchmark(
            "coco-stuff",
            images=files.toys.folder / "images",
            write_labels=files.toys.folder / "again",
            stuff_json=stuff,
            listed=files.toys.lines("list2.txt", "000000000001", "000000000002"),
        )


def test_leftovers_name_both_sides(files):
    stuff = files.stuff(images=(1, 2))
    with pytest.raises(ManifestError) as caught:
        files.build(images=(1, 3), stuff_json=stuff)
    assert "1 of 2 listed images in stuff.json have no image (000000000002)" in str(caught.value)
    assert "/images have no listed image (000000000003)" in str(caught.value)
    assert "--list FILE" in str(caught.value)


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_segments_that_do_not_fit_stop_everything_and_leave_nothing(files):
    bad = {"size": [9, 9], "counts": [81]}
    stuff = files.stuff(annotation(7, GRASS, polygon(0, 4, 0, 4)), annotation(8, GRASS, bad, 2), images=(1, 2))
    before = {path.name for path in files.toys.folder.iterdir()}
    with pytest.raises(ManifestError) as caught:
        files.build(images=(1, 2), stuff_json=stuff)
    assert "1 of 2 images" in str(caught.value)
    assert "stuff.json, annotation 8 of 000000000002.jpg: expected a segment of 24 x 32" in str(caught.value)
    assert {path.name for path in files.toys.folder.iterdir()} == before | {"images"}


def test_an_occupied_folder_is_refused(files):
    stuff = files.stuff(annotation(1, GRASS, polygon(0, 4, 0, 4)))
    mine = files.toys.label("labels/000000000001.png")
    before = mine.read_bytes()
    with pytest.raises(ManifestError, match="expected a new or empty folder"):
        files.build(stuff_json=stuff)
    assert mine.read_bytes() == before
    mine.unlink()
    assert len(files.build(stuff_json=stuff).manifest) == 1


def test_painting_twice_gives_the_same_bytes(files):
    stuff = files.stuff(annotation(1, GRASS, polygon(0, 4, 0, 4)))
    first = files.build(stuff_json=stuff).manifest
    (files.toys.folder / "labels").rename(files.toys.folder / "first")
    second = files.build(stuff_json=stuff).manifest
    assert first.fingerprint == second.fingerprint


# --- files that are something else ------------------------------------------------------------------------------------


def test_unknown_categories_name_file_annotation_and_id(files):
    stuff = files.stuff(annotation(31, 200, polygon(0, 4, 0, 4)))
    with pytest.raises(ManifestError, match=r"stuff\.json: annotation 31: .*got 200") as caught:
        files.build(stuff_json=stuff)
    assert "panoptic" in str(caught.value)
    for category in (12, 0, 183 + 500):
        with pytest.raises(ManifestError, match=f"got {category}"):
            read_annotations([files.stuff(annotation(1, category, polygon(0, 4, 0, 4)))])


def test_texts_in_place_of_category_ids_are_named(files):
    stuff = files.stuff(annotation(1, str(GRASS), polygon(3, 9, 4, 20)))
    with pytest.raises(
        ManifestError, match=rf"annotation 1: expected a category_id .* number, got '{GRASS}'"
    ) as caught:
        files.build(stuff_json=stuff)
    assert "tonumber" in caught.value.hint


def test_another_data_set_with_the_same_ids_is_recognised(files):
    """Ids 1..10 of somebody's own COCO-style file would pass as person, bicycle, car, ..."""
    stuff = files.stuff(categories=[{"id": 1, "name": "scratch"}])
    with pytest.raises(ManifestError, match=r"'scratch', .*'person'"):
        files.build(stuff_json=stuff)


def test_files_in_the_wrong_places_are_recognised(files):
    """Painted the other way round, stuff would cover the things it overlaps, without a word."""
    stuff, instances = (
        files.stuff(annotation(1, GRASS, polygon(0, 9, 0, 9))),
        files.instances(annotation(2, PERSON, polygon(4, 12, 4, 12))),
    )
    with pytest.raises(ManifestError, match=r"stuff\.json: annotation 1 (.|\n)*exchange"):
        files.build(stuff_json=instances, instances_json=stuff)


def test_two_files_must_describe_the_same_images(files):
    stuff = files.stuff(images=(1,))
    with pytest.raises(ManifestError, match=r"image 1: stuff\.json .*24, 32.*instances\.json .*32, 24"):
        files.build(stuff_json=stuff, instances_json=files.instances(images=(1,), size=(32, 24)))
    with pytest.raises(ManifestError, match="no image in common"):
        files.build(stuff_json=stuff, instances_json=files.instances(images=(2,)))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("{", "expected JSON"),
        ("[]", "list of images"),
        ('{"images": [], "annotations": []}', "list of categories"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "KeyError: '(file_name|height)'"),
        ('{"images": [1], "annotations": [], "categories": []}', "list of images"),
    ],
)
def test_files_that_are_no_annotations(data, match, files):
    path = files.toys.lines("stuff.json", data)
    with pytest.raises(ManifestError, match=match) as caught:
        files.build(stuff_json=path)
    assert "stuff.json" in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.json: cannot be read"):
        read_annotations([tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": [*coco([])["images"], *coco([])["images"]]}, "image id 1 stands there twice"),
        ({"annotations": [annotation(5, GRASS, polygon(0, 4, 0, 4), 77)]}, "annotation 5: its image 77 is not among"),
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": GRASS, "bbox": []}]},
            "annotation 5: has no segmentation",
        ),
        (
            {"annotations": [annotation(5, GRASS, polygon(0, 4, 0, 4))], "categories": []},
            f"annotation 5: its category {GRASS} is not among the file's",
        ),
        *(
            ({"images": [coco([])["images"][0] | wrong]}, "image 1: expected a file name, and a height and width of")
            for wrong in ({"height": "24"}, {"width": 0}, {"height": 10**9}, {"height": None}, {"file_name": 5})
        ),
    ],
)
def test_contradictions_inside_a_file(change, match, tmp_path):
    path = tmp_path / "stuff.json"
    path.write_text(json.dumps(coco([]) | change))
    with pytest.raises(ManifestError, match=match):
        read_annotations([path])


def test_two_names_with_one_stem(files):
    data = coco([], images=(1, 2))
    data["images"][1]["file_name"] = "000000000001.png"
    path: Path = files.toys.lines("stuff.json", json.dumps(data))
    with pytest.raises(ManifestError, match=r"000000000001\.jpg and 000000000001\.png"):
        files.build(stuff_json=path)
