"""Class lists and class files."""

import numpy as np
import pytest
from physseg.manifests.errors import ManifestError
from physseg.manifests.vocabulary import Vocabulary, read_classes


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


def test_class_file_with_synonyms_and_byte_order_mark(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat,kitten\r\n  dog \ntable top\n\n", encoding="utf-8-sig")
    assert read_classes(path) == ("cat, kitten", "dog", "table top")


@pytest.mark.parametrize("odd", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_ends_part_classes(odd, tmp_path):
    """str.splitlines() parts at all of these: every class behind would get another id."""
    path = tmp_path / "classes.txt"
    path.write_text(f"sea{odd}side\nroad\n", encoding="utf-8")
    assert len(read_classes(path)) == 2
    assert read_classes(path)[1] == "road"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a\n\nb\n", r"line 2: expected a class name, got ''"),
        ("a\n, b\n", r"line 2: expected a class name, got ', b'"),
        ("\na\n", "line 1"),
        ("a\nb\na\n", r"line 3: class 'a' already stands in line 1"),
        ("", "empty file"),
    ],
)
def test_class_file_errors_name_the_line(text, match, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ManifestError, match=match) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)


def test_missing_and_binary_class_files(tmp_path):
    with pytest.raises(ManifestError, match="no such class file"):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ManifestError, match="UTF-8"):
        read_classes(tmp_path / "binary")
