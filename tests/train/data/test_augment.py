"""Colour jitter against OpenCV, one image and one step at a time; the draw; what must not change."""

import doctest

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from physseg.train.data import augment
from physseg.train.data.augment import NEUTRAL, color_jitter, draw_jitter
from physseg.train.errors import ShapeError

# Brightness, contrast, saturation, hue, contrast last: each alone, then together in both orders.
CASES = [
    (20.0, 1.0, 1.0, 0.0, 0.0),
    (-31.5, 1.0, 1.0, 0.0, 1.0),
    (0.0, 1.4, 1.0, 0.0, 0.0),
    (0.0, 0.6, 1.0, 0.0, 1.0),
    (0.0, 1.0, 1.5, 0.0, 0.0),
    (0.0, 1.0, 0.5, 0.0, 0.0),
    (0.0, 1.0, 1.0, 18.0, 0.0),
    (0.0, 1.0, 1.0, -7.0, 0.0),
    (25.0, 1.5, 1.3, -18.0, 0.0),
    (25.0, 1.5, 1.3, -18.0, 1.0),
    (-25.0, 0.5, 0.7, 11.0, 1.0),
    (30.0, 0.5, 1.0, 0.0, 0.0),  # values above 255 are cut before they are halved
]


def photograph(seed: int = 0) -> npt.NDArray[np.uint8]:
    """Every kind of colour: noise, greys, pure primaries, black and white; (32, 32, 3)."""
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image[:4] = np.arange(128, dtype=np.uint8).reshape(4, 32, 1)
    image[4, :8] = [[255 * (i & 1), 255 * (i >> 1 & 1), 255 * (i >> 2)] for i in range(8)]
    return image


def reference_float(image: npt.NDArray[np.uint8], params: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """detectron2's steps with OpenCV's conversions in float32 (H in degrees, S and V in 0..1)."""
    brightness, contrast, saturation, hue, last = params
    pixels = np.clip(image.astype(np.float32) + brightness, 0, 255)
    if not last:
        pixels = np.clip(pixels * contrast, 0, 255)
    hsv = cv2.cvtColor((pixels / 255).astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 1)
    hsv[..., 0] = (hsv[..., 0] + 2 * hue) % 360
    pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return np.clip(pixels * contrast, 0, 255) if last else pixels


def reference_bytes(image: npt.NDArray[np.uint8], params: tuple[float, ...]) -> npt.NDArray[np.uint8]:
    """detectron2's steps as they are: bytes after every one, H in whole steps of 2 degrees."""
    brightness, contrast, saturation, hue, last = params

    def to_bytes(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        return np.clip(values, 0, 255).astype(np.uint8)

    pixels = to_bytes(image + float(brightness))
    if not last:
        pixels = to_bytes(pixels * float(contrast))
    if saturation != 1:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = to_bytes(hsv[..., 1] * float(saturation))
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(hue)) % 180
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return to_bytes(pixels * float(contrast)) if last else pixels


def ours(image: npt.NDArray[np.uint8], params: tuple[float, ...]) -> npt.NDArray[np.float32]:
    images = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    return color_jitter(images, torch.tensor([params]))[0].numpy().transpose(1, 2, 0)


def test_docstring_examples() -> None:
    assert doctest.testmod(augment).failed == 0


@pytest.mark.parametrize("params", CASES)
def test_agrees_with_opencv_in_float(params: tuple[float, ...]) -> None:
    # Two float32 roundtrips through HSV: 1e-6 of 255, times the slope of hue, six grey levels per step.
    np.testing.assert_allclose(ours(photograph(), params), reference_float(photograph(), params), atol=0.01)


@pytest.mark.parametrize("params", CASES)
def test_agrees_with_the_reference_in_bytes_up_to_its_rounding(params: tuple[float, ...]) -> None:
    image = photograph()
    error = np.abs(ours(image, params) - reference_bytes(image, params).astype(np.float64))
    # H rounded to 2 degrees: up to 1 degree off, 255 / 60 = 4.3 levels, in each of two conversions; S cut and rounded,
    # bytes cut after each of up to four steps: about 1 level each; contrast then multiplies all of it by up to 1.5.
    assert error.max() <= 1.5 * (2 * 4.3 + 4)
    assert error.mean() <= 2.5


def test_neutral_parameters_return_the_pixels_bit_for_bit() -> None:
    image = photograph()
    np.testing.assert_array_equal(ours(image, NEUTRAL), image)
    np.testing.assert_array_equal(ours(image, (*NEUTRAL[:4], 1.0)), image)


def test_samples_are_independent() -> None:
    images = torch.from_numpy(np.stack([photograph(i).transpose(2, 0, 1) for i in range(len(CASES))]))
    together = color_jitter(images, torch.tensor(CASES))
    for i, params in enumerate(CASES):
        assert torch.equal(together[i], color_jitter(images[i : i + 1], torch.tensor([params]))[0])


def test_bytes_and_floats_in_float_out() -> None:
    images, params = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8), torch.tensor([CASES[8]])
    from_bytes, from_floats = color_jitter(images, params), color_jitter(images.float(), params)
    assert from_bytes.dtype == torch.float32 and torch.equal(from_bytes, from_floats)
    assert from_bytes.min() >= 0 and from_bytes.max() <= 255


def test_padding_keeps_its_value() -> None:
    images, valid = torch.full((1, 3, 4, 4), 128, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[:, :2] = True
    jittered = color_jitter(images, torch.tensor([[10.0, 1.0, 1.0, 0.0, 0.0]]), valid)
    assert (jittered[:, :, :2] == 138).all() and (jittered[:, :, 2:] == 128).all()


def test_draw_has_the_ranges_and_probabilities_of_ssd() -> None:
    drawn = np.stack([draw_jitter(np.random.default_rng(seed)) for seed in range(2000)])
    assert drawn.dtype == np.float32 and drawn.shape == (2000, len(NEUTRAL))
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    np.testing.assert_allclose(low, [-32, 0.5, 0.5, -18, 0], atol=0.2)
    np.testing.assert_allclose(high, [32, 1.5, 1.5, 18, 1], atol=0.2)
    assert set(drawn[:, 3]) == set(range(-18, 19))
    changed = (drawn[:, :4] != NEUTRAL[:4]).mean(axis=0)
    # 2000 coins: standard deviation 0.011; a hue of 0 can be drawn too, once in 37.
    np.testing.assert_allclose([*changed, drawn[:, 4].mean()], [0.5, 0.5, 0.5, 0.5 * 36 / 37, 0.5], atol=0.045)
    correlation = np.corrcoef((drawn[:, :4] != NEUTRAL[:4]).T) - np.eye(4)
    assert np.abs(correlation).max() < 0.1


def test_draw_is_a_function_of_the_generator_and_always_takes_nine_numbers() -> None:
    for seed in range(5):
        rng, twin, plain = (np.random.default_rng(seed) for _ in range(3))
        np.testing.assert_array_equal(draw_jitter(rng), draw_jitter(twin))
        plain.random(9)
        assert rng.random() == plain.random()


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ShapeError, match=r"params \(B, 5\), got \(2, 3, 4, 4\) and \(1, 5\)"):
        color_jitter(torch.zeros(2, 3, 4, 4), torch.zeros(1, 5))
    with pytest.raises(ShapeError, match=r"images \(B, 3, H, W\)"):
        color_jitter(torch.zeros(2, 4, 4, 3), torch.zeros(2, 5))
