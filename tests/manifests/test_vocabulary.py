"""Class lists and class files."""

import numpy as np
import pytest
from physseg.manifests.errors import ManifestError
from physseg.manifests.vocabulary import Vocabulary, published_vocabulary, read_classes


def numbered(count):
    return Vocabulary(name="numbers", classes=tuple(f"class {i}" for i in range(count)))


def test_convention_first_synonym_is_prompted():
    vocabulary = Vocabulary(name="x", classes=("cat, kitten", "dog ", "tv,television"))
    assert vocabulary.prompt_names == ("cat", "dog", "tv")
    assert vocabulary.num_classes == 3


@pytest.mark.parametrize(("count", "dtype", "ignore"), [(1, "u1", 255), (255, "u1", 255), (256, "u2", 65535)])
def test_convention_ignore_index_and_dtype(count, dtype, ignore):
    vocabulary = numbered(count)
    assert vocabulary.ignore_index == ignore
    assert vocabulary.label_dtype == np.dtype(dtype)
    assert vocabulary.ignore_index >= vocabulary.num_classes


def test_fingerprint_is_of_the_ordered_classes_only():
    a, b = Vocabulary(name="a", classes=("x", "y")), Vocabulary(name="b", classes=("x", "y"))
    assert a.fingerprint == b.fingerprint
    assert a.fingerprint != Vocabulary(name="a", classes=("y", "x")).fingerprint
    assert Vocabulary(name="a", classes=("x,y",)).fingerprint != a.fingerprint


@pytest.mark.parametrize(("classes", "match"), [((), "at least one"), (("a", " "), "class 1"), (("a", "a"), "0 and 1")])
def test_unusable_class_lists(classes, match):
    with pytest.raises(ManifestError, match=match):
        Vocabulary(name="x", classes=classes)


def test_convention_words_for_background_are_one_class():
    plain = Vocabulary(name="v", classes=("sofa, couch", "tree", "bag", "bed"))
    assert plain.labelled_classes is plain.classes
    folded = Vocabulary(name="v", classes=plain.classes, fold_from=2)
    assert folded.labelled_classes == ("sofa, couch", "tree", "background")
    assert folded.class_names == ("sofa", "tree", "background")
    assert folded.prompt_names == ("sofa", "tree", "bag", "bed")
    assert folded.fold(np.array([0, 1, 2, 3, 255], np.uint8)).tolist() == [0, 1, 2, 2, 255]
    assert folded.fingerprint == plain.fingerprint, "stored layers are not computed again"
    with pytest.raises(ManifestError, match="fold_from: expected a class id below 4, got 4"):
        Vocabulary(name="v", classes=plain.classes, fold_from=4)


def test_published_vocabularies_with_background_are_the_others_after_it():
    for name, longer in (("pascal-voc-20", "pascal-voc-21"), ("pascal-context-59", "pascal-context-60")):
        vocabulary = published_vocabulary(longer)
        assert vocabulary.classes == ("background", *published_vocabulary(name).classes)
        assert vocabulary.fold_from is None
    assert published_vocabulary("pascal-voc-20b").class_names[19:] == ("tvmonitor", "background")


def test_class_file_with_synonyms_and_byte_order_mark(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat,kitten\r\n  dog \ntable top\n\n", encoding="utf-8-sig")
    assert read_classes(path) == ("cat, kitten", "dog", "table top")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\n\nb\n", r"line 2: expected a class name, got ''"),
        ("a\n, b\n", r"line 2: expected a class name, got ', b'"),
        ("\na\n", "line 1"),
        ("a\nb\na\n", r"line 3: class 'a' already stands in line 1"),
        ("", "line 1"),
    ],
)
def test_class_file_errors_name_the_line(text, match, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ManifestError, match=match) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "num_classes", "fingerprint", "some"),
    [
        ("coco-stuff-171", 171, "0d1caff40f22c2f8", {0: "person", 79: "toothbrush", 80: "banner", 170: "wood"}),
        ("ade20k-150", 150, "9bf5f612ed5c7d1d", {7: "bed", 58: "screen door", 130: "screen", 141: "crt screen"}),
        ("ade20k-847", 847, "ca9a263b24a78093", {2: "sky", 3: "tree", 4: "road", 5: "floor", 114: "bag"}),
        ("pascal-context-59", 59, "99bf900203f2c9ea", {0: "aeroplane", 49: "diningtable", 58: "wood"}),
        ("pascal-context-459", 459, "ce186d40105d6306", {0: "accordion", 396: "table", 430: "unknown"}),
        ("pascal-voc-20", 20, "ce42b86533b1c85e", {0: "aeroplane", 14: "person", 19: "tvmonitor"}),
        ("pascal-voc-20b", 59, "ba4fe6182000d1b1", {19: "tvmonitor", 20: "bag", 41: "curtain", 58: "wood"}),
    ],
)
def test_convention_published_vocabularies_never_change(name, num_classes, fingerprint, some):
    """They were compared with independent lists once (test_real_benchmarks does it where those are at hand)."""
    vocabulary = published_vocabulary(name)
    assert vocabulary.num_classes == num_classes
    assert {index: vocabulary.prompt_names[index] for index in some} == some
    assert vocabulary.fingerprint.startswith(fingerprint)


def test_first_synonyms_that_several_classes_share():
    pots = Vocabulary(name="pots", classes=("pot, flowerpot", "tree", "pot", "bag", "bag, sack"))
    assert pots.shared_prompts == {"pot": (0, 2), "bag": (3, 4)}
    assert numbered(3).shared_prompts == {}
