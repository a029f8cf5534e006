"""A wider world of the demo's scenes: what is in them has many more names than any class list, and captions tell some.

A scene is a landscape of one to three grounds, and on it things of a colour, a pattern and an outline, some of them
small or half hidden, some much like others: red and orange, dots and stars, checks and a grid. Captions name some of
what is there, in several ways: "a photo of scarlet spots on the beach". A CLIP is pretrained on them (pretrain.py).

Class names are those of a ground ("sand") or of a colour and a pattern ("red dots"), whatever the outline. What they
are fine-tuned and tested on is in regime.py, the words are in world.toml.
"""

import tomllib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from .drawing import BALL, IGNORE_INDEX, Float32, Float64, Pose, UInt8, landscape, paint, painted, pebble, polar, posed

SIDE_PX, MARGIN_PX = 192, 16
"""Side of the pictures that the CLIP takes, and how much larger the scenes are that they are cut from."""
SIZES = ((SIDE_PX, SIDE_PX), (SIDE_PX, 256), (256, SIDE_PX))
"""Heights and widths of the pictures of data sets, in px."""
SCALE = (0.09, 0.28)
WORLD: dict[str, Any] = tomllib.loads(Path(__file__).with_name("world.toml").read_text(encoding="utf-8"))
COLOURS, PATTERNS, GROUNDS = WORLD["colours"], WORLD["patterns"], WORLD["grounds"]
_TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False)
OUTLINES = {
    "ball": BALL,
    "egg": polar(0.66 / np.sqrt(1 - 0.75 * np.cos(_TURN) ** 2)),
    "box": polar(np.full(4, 1.1)),
    "pyramid": polar(np.full(3, 1.2)),
    "flower": polar(0.82 + 0.24 * np.cos(5 * _TURN)),
    "starfish": polar(np.tile((1.2, 0.55), 5)),
}


class Thing(NamedTuple):
    """What a thing is, or what a caption says of it: "" where it does not."""

    colour: str
    pattern: str
    outline: str


class Caption(NamedTuple):
    text: str
    claims: frozenset[Thing | str]
    """What it says is there."""


class Scene(NamedTuple):
    image: UInt8
    """(H, W, 3) RGB."""
    places: UInt8
    """(H, W) places in `contents`, or 255."""
    contents: tuple[Thing | str, ...]
    """Grounds by name, then things from back to front."""

    def visible(self, least_px: int) -> list[Thing | str]:
        """The contents that at least so many pixels show."""
        pixels = np.bincount(self.places.ravel(), minlength=256)
        return [content for content, count in zip(self.contents, pixels, strict=False) if count >= least_px]

    def labels(self, classes: Sequence[str]) -> UInt8:
        """(H, W) places in `classes`, 255 for what is not among them."""
        ids = {name: index for index, name in enumerate(classes)}
        names = (each if isinstance(each, str) else f"{each.colour} {each.pattern}" for each in self.contents)
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(self.contents)] = [ids.get(name, IGNORE_INDEX) for name in names]
        return table[self.places]


def random_scene(rng: np.random.Generator) -> Scene:
    """A square scene of anything, `MARGIN_PX` larger than the CLIP's pictures; every second one is a close-up."""
    side, close = SIDE_PX + MARGIN_PX, rng.random() < 0.5
    grounds = rng.permutation(list(GROUNDS))[: rng.integers(1, 4)]
    kinds = (list(COLOURS), list(PATTERNS), list(OUTLINES))
    count = rng.integers(1, 3) if close else rng.integers(2, 7)
    things = [Thing(*(str(rng.choice(kind)) for kind in kinds)) for _ in range(count)]
    scale = (0.25, 0.5) if close else SCALE
    return draw(things, [str(ground) for ground in grounds], rng, size=(side, side), scale=scale)


def draw(
    things: Sequence[Thing],
    grounds: Sequence[str],
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = SCALE,
    shifted: bool = False,
) -> Scene:
    """Draw a scene of these things, the first at the back.

    `scale`: least and greatest radius of a thing, as a share of the shorter side.
    `shifted`: with coarser grounds, larger, paler and turned patterns, and light of other strengths and colours than
    any other scene has.
    """
    height, width = size
    part = 2 if shifted else 1
    canvas, places = landscape(grounds, height // part, width // part, rng)
    canvas = np.asarray(cv2.resize(canvas, (width, height)), np.float32)
    places = np.asarray(cv2.resize(places, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    if rng.random() < 0.4:  # an object that nobody labelled
        _place(canvas, places, pebble(rng), Thing("grey", "plain", ""), IGNORE_INDEX, rng, SCALE, shifted=shifted)
    for index, thing in enumerate(things, len(grounds)):
        _place(canvas, places, OUTLINES[thing.outline], thing, index, rng, scale, shifted=shifted)
    return Scene(_lit(canvas, rng, shifted=shifted), places, (*grounds, *things))


def captions(
    contents: Sequence[Thing | str], number: int, rng: np.random.Generator, *, mistaken: int = 0
) -> list[Caption]:
    """One caption that names two or three of the contents, and further ones that name one each.

    Then come `mistaken` ones of things with another pattern (after Yuksekgonul et al. 2023): they seldom fit.
    """
    told = [_caption(contents, count, rng) for count in (int(rng.integers(2, 4)), *[1] * (number - 1))]
    things = [content for content in contents if isinstance(content, Thing)]
    for _ in range(mistaken if things else 0):
        other = things[int(rng.integers(len(things)))]._replace(pattern=str(rng.choice(list(PATTERNS))))
        told.append(_caption([other], 1, rng))
    return told


def word_captions(rng: np.random.Generator) -> list[Caption]:
    """For every colour, pattern, outline and ground a caption that says no more than that it is there."""
    claims = [Thing(name, "", "") for name in COLOURS] + [Thing("", name, "") for name in PATTERNS]
    claims += [Thing("", "", name) for name in OUTLINES]
    return [_told([_phrase(claim, rng)], rng) for claim in (*claims, *GROUNDS)]


def claims_of(contents: Sequence[Thing | str]) -> set[Thing | str]:
    """All that a caption may say of one of the contents and be right."""
    things = [content for content in contents if isinstance(content, Thing)]
    claims = {Thing(*some) for thing in things for some in product(*((part, "") for part in thing))}
    return claims.union(content for content in contents if isinstance(content, str))


def words() -> list[str]:
    """Everything that captions are made of, piece by piece: words, joints, templates."""
    named = [WORLD["templates"], ["a", "thing", "of", "with", "and", "beside", "on", "the"]]
    for kind in ("colours", "patterns", "outlines", "grounds"):
        named += [[name, *(entry if isinstance(entry, list) else [entry])] for name, entry in WORLD[kind].items()]
    return [word for words in named for word in words if isinstance(word, str)]


def _place(
    canvas: Float32,
    places: UInt8,
    outline: Float64,
    thing: Thing,
    label: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    *,
    shifted: bool,
) -> None:
    """Paint one thing, within the window of its outline and its shadow."""
    pose = posed(outline, places.shape, rng, scale=scale)
    low = np.maximum(pose.corners.min(axis=0).astype(int) - 16, 0)
    high = np.maximum(pose.corners.max(axis=0).astype(int) + 16, 0)
    window = slice(low[1], high[1]), slice(low[0], high[0])
    period = rng.uniform(8, 14) * (1.5 if shifted else 1)
    angle = rng.uniform(0, np.pi) if shifted else rng.uniform(-0.35, 0.35)
    dark = thing.colour == "black"  # between its shapes it is light instead
    paint(
        canvas[window],
        places[window],
        Pose(pose.corners - low, pose.centre - low, pose.radius),
        painted(thing.pattern, places[window].shape, period, angle, rng),
        colour=COLOURS[thing.colour][0],
        label=label,
        rng=rng,
        gap=4.5 if dark else 0.5 if shifted else 0.28,
    )


def _lit(canvas: Float32, rng: np.random.Generator, *, shifted: bool) -> UInt8:
    """The picture under a light of some strength, colour and direction, with the camera's blur and noise."""
    height, width, _ = canvas.shape
    cast, slope = (0.25, rng.uniform(0.5, 1)) if shifted else (0.07, rng.uniform(0, 0.4))
    angle = rng.uniform(0, 2 * np.pi)
    down, right = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)
    light = 1 + slope * (np.cos(angle) * right + np.sin(angle) * down)
    strength = rng.uniform(0.65, 1.15) * rng.uniform(1 - cast, 1 + cast, 3)
    lit = canvas * (light[..., None] * strength).astype(np.float32)
    if rng.random() < 0.3:
        lit = cv2.GaussianBlur(lit, (3, 3), rng.uniform(0.4, 0.9))
    noise = rng.standard_normal(lit.shape, np.float32)
    return np.asarray(np.clip(lit + np.float32(rng.uniform(2, 9)) * noise, 0, 255), np.uint8)


def _caption(contents: Sequence[Thing | str], count: int, rng: np.random.Generator) -> Caption:
    order = [contents[index] for index in rng.permutation(len(contents))[:count]]
    order.sort(key=lambda content: isinstance(content, str))  # things, then grounds
    return _told([_phrase(content, rng) for content in order], rng)


def _told(phrases: Sequence[tuple[str, Thing | str]], rng: np.random.Generator) -> Caption:
    text = ""
    for phrase, claim in phrases:
        joint = " on " if isinstance(claim, str) else rng.choice((" and ", " beside "))
        text += f"{joint}{phrase}" if text else phrase
    return Caption(str(rng.choice(WORLD["templates"])).replace("{}", text), frozenset(claim for _, claim in phrases))


def _phrase(content: Thing | str, rng: np.random.Generator) -> tuple[str, Thing | str]:
    """Words for one of the contents, or for the part of a thing that is not "", and what they say of it."""

    def one(name: str, *others: str) -> str:
        return name if rng.random() < 0.6 else (name, *others)[int(rng.integers(1 + len(others)))]

    if isinstance(content, str):
        ground = one(content, GROUNDS[content])
        return (f"the {ground}" if rng.random() < 0.3 else ground), content
    colour = one(content.colour, *COLOURS.get(content.colour, [])[1:])
    noun, adjective = PATTERNS.get(content.pattern, ("", ""))
    shapes, outline = one(content.pattern, noun), one(content.outline, WORLD["outlines"].get(content.outline, ""))
    forms = (
        (f"{colour} {shapes}", "cp"),
        (f"{colour} {shapes}", "cp"),
        (f"{colour} {shapes}", "cp"),
        (f"{colour} {adjective} thing", "cp"),
        (f"{colour} {adjective} {outline}", "cpo"),
        (f"{outline} with {colour} {shapes}", "cpo"),
        (f"{colour} {outline}", "co"),
        (f"{adjective} {outline}", "po"),
        (f"{adjective} thing", "p"),
        (f"{colour} thing", "c"),
        (colour, "c"),
        (shapes, "p"),
        (outline, "o"),
    )
    known = {letter for part, letter in zip(content, "cpo", strict=True) if part}
    fitting = [form for form in forms if known.issuperset(form[1])]
    text, said = fitting[int(rng.integers(len(fitting)))]
    return text, Thing(*(part if letter in said else "" for part, letter in zip(content, "cpo", strict=True)))
