"""`physseg manifest`: what a person sees, and exit codes."""

import numpy as np
import pytest
import typer
from physseg.common.command_line.options import parsed
from physseg.common.text import Part, parse_bytes
from physseg.manifests.manifest import Manifest


def toy_set(toys):
    toys.pairs(["a", "b"])
    return toys.lines("classes.txt", "sky", "road, street", "car")


def test_folder_writes_a_manifest_and_says_what_is_next(toys, physseg):
    toy_set(toys)
    code, out, _ = physseg(
        "manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", "sub/m.parquet"
    )
    assert code == 0
    for line in (
        "samples      2: 2 usable, 0 quarantined",
        "classes      2 of 3 occur; 0.0% of the pixels are unlabelled",
        "absent       car",
        "next         physseg preprocess sub/m.parquet sub/m.zarr",
    ):
        assert line in out.splitlines()
    manifest = Manifest.read("sub/m.parquet")
    assert manifest.vocabulary.classes == ("sky", "road, street", "car")
    assert len(manifest) == 2


def test_a_name_of_before_works_and_a_line_says_the_new_one(toys, physseg, tmp_path):
    toy_set(toys)
    code, out, err = physseg("manifest", "folder", "--root", ".", "--classes", "classes.txt", "--out", "old.parquet")
    assert code == 0 and err == "note: --classes is now --classes-file\n"
    assert (code, out.replace("old.", "new."), "") == physseg(
        "manifest", "folder", "--root", ".", "--classes-file=classes.txt", "-o", "new.parquet"
    )
    assert (tmp_path / "old.parquet").read_bytes() == (tmp_path / "new.parquet").read_bytes()


def test_the_same_input_gives_the_same_bytes(toys, physseg, tmp_path):
    toy_set(toys)
    for out in ("one.parquet", "two.parquet"):
        physseg("manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", out)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_verbose_shows_every_class(toys, physseg):
    toy_set(toys)
    command = ("manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", "m.parquet", "--verbose")
    out = physseg(*command)[1]
    assert [line.split() for line in out.splitlines() if "%" in line and "occur" not in line] == [
        ["0", "sky", "50.000%"],
        ["1", "road", "50.000%"],
        ["2", "car", "0.000%"],
    ]


def test_quarantine_is_listed_by_name_and_makes_the_exit_code(toys, physseg):
    toy_set(toys)
    toys.image("images/bad.jpg")
    toys.label("labels/bad.png", np.full((24, 32), 9, np.uint8))
    toys.image("images/grey.jpg", mode="L")
    toys.label("labels/grey.png")
    command = ("manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", "m.parquet")
    code, out, err = physseg(*command)
    assert code == 3
    assert "--allow-quarantine" in err
    assert "samples      4: 3 usable, 1 quarantined" in out
    assert "quarantined  1 x unknown ids; repair: correct the label" in out
    assert "- bad: labels/bad.png: expected ids of the 3 classes, got id 9 (768 pixels)" in out
    assert "note         1 x greyscale image" in out
    manifest = Manifest.read("m.parquet")
    assert len(manifest) == 4
    assert physseg(*command, "--allow-quarantine")[0] == 0


def test_ignore_and_first_id(toys, physseg):
    toys.pairs(["a", "b"])
    toys.lines("classes.txt", "thing")
    base = ("manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", "m.parquet")
    code, out, _ = physseg(*base, "--first-id", "1", "--ignore", "0", "--ignore", "255")
    assert code == 0
    assert "classes      1 of 1 occur; 50.0% of the pixels are unlabelled" in out


def test_coco_stuff_with_root_and_split(toys, physseg):
    toys.pairs(["1", "2"], "images/val2017", "stuffthingmaps/val2017")
    code, out, _ = physseg("manifest", "coco-stuff", "--root", ".", "--split", "val2017", "--out", "m.parquet")
    assert code == 0
    assert "data set     coco-stuff, split val2017" in out
    assert "classes      2 of 171 occur" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("coco-stuff", "--out", "m.parquet"),
            "error: expected the folders of images and labels, got neither\n  hint: ",
        ),
        (
            ("coco-stuff", "--out", ".", "--images", "x", "--labels", "y"),
            "error: .: Is a directory\n  hint: ",
        ),
        (
            ("folder", "--out", "m.parquet", "--root", ".", "--classes-file", "no.txt"),
            "error: no.txt: expected a class file, got no such file",
        ),
        (
            ("folder", "--out", "m.parquet", "--root", ".", "--classes-file", "classes.txt", "--exif", "guess"),
            "error: exif: expected error, apply or ignore, got 'guess'",
        ),
    ],
)
def test_errors_are_a_line_and_a_hint(arguments, message, toys, physseg, tmp_path):
    toy_set(toys)
    code, _, err = physseg("manifest", *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "m.parquet").exists()


def test_a_failed_run_keeps_the_old_manifest(toys, physseg, tmp_path):
    toy_set(toys)
    command = ("manifest", "folder", "--root", ".", "--classes-file", "classes.txt", "--out", "m.parquet")
    physseg(*command)
    before = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "labels/a.png").unlink()
    assert physseg(*command)[0] == 1
    assert (tmp_path / "m.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("parse", "text", "option"), [(Part.parse, "3/2", "--part"), (parse_bytes, "lots", "--memory-limit")]
)
def test_an_option_that_does_not_parse_is_named_once(parse, text, option):
    with pytest.raises(typer.BadParameter) as caught:
        parsed(parse, text, option)
    assert caught.value.param_hint == option
    assert caught.value.message.startswith("expected ")
