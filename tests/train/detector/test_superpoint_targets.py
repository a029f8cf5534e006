"""Classes of cells and the loss on them, by hand."""

import torch
from physseg.structure_extractors.superpoint.network import keypoint_probability
from physseg.train.detector.targets import DUSTBIN, cell_classes, detector_loss, valid_cells


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_classes_by_hand():
    # Cell (0, 0): pixel x 3, y 1 -> 8 * 1 + 3. Cell (row 1, column 2): pixel x 16, y 15 -> 8 * 7 + 0.
    keypoints = torch.tensor([[[3.4, 0.6], [16.0, 15.0], [-0.6, 3.0], [24.0, 3.0], [torch.inf, torch.inf]]])
    classes = cell_classes(keypoints, (16, 24), generator())
    expected = torch.full((1, 2, 3), DUSTBIN)
    expected[0, 0, 0], expected[0, 1, 2] = 11, 56
    assert torch.equal(classes, expected)


def test_a_class_and_a_probability_mean_the_same_pixel():
    keypoints = torch.tensor([[[13.0, 6.0]]])
    classes = cell_classes(keypoints, (16, 24), generator())
    logits = 20.0 * torch.nn.functional.one_hot(classes, 65).permute(0, 3, 1, 2)
    probability = keypoint_probability(logits)[0]
    assert (probability.argmax() % 24, probability.argmax() // 24) == (13, 6)
    assert probability.max() > 0.99
    assert probability.sum() < 1.01


def test_of_two_keypoints_in_a_cell_either_is_taken():
    keypoints = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [2.0, 0.0]]]).expand(200, 3, 2)
    classes = cell_classes(keypoints, (8, 8), generator())[:, 0, 0]
    counts = torch.bincount(classes, minlength=65)
    assert counts[1] + counts[2] == 200
    assert counts[1] > 20 and counts[2] > 20


def test_a_cell_is_valid_if_all_its_pixels_are():
    valid = torch.ones(1, 16, 24, dtype=torch.bool)
    valid[0, 15, 8] = False
    expected = torch.tensor([[[True, True, True], [True, False, True]]])
    assert torch.equal(valid_cells(valid), expected)


def test_the_loss_is_cross_entropy_over_valid_cells():
    logits = torch.randn(2, 65, 1, 2, generator=generator(), dtype=torch.float64)
    classes = torch.tensor([[[3, 64]], [[0, 9]]])
    valid = torch.tensor([[[True, False]], [[True, True]]])
    log_p = logits.float().log_softmax(dim=1)
    expected = -(log_p[0, 3, 0, 0] + log_p[1, 0, 0, 0] + log_p[1, 9, 0, 1]) / 3
    torch.testing.assert_close(detector_loss(logits, classes, valid), expected)
    assert detector_loss(logits, classes, torch.zeros_like(valid)) == 0
