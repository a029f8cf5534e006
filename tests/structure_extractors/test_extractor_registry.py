"""Making extractors from names and settings, their identity, and the checks of their inputs."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from physseg.common import plugins
from physseg.common.errors import ConfigError
from physseg.common.plugins import PluginError
from physseg.structure_extractors import registry
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.interface import ArraySpec, identity
from physseg.structure_extractors.registry import DEFAULT, Request, build, options

CHANGES = {
    "canny": {
        "low": "50",
        "high": "250.5",
        "aperture": "5",
        "l2_gradient": "true",
        "blur_sigma": "1",
    },
    "mask_edges": {"radius_px": "2", "ignore_borders": "no"},
    "sift": {
        "first_octave": "0",
        "octave_layers": "4",
        "contrast_threshold": "0.1",
        "edge_threshold": "5",
        "sigma": "2",
        "full_response": "0.2",
        "nms_radius": "0",
        "max_keypoints": "100",
    },
    "patch_counts": {"max_classes": "4"},
}


def test_the_default_needs_no_weights_and_yields_each_array_once():
    extractors = build(DEFAULT)
    assert [extractor.name for extractor in extractors] == list(DEFAULT)
    arrays = [array.name for extractor in extractors for array in extractor.arrays]
    assert arrays == ["canny", "mask_edges", "sift", "cell_classes", "cell_counts", "cell_dropped"]


def test_each_extractor_yields_just_what_it_announces():
    image = np.zeros((16, 24, 3), np.uint8)
    labels = np.zeros((16, 24), np.uint8)
    for extractor in build(DEFAULT):
        assert tuple(extractor(image, labels, ignore_index=255)) == tuple(array.name for array in extractor.arrays)


def test_text_is_read_as_the_type_of_the_option():
    (canny, sift) = build(
        ["canny", "sift"],
        {"canny": {"low": "50", "aperture": "5", "l2_gradient": "yes"}, "sift": {"max_keypoints": "none", "sigma": 2}},
    )
    assert (canny.low, canny.aperture, canny.l2_gradient) == (50.0, 5, True)
    assert sift.max_keypoints is None
    assert isinstance(sift.sigma, float)


@pytest.mark.parametrize("name", DEFAULT)
def test_every_setting_changes_the_identity_and_survives_json(name):
    (default,) = build([name])
    of_default = identity(default)
    assert json.loads(json.dumps(of_default)) == of_default
    assert set(CHANGES[name]) == {f.name for f in fields(default)}  # a new option belongs in the table above
    for option, value in CHANGES[name].items():
        (changed,) = build([name], {name: {option: value}})
        assert identity(changed) != of_default, option
        known = {key: value for key, value in identity(changed).items() if key not in ("extractor", "revision")}
        assert plugins.find("extractors", name).load()(**known) == changed


@pytest.mark.parametrize("name", DEFAULT)
def test_extractors_travel_to_workers(name):
    (extractor,) = build([name])
    request = pickle.loads(pickle.dumps(Request.of(extractor)))
    assert request.make(identity(extractor)) == extractor


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PluginError, match=r"'hog'.*canny, image, mask_edges"):
        build(["canny", "hog"])


def test_an_unknown_option_lists_the_known_ones():
    with pytest.raises(ExtractorError, match="canny has no option 'lo'") as caught:
        build(["canny"], {"canny": {"lo": 1}})
    assert "low (number, default 100.0)" in str(caught.value)
    assert "aperture (integer, default 3)" in str(caught.value)


def test_names_twice_and_settings_of_nobody_are_errors():
    with pytest.raises(ExtractorError, match="twice"):
        build(["canny", "canny"])
    with pytest.raises(ExtractorError, match=r"'sift'.*: canny"):
        build(["canny"], {"sift": {}})


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("low", "many", "number"),
        ("low", None, "number"),
        ("low", True, "number"),
        ("aperture", 3.0, "integer"),
        ("aperture", "3.5", "integer"),
        ("l2_gradient", "maybe", "true or false"),
        ("l2_gradient", 1, "true or false"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(option, value, expected):
    with pytest.raises(ConfigError, match=rf"canny\.{option}: expected {expected}, got {value!r}"):
        build(["canny"], {"canny": {option: value}})


def test_options_are_described_for_help_texts():
    assert options("mask_edges") == {
        "radius_px": "integer, default 1",
        "ignore_borders": "true or false, default True",
    }
    assert options("sift")["max_keypoints"] == "integer or none, default None"
    assert options("superpoint")["precision"] == "'float32' or 'bfloat16', default 'float32'"
    assert "weights_sha256" not in options("superpoint")


@pytest.mark.parametrize("name", ["canny", "sift"])
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), np.uint8),
        None,
    ],
)
def test_a_wrong_image_is_an_error_that_says_what_came(name, image):
    (extractor,) = build([name])
    with pytest.raises(ExtractorError, match=f"{name}: expected an .*, got (uint8|float64|NoneType)"):
        extractor(image, np.zeros((8, 8), np.uint8), ignore_index=255)


@pytest.mark.parametrize("name", DEFAULT)
def test_strides_do_not_matter_and_inputs_stay_as_they_are(name):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 48, 3), np.uint8)
    labels = rng.integers(0, 3, (32, 48), np.uint8).repeat(2, 0)[:32]
    (extractor,) = build([name])
    before = image.copy(), labels.copy()
    flipped = extractor(image[:, ::-1], labels[:, ::-1], ignore_index=255)
    copied = extractor(image[:, ::-1].copy(), labels[:, ::-1].copy(), ignore_index=255)
    for array in extractor.arrays:
        np.testing.assert_array_equal(flipped[array.name], copied[array.name])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_settings_are_frozen():
    (canny,) = build(["canny"])
    with pytest.raises(AttributeError):
        canny.low = 1
    assert replace(canny, low=1.0).low == 1.0


def test_the_registry_does_not_load_torch():
    code = "import sys, physseg.structure_extractors.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Edges"}, "array 'Edges': name: expected small letters"),
        ({"dtype": "float64"}, "dtype: expected one of label, uint8"),
        ({"dims": ("x", "y")}, "dims: expected one of"),
        ({"fill": 0.5}, "fill: expected an integer"),
        ({"dims": ("cell_y", "cell_x")}, "drawn: expected an array of uint8 on y, x, got 'edges'"),
        ({"dtype": "int32", "drawn": "", "target": "map"}, "target: expected an array of uint8 on y, x, got 'map'"),
        ({"drawn": "class_edges"}, "drawn: expected an array of label on slot, y, x, got 'class_edges'"),
        ({"target": "classes"}, "target: expected an array of label on slot, y, x, got 'classes'"),
    ],
)
def test_an_array_that_cannot_be_what_it_is_for_is_refused(changes, message):
    array = {"name": "a", "dtype": "uint8", "dims": ("y", "x"), "fill": 0, "meaning": "edges", "drawn": "edges"}
    ArraySpec(**array)
    ArraySpec(**array | {"drawn": "of a later version", "target": "of a later version"})
    with pytest.raises(ExtractorError, match=message):
        ArraySpec(**array | changes)


@pytest.mark.parametrize(
    ("target", "dtype", "dims", "expected"),
    [
        ("map", "uint8", ("y", "x"), True),
        ("edges", "uint8", ("y", "x"), True),  # a package's own word for a map
        ("", "uint8", ("y", "x"), False),
        (None, "uint8", ("y", "x"), False),
        ("classes", "label", ("slot", "y", "x"), True),
        ("edges", "uint16", ("y", "x"), False),
        ("offsets", "float32", ("slot", "y", "x"), False),
    ],
)
def test_what_may_be_learnt(target, dtype, dims, expected):
    assert ArraySpec("plane", dtype, dims, 0, "something", None, target).is_target is expected


def test_members_of_the_interface_may_be_fields_and_are_no_settings(monkeypatch):
    @dataclass(frozen=True)
    class Fields:
        threshold: int = 7
        name: str = "canny"
        revision: int = 3
        arrays: tuple[ArraySpec, ...] = (ArraySpec("canny", "uint8", ("y", "x"), 0, "edges"),)

        def __call__(self, image, labels, *, ignore_index):
            return {}

    monkeypatch.setattr(registry, "_load", lambda name: Fields)
    assert options("canny") == {"threshold": "integer, default 7"}
    (made,) = build(["canny"], {"canny": {"threshold": "9"}})
    assert identity(made) == {"extractor": "canny", "revision": 3, "threshold": 9}
    assert Request.of(made).settings == (("threshold", 9),)
