"""Canny on images drawn by hand, and its options."""

import cv2
import numpy as np
import pytest
from physseg.structure_extractors.canny import Canny
from physseg.structure_extractors.errors import ExtractorError

LABELS = np.zeros((40, 48), np.uint8)


def square_image() -> np.ndarray:
    """White square over rows 10..29 and columns 12..35 of a black image."""
    image = np.zeros((40, 48, 3), np.uint8)
    image[10:30, 12:36] = 255
    return image


def test_outline_of_a_white_square_and_nothing_else():
    edges = Canny()(square_image(), LABELS, ignore_index=255)["canny"]

    assert edges.dtype == np.uint8
    assert edges.shape == (40, 48)
    assert set(np.unique(edges)) == {0, 255}
    near = np.zeros((40, 48), bool)
    near[9:31, 11:37] = True
    near[12:28, 14:34] = False
    assert not edges[~near].any()
    # Each line that crosses the square meets its outline exactly twice.
    assert ((edges[14:26] > 0).sum(axis=1) == 2).all()
    assert ((edges[:, 16:32] > 0).sum(axis=0) == 2).all()


def test_thresholds_decide_which_steps_count():
    # A vertical step of 40 grey levels has the Sobel gradient 4 * 40 = 160, with a 3x3 kernel.
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 40
    assert Canny(low=50, high=159).edges(image).any()
    assert not Canny(low=50, high=161).edges(image).any()


def test_convention_grey_weighs_rgb_not_bgr():
    # 255 of pure red is grey 76, a gradient of 304; of pure blue, grey 29, a gradient of 116.
    red, blue = np.zeros((2, 20, 20, 3), np.uint8)
    red[:, 10:, 0] = 255
    blue[:, 10:, 2] = 255
    assert Canny(low=200, high=200).edges(red).any()
    assert not Canny(low=200, high=200).edges(blue).any()


def test_blur_removes_noise_that_is_off_by_default():
    rng = np.random.default_rng(0)
    noise = rng.integers(90, 166, (64, 64, 1), np.uint8).repeat(3, axis=2)
    assert Canny()(noise, LABELS, ignore_index=255)["canny"].any()
    assert not Canny(blur_sigma=4.0)(noise, LABELS, ignore_index=255)["canny"].any()


def test_options_reach_opencv():
    rng = np.random.default_rng(1)
    image = cv2.GaussianBlur(rng.integers(0, 256, (64, 80, 3), np.uint8), (0, 0), 2)
    got = Canny(low=300, high=700, aperture=5, l2_gradient=True)(image, LABELS, ignore_index=255)["canny"]
    expected = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 300, 700, apertureSize=5, L2gradient=True)
    assert expected.any()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "wrong", [{"low": -1}, {"high": 50}, {"aperture": 4}, {"blur_sigma": -1}, {"low": float("nan")}]
)
def test_wrong_options_are_named(wrong):
    with pytest.raises(ExtractorError, match=r"canny\.(low|high|aperture|blur_sigma): expected .*, got "):
        Canny(**wrong)
