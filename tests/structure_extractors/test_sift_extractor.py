"""SIFT on blobs whose place and strength are known, mirror images, and what its settings do."""

import cv2
import numpy as np
import pytest
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.interface import identity
from physseg.structure_extractors.sift import Sift

LABELS = np.zeros((1, 1), np.uint8)


def blobs(*centres: tuple[float, float], size: tuple[int, int] = (96, 128), height: float = 150, sigma: float = 4):
    """Bright Gaussians at (x, y) on grey 50."""
    yy, xx = np.mgrid[: size[0], : size[1]]
    image = np.full(size, 50.0)
    for x, y in centres:
        image += height * np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((120, 160, 3)), (0, 0), 2)
    return np.clip(128 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


def fine_texture(seed: int, size: tuple[int, int]) -> np.ndarray:
    """Noise of a 1/f spectrum up to the finest detail, as photographs have."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) / np.maximum(frequency, 0.01), s=size)
    return np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def extract(image: np.ndarray, **settings: object) -> np.ndarray:
    return Sift(**settings)(image, LABELS, ignore_index=255)["sift"]


def points_of(heatmap: np.ndarray) -> np.ndarray:
    """Keypoints (N, 2) x, y of a heatmap."""
    return np.argwhere(heatmap)[:, ::-1]


def test_a_blob_is_found_at_its_centre():
    heatmap = extract(blobs((70, 41)))
    assert heatmap.dtype == np.uint8
    assert heatmap.shape == (96, 128)
    points = points_of(heatmap)
    assert points.tolist() == [[70, 41]]


def test_convention_points_are_not_shifted_by_the_upsampled_octave():
    # OpenCV's default upscaling would put both 0.25 px to the right and below.
    points, _ = Sift().detect(blobs((70.0, 41.0), sigma=2.0))
    assert len(points) == 1
    np.testing.assert_allclose(points[0], (70, 41), atol=0.05)


def test_mirrored_image_gives_the_mirrored_points():
    image = texture(0)
    points, response = Sift().detect(image)
    mirrored, _ = Sift().detect(np.ascontiguousarray(image[:, ::-1]))
    mirrored[:, 0] = image.shape[1] - 1 - mirrored[:, 0]
    distance = np.abs(points[:, None] - mirrored[None]).max(axis=2).min(axis=1)
    strong = response > 0.03  # points near the threshold come and go with rounding
    assert strong.sum() > 50
    assert np.mean(distance[strong] < 0.1) > 0.95


def test_each_point_comes_once_by_x_then_y():
    image = texture(0)
    points, responses = Sift().detect(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.SIFT.create(enable_precise_upscale=True).detect(grey, None)
    every = np.array([(*point.pt, point.response) for point in found], np.float32)
    expected = np.unique(every, axis=0)
    assert len(expected) < len(every)  # some have several orientations
    np.testing.assert_array_equal(np.column_stack([points, responses]), expected)


def points_without_the_first_octave(image: np.ndarray) -> np.ndarray:
    """Points (N, 2) x, y that OpenCV finds in the picture's own pixels, or coarser, after it has doubled it."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    found = cv2.SIFT.create(enable_precise_upscale=True).detect(grey, None)
    return np.array([point.pt for point in found if point.octave & 255 != 255])  # 255 stands for -1


@pytest.mark.parametrize("size", [(240, 320), (239, 317)])
def test_an_undoubled_picture_gives_the_points_of_its_own_pixels(size):
    recall, precision = [], []
    for seed in range(3):
        image = fine_texture(seed, size)
        expected = points_without_the_first_octave(image)
        points, _ = Sift(first_octave=0).detect(image)
        distance = np.abs(expected[:, None] - points[None]).max(axis=2)
        recall.append(np.mean(distance.min(axis=1) < 1))
        precision.append(np.mean(distance.min(axis=0) < 1))
    assert np.mean(recall) > 0.8
    assert np.mean(precision) > 0.8


def test_an_undoubled_picture_has_the_same_points_but_for_the_smallest():
    fine = blobs((70.0, 41.0), sigma=1.2)
    assert len(Sift().detect(fine)[0]) == 1
    assert len(Sift(first_octave=0).detect(fine)[0]) == 0
    for centre in ((70.0, 41.0), (71.0, 42.0)):  # pixels that stay, pixels that are dropped
        points, _ = Sift(first_octave=0).detect(blobs(centre, sigma=3.0))
        np.testing.assert_allclose(points, [centre], atol=0.05)


def test_the_layer_of_stores_from_before_the_first_octave_was_a_choice():
    assert identity(Sift()) == {
        "extractor": "sift",
        "revision": 1,
        "octave_layers": 3,
        "contrast_threshold": 0.04,
        "edge_threshold": 10.0,
        "sigma": 1.6,
        "full_response": 0.1,
        "nms_radius": 2,
        "max_keypoints": None,
    }
    assert identity(Sift(first_octave=0)) == identity(Sift()) | {"first_octave": 0}


def test_confidence_is_the_response_over_a_fixed_reference():
    image = blobs((40, 40), (90, 60))
    _, response = Sift().detect(image)
    heatmap = extract(image, full_response=0.2)
    expected = np.sort(np.minimum(response / 0.2, 1))
    got = np.sort((heatmap[heatmap > 0] / 255.0) ** 2)
    np.testing.assert_allclose(got, expected, atol=1 / 255)
    assert 0 < expected[0] < 1
    # A reference below the response clips to 1; a strong neighbour in the image does not change a point's value.
    assert extract(image, full_response=0.001).max() == 255
    alone = extract(blobs((40, 40)), full_response=0.2)
    assert alone[40, 40] == heatmap[40, 40] > 0


def test_radius_and_number_limit_the_points():
    image = texture(1)
    points = points_of(extract(image, nms_radius=6))
    gaps = np.abs(points[:, None] - points[None]).max(axis=2) + 99 * np.eye(len(points))
    assert len(points) > 20
    assert gaps.min() > 6
    everything = extract(image, nms_radius=0)
    assert (everything > 0).sum() > len(points)
    ten = extract(image, nms_radius=0, max_keypoints=10)
    assert (ten > 0).sum() == 10
    assert ten[ten > 0].min() >= np.sort(everything[everything > 0])[-10]


def test_thresholds_reach_the_detector():
    image = texture(2)
    count = np.count_nonzero(extract(image))
    assert np.count_nonzero(extract(image, contrast_threshold=0.12)) < count
    assert np.count_nonzero(extract(image, edge_threshold=2.0)) < count


def test_same_bytes_again_and_with_any_number_of_threads():
    image = texture(3)
    threads = cv2.getNumThreads()
    try:
        results = []
        for count in (1, 2, 4):
            cv2.setNumThreads(count)
            results += [extract(image).tobytes() for _ in range(3)]
    finally:
        cv2.setNumThreads(threads)
    assert len(set(results)) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (8, 8)])
def test_flat_and_tiny_images_have_no_points(size):
    assert not extract(np.full((*size, 3), 90, np.uint8)).any()


@pytest.mark.parametrize(
    "wrong", [{"first_octave": 1}, {"octave_layers": 0}, {"full_response": 0}, {"nms_radius": -1}, {"max_keypoints": 0}]
)
def test_wrong_options_are_named(wrong):
    with pytest.raises(ExtractorError, match=rf"sift\.{next(iter(wrong))}: expected "):
        Sift(**wrong)
