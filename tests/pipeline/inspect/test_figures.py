"""Charts: where which box and text stands, in the SVG and in the PNG alike."""

from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from physseg.pipeline.inspect.drawing.figures import COLOURS, Bar, Figure, bars, share_table
from PIL import Image

NAMESPACE = "{http://www.w3.org/2000/svg}"


def saved(figure: Figure, folder: Path) -> tuple[ElementTree.Element, np.ndarray]:
    figure.save(folder / "a.b")
    with Image.open(folder / "a.b.png") as png:
        return ElementTree.parse(folder / "a.b.svg").getroot(), np.asarray(png.convert("RGB"))


def rectangles(svg: ElementTree.Element, kind: str) -> list[tuple[float, ...]]:
    """x, y, width and height of the boxes of a kind, in px."""
    found = (one for one in svg.iter(f"{NAMESPACE}rect") if one.get("class") == kind)
    return [tuple(float(one.get(key, "")) for key in ("x", "y", "width", "height")) for one in found]


def texts(svg: ElementTree.Element) -> dict[str, tuple[float, str]]:
    """Where each text stands, and which part of it does."""
    found = svg.iter(f"{NAMESPACE}text")
    return {one.text or "": (float(one.get("x", "")), one.get("text-anchor", "start")) for one in found}


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    """-0.2 to 0.7 of hundreds are 90 units over 360 px: 4 px each, zero 80 px from the left."""
    rows = [
        Bar("up & away", 0.6, "+60", [(0.5, 0.7), None]),
        Bar("down", -0.1, "-10", [None, (-0.2, 0.05)], faint=True),
    ]
    svg, png = saved(bars("Title", "note", rows, 100), tmp_path)
    (left, top, width, height), lower = rectangles(svg, "bar")
    assert (width, height) == (240, 12)
    zero = left
    assert (lower[0], lower[2], lower[1] - top) == (zero - 40, 40, 18)
    upper_line, lower_line = rectangles(svg, "ink")
    assert (upper_line[0] - zero, upper_line[2]) == (200, 80)
    assert (lower_line[0] - zero, lower_line[2]) == (-80, 100)
    middle = top + 6
    assert upper_line[1] + 1 == middle - 3 and lower_line[1] + 1 == middle + 18 + 3
    ticks = {text: x - zero for text, (x, anchor) in texts(svg).items() if anchor == "middle"}
    assert ticks == {"-20": -80, "0": 0, "20": 80, "40": 160, "60": 240}
    assert texts(svg)["up & away"] == (zero - 80 - 8, "end")
    assert float(svg.get("width", "")) * 2 == png.shape[1] and float(svg.get("height", "")) * 2 == png.shape[0]
    # The same in the picture, at twice the size: colour up to the bar's end, none behind; the pale one half of it.
    y = round(2 * (middle + 4))
    assert tuple(png[y, round(2 * (zero + 238))]) == COLOURS["bar"]
    assert tuple(png[y, round(2 * (zero + 242))]) == (255, 255, 255)
    assert tuple(png[round(2 * (middle + 18 - 4)), round(2 * (zero - 20))]) == pytest.approx((146, 177, 212), abs=1)
    assert tuple(png[round(2 * (middle - 3)), round(2 * (zero + 270))]) == COLOURS["ink"]


@pytest.mark.parametrize(
    ("value", "ticks"),
    [
        (13, ["0", "5", "10"]),
        (0.3, ["0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]),
        (0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
    ],
)
def test_an_axis_has_round_numbers(value: float, ticks: list[str], tmp_path: Path) -> None:
    svg, _ = saved(bars("t", "n", [Bar("a", value, "")]), tmp_path)
    assert [text for text, (_, anchor) in texts(svg).items() if anchor == "middle"] == ticks


def test_a_value_that_is_not_known_has_no_bar_and_others_keep_theirs(tmp_path: Path) -> None:
    rows = [Bar("none", float("nan"), "-", [(float("nan"), float("nan"))]), Bar("half", 0.5, "50%")]
    figure = bars("t", "n", rows, 100)
    figure.save(tmp_path / "f")
    assert [box.place[2] for box in figure.boxes if box.kind == "bar"] == [0, 360]
    assert "NaN" not in (tmp_path / "f.svg").read_text() and "nan" not in (tmp_path / "f.svg").read_text()


def test_a_table_of_shares(tmp_path: Path) -> None:
    """Row 2, column 1 holds a quarter: half as opaque as a whole. What is less than a thousandth is not drawn."""
    shares = np.array([[1.0, 0.0005, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 0.0]])
    svg, png = saved(share_table("t", "n", ["<sky>", "sea", "x" * 99], shares), tmp_path)
    found = rectangles(svg, "bar")
    left, top = found[0][:2]
    assert [(x - left, y - top) for x, y, _, _ in found] == [(0, 0), (0, 18), (18, 18)]
    opaque = [one.get("opacity") for one in svg.iter(f"{NAMESPACE}rect") if one.get("class") == "bar"]
    assert opaque == [None, "0.50", "0.87"]
    assert [one.text for one in svg.iter(f"{NAMESPACE}title")] == [
        *("<sky> called <sky>: 100.0%", "sea called <sky>: 25.0%", "sea called sea: 75.0%"),
    ]
    assert tuple(png[round(2 * (top + 26)), round(2 * (left + 8))]) == pytest.approx((146, 177, 212), abs=1)
    assert any(text.endswith("…") for text in texts(svg))
    for empty in (share_table("t", "n", [], np.zeros((0, 0))), bars("t", "n", [])):
        with Image.open(BytesIO(empty.png())) as picture:
            assert picture.width > 0
