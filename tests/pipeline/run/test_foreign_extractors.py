"""Extractors of other packages that are careless: a line that names the package, and nothing wrong in a store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from physseg.common.errors import PhyssegError
from physseg.common.plugins import PluginError
from physseg.manifests.manifest import Manifest
from physseg.pipeline.run import run
from physseg.pipeline.run.errors import ShardFailedError
from physseg.pipeline.run.verify import verify
from physseg.pipeline.store.errors import StoreError
from physseg.pipeline.store.frame import Frame
from physseg.structure_extractors import registry

MakeManifest = Callable[..., Manifest]
Install = Callable[..., Path]
FRAME = Frame(short_edge=32, max_long_edge=64, canvas=64)
SOURCE = """
import enum, sys
from dataclasses import dataclass, field
from pathlib import Path
import cv2
import numpy as np
from physseg.plugins import ArraySpec

class Colour(enum.Enum):
    RED = 1

@dataclass(frozen=True)
class Thing:
    {fields}
    name = "{name}"
    revision = 1
    {members}
    @property
    def arrays(self):
        return (ArraySpec("thing", {spec}),)
    def __call__(self, image, labels, *, ignore_index):
        {call}
        return {{"thing": {made}}}
"""
EDGES = '"uint8", ("y", "x"), 0, "x", drawn="edges"'


@pytest.fixture
def thing(install: Install) -> Callable[..., None]:
    """Offer an extractor with these pieces of source."""

    def offer(**pieces: str) -> None:
        default = {"name": "thing", "fields": "x: int = 1", "members": "y = 1", "spec": EDGES, "call": "pass"}
        pieces = default | {"made": "np.ascontiguousarray(image[..., 0])"} | pieces
        install("far-things", f"{pieces['name']} = far_things:Thing", source=SOURCE.format(**pieces))
        registry._made.cache_clear()

    return offer


def preprocess(manifest: Manifest, store: Path, *structures: str, **options: Any) -> run.RunReport:
    return run.preprocess(
        manifest, store, structures=structures, scheduler="sync", frame=FRAME, progress=False, **options
    )


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("labels[...] = 1", "ValueError: assignment destination is read-only"),
        ("image[:4] = 7", "ValueError: assignment destination is read-only"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("cv2.cvtColor(labels[:0], cv2.COLOR_RGB2GRAY)", "error: OpenCV"),
    ],
)
def test_what_an_extractor_does_wrong_ends_the_run_and_names_its_package(
    call: str, told: str, thing: Callable[..., None], make_manifest: MakeManifest, tmp_path: Path
) -> None:
    thing(call=call)
    with pytest.raises(ShardFailedError) as caught:
        preprocess(make_manifest(2), tmp_path / "s.zarr", "thing")
    assert f"sample 000: structure extractor thing of the package far-things 1.5: {told}" in str(caught.value)


def test_a_mask_is_not_lost_silently(thing: Callable[..., None], make_manifest: MakeManifest, tmp_path: Path) -> None:
    thing(made="np.ma.masked_array(image[..., 0], mask=image[..., 0] > 100)")
    with pytest.raises(ShardFailedError, match=r"expected thing as uint8 .*, got MaskedArray"):
        preprocess(make_manifest(1), tmp_path / "s.zarr", "thing")


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ({"spec": '"uint8", ("y", "x"), 300, "x"'}, "a fill of thing that uint8 can hold, got 300"),
        ({"spec": '"int8", ("y", "x"), 128, "x"'}, "a fill of thing that int8 can hold, got 128"),
        ({"spec": '"uint8", ("slot", "y", "x"), 0, "x"', "members": "slots = 65"}, "slots of thing from 1 to 64"),
        ({"spec": '"uint8", ("slot", "y", "x"), 0, "x"', "members": "slots = 0"}, "slots of thing from 1 to 64"),
        ({"name": "labels"}, "another name than that of the store's own layer"),
    ],
)
def test_what_no_store_could_hold_begins_none(
    pieces: dict[str, str], told: str, thing: Callable[..., None], make_manifest: MakeManifest, tmp_path: Path
) -> None:
    thing(**pieces)
    with pytest.raises(StoreError, match=told):
        preprocess(make_manifest(1), tmp_path / "s.zarr", pieces.get("name", "thing"))
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ({"fields": "x: list[int] = field(default_factory=list)"}, r"list\[int\] is no type of a setting"),
        ({"fields": "x: tuple[int, ...] = (1,)"}, "is no type of a setting"),
        ({"fields": "x: Colour = Colour.RED"}, "is no type of a setting"),
        ({"fields": "x: 'Missing' = 1"}, "NameError: name 'Missing'"),
        ({"fields": "x: Path = Path('/tmp')"}, "TypeError: Object of type PosixPath is not JSON"),
        ({"fields": "x: float = float('nan')"}, "ValueError: Out of range float"),
        ({"members": "identity = lambda self: {'a': (1, 2)}"}, "an identity that JSON gives back"),
        ({"members": "identity = lambda self: None"}, "an identity that JSON gives back"),
        ({"members": "identity = lambda self: 1 / 0"}, "ZeroDivisionError"),
        ({"members": "__post_init__ = lambda self: {}['a']"}, "KeyError: 'a'"),
        ({"members": "__post_init__ = lambda self: sys.exit('bye')"}, "SystemExit: bye"),
    ],
)
def test_settings_that_a_store_cannot_keep_are_one_line(
    pieces: dict[str, str], told: str, thing: Callable[..., None]
) -> None:
    thing(**pieces)
    with pytest.raises(PhyssegError, match=told) as caught:
        registry.build(["thing"])
    assert "structure extractor thing of the package far-things 1.5" in str(caught.value)
    assert "\n" not in caught.value.args[0]


def test_a_part_that_is_wrong_is_no_reason_to_touch_other_layers(
    thing: Callable[..., None], make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest, store = make_manifest(1), tmp_path / "s.zarr"
    thing()
    preprocess(manifest, store, "thing")
    thing(members="identity = lambda self: 1 / 0")
    with pytest.raises(PluginError, match="far-things"):
        preprocess(manifest, store, "thing")
    preprocess(manifest, store, "canny")
    assert not verify(store, progress=False).faults
