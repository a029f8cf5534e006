"""The first resize against Pillow and the reference's sizes, and that what is predicted comes through it."""

import numpy as np
import pytest
import torch
from physseg.train.model.inference import (
    InferenceSettings,
    cut,
    first_resize,
    predict_label_map,
    predict_probabilities,
    segment_image,
)
from PIL import Image
from torch import Tensor

from .test_inference import colours, photograph, texts


def seen_crops(image: np.ndarray) -> Tensor:
    """What the network sees."""
    return cut(torch.from_numpy(image), InferenceSettings().fitted(384))


def reference_size(height: int, width: int) -> tuple[int, int]:
    """The size that detectron2's ResizeShortestEdge(640, 2560) computes, step by step as documented there."""
    scale = 640 / min(height, width)
    new = [640.0, scale * width] if height < width else [scale * height, 640.0]
    if max(new) > 2560:
        smaller = 2560 / max(new)
        new = [edge * smaller for edge in new]
    return int(new[0] + 0.5), int(new[1] + 0.5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (640, 853)),  # 853.33
        ((375, 500), (640, 853)),
        ((500, 333), (961, 640)),  # 960.96
        ((1536, 2048), (640, 853)),
        ((640, 640), (640, 640)),
        ((256, 513), (640, 1283)),  # 1282.5
        ((100, 1000), (256, 2560)),  # the long edge's limit
        ((3000, 20), (2560, 17)),  # 17.07
        ((1, 6000), (1, 2560)),  # detectron2 would ask Pillow for no pixel
    ],
)
def test_convention_first_resize(size: tuple[int, int], expected: tuple[int, int]) -> None:
    image = photograph(max(8, size[0]), max(8, size[1]))[: size[0], : size[1]]
    resized = first_resize(image)
    assert resized.shape == (*expected, 3) and resized.dtype == np.uint8
    if min(size) > 1:
        assert reference_size(*size) == expected
    chain = Image.fromarray(image).resize(expected[::-1], resample=Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(chain))
    assert first_resize(image, InferenceSettings(first_resize="none")) is image


def test_sizes_are_the_references() -> None:
    """Of the resize's sizes alone, over many edges; the pixels are Pillow's."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 400, (40, 2)):
        assert first_resize(np.zeros((height, width, 3), np.uint8)).shape[:2] == reference_size(height, width)


@pytest.mark.parametrize("axis", [0, 1])
def test_fine_stripes_do_not_alias(axis: int) -> None:
    """Stripes of one pixel are grey from afar; without the resize, the network sees broad ones that are not there."""
    stripes = np.moveaxis(np.zeros((1536, 2048, 3), np.uint8), axis, 0)
    stripes[1::2] = 255
    image = np.moveaxis(stripes, 0, axis)
    seen = seen_crops(first_resize(image))
    assert (seen - 127.5).square().mean().sqrt() < 15
    aliased = seen_crops(first_resize(image, InferenceSettings(first_resize="none")))
    assert (aliased - 127.5).square().mean().sqrt() > 40


def test_maps_have_the_images_own_size_and_come_from_the_resized_one() -> None:
    model, _ = colours()
    image = photograph(300, 500)
    resized = np.asarray(Image.fromarray(image).resize((1067, 640), resample=Image.Resampling.BILINEAR))
    expected = predict_probabilities(model, resized, texts(3), size=(300, 500)).argmax(axis=0)
    found = segment_image(model, image, texts(3))
    assert found.shape == (300, 500)
    np.testing.assert_array_equal(found, expected)
    whole = predict_probabilities(model, resized, texts(3))
    assert whole.shape == (3, 640, 1067)
    old = segment_image(model, image, texts(3), InferenceSettings(first_resize="none"))
    np.testing.assert_array_equal(old, predict_label_map(model, image, texts(3)))
    assert (old != found).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [InferenceSettings(), InferenceSettings(first_resize="none")])
def test_read_only_and_mirrored_arrays_are_taken(settings: InferenceSettings) -> None:
    """What `np.asarray` gives of a Pillow image is read-only; PyTorch would warn of undefined behaviour."""
    image = photograph(48, 64)
    expected = segment_image(colours()[0], image, texts(3), settings)
    read_only = np.asarray(Image.fromarray(image))
    assert not read_only.flags.writeable
    mirrored = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise once in a process
    try:
        for array in (read_only, mirrored):
            np.testing.assert_array_equal(segment_image(colours()[0], array, texts(3), settings), expected)
    finally:
        torch.set_warn_always(always)
