"""The SuperPoint extractor: post-processing, adaptation, identity, and where its weights come from."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.structure_extractors.errors import ExtractorError, WeightsError
from physseg.structure_extractors.keypoints import encode_confidence, select_keypoints
from physseg.structure_extractors.registry import build
from physseg.structure_extractors.superpoint import extractor as superpoint
from physseg.structure_extractors.superpoint.adaptation import adapted_probabilities
from physseg.structure_extractors.superpoint.extractor import SuperPoint
from physseg.structure_extractors.superpoint.inference import infer
from physseg.structure_extractors.superpoint.network import (
    Architecture,
    DetectorNetwork,
    fold_normalisation,
    grey_tensor,
)
from safetensors.torch import save_file

LABELS = np.zeros((1, 1), np.uint8)
SETTINGS = {"threshold": 0.03, "nms_radius": 4, "border": 4}


def make_network(seed: int = 0) -> DetectorNetwork:
    torch.manual_seed(seed)
    widths = (8, 8, 8, 8, 16, 16, 16, 16)
    network = DetectorNetwork(Architecture(widths=widths, head_width=16, order="conv-bn-relu", norm_logits=True))
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
        elif name.endswith("running_var"):
            value.fill_(0.5)
    return network.eval()


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights.safetensors"
    save_file(make_network().state_dict(), path)
    return str(path)


def image(seed: int, height: int = 61, width: int = 78) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 1.2)


def greedy_reference(
    probability: np.ndarray, threshold: float, radius: int, border: int, top: int | None
) -> np.ndarray:
    """The published steps, one keypoint at a time."""
    height, width = probability.shape
    points = [(-p, y, x) for (y, x), p in np.ndenumerate(probability) if p > threshold]
    taken = np.zeros((height, width), bool)
    kept = []
    for p, y, x in sorted(points):
        if not taken[y, x]:
            taken[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = True
            kept.append((-p, y, x))
    kept = [(p, y, x) for p, y, x in kept if border <= y < height - border and border <= x < width - border][:top]
    out = np.zeros((height, width), np.float32)
    for p, y, x in kept:
        out[y, x] = p
    return out


@pytest.mark.parametrize("top", [None, 3])
@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("radius", [0, 1, 4])
def test_post_processing_equals_the_published_steps(radius, border, top):
    rng = np.random.default_rng(radius)
    probability = rng.random((30, 41), np.float32) ** 4
    got = select_keypoints(probability, threshold=0.1, nms_radius=radius, border=border, max_keypoints=top)
    expected = greedy_reference(probability, 0.1, radius, border, top)
    assert np.count_nonzero(expected) > 2
    np.testing.assert_array_equal(got, expected)


def test_a_point_in_the_border_still_suppresses_its_neighbours():
    probability = np.zeros((20, 20), np.float32)
    probability[10, 3], probability[10, 6] = 0.9, 0.5
    assert not select_keypoints(probability, threshold=0.1, nms_radius=4, border=4, max_keypoints=None).any()


def test_the_whole_extractor_is_network_then_post_processing(weights):
    photo = image(0)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    network = fold_normalisation(make_network()).to(memory_format=torch.channels_last)
    probability = infer(network, grey)
    out = SuperPoint(weights=weights, dense=True, **SETTINGS)(photo, LABELS, ignore_index=255)

    assert {name: (array.dtype, array.shape) for name, array in out.items()} == {
        "superpoint": (np.uint8, (61, 78)),
        "superpoint_dense": (np.uint8, (61, 78)),
    }
    expected = greedy_reference(probability, 0.03, 4, 4, None)
    assert np.count_nonzero(expected) > 10
    np.testing.assert_array_equal(out["superpoint"], encode_confidence(expected))
    np.testing.assert_array_equal(out["superpoint_dense"], encode_confidence(probability))
    assert np.abs((out["superpoint"] / 255.0) ** 2 - expected).max() < 1 / 255


def test_arrays_follow_the_dense_option(weights):
    sparse, dense = SuperPoint(weights=weights), SuperPoint(weights=weights, dense=True)
    assert [array.name for array in sparse.arrays] == ["superpoint"]
    assert [array.name for array in dense.arrays] == ["superpoint", "superpoint_dense"]
    for extractor in (sparse, dense):
        assert tuple(extractor(image(0), LABELS, ignore_index=255)) == tuple(array.name for array in extractor.arrays)


def test_no_result_depends_on_the_pictures_before(weights):
    extractor = SuperPoint(weights=weights, dense=True, **SETTINGS)
    images = [image(0), image(1, 40, 64), image(2), image(3, 40, 64), image(4, 64, 40)]
    for photo in images:
        out = extractor(photo, LABELS, ignore_index=255)
        alone = SuperPoint(weights=weights, dense=True, **SETTINGS)(photo, LABELS, ignore_index=255)
        assert out["superpoint"].shape == photo.shape[:2]
        for name in (array.name for array in extractor.arrays):
            np.testing.assert_array_equal(out[name], alone[name])


def test_bfloat16_finds_nearly_the_same_probabilities(weights):
    full = SuperPoint(weights=weights, dense=True)(image(0), LABELS, ignore_index=255)["superpoint_dense"]
    half = SuperPoint(weights=weights, dense=True, precision="bfloat16")(image(0), LABELS, ignore_index=255)
    difference = np.abs(full.astype(int) - half["superpoint_dense"])
    assert difference.max() > 0
    assert difference.mean() < 2


def test_without_a_path_it_takes_the_weights_of_the_package(weights, monkeypatch):
    monkeypatch.setattr(superpoint, "SHIPPED_WEIGHTS", Path(weights))
    (extractor,) = build(["superpoint"])
    assert extractor.identity() == SuperPoint(weights=weights).identity()
    assert extractor.weights is None  # workers look beside their own code, wherever that is
    assert pickle.loads(pickle.dumps(extractor)) == extractor
    assert "superpoint" in extractor(image(0), LABELS, ignore_index=255)


@pytest.mark.parametrize("adaptation", [16, 32])
def test_adaptation_is_the_mean_over_homographies(weights, adaptation):
    photo = image(0)
    network = fold_normalisation(make_network()).to(memory_format=torch.channels_last)
    grey = grey_tensor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[None], torch.device("cpu"))
    expected = encode_confidence(adapted_probabilities(network, grey, adaptation)[0].numpy())
    out = SuperPoint(weights=weights, dense=True, adaptation=adaptation)(photo, LABELS, ignore_index=255)
    np.testing.assert_array_equal(out["superpoint_dense"], expected)
    plain = SuperPoint(weights=weights, dense=True)(photo, LABELS, ignore_index=255)
    assert not np.array_equal(out["superpoint_dense"], plain["superpoint_dense"])


def test_a_missing_file_is_named_at_once(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        SuperPoint(weights=str(tmp_path / "nowhere.pth"))


def test_faults_of_weights_are_not_faults_of_a_sample():
    # The pipeline quarantines a sample on ExtractorError; a broken weight file must end the run instead.
    assert not issubclass(WeightsError, ExtractorError)


def test_identity_has_the_hash_and_no_path(weights, tmp_path):
    copy = tmp_path / "elsewhere" / "same.bin"
    copy.parent.mkdir()
    copy.write_bytes(Path(weights).read_bytes())
    identity = SuperPoint(weights=weights).identity()
    assert identity == SuperPoint(weights=str(copy)).identity()
    assert "weights" not in identity
    assert str(tmp_path) not in json.dumps(identity)
    assert json.loads(json.dumps(identity)) == identity

    save_file(make_network(seed=1).state_dict(), copy)
    assert SuperPoint(weights=str(copy)).identity() != identity


def test_layers_from_before_the_mean_was_smoothed_are_others(weights):
    revisions = {
        number: SuperPoint(weights=weights, adaptation=number).identity()["revision"] for number in (0, 16, 32)
    }
    assert revisions == {0: 2, 16: 3, 32: 3}


def test_the_default_threshold_is_resolved_in_the_identity(weights):
    assert SuperPoint(weights=weights).identity()["threshold"] == 0.015
    assert SuperPoint(weights=weights).identity() == SuperPoint(weights=weights, threshold=0.015).identity()


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.1},
        {"nms_radius": 3},
        {"border": 0},
        {"max_keypoints": 9},
        {"adaptation": 16},
        {"dense": True},
        {"precision": "bfloat16"},
    ],
)
def test_each_setting_is_part_of_the_identity(weights, change):
    assert SuperPoint(weights=weights, **change).identity() != SuperPoint(weights=weights).identity()


def test_settings_come_as_text(weights):
    text = {"weights": weights, "threshold": "none", "max_keypoints": "50", "dense": "true", "precision": "bfloat16"}
    (extractor,) = build(["superpoint"], {"superpoint": text})
    assert extractor == SuperPoint(weights=weights, max_keypoints=50, dense=True, precision="bfloat16")
    with pytest.raises(ConfigError, match=r"superpoint\.precision: expected 'float32' or 'bfloat16', got 'half'"):
        build(["superpoint"], {"superpoint": {"weights": weights, "precision": "half"}})


def test_workers_get_the_path_and_notice_a_replaced_file(weights):
    extractor = SuperPoint(weights=weights, **SETTINGS)
    sent = pickle.dumps(extractor)
    assert len(sent) < 2000  # the network does not travel
    save_file(make_network(seed=2).state_dict(), weights)
    with pytest.raises(WeightsError, match="sha256"):
        pickle.loads(sent)(image(0), LABELS, ignore_index=255)


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.0}, {"nms_radius": -1}, {"border": -1}, {"max_keypoints": 0}, {"adaptation": 8}]
)
def test_wrong_options_are_named(weights, wrong):
    with pytest.raises(ExtractorError, match=rf"superpoint\.{next(iter(wrong))}: expected "):
        SuperPoint(weights=weights, **wrong)


def test_a_wrong_image_is_named(weights):
    with pytest.raises(ExtractorError, match=r"got uint8 \(8, 8\)"):
        SuperPoint(weights=weights)(np.zeros((8, 8), np.uint8), LABELS, ignore_index=255)
