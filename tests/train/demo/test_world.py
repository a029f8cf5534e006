"""The wider world of the pretraining: captions say what is there, groups of the regime share what they should."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from physseg.train.demo import scenes
from physseg.train.demo.regime import GROUPS, TEST_SPLITS, write_regime
from physseg.train.demo.world import (
    COLOURS,
    GROUNDS,
    PATTERNS,
    WORLD,
    Thing,
    captions,
    claims_of,
    draw,
    random_scene,
    word_captions,
)
from PIL import Image


def test_groups_hold_out_pairs_and_words():
    said = {group: {word for name in names for word in name.split()} for group, names in GROUPS.items()}
    assert not said["words"] & said["seen"]
    assert said["combinations"] < said["seen"]
    assert not set(GROUPS["combinations"]) & set(GROUPS["seen"])
    for word in said["combinations"]:
        assert sum(word in name.split() for name in GROUPS["seen"]) == 4, word
    in_the_demo = {word for name in scenes.ALL_CLASSES for word in name.split()}
    assert said["seen"] | said["words"] | in_the_demo <= {*COLOURS, *PATTERNS, *GROUNDS}


def test_regime_splits_show_their_groups_and_seen_classes_are_a_prefix(tmp_path: Path):
    folders = write_regime(tmp_path, num_train=4, num_test=2, seed=1)
    names = [name for group in GROUPS.values() for name in group]
    assert folders.classes("train").read_text().split("\n")[:-1] == names[:28] == list(GROUPS["seen"])
    for split in ("train", *TEST_SPLITS):
        assert split == "train" or folders.classes(split).read_text().split("\n")[:-1] == names
        found = set()
        for path in folders.labels(split).iterdir():
            labels = np.array(Image.open(path))
            assert Image.open(folders.images(split) / f"{path.stem}.jpg").size == labels.shape[::-1]
            found |= {names[index] for index in np.unique(labels) if index != 255}
        group = split if split in GROUPS else "seen"
        assert found & set(GROUPS[group]), split
        assert found <= set(GROUPS[group]) | (set() if split == "words" else set(WORLD["regime"]["seen"]["grounds"]))


def test_captions_say_what_is_seen():
    """Each word of a caption that is a name, or a synonym of one, belongs to something that the picture shows."""
    entries = itertools.chain(COLOURS.items(), PATTERNS.items(), WORLD["outlines"].items(), GROUNDS.items())
    meaning = {}
    for name, entry in entries:
        for word in (name, *([entry] if isinstance(entry, str) else [word for word in entry if isinstance(word, str)])):
            assert word not in meaning, f"{word} has two meanings"
            meaning[word] = name
    for seed in range(6):
        rng = np.random.default_rng(seed)
        visible = random_scene(rng).visible(150)
        there = {word for content in visible for word in ([content] if isinstance(content, str) else content)}
        told, words = captions(visible, 6, rng, mistaken=3), word_captions(rng)
        for caption in (*told, *words):
            said = {part for claim in caption.claims for part in ([claim] if isinstance(claim, str) else claim)}
            assert said - {""} == {meaning[word] for word in caption.text.split() if word in meaning}, caption.text
        for caption in told[:6]:
            assert caption.claims <= claims_of(visible)
            assert {meaning[word] for word in caption.text.split() if word in meaning} <= there, caption.text
        assert [len(caption.claims) for caption in words] == [1] * len({*meaning.values()})
        assert all(caption.claims for caption in told[6:]) and len(told) == 9


@pytest.mark.parametrize("shifted", [False, True])
def test_labels_lie_on_what_they_name(shifted: bool):
    things = [Thing("red", "plain", "box"), Thing("blue", "plain", "starfish")]
    scene = draw(things, ["snow"], np.random.default_rng(3), size=(192, 256), shifted=shifted)
    labels = scene.labels(["blue plain", "snow", "red plain"])
    assert scene.image.shape == (192, 256, 3)
    red, blue, snow = (scene.image[labels == index].astype(float).mean(axis=0) for index in (2, 0, 1))
    assert red[0] > 2 * red[2] and blue[2] > 2 * blue[0] and snow.min() > 100
    assert set(np.unique(scene.labels(["snow"]))) == {0, 255}


def test_same_seed_same_scene():
    first, again, other = (random_scene(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.contents == again.contents and np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
