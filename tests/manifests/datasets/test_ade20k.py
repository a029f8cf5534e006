"""ADE20K in both forms: the challenge's 150 classes, the full release's 847; ids worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.ade20k import (
    JSON_DISAGREES,
    ade20k_150_ids,
    ade20k_847_ids,
    find_ade20k_150,
    find_ade20k_847,
)
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest
from PIL import Image

WALL, PERSON, LAST, PART, MANY = 2978, 1831, 3156, 5, 3688  # 5 and 3688 are among the ids that are no class
NAMES = {WALL: "wall", PERSON: "person, individual, someone, somebody, mortal, soul", PART: "abacus", MANY: "zoo"}


def challenge(toys, count=2, split="validation", prefix="ADE_val_"):
    raw = np.array([[0, 1, 150], [8, 255 - 105, 2]], np.uint8)
    for number in range(1, count + 1):
        toys.image(f"ADEChallengeData2016/images/{split}/{prefix}{number:08d}.jpg", toys.photo(2, 3, number))
        toys.label(f"ADEChallengeData2016/annotations/{split}/{prefix}{number:08d}.png", raw)


def scene(toys, raw, *, name="ADE_val_00000001", folder="ADE20K_2021_17_01/images/ADE/validation/street", names=NAMES):
    raw = np.asarray(raw, np.int64)
    photo = toys.image(f"{folder}/{name}.jpg", toys.photo(*raw.shape))
    coded = np.stack([raw // 256 * 10, raw % 256, raw % 7], -1).astype(np.uint8)
    Image.fromarray(coded).save(photo.with_name(f"{name}_seg.png"))
    toys.image(f"{folder}/{name}/instance_000_{name}.png")
    objects = [{"name": entry, "name_ndx": raw_id} for raw_id, entry in names.items()]
    photo.with_suffix(".json").write_text(json.dumps({"annotation": {"object": objects}}), encoding="latin-1")
    return photo


# --- 150 --------------------------------------------------------------------------------------------------------------


def test_convention_ade_150_pictures_hold_class_plus_one():
    ids = ade20k_150_ids()
    names = ids.vocabulary.classes
    assert [names[ids.raw_to_class[raw]] for raw in (1, 4, 5, 8, 15, 150)] == [
        "wall",
        "floor",
        "tree",
        "bed",
        "door",
        "flag",
    ]
    assert ids.raw_ignore == (0,)
    assert len(ids.raw_to_class) == 150


@pytest.mark.parametrize("root", ["", "ADEChallengeData2016"])
def test_zero_is_ignored_and_does_not_wrap(toys, root):
    challenge(toys)
    manifest = published.benchmark("ade20k-150", root=toys.folder / root).checked.manifest
    assert manifest.load(0)[1].tolist() == [[255, 0, 149], [7, 149, 1]]
    assert manifest.samples[0].split == "validation"


def test_ids_above_150_are_quarantined(toys):
    challenge(toys)
    toys.label("ADEChallengeData2016/annotations/validation/ADE_val_00000002.png", np.full((2, 3), 151, np.uint8))
    manifest = published.benchmark("ade20k-150", root=toys.folder).checked.manifest
    assert "got id 151 (6 pixels)" in manifest.samples[1].problem


# --- 847 --------------------------------------------------------------------------------------------------------------


def test_convention_ade_847_ids_are_those_of_the_release_of_2021():
    ids = ade20k_847_ids()
    names = ids.vocabulary.classes
    expected = {
        2978: (0, "wall"),
        2855: (3, "tree"),
        2131: (4, "road, route"),
        976: (5, "floor, flooring"),
        774: (20, "door"),
        783: (64, "double door"),
        2985: (46, "wardrobe, closet, press"),
    }
    assert {raw: (ids.raw_to_class[raw], names[ids.raw_to_class[raw]]) for raw in expected} == expected
    assert sorted(ids.raw_to_class.values()) == list(range(847))
    assert (min(ids.raw_to_class), max(ids.raw_to_class)) == (6, 3156)
    assert len(ids.raw_ignore) == 3689 - 847
    assert 0 in ids.raw_ignore
    assert 246 in ids.raw_ignore
    assert 3689 not in ids.raw_ignore


def test_nineteen_classes_share_their_first_synonym():
    assert ade20k_847_ids().vocabulary.shared_prompts == {
        "bag": (114, 191, 252),
        "pot": (130, 188),
        "basket": (137, 371),
        "screen": (147, 153),
        "pier": (174, 255),
        "control panel": (208, 768),
        "pipe": (214, 412),
        "grill": (229, 663),
        "patio": (235, 280),
    }
    assert ade20k_150_ids().vocabulary.shared_prompts == {}


def test_ids_keep_16_bits_through_the_manifest_file(toys, tmp_path):
    raw = np.full((4, 6), WALL)
    raw[1, 2], raw[3, 0], raw[0, 5], raw[2, 2], raw[2, 3] = PERSON, LAST, 0, PART, MANY
    scene(toys, raw, names=NAMES | {LAST: ade20k_847_ids().vocabulary.classes[ade20k_847_ids().raw_to_class[LAST]]})
    found = published.benchmark("ade20k-847", root=toys.folder)
    assert not found.checked.manifest.samples[0].note
    found.checked.manifest.write(tmp_path / "m.parquet")
    labels = Manifest.read(tmp_path / "m.parquet").load(0)[1]
    assert labels.dtype == np.uint16
    expected = np.zeros((4, 6), int)
    expected[1, 2], expected[3, 0] = 11, ade20k_847_ids().raw_to_class[LAST]
    expected[0, 5] = expected[2, 2] = expected[2, 3] = 65535
    assert (labels == expected).all()
    assert expected[3, 0] > 255
    assert found.checked.class_pixels[0] == 19


def test_the_short_side_is_capped_at_512(toys):
    raw = np.full((520, 700), WALL)
    raw[:, 350:] = PERSON
    scene(toys, raw)
    manifest = published.benchmark("ade20k-847", root=toys.folder).checked.manifest
    assert manifest.max_short_side_px == 512
    assert (manifest.samples[0].height, manifest.samples[0].width) == (512, 689)
    image, labels = manifest.load(0)
    assert image.shape == (512, 689, 3)
    assert labels.shape == (512, 689)
    assert set(np.unique(labels)) == {0, 11}
    assert (manifest.load_image(0) == image).all()
    assert (np.diff(labels[100].astype(int)) != 0).sum() == 1
    assert int((labels[100] == 0).sum()) == 345  # floor(i * 700 / 689) < 350


def test_ids_beyond_the_release_are_quarantined(toys):
    scene(toys, np.full((4, 6), WALL))
    scene(toys, np.full((4, 6), 3689), name="ADE_val_00000002")
    samples = published.benchmark("ade20k-847", root=toys.folder).checked.manifest.samples
    assert "got id 3689 (24 pixels)" in samples[1].problem


def test_a_scene_whose_json_disagrees_is_noted(toys):
    for number in (1, 2, 3):
        scene(toys, np.full((4, 6), WALL), name=f"ADE_val_{number:08d}")
    scene(toys, np.full((4, 6), WALL), name="ADE_val_00000004", names={PERSON: NAMES[PERSON]})
    scene(toys, np.full((4, 6), WALL), name="ADE_val_00000005", names={WALL: "person"})
    photo = scene(toys, np.full((4, 6), WALL), name="ADE_val_00000006")
    photo.with_suffix(".json").unlink()
    samples = published.benchmark("ade20k-847", root=toys.folder).checked.manifest.samples
    assert [sample.note for sample in samples] == ["", "", "", *[JSON_DISAGREES] * 2, "no JSON file beside it"]


def test_where_most_disagree_the_release_is_another(toys):
    scene(toys, np.full((4, 6), WALL), names={WALL: "wall socket"})
    with pytest.raises(ManifestError, match="1 of 1 scenes"):
        published.benchmark("ade20k-847", root=toys.folder)


@pytest.mark.parametrize(
    ("folder", "name", "match"),
    [
        ("ADEChallengeData2016/annotations/validation", "ade20k-847", "got the scene parsing challenge"),
        ("ADE20K_2016_07_26/images/validation", "ade20k-847", "got the release of 2016, whose ids mean other things"),
        ("ADE20K_2021_17_01/images/ADE/validation", "ade20k-150", r"got the full release \(ADE20K-847\)"),
        ("elsewhere", "ade20k-847", "scenes of ADE20K-847 .*none exists"),
        ("elsewhere", "ade20k-150", "photographs of ADE20K-150, validation: .*none exists"),
        ("ADE20K_2021_17_01/images/ADE/validation/street", "ade20k-847", "expected scenes .* got none"),
    ],
)
def test_other_releases_and_nothing_at_all(toys, folder, name, match):
    (toys.folder / folder).mkdir(parents=True)
    with pytest.raises(ManifestError, match=match) as caught:
        published.benchmark(name, root=toys.folder)
    assert "csail.mit.edu" in caught.value.hint


def test_both_releases_may_lie_side_by_side(toys):
    challenge(toys, 3)
    scene(toys, np.full((4, 6), WALL))
    (toys.folder / "ADE20K_2016_07_26/images/validation").mkdir(parents=True)
    counts = {
        name: len(published.benchmark(name, root=toys.folder).checked.manifest) for name in ("ade20k-150", "ade20k-847")
    }
    assert counts == {"ade20k-150": 3, "ade20k-847": 1}


def test_a_scene_without_its_labels_is_missing(toys):
    scene(toys, np.full((4, 6), WALL))
    photo = scene(toys, np.full((4, 6), WALL), name="ADE_val_00000002")
    photo.with_name("ADE_val_00000002_seg.png").unlink()
    with pytest.raises(ManifestError, match="ADE_val_00000002"):
        published.benchmark("ade20k-847", root=toys.folder)


@pytest.mark.parametrize(
    ("name", "own"), [("ade20k-847", "ADE20K_2021_17_01/images/ADE"), ("ade20k-150", "ADEChallengeData2016/images")]
)
def test_a_missing_split_does_not_blame_the_other_archive(name: str, own: str, tmp_path: Path) -> None:
    for folder in (
        f"{own}/training",
        "ADE20K_2021_17_01/images/ADE/validation",
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations/validation",
    ):
        if not (folder.startswith(own) and "validation" in folder):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    find = find_ade20k_847 if name == "ade20k-847" else find_ade20k_150
    with pytest.raises(ManifestError, match=f"{own}/validation"):
        find(tmp_path, "validation")
