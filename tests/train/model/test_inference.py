"""Sliding windows by hand and against torch's fold, and label maps that do not depend on how much is held at once."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from physseg.common.errors import ConfigError
from physseg.train.errors import ShapeError
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.cost_aggregator import ABSENT_LOGIT
from physseg.train.model.inference import (
    InferenceSettings,
    cut,
    first_resize,
    merge,
    predict_label_map,
    predict_probabilities,
    segment_image,
    segment_with_scores,
)
from physseg.train.model.segmenter import Segmenter
from torch import Tensor, nn

WHOLE = InferenceSettings(windows=False)
PUBLISHED = InferenceSettings().fitted(384)


class Colours(nn.Module):
    """Stands in for a segmenter: class t's logits are one colour channel of the crop, at a quarter of its size."""

    calls = 0

    arch = SimpleNamespace(crop_px=384)

    def crop_bytes(self, num_classes: int, classes_kept: int | None) -> int:
        return 4 * 3 * 384 * 384

    def forward(self, crops: Tensor, text_features: Tensor, classes_kept: int | None) -> SimpleNamespace:
        assert not self.training
        self.calls += 1
        channels = F.avg_pool2d(crops, 4)[:, torch.arange(len(text_features)) % 3]
        return SimpleNamespace(logits=channels / 32 - 4)


def colours() -> tuple[Segmenter, Colours]:
    model = Colours().train()
    return cast(Any, model), model


def texts(classes: int) -> Tensor:
    return torch.zeros(classes, 1, 2)


def photograph(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv_resize(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), height, width)


def cv_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def test_convention_published_windows() -> None:
    settings = InferenceSettings().fitted(384)
    assert settings.offsets == ((0, 0), (0, 256), (256, 0), (256, 256))
    assert (settings.window_px, settings.canvas_px) == (384, 640)
    assert cut(torch.zeros(100, 80, 3, dtype=torch.uint8), settings).shape == (5, 3, 384, 384)
    assert cut(torch.zeros(100, 80, 3, dtype=torch.uint8), WHOLE.fitted(384)).shape == (1, 3, 384, 384)


def test_crops_by_hand() -> None:
    """At 640x640 the canvas is the image; windows are plain crops, the last crop is the whole image made smaller."""
    image = torch.from_numpy(photograph(640, 640))
    crops = cut(image, PUBLISHED)
    planes = image.permute(2, 0, 1).float()
    for crop, (y, x) in zip(crops, PUBLISHED.offsets, strict=False):
        assert torch.equal(crop, planes[:, y : y + 384, x : x + 384])
    expected = F.interpolate(planes[None], size=(384, 384), mode="bilinear", align_corners=False)[0]
    assert torch.equal(crops[4], expected)


def test_merging_equals_fold_and_unfold() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 96, 96)
    maps = F.interpolate(logits, size=(384, 384), mode="bilinear", align_corners=False).sigmoid()
    unfold, fold = nn.Unfold(384, stride=256), nn.Fold((640, 640), 384, stride=256)
    cover = fold(unfold(torch.ones(1, 1, 640, 640)))
    windows = fold(maps[:-1].flatten(1).T[None]) / cover
    whole = F.interpolate(maps[-1:], size=(640, 640), mode="bilinear", align_corners=False)
    expected = F.interpolate((windows + whole) / 2, size=(120, 500), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(merge(logits, PUBLISHED, (120, 500)), expected, rtol=1e-5, atol=1e-6)


def test_equal_logits_give_equal_probabilities_everywhere() -> None:
    probabilities = merge(torch.full((5, 2, 96, 96), 0.3), PUBLISHED, (70, 90))
    torch.testing.assert_close(probabilities, torch.full((2, 70, 90), 0.3).sigmoid())


@pytest.mark.parametrize("settings", [InferenceSettings(), WHOLE, InferenceSettings(batch_windows=2)])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (384, 384), (97, 40)])
def test_label_map_is_the_argmax_whatever_the_budget(settings: InferenceSettings, height: int, width: int) -> None:
    model, _ = colours()
    image = photograph(height, width)
    probabilities = predict_probabilities(model, image, texts(7), settings)
    assert probabilities.shape == (7, height, width)
    assert probabilities.dtype == np.float32
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    expected = probabilities.argmax(axis=0)  # classes 0, 3, 6 are equal: the lower id wins
    assert expected.max() == 2
    per_class = 4 * 10 * 384 * 384  # about three classes at a time
    for budget in (1, 3 * per_class, 2**30):
        small = InferenceSettings(
            windows=settings.windows, batch_windows=settings.batch_windows, memory_bytes=4 * budget
        )
        labels = predict_label_map(model, image, texts(7), small)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(predict_probabilities(model, image, texts(7), small), probabilities)


class Kept(nn.Module):
    """Stands in for a segmenter that keeps other classes in each crop."""

    def __init__(self, kept: list[list[int]], logit: float) -> None:
        super().__init__()
        self.kept, self.logit, self.seen = kept, logit, 0

    arch = SimpleNamespace(crop_px=384)

    def crop_bytes(self, num_classes: int, classes_kept: int | None) -> int:
        return 1

    def forward(self, crops: Tensor, text_features: Tensor, classes_kept: int | None) -> SimpleNamespace:
        logits = torch.full((len(crops), len(text_features), 96, 96), ABSENT_LOGIT)
        for crop in range(len(crops)):
            classes, self.seen = self.kept[self.seen % len(self.kept)], self.seen + 1
            for number, label in enumerate(classes):
                logits[crop, label] = torch.linspace(-1, 1, 96 * 96).view(96, 96) * (-1) ** number + self.logit
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("memory", [1, 2**31])
def test_classes_that_no_crop_keeps_have_probability_0(memory: int) -> None:
    """What any crop keeps is merged as ever, where a crop left it out as 0; the others cost nothing."""
    kept = [[3, 8], [8, 3], [5, 3], [3, 5], [11, 8]]
    model = Kept(kept, 0.0)
    image = photograph(97, 140)
    few = InferenceSettings(classes_kept=2, memory_bytes=memory)
    probabilities = predict_probabilities(cast(Any, model), image, texts(13), few)
    expected = merge(model(torch.zeros(5, 3, 4, 4), texts(13), 2).logits, PUBLISHED, (97, 140)).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6, atol=1e-7)
    present = probabilities.reshape(13, -1).any(axis=1)
    assert np.flatnonzero(present).tolist() == [3, 5, 8, 11]
    labels = predict_label_map(cast(Any, model), image, texts(13), few)
    np.testing.assert_array_equal(labels, probabilities.argmax(axis=0))
    assert set(np.unique(labels)) <= {3, 5, 8, 11} and len(np.unique(labels)) > 2


@pytest.mark.parametrize("memory", [1, 2**31])
def test_scores_are_those_of_the_probabilities(memory: int) -> None:
    """Against all probabilities at once: labels, the highest at each pixel, and each class's highest anywhere."""
    kept = [[3, 8], [8, 3], [5, 3], [3, 5], [11, 8]]
    image = photograph(97, 140)
    few = InferenceSettings(classes_kept=2, memory_bytes=memory, first_resize="none")
    for model, classes in ((Kept(kept, 0.0), 13), (Colours(), 7)):
        probabilities = predict_probabilities(cast(Any, model), image, texts(classes), few)
        found = segment_with_scores(cast(Any, model), image, texts(classes), few)
        np.testing.assert_array_equal(found.labels, probabilities.argmax(axis=0))
        np.testing.assert_array_equal(found.confidence, probabilities.max(axis=0))
        np.testing.assert_array_equal(found.highest, probabilities.max(axis=(1, 2)))


def test_where_all_is_improbable_the_lowest_id_wins_kept_or_not() -> None:
    """Logits of -99 are above those of absent classes, and as probabilities 0 as they are."""
    model = Kept([[3, 8], [8, 3], [5, 3], [3, 5], [11, 8]], -98.5)
    few = InferenceSettings(classes_kept=2)
    assert not predict_probabilities(cast(Any, model), photograph(40, 50), texts(13), few).any()
    assert not predict_label_map(cast(Any, model), photograph(40, 50), texts(13), few).any()


def test_many_classes_need_sixteen_bits() -> None:
    model, _ = colours()
    assert predict_label_map(model, photograph(48, 64), texts(255), WHOLE).dtype == np.uint8
    assert predict_label_map(model, photograph(48, 64), texts(256), WHOLE).dtype == np.uint16


def test_windows_go_through_together_and_training_mode_comes_back() -> None:
    model, counter = colours()
    predict_label_map(model, photograph(48, 64), texts(3), InferenceSettings(batch_windows=2))
    assert counter.calls == 3
    assert counter.training


def test_a_flat_image_is_one_class() -> None:
    model, _ = colours()
    image = np.zeros((30, 50, 3), np.uint8)
    image[..., 1] = 200
    assert (predict_label_map(model, image, texts(3)) == 1).all()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ShapeError, match=r"image: expected uint8 \(H, W, 3\) RGB"):
        predict_label_map(colours()[0], image, texts(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_px": 384, "stride_px": 200, "canvas_px": 640}, "do not cover 640 px exactly"),
        ({"window_px": 384, "stride_px": 512, "canvas_px": 896}, "do not cover"),
        ({"canvas_px": 639}, "do not cover 639 px"),
        ({"window_px": -1}, "expected positive numbers"),
        ({"classes_kept": 0}, "classes_kept: expected a positive number"),
        ({"batch_windows": 0}, "batch_windows: expected a positive number"),
        ({"first_resize": "short-800"}, "first_resize: expected .*short-640.*, got .*short-800"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InferenceSettings(**settings).fitted(384)


@pytest.mark.parametrize(
    ("patches", "window", "stride", "canvas"),
    [(20, 320, 213, 533), (24, 384, 256, 640), (28, 448, 299, 747), (32, 512, 341, 853), (40, 640, 427, 1067)],
)
def test_windows_grow_with_the_patch_grid(patches: int, window: int, stride: int, canvas: int) -> None:
    """16 px a patch, two thirds of a window on, and two by two windows that cover the canvas: as published for 24."""
    arch = SegmenterConfig(clip="ViT-B-16", image_px=16 * patches).arch
    found = InferenceSettings().fitted(arch.crop_px)
    assert (found.window_px, found.stride_px, found.canvas_px) == (window, stride, canvas)
    assert found.offsets == ((0, 0), (0, stride), (stride, 0), (stride, stride))


@pytest.mark.parametrize(("size", "dtype"), [((4, 4), "u1"), ((4, 4, 3), "f4"), ((0, 4, 3), "u1"), ((4, 4, 4), "u1")])
def test_the_first_resize_takes_images_only(size: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ShapeError, match="RGB"):
        first_resize(np.zeros(size, dtype))


def test_predictions_multiply_as_the_reference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 on CUDA, which this process's own setting forbids, and nothing else: oneDNN would take it on some CPUs."""
    seen = []

    def forward(self: Colours, crops: Tensor, text_features: Tensor, classes_kept: int | None) -> SimpleNamespace:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        assert torch.backends.mkldnn.matmul.fp32_precision != "tf32"  # type: ignore[attr-defined]
        return SimpleNamespace(logits=torch.zeros(len(crops), len(text_features), 96, 96))

    monkeypatch.setattr(Colours, "forward", forward)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert before[0] is False
    segment_image(colours()[0], photograph(64, 48), texts(2))
    assert seen == [(True, True)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
