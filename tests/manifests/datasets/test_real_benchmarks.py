"""The benchmarks' tables against those read from other sources, and genuine files, where they are at hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from physseg.manifests.datasets import published
from physseg.manifests.datasets.ade20k import ade20k_150_ids, ade20k_847_ids
from physseg.manifests.datasets.pascal_context import context_ids
from physseg.manifests.datasets.pascal_voc import voc_20_ids, voc_20b_ids
from physseg.manifests.labels.forms import decode_raw
from PIL import Image

DATA = Path(__file__).parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="no shared folder with real photographs beside the repository"
)

IDS = {
    ("ade20k_150", "png_value_to_index"): ade20k_150_ids(),
    ("ade20k_847", "full_index_to_index"): ade20k_847_ids(),
    ("pascal_context_59", "raw459_id_to_index"): context_ids(59, "mat"),
    ("pascal_context_59", "legacy60_to_index"): context_ids(59, "colours"),
    ("pascal_context_459", "raw459_id_to_index"): context_ids(459, "mat"),
    ("pascal_voc_20", "png_value_to_index"): voc_20_ids(),
    ("pascal_voc_20b", "png_value_to_index"): voc_20b_ids(),
}


def table(dataset, key):
    return {int(raw): index for raw, index in json.loads((DATA / "id_maps.json").read_text())[dataset][key].items()}


def read(path):
    return np.asarray(Image.open(DATA / path))


@pytest.mark.parametrize(("dataset", "key"), IDS)
def test_ids_and_names_equal_the_independent_ones(dataset, key):
    ids = IDS[dataset, key]
    assert ids.raw_to_class == table(dataset, key)
    names = json.loads((DATA / "vocabularies.json").read_text())[dataset]
    tidy = [", ".join(word.strip() for word in entry.split(",")) for entry in names]
    assert list(ids.vocabulary.classes) == tidy


def test_ade_150(tmp_path):
    manifest = published.benchmark("ade20k-150", root=DATA / "ade150").checked.manifest
    assert [sample.sample_id for sample in manifest.samples] == ["ADE_val_00000001", "ADE_val_00000003"]
    for index, sample in enumerate(manifest.samples):
        raw = read(Path("ade150") / sample.label_path).astype(int)
        assert (manifest.load(index)[1] == np.where(raw == 0, 255, raw - 1)).all()


def test_the_full_ade_scene_agrees_with_its_json_and_its_numbers():
    manifest = published.benchmark("ade20k-847", root=DATA / "ade_full", split="training").checked.manifest
    sample = manifest.samples[0]
    assert sample.note == ""
    assert (sample.height, sample.width) == (512, 683)
    colours = read(next((DATA / "ade_full").rglob("*_seg.png"))).astype(int)
    raw = colours[..., 0] // 10 * 256 + colours[..., 1]
    small = raw[(np.arange(512) * 1536 // 512)][:, (np.arange(683) * 2048 / 683).astype(int)]
    full = table("ade20k_847", "full_index_to_index")
    expected = np.vectorize(lambda value: full.get(value, 65535))(small)
    assert (manifest.load(0)[1] == expected).all()


def test_a_full_label_becomes_the_challenges():
    """The challenge's labels were made from the full ones; its authors resized as Pillow's nearest neighbour does."""
    raw = decode_raw((DATA / "ade150/convert/ADE_train_00000970_raw.png").read_bytes(), "ade-full")
    assert raw.max() > 255
    small = np.asarray(Image.fromarray(raw).resize((683, 512), Image.Resampling.NEAREST))
    to_challenge = table("ade20k_150", "full_index_to_png_value")
    expected = np.vectorize(lambda value: to_challenge.get(value, 0))(small)
    assert (read("ade150/convert/ADE_train_00000970_challenge.png") == expected).all()


def test_pascal_context_in_three_forms(tmp_path):
    folder = DATA / "pascal_context"
    stems = sorted(path.stem for path in (folder / "JPEGImages").iterdir())
    names = tmp_path / "names.txt"
    names.write_text("\n".join(stems))
    expected = [read(folder / f"labels_pc59/{stem}.png") for stem in stems]
    for form, labels in (("ids", "labels_pc59"), ("colours", "rgb_as_found"), ("mat", "synthesised_459_mat")):
        options = {"root": folder, "form": form, "labels": folder / labels, "listed": names}
        manifest = published.benchmark("pascal-context-59", **options).checked.manifest
        assert not manifest.quarantined
        for index in range(2):
            assert (manifest.load(index)[1] == expected[index]).all(), form
        with_background = published.benchmark("pascal-context-60", **options).checked.manifest
        refused = [labels for labels in expected if form == "ids" and (labels == 255).any()]
        assert len(with_background.quarantined) == len(refused), "files of the 59 are no files of the 60"
        for index in range(0 if form == "ids" else 2):
            of_60 = np.where(expected[index] == 255, 0, expected[index] + 1)
            assert (with_background.load(index)[1] == of_60).all(), form


def test_pascal_context_459(tmp_path):
    folder = DATA / "pascal_context"
    to_459 = {index: raw for raw, index in table("pascal_context_59", "raw459_id_to_index").items()}
    for path in sorted((folder / "synthesised_459_mat").iterdir()):
        raw = decode_raw(path.read_bytes(), "mat")
        classes = read(folder / f"labels_pc59/{path.stem}.png")
        assert raw.shape == classes.shape
        for index in np.unique(classes[classes != 255]).tolist():
            assert set(np.unique(raw[classes == index]).tolist()) == {to_459[index]}


@pytest.mark.parametrize(("name", "background"), [("pascal-voc-20", 255), ("pascal-voc-20b", 20)])
def test_voc(name, background):
    found = published.benchmark(name, root=DATA / "voc", split="train", check=True)
    assert "expected 1464 samples, got 240 names" in found.faults[0]
    manifest = found.checked.manifest
    assert len(manifest) == 240
    assert not manifest.quarantined
    for index in (0, 100, 239):
        raw = read(Path("voc") / manifest.samples[index].label_path).astype(int)
        expected = np.where(raw == 255, 255, np.where(raw == 0, background, raw - 1))
        assert (manifest.load(index)[1] == expected).all()


def test_voc_with_background_as_class_0():
    checked = published.benchmark("pascal-voc-21", root=DATA / "voc", split="train").checked
    files = [DATA / "voc" / sample.label_path for sample in checked.manifest.samples]
    counts = sum(np.bincount(read(path).ravel(), minlength=256) for path in files)
    assert checked.class_pixels.tolist() == counts[:21].tolist()
    assert checked.ignored_pixels == counts[255]
    assert counts[0] > counts[1:21].sum(), "background is most of the pixels"
