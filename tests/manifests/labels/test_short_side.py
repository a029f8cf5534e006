"""The cap of the short side: sizes as the benchmark's script rounds them, ids that are never mixed."""

import numpy as np
import pytest
from physseg.manifests.labels.short_side import cap_image, cap_labels, capped_size


@pytest.mark.parametrize(
    ("size", "capped"),
    [
        ((768, 1024), (512, 683)),  # 682.67
        ((1024, 768), (683, 512)),
        ((1536, 2048), (512, 683)),
        ((600, 600), (512, 512)),  # squares, too
        ((512, 900), (512, 900)),
        ((513, 900), (512, 898)),  # 898.2
        ((1024, 1025), (512, 512)),  # 512.5, halves to even
        ((100, 5000), (100, 5000)),
    ],
)
def test_sizes(size, capped):
    assert capped_size(*size, 512) == capped


def test_no_limit_no_change():
    image = np.zeros((600, 700, 3), np.uint8)
    assert cap_image(image, None) is image
    assert cap_labels(image[..., 0], 700).shape == (600, 700)


def test_convention_capped_labels_take_the_pixel_at_floor_i_times_scale_and_keep_16_bits():
    raw = (1000 + np.arange(6 * 9).reshape(6, 9)).astype(np.uint16)
    small = cap_labels(raw, 4)
    assert small.dtype == np.uint16
    rows, columns = np.arange(4) * 6 // 4, np.arange(6) * 9 // 6
    assert (small == raw[rows][:, columns]).all()


def test_images_are_bilinear_between_pixel_centres():
    image = np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[:, None, None], 16, 1).repeat(3, 2)
    small = cap_image(image, 8)
    assert small.shape == (8, 8, 3)
    assert small[:, 0, 0].tolist() == [5, 25, 45, 65, 85, 105, 125, 145]  # the mean of two neighbours
