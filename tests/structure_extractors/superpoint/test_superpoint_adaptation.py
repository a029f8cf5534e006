"""Homographies, warping, and the mean over warped pictures."""

import cv2
import numpy as np
import pytest
import torch
from physseg.structure_extractors.superpoint import adaptation as superpoint_adaptation
from physseg.structure_extractors.superpoint.adaptation import SPREAD_PX, adapted_probabilities
from physseg.structure_extractors.superpoint.homography import (
    HomographySettings,
    random_homographies,
    valid_pixels,
    warp,
    warp_points,
)
from physseg.structure_extractors.superpoint.network import Architecture, DetectorNetwork, keypoint_probabilities

SIZE = (48, 72)


def draw(number: int, **settings: float) -> torch.Tensor:
    return random_homographies(number, SIZE, HomographySettings(**settings), torch.Generator().manual_seed(0))


def smooth(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random(SIZE, np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    return (blurred - blurred.min()) / (blurred.max() - blurred.min())


def test_without_freedom_a_homography_is_the_identity():
    still = draw(3, patch=1.0, perspective=0.0, scale=0.0, rotation=0.0, shift=0.0)
    torch.testing.assert_close(still, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)


def test_a_patch_becomes_the_whole_picture():
    zoom = draw(1, patch=0.5, perspective=0.0, scale=0.0, rotation=0.0, shift=0.0)
    middle = torch.tensor([[[35.5, 23.5], [35.5 + 9, 23.5]]])
    torch.testing.assert_close(warp_points(middle, zoom), torch.tensor([[[35.5, 23.5], [35.5 + 18, 23.5]]]))


def test_homographies_differ_and_rotation_is_bounded():
    many = draw(50, patch=0.8, perspective=0.0, scale=0.0, rotation=0.3, shift=0.0).double()
    angles = torch.atan2(many[:, 1, 0], many[:, 0, 0])
    assert angles.abs().max() <= 0.3 + 1e-4
    assert angles.std() > 0.1


def test_pictures_and_points_move_alike():
    """Convention: pixel centres at integers, x before y, as OpenCV has it."""
    picture = smooth()
    for homography in draw(4, rotation=0.4):
        ours = warp(torch.from_numpy(picture)[None, None], homography[None])[0, 0].numpy()
        theirs = cv2.warpPerspective(picture, homography.double().numpy(), SIZE[::-1])
        inside = valid_pixels(homography[None], SIZE, margin_px=2)[0].numpy()
        assert inside.mean() > 0.3
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.02)  # OpenCV rounds places to 1/32 px
        points = torch.tensor([[[30.0, 20.0], [40.0, 30.0]]])
        expected = cv2.perspectiveTransform(points.double().numpy(), homography.double().numpy())
        np.testing.assert_allclose(warp_points(points, homography[None]).numpy(), expected, rtol=1e-4, atol=1e-3)


def test_valid_pixels_are_those_that_show_the_picture():
    homographies = draw(6)
    ones = warp(torch.ones(6, 1, *SIZE), homographies)[:, 0]
    valid = valid_pixels(homographies, SIZE)
    assert 0.2 < valid.float().mean() < 0.999
    assert (ones[valid] > 0.999).all()
    assert (ones[~valid] < 0.999).float().mean() > 0.9  # the rest are the half-covered pixels of the outline


def test_points_behind_the_camera_are_nowhere():
    tilted = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]])
    assert torch.isinf(warp_points(torch.tensor([[[20.0, 3.0]]]), tilted)).all()


def test_the_mean_over_homographies_of_a_perfect_detector_is_its_answer(monkeypatch: pytest.MonkeyPatch):
    """A "detector" that answers with the picture itself commutes with every warp, so adaptation only smooths."""
    monkeypatch.setattr(superpoint_adaptation, "keypoint_probabilities", lambda _, images: images[:, 0].clone())
    picture = torch.from_numpy(smooth())[None, None]
    adapted = adapted_probabilities(None, picture, 16)
    assert adapted.shape == (1, *SIZE)
    expected = cv2.GaussianBlur(smooth(), (5, 5), SPREAD_PX, borderType=cv2.BORDER_REPLICATE)
    torch.testing.assert_close(adapted[0], torch.from_numpy(expected), atol=0.02, rtol=0)


def test_votes_a_pixel_apart_meet(monkeypatch: pytest.MonkeyPatch):
    """One corner that comes back on two neighbouring pixels outweighs a lone one that is stronger than either."""
    answer = torch.zeros(1, *SIZE)
    answer[0, 20, 20:22], answer[0, 30, 50] = 0.4, 0.45
    still = torch.eye(3)[None]
    monkeypatch.setattr(superpoint_adaptation, "keypoint_probabilities", lambda _, images: answer.clone())
    monkeypatch.setattr(
        superpoint_adaptation, "_homographies", lambda *_: (still, still, torch.ones(1, *SIZE, dtype=torch.bool))
    )
    adapted = adapted_probabilities(None, torch.zeros(1, 1, *SIZE), 2)[0]
    assert adapted[20, 20] > adapted[30, 50] > 0
    assert adapted.sum() == pytest.approx(1.25, abs=1e-5)  # nothing is lost
    assert adapted[20, 20] == adapted[20, 21]


def test_adaptation_is_repeatable_and_keeps_to_one_picture():
    torch.manual_seed(0)
    network = DetectorNetwork(Architecture(widths=(4,) * 8, head_width=8)).eval()
    for value in network.parameters():
        if value.ndim == 4:
            torch.nn.init.kaiming_normal_(value)
    pictures = torch.from_numpy(np.stack([smooth(1), smooth(2)]))[:, None]
    both = adapted_probabilities(network, pictures, 5)
    assert torch.equal(both, adapted_probabilities(network, pictures, 5))
    assert torch.equal(both[1:], adapted_probabilities(network, pictures[1:], 5))
    plain = keypoint_probabilities(network, pictures[:1])
    assert torch.equal(adapted_probabilities(network, pictures[:1], 1), plain)
    assert not torch.allclose(both[:1], plain, rtol=1e-2)
    assert both.min() >= 0 and both.max() <= 1
