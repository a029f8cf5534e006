"""Class files: the forms that are read, all others refused by name, and what is printed of them."""

import json
import re
from pathlib import Path

import pytest
from physseg.common.text import control_character
from physseg.manifests.errors import ManifestError
from physseg.manifests.labels.class_file import read_class_file
from physseg.manifests.vocabulary import VOCABULARIES, Vocabulary, read_classes

SEA = ("sea", "grass, lawn", "road")


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "classes.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "sea\ngrass,lawn\nroad\n",
        "\ufeffsea\r\ngrass , lawn\r\nroad\r\n\r\n",
        "0: sea\n1: grass, lawn\n2: road",
        "0,sea\n1,grass, lawn\n2,road\n",
        "1\tsea\n2\tgrass, lawn\n3\troad\n",
        "1 sea\n2 grass, lawn\n3 road\n",
        "  1. sea\n  2. grass, lawn\n  3. road\n",
        json.dumps(SEA),
        json.dumps([{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(SEA)], indent=1),
        json.dumps([{"id": i, "name": name} for i, name in enumerate(SEA, start=1)]),
    ],
)
def test_forms_that_people_have(text: str, tmp_path: Path) -> None:
    assert read_class_file(written(tmp_path, text)) == SEA


@pytest.mark.parametrize("file", sorted(VOCABULARIES.glob("*[!s].txt")), ids=lambda path: path.stem)
def test_every_published_vocabulary_is_read_literally(file: Path) -> None:
    assert read_class_file(file) == read_classes(file)


def test_names_that_begin_with_a_number_stay_whole(tmp_path: Path) -> None:
    assert read_class_file(written(tmp_path, "car\n18-wheeler\n2 wheeler\n")) == ("car", "18-wheeler", "2 wheeler")
    assert read_class_file(written(tmp_path, "0\n1\n2\n")) == ("0", "1", "2")
    assert read_class_file(written(tmp_path, '["5 series", "3 series"]')) == ("5 series", "3 series")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("0: sea\n2: grass\n3: road\n", "line 2: expected number 1, got 2"),
        ("5: sea\n6: grass\n", "line 1: expected number 1, got 5"),
        ("1: sea\n0: grass\n", "line 2: expected number 2, got 0"),
        ("id,name\n0,sea\n1,grass\n", "line 1.*no number"),
        ("Idx\tRatio\tName\n1\t0.2\twall\n2\t0.1\tsky\n", "line 1.*no number"),
        ("sea\tMeer\ngrass\tGras\n", "tab-separated"),
        ("sea; grass; road\n", "semicolons"),
        ('"sea"\n"grass"\n', "quoted"),
        ("'sea',\n'grass',\n", "quoted"),
        ('0: "sea"\n1: "grass"\n', "quoted"),
        ("- sea\n- grass\n", "YAML list"),
        ("names:\n  - sea\n", "YAML"),
        ("# my classes\nsea\n", "comment"),
        ("item {\n  id: 1\n}\n", "braces"),
        ("<classes>\n<class>sea</class>\n", "XML"),
        ('["sea", "grass"', "begins like JSON"),
        ('{"0": "sea"}', "a JSON object with '0'"),
        ('{"images": [], "annotations": [], "categories": []}', "a COCO annotation file"),
        ('["sea", {"id": 1, "name": "grass"}]', "entry 1"),
        ('[{"id": "0", "name": "sea"}]', "entry 1"),
        ('[{"id": true, "name": "sea"}]', "entry 1"),
        ('[{"id": 1, "name": "sea"}, {"id": 3, "name": "grass"}]', "entry 2: expected number 2, got 3"),
        ("[[1, 2]]", "entry 1"),
        ("[" * 5000, "begins like JSON"),
        ("[" + "9" * 6000 + "]", "begins like JSON"),
        ("0: sea\n" + "1" * 6000 + ": grass\n", "line 2"),
        ("sea\nsea\n", "already stands in line 1"),
        ('["sea", "sea"]', "already stands in entry 1"),
        ("sea\n\nroad\n", "line 2"),
        ("\n", "empty file"),
        ("sea\u202eside\n", r"U\+202E"),
        ("sea\x0bside\n", r"U\+000B"),
        ("sea\x85side\nroad", r"U\+0085"),
    ],
)
def test_other_forms_are_refused_by_name(text: str, form: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ManifestError, match=form) as caught:
        read_class_file(path)
    assert str(path) in str(caught.value)


def test_coco_stuffs_labels_are_refused_by_name(tmp_path: Path) -> None:
    """Its line `n:` is category n, and the label pictures hold n - 1: every class would be its neighbour."""
    text = "".join(f"{n}: {'unlabeled' if n == 0 else f'thing {n}'}\n" for n in range(183))
    with pytest.raises(ManifestError, match=r"COCO-Stuff's labels.txt") as caught:
        read_class_file(written(tmp_path, text))
    assert "manifest coco-stuff" in str(caught.value)


@pytest.mark.parametrize(("encoding", "repair"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("latin-1", "LATIN1")])
def test_other_encodings_come_with_the_repair(encoding: str, repair: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=f"iconv -f {repair} -t UTF-8"):
        read_class_file(written(tmp_path, "café\ngrass\n".encode(encoding)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_class_file(tmp_path / "none.txt")
    with pytest.raises(ManifestError, match="is a directory"):
        read_class_file(tmp_path)


def test_other_numbers_than_the_ids_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, "1: sea\n2: road\n")
    read_class_file(path, first_id=1)
    assert not caplog.records
    read_class_file(path)
    assert re.search(r"numbers its classes from 1; here their ids begin at 0", caplog.text)


def test_first_and_last_class_with_their_ids() -> None:
    assert Vocabulary(name="v", classes=("sea",)).describe() == "1 class: 0 sea"
    assert Vocabulary(name="v", classes=SEA).describe(1) == "3 classes: 1 sea ... 3 road"


@pytest.mark.parametrize("odd", ["\x00", "\n", "\x7f", "\x9b", "\u061c", "\u200e", "\u2028", "\u202a", "\u2069"])
def test_characters_that_change_what_is_shown(odd: str) -> None:
    assert control_character(f"a{odd}b") == f"the control character U+{ord(odd):04X}"
    with pytest.raises(ManifestError, match="printable"):
        Vocabulary(name="v", classes=("a", f"b{odd}"))


def test_other_scripts_are_names() -> None:
    words = ("\u0645\u06cc\u200c\u0634\u0648\u062f", "\u6d77", "na\u00efve", "\U0001f9c1")  # the first has a joiner
    assert Vocabulary(name="v", classes=words).classes == words
