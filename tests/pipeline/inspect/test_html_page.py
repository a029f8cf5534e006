"""The page of `physseg inspect --html`: self-contained, escaped, complete."""

import base64
import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from physseg.manifests.manifest import Manifest, Vocabulary
from physseg.pipeline.inspect import html_page
from physseg.pipeline.inspect.drawing.label_maps import outlines
from physseg.pipeline.inspect.drawing.layers import KEYPOINTS, label_layer, structure_alpha
from physseg.pipeline.inspect.drawing.palette import class_colours, colour_labels
from physseg.pipeline.inspect.errors import InspectError
from physseg.pipeline.inspect.html_page import write_page
from physseg.pipeline.inspect.sample_view import SampleViews
from physseg.pipeline.run.run import preprocess
from physseg.pipeline.store.frame import Frame
from PIL import Image

PAGE = Path(html_page.__file__).parent / "page"
EVIL = ("</script><script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "a & b", "plain")
CLASSES = ("<b>ground</b>", 'box "1"', "disc</script>", "square & co", "ball", *(f"class {i}" for i in range(300)))


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text of data scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.data: dict[str, str] = {}
        self.text = ""
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        self._open = attributes.get("id") if attributes.get("type") == "application/json" else None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.data[self._open] = data
        self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._open = None


@pytest.fixture
def store(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    """Five samples with hostile ids, 305 classes (16-bit labels), the last sample quarantined."""
    manifest = make_manifest(5)
    samples = [dataclasses.replace(s, sample_id=(*EVIL, "<i>bad</i>")[i]) for i, s in enumerate(manifest.samples)]
    manifest = dataclasses.replace(manifest, samples=samples, vocabulary=Vocabulary(name="v", classes=CLASSES))
    Path(manifest.root, "images/004.jpg").write_bytes(b"no longer an image")
    frame = Frame(short_edge=48, max_long_edge=64, canvas=64)
    preprocess(manifest, tmp_path / "s.zarr", scheduler="sync", frame=frame, progress=False)
    return tmp_path / "s.zarr"


def page_of(store: Path, **options: object) -> tuple[str, Reader]:
    report = write_page(store, store.parent / "page.html", **options)  # type: ignore[arg-type]
    text = report.path.read_text(encoding="utf-8")
    assert report.num_bytes == len(text.encode())
    return text, Reader(text)


def pixels(uri: str) -> Image.Image:
    kind, data = uri.split(";base64,")
    assert kind in {"data:image/png", "data:image/jpeg"}
    picture = Image.open(BytesIO(base64.b64decode(data)))
    return picture.convert("RGBA") if picture.mode == "P" else picture


def test_the_page_needs_nothing_from_outside(store: Path) -> None:
    text, page = page_of(store)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text)
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)


def test_names_from_other_people_are_text_and_nothing_else(store: Path) -> None:
    text, page = page_of(store)
    assert [a["data-id"] for _, a in page.elements if a.get("class") == "card"] == list(EVIL)
    for name in (*EVIL, "<i>bad</i>"):
        assert name in page.text
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len(scripts) == 1 + 1 + 4  # settings, the script itself, one per sample
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not {"b>", "i>"} & set(re.findall(r"<(ground|bad)", text))
    for name in (CLASSES[0], CLASSES[2], EVIL[0]):
        assert name not in text


def test_every_sample_has_its_data(store: Path) -> None:
    _, page = page_of(store)
    settings = json.loads(page.data["store"])
    views = SampleViews(store)
    for position in range(4):
        sample = json.loads(page.data[f"sample-{position}"])
        view = views.view(position)
        assert sample["id"] == EVIL[position]
        assert [class_id for class_id, _ in sample["classes"]] == [class_id for class_id, _ in view.shares]
        assert {int(key) for key in sample["weights"]} == {class_id for class_id, _ in view.shares}
        assert sum(share for _, share in sample["classes"]) + sample["ignored"] == pytest.approx(1, abs=1e-4)
        assert set(sample["layers"]) | {"weights"} == {layer["name"] for layer in settings["layers"]}
        assert pixels(sample["image"]).size == (view.image.shape[1], view.image.shape[0])
        for class_id, _ in sample["classes"]:
            assert settings["classes"][str(class_id)]["name"] == CLASSES[class_id].split(",")[0]


def test_layers_hold_the_maps(store: Path) -> None:
    _, page = page_of(store)
    sample = json.loads(page.data["sample-0"])
    view = SampleViews(store).view(0)
    edges = np.array(pixels(sample["layers"]["canny"]["src"]).convert("RGBA"))
    np.testing.assert_array_equal(edges[..., 3] > 0, view.structures["canny"][1] > 0)
    assert set(np.unique(edges[..., 3])) <= {0, 255}
    dots = np.array(pixels(sample["layers"]["sift"]["src"]).convert("RGBA"))[..., 3]
    alpha = structure_alpha(view.structures["sift"][1], KEYPOINTS)
    np.testing.assert_array_equal(dots > 0, alpha > 0)
    assert np.abs(dots / 255 - alpha).max() <= 1 / 15
    labels = np.array(pixels(sample["layers"]["labels"]["src"]).convert("RGB"))
    inside = ~outlines(view.labels)
    expected = colour_labels(view.labels, class_colours(CLASSES), ignore_index=65535)
    np.testing.assert_array_equal(labels[inside], expected[inside])
    class_id = view.shares[0][0]
    weights = np.array(pixels(sample["weights"][str(class_id)]).convert("RGBA"))
    assert list(weights.shape[:2]) == sample["patches"] == list(view.patch_weights(class_id).shape)
    np.testing.assert_array_equal(weights[..., 3] > 0, view.patch_weights(class_id) > 0)


def test_cards_can_be_searched_by_id_and_class(store: Path) -> None:
    _, page = page_of(store)
    searched = [a["data-search"] for _, a in page.elements if a.get("class") == "card"]
    assert "a & b" in searched[2]
    assert "<b>ground</b>" in searched[0]


def test_samples_are_limited_or_chosen(store: Path) -> None:
    text, page = page_of(store, max_samples=2)
    assert [a["data-id"] for _, a in page.elements if a.get("class") == "card"] == [EVIL[0], EVIL[2]]
    assert "2 of 4 done ones" in text
    _, page = page_of(store, samples=[3])
    assert [a["data-id"] for _, a in page.elements if a.get("class") == "card"] == ["plain"]


def test_one_unreadable_image_is_shown_on_grey_and_all_unreadable_are_an_error(store: Path) -> None:
    root = store.parent / "data"
    (root / "images/001.jpg").unlink()
    report = write_page(store, store.parent / "page.html")
    assert len(report.image_problems) == 1
    sample = json.loads(Reader(report.path.read_text()).data["sample-1"])
    assert "images/001.jpg" in sample["problem"]
    root.rename(store.parent / "moved")
    with pytest.raises(InspectError, match="4 images"):
        write_page(store, store.parent / "page.html")
    assert not write_page(
        store, store.parent / "page.html", samples=[0], root=str(store.parent / "moved")
    ).image_problems


def test_more_classes_than_a_palette_holds() -> None:
    labels = (np.arange(48 * 64).reshape(48, 64) // 4 % 300).astype(np.uint16)
    picture = Image.open(BytesIO(label_layer(labels, class_colours(CLASSES), ignore_index=65535).to_png()))
    assert picture.mode == "RGB"  # no palette
    inside = ~outlines(labels)
    np.testing.assert_array_equal(
        np.array(picture)[inside], colour_labels(labels, class_colours(CLASSES), ignore_index=65535)[inside]
    )


def test_the_page_holds_script_and_style_as_they_are(store: Path) -> None:
    """They pass through the template engine, to which some characters are commands."""
    text, _ = page_of(store)
    for name in ("inspect.css", "inspect.js"):
        assert (PAGE / name).read_text(encoding="utf-8").rstrip() in text


def test_a_store_without_samples_has_no_page(store: Path) -> None:
    (store / "status/c/0").unlink()
    with pytest.raises(InspectError, match="0 of 5"):
        write_page(store, store.parent / "page.html")
    assert not (store.parent / "page.html").exists()
