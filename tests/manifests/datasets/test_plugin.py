"""Data sets of other packages: the example of docs/plugins.md with every option, and packages that fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import physseg as package
import pytest
from physseg.common.plugins import PluginError, find, offers
from physseg.manifests.datasets import ade20k, builtin, folder, pascal_context, pascal_voc, published
from physseg.manifests.datasets.interface import Dataset, load_dataset
from physseg.manifests.errors import ManifestError
from physseg.manifests.manifest import Manifest
from physseg.testing import check_dataset

PAGE = (Path(package.__file__).parent / "docs/plugins.md").read_text(encoding="utf-8")
CAMVID = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class CamVid" in code)
RAW = np.array([[0, 3, 11], [10, 8, 11]], np.uint8)  # sky, road, void / bicyclist, car, void


@pytest.fixture
def camvid(install, toys):
    """The example, installed, and a folder as it expects."""
    for split, names in (("test", ("b", "a")), ("train", ("c",))):
        for name in names:
            toys.image(f"{split}/{name}.png", toys.photo(2, 3))
            toys.label(f"{split}annot/{name}.png", RAW)
    return install("physseg-camvid", "camvid = physseg_camvid:CamVid", CAMVID, "datasets")


def offered(install, body, name="odd"):
    """A data set whose find() has this body."""
    source = (
        "class Odd:\n    name, description = 'odd', 'Odd, from anywhere.'\n"
        f"    def find(self, root, split):\n        {body}\n"
    )
    install(f"package-{name}", f"{name} = package_{name}:Odd", source, "datasets")


def test_the_example_makes_a_manifest(camvid, physseg):
    code, out, _ = physseg("manifest", "camvid", "--root", ".", "--out", "m.parquet")
    assert code == 0
    manifest = Manifest.read("m.parquet")
    assert (manifest.dataset, manifest.samples[0].split) == ("camvid", "test")
    assert [sample.sample_id for sample in manifest.samples] == ["a", "b"]
    assert [sample.label_path for sample in manifest.samples] == ["testannot/a.png", "testannot/b.png"]
    assert manifest.vocabulary.classes[3] == "road"
    assert manifest.load(0)[1].tolist() == [[0, 3, 255], [10, 8, 255]]
    assert "classes      4 of 11 occur; 33.3% of the pixels are unlabelled" in out


def test_a_split_to_train_on_is_preprocessed_next_another_is_evaluated(camvid, physseg):
    for split, step in (("train", "preprocess m.parquet m.zarr"), ("test", "evaluate RUN m.parquet")):
        code, out, _ = physseg("manifest", "camvid", "--root", ".", "--split", split, "--out", "m.parquet")
        assert code == 0
        assert f"next         physseg {step}" in out.splitlines()


def test_its_command_takes_the_options_of_ours(camvid, toys, physseg, tmp_path):
    base = ("manifest", "camvid", "--root", ".")
    assert physseg(*base, "--split", "train", "--out", "m.parquet")[0] == 0
    assert [sample.sample_id for sample in Manifest.read("m.parquet").samples] == ["c"]
    toys.lines("list.txt", "b")
    code, out, _ = physseg(*base, "--list", "list.txt", "--check", "--verbose", "--exif", "error", "--workers", "1")
    assert code == 0
    assert "checked      camvid, test: 1 samples, every id known" in out.splitlines()
    assert ["10", "bicyclist", "16.667%"] in [line.split() for line in out.splitlines()]
    toys.label("testannot/a.png", np.full((2, 3), 12, np.uint8))
    code, out, err = physseg(*base, "--out", "m.parquet")
    assert (code, "- a: testannot/a.png: expected ids of the 11 classes, got id 12 (6 pixels)" in out) == (3, True)
    assert physseg(*base, "--out", "m.parquet", "--allow-quarantine")[0] == 0
    code, _, err = physseg(*base, "--split", "tset", "--check")
    assert (code, err) == (1, "error: camvid: expected --split test or train or val, got 'tset'\n")
    code, _, err = physseg(*base, "--split", "val", "--check")
    assert code == 1
    assert err.startswith(f"error: {tmp_path}: expected samples of camvid, val, got none\n  hint: CamVid, 11 classes")
    assert "no such folder" in physseg("manifest", "camvid", "--root", "nowhere", "--check")[2]


def test_absent_files_are_named_and_nothing_is_written(camvid, toys, physseg, tmp_path):
    (tmp_path / "testannot/a.png").unlink()
    code, out, _ = physseg("manifest", "camvid", "--root", ".", "--check", "--out", "m.parquet")
    assert code == 1
    assert f"incomplete   1 of the 2 names have no label file in {tmp_path}/testannot (a)" in out.splitlines()
    assert "samples      1: 1 usable, 0 quarantined" in out
    (tmp_path / "testannot/b.png").unlink()
    code, _, err = physseg("manifest", "camvid", "--root", ".", "--check", "--out", "m.parquet")
    assert (code, "2 of the 2 names have no label file (a, b)" in err) == (1, True)
    assert not (tmp_path / "m.parquet").exists()


def test_the_example_keeps_the_contract(camvid, tmp_path):
    check_dataset(load_dataset(find("datasets", "camvid")), tmp_path)
    check_dataset(find("datasets", "camvid").load(), tmp_path, split="train")


def test_help_names_the_package_and_imports_nothing(camvid, physseg):
    (camvid / "physseg_camvid.py").write_text("raise SystemExit('imported')")
    lines = physseg("manifest", "--help")[1].splitlines()
    assert ["camvid", "From the package physseg-camvid."] in [line.split(maxsplit=1) for line in lines]
    assert physseg("manifest", "camvid", "--help")[0] == 0
    code = (
        "import sys\nfrom physseg.cli import app\n"
        "try: app(['manifest', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "found = {'torch', 'dask', 'cv2', 'numpy', 'pyarrow', 'physseg_camvid'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    path = os.pathsep.join([str(camvid), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (result.returncode, "camvid" in result.stdout) == (0, True), result.stderr


def test_a_name_of_ours_is_ours(install, toys, physseg):
    source = "raise SystemExit('imported')"
    install("thief-of-ade", "ade20k-150 = thief_of_ade:Ade\nfolder = thief_of_ade:Folder", source, "datasets")
    assert "thief" not in physseg("manifest", "--help")[1]
    assert load_dataset(find("datasets", "ade20k-150")) is builtin.ADE20K_150
    assert "150 classes" in physseg("manifest", "ade20k-150", "--help")[1]


def test_a_name_of_two_packages_is_nobodys(install, physseg):
    for name in ("one-odd", "two-odd"):
        install(name, f"odd = {name.replace('-', '_')}:thing", kind="datasets")
    assert "From the package one-odd and two-odd." in physseg("manifest", "--help")[1]
    code, _, err = physseg("manifest", "odd", "--root", ".", "--check")
    assert code == 1
    assert "error: the data set 'odd' is offered by several packages: one-odd, two-odd" in err


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return {}['a']", "KeyError: 'a'"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("return list(root.joinpath('gone').iterdir())", "FileNotFoundError: [Errno 2] No such file or directory: '"),
        ("return None", "TypeError: cannot unpack"),
        ("return [('a', root)], {0: 'sky'}", "ValueError: not enough values"),
        ("return [('a', root / 'a', root / 'a')], 7", "AttributeError: 'int' object has no attribute"),
    ],
)
def test_what_fails_is_one_line_that_names_the_package(body, told, install, physseg):
    offered(install, body)
    code, _, err = physseg("manifest", "odd", "--root", ".", "--check")
    assert code == 1
    line, hint = err.splitlines()
    assert line.startswith(f"error: data set odd of the package package-odd 1.5: {told}")
    assert hint == "  hint: is . its folder? Odd, from anywhere. `physseg --debug` shows more"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_library", "package_bad:Odd does not import: ModuleNotFoundError"),
        ("Odd = 7", "package_bad:Odd: expected name, description and find(), got int without one of them"),
        ("class Odd:\n    def __init__(self, where): pass", "TypeError: Odd.__init__() missing 1 required"),
    ],
)
def test_what_is_no_data_set_is_one_line_that_names_the_package(source, told, install, physseg):
    install("package-bad", "bad = package_bad:Odd", source, "datasets")
    code, _, err = physseg("manifest", "bad", "--root", ".", "--check")
    assert code == 1
    assert err.startswith(f"error: data set bad of the package package-bad 1.5: {told}")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("[('a', root / 'a', root / 'a')] * 2", "odd: expected ids of samples that are text, and each once, got 'a'"),
        ("[(7, root / 'a', root / 'a')]", "odd: expected ids of samples that are text, and each once, got 7"),
        ("[]", "expected samples of odd, got none"),
    ],
)
def test_samples_that_cannot_be_are_named(rows, told, install, tmp_path):
    offered(install, f"return {rows}, {{0: 'sky'}}")
    with pytest.raises(ManifestError, match=re.escape(told)):
        published.benchmark("odd", root=tmp_path)


def test_an_archive_says_what_was_published(install, toys, physseg):
    """The long form: a Release, several ids of one class, a cap, relative and linked folders."""
    toys.pairs(["a", "b"])
    body = (
        "from physseg.manifests.datasets.archive import Archive, Release\n"
        "        from physseg.manifests.labels.ids import LabelIds\n"
        "        files = [{p.stem: p for p in (root / name).iterdir()} for name in ('images', 'labels')]\n"
        "        release = Release(title='Long', counts=(3,), source='ask for it', numbering='n{}')\n"
        "        ids = LabelIds.named('long', {0: 'sky', 1: 'sky'})\n"
        "        return Archive(release=release, ids=ids, images=files[0], labels=files[1])"
    )
    offered(install, body, "long")
    code, out, _ = physseg("manifest", "long", "--root", ".", "--check")
    assert code == 1
    assert "incomplete   Long: expected 3 samples, got 2; missing: n1, n2, n3" in out.splitlines()
    assert "get it       ask for it" in out.splitlines()
    assert "classes      1 of 1 occur; 0.0% of the pixels are unlabelled" in out.splitlines()


def test_files_in_linked_folders(camvid, toys, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "test").rename(tmp_path / "elsewhere/test")
    (tmp_path / "test").symlink_to("elsewhere/test")
    manifest = published.benchmark("camvid", root=tmp_path).checked.manifest
    assert manifest.samples[0].image_path == "elsewhere/test/a.png"


# --- physseg's own ----------------------------------------------------------------------------------------------------


def test_ours_are_entry_points_with_finders_and_the_splits_that_were_released():
    ours = [load_dataset(offer) for offer in offers("datasets") if offer.package == "physseg"]
    assert set(ours) == set(builtin.DATA_SETS)
    assert all(isinstance(data_set, Dataset) for data_set in ours)
    assert {offer.name for offer in offers("datasets")} == {data_set.name for data_set in builtin.DATA_SETS}
    for releases, names in (
        (ade20k.CHALLENGE, ["ade20k-150"]),
        (ade20k.FULL, ["ade20k-847"]),
        (pascal_voc.RELEASES, pascal_voc.FINDERS),
        (pascal_context.RELEASES, pascal_context.FINDERS),
        ((), folder.FINDERS),
    ):
        assert {find("datasets", name).load().splits for name in names} == {tuple(releases)}


def test_coco_stuff_and_a_folder_of_ones_own_are_found_by_name_alone(toys):
    toys.pairs(["1", "2"], "images/val2017", "stuffthingmaps/val2017")
    assert len(published.benchmark("coco-stuff", root=toys.folder, split="val2017").checked.manifest) == 2
    with pytest.raises(ManifestError, match="without --split"):
        published.benchmark("coco-stuff", root=toys.folder)
    toys.pairs(["1", "2"], "images", "labels")
    toys.lines("classes.txt", "sky", "road")
    found = published.benchmark("folder", root=toys.folder).checked.manifest
    assert (found.vocabulary.classes, len(found)) == (("sky", "road"), 2)


def test_an_unknown_name_lists_all(camvid, tmp_path):
    with pytest.raises(PluginError, match=r"unknown data set 'camvdi', expected one of: ade20k-150, .*, camvid"):
        published.benchmark("camvdi", root=tmp_path)


def test_a_command_that_no_package_offers_says_what_to_do(camvid, physseg):
    code, out, err = physseg("manifest", "camvdi", "--root", ".", "--out", "m.parquet")
    assert code == 1
    assert "unknown data set 'camvdi'" in out + err
    assert "`physseg plugins`" in out + err
