"""`check_dataset`: physseg's own data sets pass on small archives, and every broken promise is named."""

import itertools

import numpy as np
import pytest
from physseg.common.plugins import find
from physseg.manifests.datasets.archive import Archive, Release
from physseg.manifests.datasets.interface import load_dataset
from physseg.manifests.labels.ids import LabelIds
from physseg.testing import ConformanceError, check_dataset

from .test_ade20k import WALL, challenge, scene
from .test_pascal_context import archive
from .test_pascal_voc import devkit


@pytest.mark.parametrize(
    ("name", "make", "split"),
    [
        ("ade20k-150", challenge, None),
        ("ade20k-847", lambda toys: scene(toys, np.full((4, 6), WALL)), None),
        ("pascal-voc-20", devkit, None),
        ("pascal-voc-20b", devkit, "val"),
        ("pascal-voc-21", lambda toys: devkit(toys, split="train"), "train"),
        ("pascal-context-59", lambda toys: archive(toys, "a", "b"), None),
        ("pascal-context-60", lambda toys: archive(toys, "a"), None),
        ("pascal-context-459", lambda toys: archive(toys, "a"), None),
        ("coco-stuff", lambda toys: toys.pairs(["1"], "images/val2017", "stuffthingmaps/val2017"), "val2017"),
        ("folder", lambda toys: (toys.pairs(["1", "2"]), toys.lines("classes.txt", "sky", "road")), None),
    ],
)
def test_ours_pass(name, make, split, toys):
    make(toys)
    check_dataset(load_dataset(find("datasets", name)), toys.folder, split=split)


class Toy:
    """Two samples, as the contract wants it; tests spoil a part each."""

    name = "toy"
    description = "Toy, two classes."
    splits = ("val",)

    def find(self, root, split):
        rows = [(path.stem, path, root / "labels" / f"{path.stem}.png") for path in (root / "images").glob("*")]
        return rows, {0: "sky", 1: "road"}


@pytest.fixture
def folder(toys):
    toys.pairs(["a", "b"])
    return toys.folder


def test_a_good_one_passes(folder):
    check_dataset(Toy(), folder)
    check_dataset(Toy(), str(folder), split="val", max_samples=1)


def changing():
    calls = itertools.count()

    def find(self, root, split):
        rows, ids = Toy.find(self, root, split)
        return [(f"{next(calls)}", *files) for _, *files in rows], ids

    return find


def raising(error):
    def find(self, root, split):
        if not (root / "images").exists():
            raise error
        return Toy.find(self, root, split)

    return find


def first(root, **changes):
    return [(changes.get("name", "a"), root / changes.get("image", "images/a.jpg"), root / "labels/a.png")]


@pytest.mark.parametrize(
    ("member", "value", "told"),
    [
        ("name", "", "a name and a description of one line"),
        ("description", "two\nlines", "a name and a description of one line"),
        ("splits", ("train",), "expected --split train, got 'val'"),
        ("find", None, "name, description and find"),
        ("find", changing(), "the same samples and ids at each call"),
        ("find", lambda self, root, split: (first(root) * 2, {0: "sky"}), "each once, got 'a'"),
        ("find", lambda self, root, split: (first(root, image="c.jpg"), {0: "sky"}), r"have no photograph \(a\)"),
        ("find", lambda self, root, split: (first(root), {1: "road"}), r"sample|none of 1 samples"),
        ("find", lambda self, root, split: (Toy.find(self, root, split)[0], {0: "sky"}), "sample b: unknown ids"),
        ("find", raising(KeyError("gone")), "an empty folder: .*got KeyError: 'gone'"),
        ("find", raising(ConformanceError("one\ntwo")), "an empty folder: .*got several lines"),
    ],
)
def test_a_broken_promise_is_named(member, value, told, folder):
    bad = type("Bad", (Toy,), {member: value})()
    if value is None:
        bad = type("Bad", (), {"name": "bad", "description": "No find."})()
    with pytest.raises(ConformanceError, match=told):
        check_dataset(bad, folder, split="val")


def test_an_archive_without_samples_is_right_in_an_empty_folder(folder):
    class Lazy(Toy):
        def find(self, root, split):
            found = {kind: {p.stem: p for p in (root / kind).glob("*")} for kind in ("images", "labels")}
            ids = LabelIds.named("toy", {0: "sky", 1: "road"})
            return Archive(**found, ids=ids, release=Release(title="Toy", counts=(), source="nowhere"))

    check_dataset(Lazy(), folder)


def test_samples_of_an_empty_folder_are_no_samples(folder):
    class Fixed(Toy):
        def find(self, root, split):
            return super().find(folder, split)

    with pytest.raises(ConformanceError, match=r"in an empty folder: expected no samples, .* got 2 samples"):
        check_dataset(Fixed(), folder)


@pytest.mark.parametrize("error", [FileNotFoundError("no images"), ConformanceError("a line")])
def test_errors_of_one_line_are_as_they_should_be(error, folder):
    check_dataset(type("Good", (Toy,), {"find": raising(error)})(), folder)


def test_a_failure_fails_a_test_as_an_assert_does(folder):
    class Lost(Toy):
        def find(self, root, split):
            return [("a", root / "images/a.jpg", root / "nowhere.png")], {0: "sky"}

    with pytest.raises(AssertionError, match="toy: 1 of the 1 names have no label file") as caught:
        check_dataset(Lost, folder)
    assert "\n" not in caught.value.args[0]
