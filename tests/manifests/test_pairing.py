"""Which image belongs to which label; everything left over is an error with both sides named."""

import pytest
from physseg.manifests.errors import ManifestError
from physseg.manifests.pairing import common_root, pair_files, read_list


def test_pairs_are_by_stem_and_sorted(toys):
    toys.image("images/b.JPG")
    toys.image("images/a.jpeg")
    toys.image("images/c.d.png")
    for stem in ("a", "b", "c.d"):
        toys.label(f"labels/{stem}.png")
    toys.lines("images/notes.txt", "x")
    toys.lines("images/._a.jpg", "hidden, as some systems leave them")
    pairs = pair_files(toys.folder / "images", toys.folder / "labels")
    assert [(pair.sample_id, pair.image.name, pair.label.name) for pair in pairs] == [
        ("a", "a.jpeg", "a.png"),
        ("b", "b.JPG", "b.png"),
        ("c.d", "c.d.png", "c.d.png"),
    ]


def test_leftovers_name_both_sides_counts_and_the_repair(toys):
    toys.pairs(["x"])
    for stem in ("a", "b", "c", "d", "e", "f"):
        toys.image(f"images/{stem}.jpg")
    toys.label("labels/z.png")
    with pytest.raises(ManifestError) as caught:
        pair_files(toys.folder / "images", toys.folder / "labels")
    message = str(caught.value)
    assert "6 of 7 images in" in message
    assert "(a, b, c, d, e and 1 more)" in message
    assert "1 of 2 labels in" in message
    assert "(z)" in message
    assert "--list FILE" in message


def test_a_list_selects_and_leftovers_outside_do_not_matter(toys):
    toys.pairs(["a", "b", "c"])
    toys.image("images/lone.jpg")
    listed = toys.lines("list.txt", "c", "", " a ")
    pairs = pair_files(toys.folder / "images", toys.folder / "labels", listed=listed)
    assert [pair.sample_id for pair in pairs] == ["a", "c"]


def test_listed_names_without_files_are_named(toys):
    toys.pairs(["a", "b"])
    toys.image("images/lone.jpg")
    folders = toys.folder / "images", toys.folder / "labels"
    with pytest.raises(ManifestError, match=r"images \(nope\)"):
        pair_files(*folders, listed=toys.lines("list.txt", "a", "nope"))
    with pytest.raises(ManifestError, match=r"labels \(lone\)"):
        pair_files(*folders, listed=toys.lines("list.txt", "a", "lone"))
    with pytest.raises(ManifestError, match="list names without their extension"):
        pair_files(*folders, listed=toys.lines("list.txt", "a.jpg"))


def test_two_images_with_one_stem(toys):
    toys.pairs(["a"])
    toys.image("images/a.png")
    with pytest.raises(ManifestError, match=r"got a\.(jpg and a\.png|png and a\.jpg)"):
        pair_files(toys.folder / "images", toys.folder / "labels")


@pytest.mark.parametrize("side", ["images", "labels"])
def test_missing_empty_and_wrong_folders(side, toys):
    folders = toys.folder / "images", toys.folder / "labels"
    other = "labels" if side == "images" else "images"
    toys.pairs(["a"], **{side: "elsewhere"})
    assert (toys.folder / other).is_dir()
    with pytest.raises(ManifestError, match=rf"/{side}: expected a folder of (images|label pictures), got none there"):
        pair_files(*folders)
    (toys.folder / side).write_text("a file")
    with pytest.raises(ManifestError, match="got a file"):
        pair_files(*folders)
    (toys.folder / side).unlink()
    (toys.folder / side).mkdir()
    with pytest.raises(ManifestError, match="got nothing"):
        pair_files(*folders)
    (toys.folder / side / "train").mkdir()
    toys.lines(f"{side}/readme.txt", "x")
    with pytest.raises(ManifestError, match=r"got 1 \.txt files, 1 folders"):
        pair_files(*folders)


def test_one_folder_for_both(toys):
    toys.pairs(["a"])
    with pytest.raises(ManifestError, match="in one folder"):
        pair_files(toys.folder / "images", toys.folder / "labels" / ".." / "images")


def renamed(toys, images, labels):
    """Files of these names; the error of pairing them, or the pairs."""
    for name in images:
        toys.image(f"images/{name}")
    for name in labels:
        toys.label(f"labels/{name}")
    return toys.folder / "images", toys.folder / "labels"


def test_endings_of_names_do_not_count_where_they_are_named(toys):
    folders = renamed(
        toys,
        ["ulm_1_leftImg8bit.png", "ulm_2_leftImg8bit.png"],
        [f"ulm_{number}_gtFine_{kind}.png" for number in (1, 2) for kind in ("labelIds", "instanceIds")],
    )
    pairs = pair_files(*folders, image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds")
    assert [pair.sample_id for pair in pairs] == ["ulm_1", "ulm_2"]
    assert [pair.label.name for pair in pairs] == ["ulm_1_gtFine_labelIds.png", "ulm_2_gtFine_labelIds.png"]
    with pytest.raises(ManifestError, match=r"expected images \(.*got 2 \.png files"):
        pair_files(*folders, image_suffix="_rightImg8bit")


@pytest.mark.parametrize(
    ("images", "labels", "options"),
    [
        (["a.jpg", "b.jpg", "c.jpg"], ["a_mask.png", "b_mask.png", "c_mask.png"], ["--label-suffix=_mask"]),
        (["a_rgb.png", "b_rgb.png"], ["a.png", "b.png"], ["--image-suffix=_rgb"]),
        (
            ["ulm_1_leftImg8bit.png", "ulm_2_leftImg8bit.png"],
            ["ulm_1_gtFine_labelIds.png", "ulm_2_gtFine_labelIds.png"],
            ["--image-suffix=_leftImg8bit", "--label-suffix=_gtFine_labelIds"],
        ),
        (["a1.jpg", "a2.jpg"], ["a3.png", "a4.png"], []),
        (["a-1.jpg", "a-2.jpg"], ["a-3.png", "a-4.png"], []),
        (["a.jpg", "b.jpg"], ["x.png"], []),
    ],
)
def test_names_with_endings_name_the_options_that_pair_them(images, labels, options, toys):
    folders = renamed(toys, images, labels)
    with pytest.raises(ManifestError) as caught:
        pair_files(*folders)
    assert [word for word in caught.value.hint.replace("`", " ").split() if "-suffix=" in word] == options
    if options:
        given = {option.split("=")[0][2:].replace("-", "_"): option.split("=")[1] for option in options}
        assert len(pair_files(*folders, **given)) == len(images)
    else:
        assert "--list FILE" in caught.value.hint


def test_one_name_in_two_unicode_forms_is_named_so(toys):
    """A Mac writes "é" as two characters; both names look the same in the error."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    folders = renamed(toys, [f"{composed}.jpg"], [f"{decomposed}.png"])
    with pytest.raises(ManifestError, match="convmv"):
        pair_files(*folders)
    toys.label(f"labels/{composed}.png")
    with pytest.raises(ManifestError, match=r"have no image in(.|\n)*convmv"):
        pair_files(*folders, listed=toys.lines("list.txt", decomposed))


@pytest.mark.parametrize(("name", "repair"), [("a.npy", "np.load"), ("a.jpg", "JPEG smears ids"), ("a.bmp", "folder")])
def test_labels_of_other_kinds_have_their_repair(name, repair, toys):
    toys.image("images/a.jpg")
    toys.lines(f"labels/{name}", "x")
    with pytest.raises(ManifestError, match=r"got 1 \.(npy|jpg|bmp) files") as caught:
        pair_files(toys.folder / "images", toys.folder / "labels")
    assert repair in caught.value.hint


def test_hidden_pairs_are_counted(toys, caplog):
    toys.pairs(["a", ".b"])
    toys.lines("images/.DS_Store", "of the system, and no image")
    assert len(pair_files(toys.folder / "images", toys.folder / "labels")) == 1
    assert [message.split(": ", 2)[2] for message in caplog.messages] == ["not used: 1 hidden files"] * 2


@pytest.mark.parametrize(("kind", "got"), [("folder", "a folder"), ("link", "a link to nothing")])
def test_pairs_that_are_no_files_are_not_passed_over(kind, got, toys):
    """Image and label both: neither has a partner that would complain."""
    toys.pairs(["a"])
    for path in (toys.folder / "images/b.jpg", toys.folder / "labels/b.png"):
        path.mkdir() if kind == "folder" else path.symlink_to("/nowhere/b.jpg")
    with pytest.raises(ManifestError, match=rf"images/b\.jpg: expected a file, got {got}"):
        pair_files(toys.folder / "images", toys.folder / "labels")


def test_what_is_left_aside_is_counted(toys, caplog):
    toys.pairs(["a"])
    toys.lines("images/b.webp", "an image in a format that is not read")
    toys.lines("labels/b.bmp", "and its label")
    toys.lines("images/.hidden", "does not count")
    toys.pairs(["c"], images="images/sub", labels="labels/sub")
    pair_files(toys.folder / "images", toys.folder / "labels")
    assert [record.message.split("/")[-1] for record in caplog.records] == [
        "images: not used: 1 .webp files, 1 folders",
        "labels: not used: 1 .bmp files, 1 folders",
    ]


def test_unprintable_names_are_refused(toys):
    toys.pairs(["a"])
    toys.image("images/line\nbreak.jpg")
    with pytest.raises(ManifestError, match="unprintable"):
        pair_files(toys.folder / "images", toys.folder / "labels")


def test_list_files(toys):
    with pytest.raises(ManifestError, match=r"line 3: 'a' already stands in line 1"):
        read_list(toys.lines("twice.txt", "a", "b", "a"))
    with pytest.raises(ManifestError, match="got none"):
        read_list(toys.lines("empty.txt", "", ""))
    with pytest.raises(ManifestError, match="no such file"):
        read_list(toys.folder / "missing.txt")


def test_common_root(tmp_path):
    assert common_root(tmp_path / "a" / "b", tmp_path / "a" / "c") == tmp_path.resolve() / "a"
