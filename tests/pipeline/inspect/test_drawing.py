"""Pictures: what colour which pixel gets."""

import itertools
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.pipeline.inspect.drawing import label_maps, layers, layout, lettering, palette
from physseg.pipeline.inspect.drawing.errors import DrawError
from physseg.structure_extractors.keypoints import encode_confidence, score_map

NAMES = ("ground", "box", "disc")
GREY = np.full((40, 60, 3), 100, np.uint8)


def quarters() -> np.ndarray:
    """Labels 0, 1, 2 and ignored, a quarter each, (40, 60)."""
    labels = np.zeros((40, 60), np.uint8)
    labels[:20, 30:], labels[20:, :30], labels[20:, 30:] = 1, 2, 255
    return labels


def blended(colour: np.ndarray, alpha: float, image: int = 100) -> np.ndarray:
    return np.rint((1 - alpha) * image + alpha * colour.astype(float)).astype(np.uint8)


# --- colours ---


def test_a_position_keeps_its_colour_in_larger_palettes() -> None:
    np.testing.assert_array_equal(palette.palette(847)[:21], palette.palette(21))


@pytest.mark.parametrize("count", [1, 21, 171, 847])
def test_colours_differ_from_each_other_and_from_ignored(count: int) -> None:
    colours = palette.palette(count).astype(int)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count
    assert np.abs(colours - palette.IGNORED).max(axis=1).min() >= 24
    assert np.ptp(colours, axis=1).min() > 30  # none is grey


def test_the_first_colours_are_far_apart() -> None:
    """Independent of how they were chosen: every pair of the first 21 differs by 20 in OpenCV's CIELAB."""
    lab = cv2.cvtColor((palette.palette(21)[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 20


def test_colours_beyond_the_candidates_repeat() -> None:
    assert palette.palette(5000).shape == (5000, 3)
    assert palette.palette(0).shape == (0, 3)


def test_a_palette_may_be_changed_by_its_owner() -> None:
    palette.palette(3)[:] = 0
    assert palette.palette(3).any()


def of_word(word: str, *others: str) -> tuple[int, ...]:
    return tuple(palette.class_colours((*others, word))[-1].tolist())


def test_convention_a_word_keeps_its_colour_in_other_lists() -> None:
    """In any place, case and company, with its synonyms or without; a word that it would be taken for goes first."""
    for others in ((), ("cat",), ("sky", "cat", "sofa"), tuple(f"thing {number}" for number in range(5))):
        assert of_word("dog", *others) == of_word(" Dog, hound", *others) == of_word("dog")
    assert len({of_word(word) for word in ("dog", "cat", "sofa", "sky", "tree")}) == 5
    assert of_word("dog", "dog") != of_word("dog")  # two classes of one name are two colours


@pytest.mark.parametrize("count", [12, 150, 847])
def test_the_words_of_one_list_are_told_apart(count: int) -> None:
    """Independent of how they were chosen, in OpenCV's CIELAB: of twelve every pair differs by 10, of many by some."""
    colours = palette.class_colours([f"class {number}" for number in range(count)])
    lab = cv2.cvtColor((colours[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
    assert least > {12: 10, 150: 3, 847: 1}[count]
    assert np.abs(colours.astype(int) - palette.IGNORED).max(axis=1).min() >= 24


def test_more_words_than_colours() -> None:
    assert palette.class_colours([f"class {number}" for number in range(1800)]).shape == (1800, 3)
    assert palette.class_colours([]).shape == (0, 3)


def test_a_class_named_by_a_colour_has_it() -> None:
    hues = {"red": 0, "orange": 25, "yellow": 50, "green": 130, "blue": 235, "purple": 275, "pink": 345}
    for name, hue in hues.items():
        for word in palette.class_colours([f"{name} dots", f"{name} checks"]):
            found = cv2.cvtColor((word[None, None] / 255).astype(np.float32), cv2.COLOR_RGB2HSV)[0, 0, 0]
            assert abs((found - hue + 180) % 360 - 180) < 30, (name, word)
    assert palette.class_colours(["white dots"]).min() > 160


def test_labels_get_their_colours_and_ignored_pixels_grey() -> None:
    coloured = palette.colour_labels(quarters(), palette.palette(3), ignore_index=255)
    np.testing.assert_array_equal(coloured[0, 59], palette.palette(3)[1])
    np.testing.assert_array_equal(coloured[39, 59], palette.IGNORED)


def test_sixteen_bit_labels() -> None:
    labels = np.array([[846, 65535]], np.uint16)
    coloured = palette.colour_labels(labels, palette.palette(847), ignore_index=65535)
    np.testing.assert_array_equal(coloured[0], [palette.palette(847)[846], palette.IGNORED])


def test_an_id_without_a_class_is_refused() -> None:
    with pytest.raises(DrawError, match="label id 3"):
        palette.colour_labels(np.array([[0, 3]], np.uint8), palette.palette(3), ignore_index=255)
    with pytest.raises(DrawError, match="ignore index 2"):
        palette.colour_labels(np.array([[0, 1]], np.uint8), palette.palette(3), ignore_index=2)
    with pytest.raises(DrawError, match="label id -1"):
        palette.colour_labels(np.array([[0, -1]], np.int64), palette.palette(3), ignore_index=255)


# --- overlays ---


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_labelled_pixel_has_its_class_s_blended_colour(alpha: float) -> None:
    picture = label_maps.blend_labels(GREY, quarters(), palette.palette(3), ignore_index=255, alpha=alpha)
    for (y, x), class_id in {(5, 5): 0, (5, 50): 1, (35, 5): 2}.items():
        np.testing.assert_array_equal(picture[y, x], blended(palette.palette(3)[class_id], alpha))
    np.testing.assert_array_equal(picture[35, 50], blended(np.array(palette.IGNORED), alpha))


def test_outlines_are_the_pixels_that_differ_from_right_or_below() -> None:
    edge = label_maps.outlines(quarters())
    expected = np.zeros((40, 60), bool)
    expected[:, 29] = True
    expected[19] = True
    np.testing.assert_array_equal(edge, expected)
    dark = label_maps.blend_labels(GREY, quarters(), palette.palette(3), ignore_index=255)[5, 29]
    assert dark.max() < 64


def test_the_picture_keeps_its_place_and_the_legend_stands_beside_or_below() -> None:
    beside = label_maps.overlay(GREY, quarters(), NAMES, ignore_index=255)
    assert beside.shape[1] > 60
    wide = label_maps.overlay(np.tile(GREY, (1, 2, 1)), np.tile(quarters(), (1, 2)), NAMES, ignore_index=255)
    assert wide.shape[0] > 40
    alone = label_maps.overlay(GREY, quarters(), NAMES, ignore_index=255, max_legend=0)
    np.testing.assert_array_equal(beside[:40, :60], alone)


def test_the_legend_shows_the_swatches_of_the_classes_that_are_present() -> None:
    labels = np.where(quarters() == 1, 0, quarters()).astype(np.uint8)
    side = label_maps.overlay(GREY, labels, NAMES, ignore_index=255)[:, 60:]
    colours = {tuple(colour) for colour in side.reshape(-1, 3).tolist()}
    of_class = [tuple(colour) for colour in palette.class_colours(NAMES).tolist()]
    assert [colour in colours for colour in of_class] == [True, False, True]
    assert palette.IGNORED in colours


def test_shares_count_all_pixels_the_largest_class_first() -> None:
    labels = np.array([[2, 2, 2, 255], [2, 1, 1, 255]], np.uint8)
    assert label_maps.class_shares(labels) == [(2, 0.5), (1, 0.25), (255, 0.25)]


def test_a_long_legend_names_how_many_more_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[lettering.LegendEntry] = []
    monkeypatch.setattr(label_maps, "legend", lambda entries, *_, **__: (written.extend(entries), GREY)[1])
    labels = np.repeat(np.arange(10, dtype=np.uint8)[None], 4, axis=0)
    label_maps.overlay(
        np.zeros((4, 10, 3), np.uint8), labels, [f"c{i}" for i in range(10)], ignore_index=255, max_legend=3
    )
    assert [(entry.name, entry.value) for entry in written] == [
        ("c0", "10.0%"), ("c1", "10.0%"), ("c2", "10.0%"), ("and 7 more", "70.0%"),
    ]  # fmt: skip


def test_names_are_written_on_large_regions_only() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    labels = np.zeros((200, 300), np.uint8)
    labels[:6, :6] = 1
    plain = label_maps.blend_labels(image, labels, palette.class_colours(NAMES), ignore_index=255)
    named = label_maps.overlay(image, labels, NAMES, ignore_index=255, max_legend=0)
    changed = (plain != named).any(axis=2)
    assert changed.any()
    assert not changed[labels == 1].any()
    assert (named[changed] == 255).all(axis=1).any()  # white letters


@given(height=st.integers(1, 60), width=st.integers(1, 90), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_any_size_can_be_drawn(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = label_maps.overlay(image, labels, ("a", "b" * 80, "c"), ignore_index=255)
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= height
    assert picture.shape[1] >= width


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DrawError, match=r"\(40, 60, 3\) uint8 and \(10, 60\)"):
        label_maps.overlay(GREY, quarters()[:10], NAMES, ignore_index=255)
    with pytest.raises(DrawError, match=r"\(40, 60\)"):
        label_maps.overlay(GREY[..., 0], quarters(), NAMES, ignore_index=255)
    with pytest.raises(DrawError, match="40 x 60"):
        layers.structure_layer(quarters()[:10], layers.EDGES, (1, 2, 3)).over(GREY)


# --- structures ---


def test_an_edge_pixel_has_the_edge_colour_and_all_others_the_dimmed_image() -> None:
    plane = np.zeros((40, 60), np.uint8)
    plane[7, 11] = 255
    picture = layers.structure_layer(plane, layers.EDGES, (250, 10, 30)).over(palette.dim(GREY))
    np.testing.assert_array_equal(picture[7, 11], (250, 10, 30))
    picture[7, 11] = 50
    np.testing.assert_array_equal(picture, np.full((40, 60, 3), 50))


def test_convention_keypoints_are_drawn_at_x_y_and_larger_the_more_confident() -> None:
    heatmap = encode_confidence(score_map(np.array([[20.0, 10.0], [60.0, 40.0]]), np.array([1.0, 0.1]), (80, 100)))
    alpha = layers.structure_alpha(heatmap, layers.KEYPOINTS)
    assert alpha[10, 20] == 1
    assert 0.3 < alpha[40, 60] < 1
    strong, weak = np.count_nonzero(alpha[:25, :40]), np.count_nonzero(alpha[25:])
    assert strong > 2 * weak > 0
    assert np.count_nonzero(alpha) == strong + weak


def test_of_overlapping_keypoints_the_strong_one_is_on_top() -> None:
    heatmap = encode_confidence(score_map(np.array([[20.0, 20.0], [21.0, 20.0]]), np.array([1.0, 0.05]), (40, 40)))
    assert layers.structure_alpha(heatmap, layers.KEYPOINTS)[20, 20:22].tolist() == [1, 1]


def test_a_density_is_as_opaque_as_its_code() -> None:
    plane = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(layers.structure_alpha(plane, layers.DENSITY), [[0, 0.2, 1]], atol=1e-6)


def test_each_side_of_a_class_edge_has_the_colour_of_its_class() -> None:
    labels = np.array([[4, 4, 7, 7], [255, 4, 7, 3]], np.uint8)
    planes = np.full((2, 2, 4), 255, np.uint8)
    planes[:, 0, 1:3] = np.array([4, 7])[:, None]
    planes[:, 1, 3] = 4, 7  # neither is the pixel's label
    picture = layers.class_edge_layer(planes, labels, palette.palette(9), ignore_index=255).over(GREY[:2, :4])
    colours, grey = palette.palette(9).tolist(), [100, 100, 100]
    assert picture.tolist() == [[grey, colours[4], colours[7], grey], [grey, grey, grey, colours[4]]]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(DrawError, match="'lines'"):
        layers.structure_alpha(np.zeros((2, 2), np.uint8), "lines")


# --- patch weights ---


def test_weights_colour_their_patch_and_leave_empty_ones_clear() -> None:
    weights = np.array([[1, 0], [0.2, 0]], np.float32)
    picture = layers.weight_layer(weights).over(np.full((20, 30, 3), 50, np.uint8), side=16)
    full, fifth = palette.heat_colours(np.array([1.0, 0.2]))
    np.testing.assert_array_equal(picture[15, 15], blended(full, 0.8, image=50))
    np.testing.assert_array_equal(picture[16, 0], blended(fifth, 0.8, image=50))
    np.testing.assert_array_equal(picture[0, 16], (50, 50, 50))


def test_the_scale_is_darker_where_weights_are_smaller() -> None:
    brightness = palette.heat_colours(np.linspace(0, 1, 50)).astype(int) @ (299, 587, 114)
    assert (np.diff(brightness) > 0).all()


def test_weights_that_do_not_cover_the_image_are_refused() -> None:
    with pytest.raises(DrawError, match="20 x 40"):
        layers.weight_layer(np.ones((2, 2), np.float32)).over(np.zeros((20, 40, 3), np.uint8), side=16)


# --- arranging and text ---


def test_tiles_stand_in_a_grid_with_their_pictures_unchanged() -> None:
    red, blue = (np.full((30, 40, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    page = layout.tile([(red, "first"), (blue, "second"), (red[:10, :10], "third")], columns=2, title="all")
    reds, blues = ((page == colour).all(axis=2) for colour in ((200, 0, 0), (0, 0, 200)))
    assert blues.sum() == 30 * 40
    assert reds.sum() == 30 * 40 + 100
    assert np.flatnonzero(blues.any(axis=0))[0] > np.flatnonzero(reds.any(axis=0))[0]
    assert np.flatnonzero(reds.any(axis=1))[-1] > np.flatnonzero(blues.any(axis=1))[-1]
    with pytest.raises(DrawError):
        layout.tile([], columns=2)


def test_text_is_shortened_to_fit() -> None:
    assert lettering.shorten("box", 16, 200) == "box"
    short = lettering.shorten("a name that is far too long for its place", 16, 120)
    assert short.endswith("…")
    assert 60 < lettering.text_size(short, 16)[1] <= 120


@pytest.mark.parametrize("text", ["кошка", "naïve", "日本", "a\nb\x1b[31m", "", "…"])
def test_any_text_can_be_written(text: str) -> None:
    canvas = np.full((30, 300, 3), 255, np.uint8)
    lettering.write(canvas, text, 5, 5, 16)
    assert (canvas < 128).any() == bool(text)


def test_text_outside_the_canvas_is_cut() -> None:
    canvas = np.full((10, 10, 3), 255, np.uint8)
    lettering.write(canvas, "word", -5, -5, 16, halo=True)
    lettering.write(canvas, "word", 50, 50, 16)
    assert canvas.shape == (10, 10, 3)


def test_text_is_placed_inside_its_region_or_nowhere() -> None:
    region = np.zeros((60, 200), bool)
    region[20:50, 60:180] = True
    place = lettering.place_text(region, "box", [16])
    assert place is not None
    x, y, size = place
    height, width = lettering.text_size("box", size)
    assert region[y : y + height, x : x + width].mean() > 0.9
    assert lettering.place_text(region, "a name too long for this region", [16]) is None
    assert lettering.place_text(np.zeros((60, 200), bool), "box", [16]) is None
    corner = np.zeros((60, 200), bool)
    corner[:, :12] = corner[:12] = True  # large enough as a whole, too thin everywhere
    assert lettering.place_text(corner, "box", [16]) is None


def test_drawing_loads_nothing_else_of_the_pipeline() -> None:
    """The trainer draws, too, and needs no store and no manifest for that."""
    names = ("label_maps", "layers", "layout", "lettering", "palette")
    code = "".join(f"import physseg.pipeline.inspect.drawing.{name}\n" for name in names)
    code += "import sys; print(*(name for name in sys.modules if name.startswith('physseg')))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    above = {"physseg", "physseg.pipeline", "physseg.pipeline.inspect"}
    assert not [name for name in loaded if name not in above and ".drawing" not in name and ".common" not in name]
