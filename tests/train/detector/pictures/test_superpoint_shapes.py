"""Generated training pictures: their keypoints are where the corners are, and all follows from the seed."""

import cv2
import numpy as np
import pytest
from physseg.train.detector.pictures.drawing import Canvas, rotation
from physseg.train.detector.pictures.shapes import TRAINED, _crossings, draw_shape, random_polygon
from physseg.train.detector.pictures.textures import TEXTURES, draw_texture

SIZE = (96, 128)


def draw(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_shape(np.random.default_rng(seed), SIZE, kind)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_picture_and_its_keypoints_follow_from_the_seed(kind):
    some = 0
    for seed in range(10):
        image, keypoints = draw(kind, seed)
        assert (image.shape, image.dtype) == (SIZE, np.uint8)
        assert keypoints.dtype == np.float32
        assert ((keypoints >= -0.5) & (keypoints < np.array(SIZE[::-1]) - 0.5)).all()
        again, same = draw(kind, seed)
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(keypoints, same)
        some += len(keypoints)
    assert not np.array_equal(image, draw(kind, 99)[0])
    assert (some == 0) == (kind in ("ellipses", "noise"))


STOP = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 40, 0.001)


def sub_pixel_errors(kind: str, number: int) -> list[list[float]]:
    """How far OpenCV moves the keypoints of some pictures, (N, 2) x, y, but for those near the edges."""
    errors = []
    for seed in range(number):
        image, keypoints = draw(kind, seed)
        inner = keypoints[((keypoints > 8) & (keypoints < np.array(SIZE[::-1]) - 9)).all(axis=1)]
        if len(inner):
            found = cv2.cornerSubPix(image, inner.reshape(-1, 1, 2).copy(), (3, 3), (-1, -1), STOP)  # writes in place
            errors += (found[:, 0] - inner).tolist()
    return errors


def test_keypoints_of_checkerboards_are_exact():
    """Inside a board all four cells meet at a saddle, which OpenCV locates to a fraction of a pixel by itself."""
    errors = sub_pixel_errors("checkerboard", 40)
    assert len(errors) > 200
    assert np.abs(np.mean(errors, axis=0)).max() < 0.1
    assert np.median(np.linalg.norm(errors, axis=1)) < 0.25  # the outer corners of a board are no saddles


# The ends of lines and the rays of stars are blunt: OpenCV moves those far, to all sides.
@pytest.mark.parametrize(
    ("kind", "pictures"),
    [("polygon", 40), ("polygons", 40), ("cube", 40), ("stripes", 40), ("tiles", 40), ("lines", 200), ("star", 200)],
)
def test_keypoints_are_off_to_no_side(kind, pictures):
    errors = sub_pixel_errors(kind, pictures)
    assert len(errors) > 100
    assert np.abs(np.mean(errors, axis=0)).max() < 0.15  # three standard errors of lines and stars


def test_polygons_are_as_large_as_their_corners_say():
    """OpenCV's own smooth filling makes each side 1.3 px longer."""
    canvas = Canvas(np.random.default_rng(0), (64, 64))
    for angle in np.linspace(0, 1.5, 7):
        canvas.image[:] = 0
        canvas.fill((np.array([[0, 0], [30, 0], [30, 20], [0, 20]]) - [15, 10]) @ rotation(angle) + 60.3, 255)
        assert canvas.image.sum() / 255 == pytest.approx(600, rel=0.02)
        y, x = np.indices(canvas.image.shape)
        middle = [(canvas.image * axis).sum() / canvas.image.sum() for axis in (x, y)]
        np.testing.assert_allclose(middle, 60.3, atol=0.35)  # OpenCV rounds straight edges


@pytest.mark.parametrize("kind", ["polygon", "polygons", "checkerboard", "cube", "stripes", "star"])
def test_there_is_a_corner_at_nearly_every_keypoint(kind):
    """The smaller eigenvalue of the gradients is larger about keypoints than at random places."""
    at_keypoints, elsewhere = [], []
    rng = np.random.default_rng(0)
    for seed in range(20):
        image, keypoints = draw(kind, seed)
        corner = cv2.dilate(cv2.cornerMinEigenVal(image.astype(np.float32) / 255, 5), np.ones((3, 3)))
        inner = np.rint(keypoints).astype(int)
        inner = inner[((inner >= 2) & (inner < np.array(SIZE[::-1]) - 2)).all(axis=1)]
        at_keypoints += corner[inner[:, 1], inner[:, 0]].tolist()
        elsewhere += corner[rng.integers(0, 96, 30), rng.integers(0, 128, 30)].tolist()
    assert np.mean(np.array(at_keypoints) > np.percentile(elsewhere, 75)) > 0.9


def test_crossings_by_hand():
    square = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    other = square + np.array([2.0, 1])
    points, owners = _crossings(square, np.roll(square, -1, axis=0), other, np.roll(other, -1, axis=0))
    found = {tuple(point) for point in points.tolist()}
    assert found == {(4.0, 1.0), (2.0, 4.0)}
    assert {tuple(p): int(o) for p, o in zip(points.tolist(), owners, strict=True)} == {(4.0, 1.0): 0, (2.0, 4.0): 3}


def test_polygons_are_neither_flat_nor_sharp():
    for seed in range(200):
        corners = random_polygon(np.random.default_rng(seed), np.array([50.0, 50.0]), 20.0)
        assert np.linalg.norm(corners - 50, axis=1).max() <= 20 + 1e-9
        before, after = np.roll(corners, 1, axis=0) - corners, np.roll(corners, -1, axis=0) - corners
        cosine = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
        degrees = np.degrees(np.arccos(cosine))
        assert degrees.min() > 19.9 and degrees.max() < 150.1


@pytest.mark.parametrize("kind", TEXTURES)
def test_textures_follow_from_the_seed_and_are_not_flat(kind):
    image = draw_texture(np.random.default_rng(3), SIZE, kind)
    assert (image.shape, image.dtype) == (SIZE, np.uint8)
    np.testing.assert_array_equal(image, draw_texture(np.random.default_rng(3), SIZE, kind))
    assert image.std() > 5
    assert not np.array_equal(image, draw_texture(np.random.default_rng(4), SIZE, kind))
