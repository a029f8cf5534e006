"""check_extractor: physseg's own extractors keep every rule, and for each rule one that breaks it is told which."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from physseg.structure_extractors.canny import Canny
from physseg.structure_extractors.mask_edges import MaskEdges
from physseg.structure_extractors.patch_counts import PatchCounts
from physseg.structure_extractors.picture import Picture
from physseg.structure_extractors.semantic_edges import SemanticEdges
from physseg.structure_extractors.sift import Sift
from physseg.structure_extractors.superpoint.extractor import SuperPoint
from physseg.testing import ConformanceError, check_extractor

SOURCE = '''
import functools, itertools, random
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from physseg.plugins import ArraySpec

def spec(name="bright", dtype="uint8", dims=("y", "x"), fill=0, drawn="edges", target="map"):
    return ArraySpec(name, dtype, dims, fill, "where it is bright", drawn, target)

def bad(**members):
    """A class like Bright, but for these members."""
    return lambda function: type(function.__name__, (Bright,), {"__module__": __name__, "arrays": (spec(),), **members})

def called(function):
    return bad(__call__=lambda self, *a, ignore_index: {"bright": function(self, *a, ignore_index)})(function)

def bright(self, image):
    return np.where(image.sum(2, dtype=np.int64) > self.threshold, np.uint8(255), np.uint8(0))

@dataclass(frozen=True)
class Bright:
    """Keeps every rule."""
    name: ClassVar[str] = "bright"
    revision: ClassVar[int] = 3
    arrays: ClassVar[tuple[ArraySpec, ...]] = (spec(),)
    threshold: int = 384
    speed: float | None = None
    def identity(self):
        return {"extractor": "bright", "revision": 3, "threshold": self.threshold}
    def __call__(self, image, labels, *, ignore_index):
        return {"bright": bright(self, image)}

@dataclass
class Thawed(Bright.__base__):
    name = "thawed"; revision = 1; arrays = (spec(),)
    __call__ = Bright.__call__; __hash__ = lambda self: 1

@dataclass(frozen=True)
class Listed(Bright):
    thresholds: tuple[int, ...] = (1, 2)

@dataclass(frozen=True)
class Unhashable(Bright):
    weights: dict | None = None
    __hash__ = None

@dataclass(frozen=True)
class Textless(Bright):
    word: int = "many"

@bad(revision="one")
def Revised(): ...
@bad(arrays=[spec()])
def ListOfArrays(): ...
@bad(arrays=(spec(dims=("slot", "y", "x"), drawn="", target=""),))
def NoSlots(): ...
@bad(__module__="physseg.no_such_module")
def Hidden(): ...
@bad(identity=lambda self: {"revision": 3, "pair": (1, 2)})
def Tuples(): ...
@bad(identity=lambda self: {"revision": 3, "threshold": float("nan")})
def NotANumber(): ...
@bad(identity=lambda self: {"threshold": self.threshold})
def WithoutRevision(): ...
@bad(identity=lambda self: {"revision": 3, "threshold": self.threshold + 1})
def Drifting(): ...
@bad(identity=lambda self: {"revision": 3})
def Forgetful(): ...
@bad(identity=lambda self: {"revision": 3, "object": hash("text")})
def Hashed(): ...
@bad(arrays=(spec(fill=256, target=""),))
def Overfull(): ...
@bad(arrays=(spec(fill="ignore", target=""),))
def Ignorant(): ...
@bad(arrays=(spec(drawn="crayon"),))
def Crayon(): ...
@bad(arrays=(spec(fill=255),))
def Filled(): ...
@bad(arrays=(spec(target="regression"),))
def Aimless(): ...
@bad(arrays=(spec(), spec("dark")))
def OneOfTwo(): ...
@bad(arrays=(spec(dims=("cell_y", "cell_x"), drawn="", target=""),),
     __call__=lambda self, image, labels, *, ignore_index: {"bright": bright(self, image)[7::8, 7::8]})
def FloorOfCells(): ...
@bad(arrays=(spec(dtype="label", dims=("slot", "y", "x"), fill="ignore", drawn="", target="classes"),), slots=1,
     __call__=lambda self, image, labels, *, ignore_index: {"bright": labels[None] // 2})
def Inventor(): ...

@called
def Floats(self, image, labels, ignored): return bright(self, image).astype(np.float32)
@called
def Lists(self, image, labels, ignored): return bright(self, image).tolist()
@called
def LargeOnly(self, image, labels, ignored):
    if len(image) < 8: raise ValueError("too small")
    return bright(self, image)
@called
def Labelled(self, image, labels, ignored):
    return np.where(labels > labels[labels != ignored].max() / 2, np.uint8(255), np.uint8(0))
@called
def Brush(self, image, labels, ignored):
    found = bright(self, image); image[0, 0] = 0; return found
@called
def Pen(self, image, labels, ignored):
    labels[labels == ignored] = 0; return bright(self, image)
@called
def Dice(self, image, labels, ignored): return bright(self, image) // random.randint(1, 2)
counter = itertools.count()
@called
def Counter(self, image, labels, ignored): return bright(self, image) // np.uint8(1 + (next(counter) == 5))
here = []
@called
def Local(self, image, labels, ignored): return bright(self, image) // np.uint8(2 if here else 1)
@functools.cache
def largest(): return []
@called
def Remembers(self, image, labels, ignored):
    largest().append(image.size)
    return bright(self, image) // np.uint8(2 if image.size == largest()[0] else 1)
@called
def MemoryOrder(self, image, labels, ignored):
    found = bright(self, image)
    return found.ravel("F").reshape(labels.shape) if image.strides[1] > image.strides[0] else found
@called
def Forward(self, image, labels, ignored):
    found = np.zeros(labels.shape, np.uint8); found[:, :-1][labels[:, :-1] != labels[:, 1:]] = 255; return found
'''

RULES = {
    "Thawed": "thawed: expected a frozen dataclass",
    "Revised": "an integer as its `revision`",
    "ListOfArrays": "a tuple of ArraySpec",
    "NoSlots": "an integer as its `slots`",
    "Unhashable": "to be hashed.*unhashable type",
    "Hidden": "pickled by its name.*no_such_module",
    "Listed": r"setting thresholds of .*tuple\[int",
    "Textless": "setting word of",
    "Tuples": r"identity: expected JSON.*\(1, 2\)",
    "NotANumber": "identity: expected JSON.*nan",
    "WithoutRevision": "identity: expected JSON .*`revision`",
    "Drifting": "identity: expected .*385.* from these settings again, got .*386",
    "Forgetful": "one identity with threshold 384 and 385: .* px, .*expected bright to be 255, got 0",
    "Hashed": "identity in another process",
    "Overfull": "array bright: expected a fill that uint8 can hold, got 256",
    "Ignorant": "array bright: expected a fill that uint8 can hold, got 'ignore'",
    "Crayon": "drawn to be one of .*got 'crayon'",
    "Filled": "`map` with fill 0.*got .'map', 255",
    "Aimless": "got .'regression', 0",
    "OneOfTwo": "expected the arrays bright, dark, got bright",
    "FloorOfCells": r"^1 x 1 px.*bright as uint8 \(1, 1\), got uint8 \(0, 0\)",
    "Inventor": r"labels uint8: expected bright of the picture's classes or ignored, got \[\d+\]",
    "Floats": r"expected bright as uint8 \(1, 1\), got float32 \(1, 1\)",
    "Lists": "bright as uint8 .* got list",
    "LargeOnly": "bright: 1 x 1 px, labels uint16: expected arrays of any picture, got ValueError: too small",
    "Labelled": "all labels ignored: expected arrays of any picture, got ValueError",
    "Brush": "expected the image unchanged",
    "Pen": "expected the labels unchanged",
    "Dice": "bright, called again: .* px, .*expected bright to be",
    "Counter": "bright, called again: 33 x 50 px",
    "Local": "bright, another process: .* px, .*expected bright to be",
    "Remembers": "bright, another process: .* px, .*expected bright to be",
    "MemoryOrder": "bright, other strides: .* in Fortran order",
    "Forward": "bright, mirror: .* mirrored: expected bright to be",
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The classes, in a module that other processes find as well."""
    (tmp_path / "planted_extractors.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    planted = importlib.import_module("planted_extractors")
    planted.here.append("set in this process alone")
    yield planted
    sys.modules.pop("planted_extractors")


@pytest.mark.parametrize(
    ("extractor", "mirror"),
    [
        (Canny, False),
        (Canny(blur_sigma=1.0, l2_gradient=True), False),
        (Sift, False),
        (MaskEdges, True),
        (MaskEdges(ignore_borders=False, radius_px=2), True),
        (PatchCounts, True),
        (SemanticEdges, True),
        (SemanticEdges(radius_px=3), True),
        (SuperPoint(dense=True), False),
        (Picture, True),
    ],
)
def test_our_own_keep_every_rule(extractor: Any, mirror: bool) -> None:
    assert 0 < check_extractor(extractor, mirror=mirror) < 60


def test_what_our_own_do_not_claim_is_found() -> None:
    with pytest.raises(ConformanceError, match="canny, mirror"):
        check_extractor(Canny, mirror=True)


def test_a_setting_of_speed_may_be_left_out_of_the_identity(module: ModuleType) -> None:
    assert check_extractor(module.Bright, mirror=True) < 1
    assert check_extractor(module.Bright(threshold=0), mirror=True) < 1


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_told(module: ModuleType, name: str) -> None:
    with pytest.raises(ConformanceError, match=RULES[name]) as caught:
        check_extractor(getattr(module, name), mirror=True)
    assert isinstance(caught.value, AssertionError)  # what a test of another package fails with
    assert "\n" not in caught.value.args[0]


def test_a_class_that_no_other_process_has_is_told(module: ModuleType) -> None:
    module.Bright.__module__ = __name__ = "only_here"
    sys.modules[__name__] = module
    try:
        with pytest.raises(ConformanceError, match=r"bright: expected the same in another process.*only_here"):
            check_extractor(module.Bright)
    finally:
        sys.modules.pop("only_here")
