"""Average precision and repeatability worked out by hand; pairs whose homography is known."""

import cv2
import numpy as np
import pytest
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.keypoints import best_points
from physseg.train.detector.judging import pairs as pairs_module
from physseg.train.detector.judging.detectors import CLASSICAL
from physseg.train.detector.judging.evaluation import (
    RADIUS_PX,
    SHAPE_RADIUS_PX,
    TRUTH,
    evaluate,
    measures,
    shape_precision,
    table,
)
from physseg.train.detector.judging.metrics import average_precision, found_again, matches, pair_measures
from physseg.train.detector.judging.pairs import (
    CHANGES,
    Pair,
    changed_pairs,
    compressed,
    sequence_pairs,
    viewpoint_pairs,
)
from physseg.train.detector.pictures.textures import draw_texture

PICTURE = np.zeros((100, 100), np.uint8)


def points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float32).reshape(-1, 2)


def repeated(one: np.ndarray, other: np.ndarray, homography: np.ndarray, *, number: int = 300) -> float:
    pair = Pair(PICTURE, PICTURE, homography)
    return pair_measures(pair, found_again(pair, one, other, number=number))["repeatability"]


def test_each_keypoint_is_found_once():
    truth = points((10, 10), (20, 20))
    detected = points((11, 10), (10, 11), (20, 23), (50, 50))  # best first
    assert matches(detected, truth, 3.0).tolist() == [True, False, True, False]
    assert matches(detected, points(), 3.0).tolist() == [False] * 4


def test_average_precision_by_hand():
    # Ranked: hit, miss, hit, miss; three true keypoints. Precision 1 at recall 1/3, 2/3 at recall 2/3.
    hits = [np.array([True, False]), np.array([True, False])]
    scores = [np.array([0.9, 0.8], np.float32), np.array([0.7, 0.1], np.float32)]
    assert average_precision(hits, scores, 3) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision([np.array([True])], [np.array([1.0], np.float32)], 1) == 1.0
    assert average_precision([np.zeros(0, bool)], [np.zeros(0, np.float32)], 5) == 0.0


def test_precision_at_a_recall_is_the_best_beyond():
    hits, scores = [np.array([False, True, True])], [np.array([0.9, 0.8, 0.7], np.float32)]
    assert average_precision(hits, scores, 2) == pytest.approx(2 / 3)


def test_repeatability_by_hand():
    shift = np.array([[1.0, 0, 5], [0, 1, 0], [0, 0, 1]])
    one = points((10, 10), (30, 30), (98, 50))  # the last leaves the second picture
    other = points((16, 10), (60, 60), (2, 50))  # the last is not in the first picture
    assert repeated(one, other, shift) == pytest.approx((1 + 1) / (2 + 2))
    assert repeated(one[:2], one[:2] + np.float32([5, 0]), shift) == 1.0
    assert repeated(one, points(), shift) == 0.0
    assert np.isnan(repeated(points(), points(), shift))


def test_only_the_best_points_of_what_both_show_count():
    one = points((10, 10), (30, 30), (50, 50))
    other = points((30, 30), (10, 10), (70, 70))
    assert repeated(one, other, np.eye(3), number=1) == 0.0
    assert repeated(one, other, np.eye(3), number=2) == 1.0


def test_distances_and_coverage_by_hand():
    """The second picture shows the first one 20 px further right."""
    pair = Pair(PICTURE, PICTURE, np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]))
    one, other = points((10, 10), (50, 50)), points((30, 12), (70, 60))
    found = pair_measures(pair, found_again(pair, one, other))
    assert found["repeatability"] == 0.5
    assert found["localisation_px"] == 2.0  # of the first point alone, from both sides
    assert found["nearest_px"] == (2 + 10) / 2
    y, x = np.indices(PICTURE.shape)
    near = [(x - a) ** 2 + (y - b) ** 2 <= 16**2 for a, b in other]
    assert found["coverage"] == (near[0] | near[1])[:, 20:].mean()
    lost = pair_measures(pair, found_again(pair, one, points()))
    assert (lost["repeatability"], lost["nearest_px"], lost["coverage"]) == (0, 400, 0)
    assert np.isnan(lost["localisation_px"])
    nothing = measures({"blind": lambda grey: np.zeros(grey.shape, np.float32)}, [pair])
    assert nothing == {"coverage": {"blind": 0.0}}


def test_changes_leave_points_where_they_are():
    grey = draw_texture(np.random.default_rng(3), (120, 160), "mosaic")
    for name, change in CHANGES.items():
        other = change(grey, 5)
        assert not np.array_equal(other, grey), name
        np.testing.assert_array_equal(other, change(grey, 5))
        shift, _ = cv2.phaseCorrelate(grey.astype(np.float32), other.astype(np.float32))
        assert np.abs(shift).max() < 0.5, name


def test_compression_is_strong_and_its_blocks_are_anywhere(monkeypatch):
    drawn = []
    monkeypatch.setattr(pairs_module, "jpeg", lambda grey, *drawn_for_it: drawn.append(drawn_for_it) or grey)
    for seed in range(1000):
        compressed(PICTURE, seed)
    qualities, offsets = zip(*drawn, strict=True)
    assert set(qualities) == set(range(10, 41))
    assert set(offsets) == {(y, x) for y in range(8) for x in range(8)}


def test_other_light_is_smooth_and_keeps_edges_sharp():
    flat, edge = np.full((2, 96, 128), 100, np.uint8)
    edge[:, 64:] = 160
    for seed in range(10):
        other = CHANGES["light"](flat, seed).astype(int)
        assert (other != flat).any()
        assert np.abs(np.diff(other, 2, axis=1)).max() < 5  # shadows are soft; noise and specks are not
        other = CHANGES["light"](edge, seed).mean(axis=0)
        assert other[64] - other[63] > 0.9 * (other[67] - other[60]) > 1


@pytest.mark.parametrize("name", CLASSICAL)
def test_classical_detectors_find_the_corners_of_a_square(name):
    picture = np.full((80, 100), 60, np.uint8)
    picture[20:60, 30:70] = 200
    picture = cv2.GaussianBlur(picture, (0, 0), 1.0)
    found, scores = best_points(CLASSICAL[name](picture), number=4, radius_px=4, border_px=4)
    assert (np.diff(scores) <= 0).all()
    corners = points((30, 20), (69, 20), (30, 59), (69, 59))
    if name == "SIFT":  # blobs: the square as a whole
        assert len(found)
    else:
        assert matches(found, corners, 3.0).all()


def test_points_that_would_be_found_too_near_an_edge_do_not_count():
    """Shifted by 20 px: the first maps to 3 px from the right edge, where the border is, the second to 4 px."""
    shift = np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]])
    assert np.isnan(repeated(points((76, 50)), points(), shift))
    assert repeated(points((75, 50)), points((95, 50)), shift) == 1
    assert repeated(points((75, 50)), points((23, 50), (95, 50)), shift) == 1  # back, 3 px from the left edge


def test_harris_repeats_itself_more_often_than_chance():
    greys = [draw_texture(np.random.default_rng(seed), (120, 160), "leaves") for seed in range(2)]
    noise = np.random.default_rng(0)
    for pairs in (viewpoint_pairs(greys), *(changed_pairs(greys, change) for change in CHANGES.values())):
        assert len(pairs) == 4
        figures = measures(
            {"Harris": CLASSICAL["Harris"], "chance": lambda grey: noise.random(grey.shape, np.float32)},
            pairs,
            number=50,
        )["repeatability"]
        assert figures["Harris"] > figures["chance"] + 0.1


def test_viewpoint_pairs_fit_their_homography():
    grey = cv2.GaussianBlur(draw_texture(np.random.default_rng(1), (120, 160), "leaves"), (0, 0), 2)
    for pair in viewpoint_pairs([grey]):
        back = cv2.warpPerspective(pair.other, np.linalg.inv(pair.homography), (160, 120), flags=cv2.INTER_LINEAR)
        seen = cv2.warpPerspective(
            cv2.warpPerspective(np.full_like(grey, 255), pair.homography, (160, 120)),
            np.linalg.inv(pair.homography),
            (160, 120),
        )
        assert np.abs(back.astype(int) - pair.one)[seen == 255].mean() < 2


def test_a_sequence_is_resized_with_its_homographies(tmp_path):
    """Two pictures of other sizes, the second shifted: after resizing, points still map onto each other."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (500, 700), np.uint8), (0, 0), 6)
    cv2.imwrite(str(tmp_path / "img1.png"), scene[:480, :640])
    cv2.imwrite(str(tmp_path / "img2.png"), scene[20:500, 60:700])
    np.savetxt(tmp_path / "H1to2p", np.array([[1.0, 0, -60], [0, 1, -20], [0, 0, 1]]))
    (pair,) = sequence_pairs(tmp_path)
    assert pair.one.shape == (240, 320)
    warped = cv2.warpPerspective(pair.one, pair.homography, (320, 240))
    assert np.abs(warped[:228, :288].astype(int) - pair.other[:228, :288]).mean() < 1.0
    np.testing.assert_allclose(pair.homography, [[1, 0, -30], [0, 1, -10], [0, 0, 1]], atol=1e-9)
    np.savetxt(tmp_path / "H1to3p", np.eye(3))
    with pytest.raises(ExtractorError, match="img3"):
        sequence_pairs(tmp_path)
    (tmp_path / "H1to3p").unlink()
    (tmp_path / "H1to2p").unlink()
    with pytest.raises(ExtractorError, match="img1"):
        sequence_pairs(tmp_path)


def test_a_detector_that_knows_is_perfect_and_noise_costs_the_others():
    clean = shape_precision({"Harris": CLASSICAL["Harris"]}, per_kind=5, noisy=False)
    noisy = shape_precision({"Harris": CLASSICAL["Harris"]}, per_kind=5, noisy=True)
    assert noisy[SHAPE_RADIUS_PX]["Harris"] < clean[SHAPE_RADIUS_PX]["Harris"]
    assert clean[SHAPE_RADIUS_PX]["Harris"] > 0.3
    for figures in (clean, noisy):  # the same pictures, so the same truth
        assert figures[SHAPE_RADIUS_PX][TRUTH] > 0.99
        assert 0.85 < figures[RADIUS_PX][TRUTH] < 0.97  # extraction's suppression removes true keypoints, too


def test_a_sequence_that_is_named_as_a_set_is_refused(tmp_path):
    """It would be lost in the other's figures; nothing is measured before."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((24, 32), np.uint8))
    with pytest.raises(ExtractorError, match="the sequence 'light' has the name of a set of photographs"):
        evaluate(None, sequences={"light": []}, photographs=tmp_path)


def test_the_table_marks_the_best():
    lines = table({"a": {"AP": 0.5, "view": 0.25}, "b": {"AP": 0.75}, TRUTH: {"AP": 1.0}})
    assert [line.split() for line in lines] == [
        ["AP", "view"],
        ["a", "0.500", "0.250*"],
        ["b", "0.750*", "-"],
        [*TRUTH.split(), "1.000", "-"],
    ]
    lines = table({"a": {"view": 0.5}, "b": {"view": 0.75}}, smaller=True)
    assert "0.500*" in lines[1] and "*" not in lines[2]
