"""Maps of whole images: windows that cover every pixel, as in training."""

import itertools

import numpy as np
import pytest
from physseg.train.report import structure_maps

from ..conftest import EchoStructures


@pytest.mark.parametrize("size", [(32, 32), (20, 90), (77, 41), (64, 100), (33, 32)])
def test_windows_cover_every_pixel_and_keep_its_place(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    model = EchoStructures()
    found = structure_maps.structure_maps(model, image, 32)  # type: ignore[arg-type]
    assert model.sizes == {(3, 32, 32)}
    np.testing.assert_allclose(found, image[..., :2].transpose(2, 0, 1) / np.float32(255), atol=1e-6)


def test_windows_begin_at_cells_half_a_window_apart_at_most() -> None:
    for edge in range(1, 200):
        offsets = structure_maps._offsets(edge, 32)
        assert offsets[0] == 0
        assert all(offset % 8 == 0 for offset in offsets)
        assert all(later - former <= 16 for former, later in itertools.pairwise(offsets))
        assert edge <= offsets[-1] + 32 < max(edge, 32) + 8 or offsets == [0]
