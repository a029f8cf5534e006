"""The demo's page from made-up results: complete, self-contained and escaped."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physseg.common.html import chart
from physseg.train.demo import page as demo_page
from physseg.train.demo.page import Stage, render_page
from physseg.train.demo.results import GroupScore, Results

URL = "data:image/png;base64,AAAA"
DOCUMENT = Path(__file__).parents[3] / "docs/study.md"
AFTER = Results(
    classes=("sand", "red circle", "red star"),
    unseen_classes=("red star",),
    iou=np.array([0.8, 0.25, np.nan]),
    pixels=np.array([12345, 678, 0]),
    seen=GroupScore(miou=0.525, uniform=0.1, most_frequent=0.2),
    unseen=GroupScore(miou=0.111, uniform=0.03, most_frequent=0.0),
)
BEFORE = dataclasses.replace(AFTER, unseen=dataclasses.replace(AFTER.unseen, miou=0.333))


@pytest.fixture
def report() -> dict[str, Any]:
    legend = [((1, 2, 3), "red star (never trained)", "3.0%")]
    picture = {"url": URL, "caption": "a <b> & c"}
    return {
        "settings": {"seed": "7", "device": "cpu"},
        "stages": [
            Stage(title="train", command="physseg train demo.toml", seconds=161.5),
            Stage(title="predict", command="physseg predict run x.jpg", seconds=2.25),
        ],
        "resumed": False,
        "models": {"zero-shot": BEFORE, "both losses": AFTER},
        "charts": [chart("segmentation", [(1, 0.7), (2, 0.5), (3, 0.25)]), chart("structure", [])],
        "scenes": [{"pictures": [picture], "legend": legend}],
        "structures": [{"pictures": [picture], "legend": []}],
        "predictions": [{"pictures": [picture] * 3, "legend": legend}],
    }


class Tags(HTMLParser):
    """Collects tags, checks that they close in order, and keeps every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """``<line/>`` and its like open nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_nothing_from_outside(report: dict[str, Any]):
    page = render_page(**report)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    pictures = [address for address in tags.addresses if address.startswith("data:image/")]
    beside = ["structures.html", "run/log.jsonl", "baseline/log.jsonl"]
    assert (len(pictures), [address for address in tags.addresses if address not in pictures]) == (5, beside)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)


def test_page_shows_numbers_commands_times_and_words(report: dict[str, Any]):
    page = render_page(**report)
    for text in (
        "<b>52.5%</b>",
        "<b>11.1%</b>",
        "33.3%</td>",
        "fine-tuning has cost",
        "physseg train demo.toml",
        "161.5 s",
        "3 min",
        "12,345",
        "no pixel",
        "nothing was",
    ):
        assert text in page, text
    assert "a &lt;b&gt; &amp; c" in page
    assert page.count(">never trained<") == 2  # in the grid and in the IoU table
    assert "some transfer" in page
    assert page.count("rgb(1,2,3)") == 2


def test_the_study_on_the_page_is_that_of_the_documents(report: dict[str, Any]):
    study = json.loads((Path(demo_page.__file__).with_name("page") / "study.json").read_text(encoding="utf-8"))
    page, document = render_page(**report), DOCUMENT.read_text(encoding="utf-8")
    scores, changes = (block.splitlines() for block in document.split("<!-- tables")[1].split("\n\n")[1:3])
    for name, seen, words, harmonic, *difference in study["rows"]:
        (line,) = (line.split(" | ") for line in scores if line.startswith(f"| {name} |"))
        assert (line[1], line[3], line[5].rstrip(" |")) == (seen, words, harmonic)
        changed = [line.split(" | ")[2:5] for line in changes if line.startswith(f"| {name} |")]
        assert changed == ([difference] if any(difference) else [])
        assert all(f">{text}</td>" in page for text in (seen, words, harmonic, *difference) if text)
    assert study["command"] in document and study["date"] in page


def test_times_of_a_resumed_demo_are_not_called_the_whole(report: dict[str, Any]):
    assert "whole chain" in render_page(**report)
    resumed = render_page(**(report | {"resumed": True}))
    assert "went on with an earlier" in resumed and "whole chain" not in resumed


def test_words_on_the_page_change_with_the_numbers(report: dict[str, Any]):
    unseen = GroupScore(miou=0.001, uniform=0.03, most_frequent=0.0)
    failed = report | {"models": report["models"] | {"both losses": dataclasses.replace(AFTER, unseen=unseen)}}
    assert "below chance" in render_page(**failed)
    assert "below chance" not in render_page(**report)


def test_chart_draws_every_point_within_its_frame(report: dict[str, Any]):
    lines = re.findall(r'<polyline points="([^"]+)"', render_page(**report))
    assert len(lines) == 2
    for line in lines:
        points = np.array([[float(value) for value in point.split(",")] for point in line.split(" ")])
        assert points.shape == (3, 2)
        assert (np.diff(points[:, 0]) > 0).all()
        assert (np.diff(points[:, 1]) > 0).all()  # the loss falls, so y on the page grows
        assert (points >= 0).all() and (points <= (260, 180)).all()
