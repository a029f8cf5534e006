"""Our segmenter against numbers that the CAT-Seg reference left on small random weights (tests/data/README.md).

Tolerances: 1e-4 of the largest value for every array (float32 sums in another order reach about 2e-6), 1e-3 for
gradient norms. Gradients that vanish analytically (a key's bias shifts all scores of a softmax alike) are rounding
noise on both sides and need only stay below `NOISE`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from physseg.train.errors import CheckpointError
from physseg.train.losses.total import segmentation_loss
from physseg.train.model.inference import InferenceSettings, predict_label_map, predict_probabilities
from physseg.train.model.segmenter import Segmenter
from physseg.train.weights.catseg_names import from_catseg, our_name, segmenter_from_catseg
from torch import Tensor

ARRAYS = 1e-4
GRADIENT_NORMS = 1e-3
NOISE = 1e-9

Arrays = Mapping[str, npt.NDArray[np.generic]]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    with np.load(Path(__file__).parents[2] / "data" / "catseg_b16_tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def state(arrays: Arrays) -> dict[str, Tensor]:
    return {name[3:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("sd/")}


@pytest.fixture(scope="module")
def segmenter(state: dict[str, Tensor]) -> Segmenter:
    return segmenter_from_catseg(state)


@pytest.fixture(scope="module")
def images(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays["image_u8"]).float()


@pytest.fixture(scope="module")
def texts(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays["text_features"])


@pytest.fixture(scope="module")
def training_pass(
    arrays: Arrays, segmenter: Segmenter, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Logits, loss and gradient norms of one training pass."""
    segmenter.train()
    logits = segmenter(images, texts).logits
    labels = torch.from_numpy(arrays["label_u16"].astype(np.int64))
    loss = segmentation_loss(logits, labels, ignore_index=255)
    loss.backward()
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in segmenter.named_parameters()
        if parameter.grad is not None
    }
    return logits.detach(), loss.detach(), norms


def error(ours: Tensor, theirs: npt.NDArray[np.generic]) -> float:
    """Largest difference, relative to the largest value."""
    reference = torch.from_numpy(theirs)
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


def test_dense_tokens(arrays: Arrays, segmenter: Segmenter, images: Tensor) -> None:
    with torch.no_grad():
        tokens = segmenter.clip.visual((images - segmenter.clip_mean) / segmenter.clip_std).tokens
    assert error(tokens[:, ::2], arrays["dense_tokens_every2"]) < ARRAYS


def test_training_logits_and_loss(arrays: Arrays, training_pass: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    logits, loss, _ = training_pass
    assert error(logits[..., ::2, ::2], arrays["logits_train_every2"]) < ARRAYS
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=ARRAYS)


def test_gradient_norms(arrays: Arrays, training_pass: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    norms = training_pass[2]
    expected = {our_name(name): value for name, value in json.loads(str(arrays["grad_norms_json"])).items()}
    assert set(norms) == set(expected)
    for name, value in expected.items():
        assert norms[name] == pytest.approx(value, rel=GRADIENT_NORMS, abs=NOISE), name
    assert sum(value > NOISE for value in expected.values()) > 140  # the rule for noise must not swallow the test


def test_trainable_parameters(arrays: Arrays, segmenter: Segmenter) -> None:
    expected = {our_name(name) for name in json.loads(str(arrays["trainable_json"]))}
    assert {name for name, parameter in segmenter.named_parameters() if parameter.requires_grad} == expected


def test_evaluation_logits(arrays: Arrays, segmenter: Segmenter, images: Tensor, texts: Tensor) -> None:
    segmenter.eval()
    with torch.no_grad():
        logits = segmenter(images[:1], texts).logits
    assert error(logits[..., ::2, ::2], arrays["logits_eval0_every2"]) < ARRAYS


def test_sliding_window(arrays: Arrays, segmenter: Segmenter, texts: Tensor) -> None:
    image = np.ascontiguousarray(arrays["window_image_u8"].transpose(1, 2, 0))
    probabilities = predict_probabilities(segmenter, image, texts)
    assert error(torch.from_numpy(probabilities[:, ::8, ::8]), arrays["window_probs_every8"]) < ARRAYS
    least = InferenceSettings(memory_bytes=1)  # a class and a crop at a time
    bounded = predict_probabilities(segmenter, image, texts, least)
    assert error(torch.from_numpy(bounded[:, ::8, ::8]), arrays["window_probs_every8"]) < ARRAYS
    labels = predict_label_map(segmenter, image, texts, least)
    np.testing.assert_array_equal(labels, bounded.argmax(axis=0))
    # Where the two best classes are as near as float32 rounding, either is right.
    second, first = np.sort(probabilities, axis=0)[-2:]
    clear = first - second > 1e-6
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(labels[clear], arrays["window_argmax"][clear])


def test_names_map_one_to_one(state: dict[str, Tensor], segmenter: Segmenter) -> None:
    renamed = from_catseg(state)
    own = {name for name in segmenter.state_dict() if not name.startswith("clip.text.")}
    assert len(renamed) == len(state)
    assert set(renamed) == own


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"unknown name 'backbone\.stem\.weight'"):
        our_name("backbone.stem.weight")


def test_a_missing_weight_is_named(state: dict[str, Tensor]) -> None:
    torn = {name: tensor for name, tensor in state.items() if not name.endswith("decoder2.up.bias")}
    with pytest.raises(CheckpointError, match=r"1 missing names \(sem_seg_head\..+\.decoder2\.up\.bias\)"):
        segmenter_from_catseg(torn)


def test_not_a_catseg_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"'sem_seg_head\..+\.visual\.conv1\.weight' is missing"):
        segmenter_from_catseg({"upsample1.bias": torch.zeros(3)})
