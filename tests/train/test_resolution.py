"""One number, `model.image_px`: crop, patches, cells, windows and positions go with it, or one line says why not."""

from collections.abc import Callable

import pytest
from physseg.common.errors import ConfigError
from physseg.manifests.manifest import Manifest
from physseg.train.config import TrainConfig
from physseg.train.data.dataset import DataConfig
from physseg.train.errors import TrainDataError
from physseg.train.evaluation.evaluate import evaluate_model
from physseg.train.loop.loop import train
from physseg.train.model.config import SegmenterConfig
from physseg.train.prediction.load_run import load_run


@pytest.mark.parametrize(("image_px", "patches"), [(64, 4), (80, 5), (96, 6)])
def test_a_run_at_any_resolution_trains_and_is_evaluated(
    image_px: int, patches: int, make_config: Callable[..., TrainConfig], train_manifest: Manifest
) -> None:
    config = make_config(model={"image_px": image_px}, data={"crop": 0}, steps=2)
    assert (config.data.crop, config.model.arch.grid, config.model.arch.position_grid) == (image_px, patches, patches)
    train(config, progress=False)
    model = load_run(config.run, device="cpu").model
    assert model.clip.visual.positional_embedding.shape == (1 + patches**2, 32)
    seen = []
    model.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.logits.shape)))
    found = evaluate_model(model, train_manifest, trained_on=(), progress=False)
    assert {(tuple(crops[1:]), tuple(logits[2:])) for crops, logits in seen} == {
        ((3, image_px, image_px), (4 * patches, 4 * patches))
    }
    assert found.source["protocol"]["window_px"] == image_px


@pytest.mark.parametrize(
    ("clip", "image_px", "crop"),
    [
        ("ViT-B-16", 320, 320),
        ("ViT-B-16", None, 384),
        ("ViT-B-16", 448, 448),
        ("ViT-B-16", 512, 512),
        ("ViT-B-16", 640, 640),
        ("ViT-L-14-336", None, 384),
        ("ViT-L-14-336", 448, 512),
        ("ViT-L-14-336", 560, 640),
    ],
)
def test_the_crop_follows_and_takes_both_losses(clip: str, image_px: int | None, crop: int) -> None:
    model = SegmenterConfig(clip=clip, image_px=image_px, structures=("canny",))
    assert TrainConfig(data=DataConfig(store="s"), model=model).data.crop == crop


@pytest.mark.parametrize(
    ("changes", "expected", "hint"),
    [
        ({"model": {"image_px": 100}}, "image_px 100 is not a multiple of patch_px 16", "set it to 96 or 112"),
        ({"model": {"image_px": 64}, "data": {"crop": 80}}, "4x4 patches of tinier needs a multiple", "crop to 64 "),
        ({"model": {"image_px": 64}, "data": {"crop": 88}}, "4x4 patches of tinier needs a multiple", "crop to 64 "),
    ],
)
def test_what_does_not_fit_is_one_line(
    changes: dict[str, object], expected: str, hint: str, make_config: Callable[..., TrainConfig]
) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        make_config(**changes)
    assert hint in str(caught.value.hint)


def test_a_store_with_smaller_frames_is_told(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(TrainDataError, match=r"data\.crop is 128 px") as caught:
        train(make_config(model={"image_px": 128}, data={"crop": 0}), progress=False)
    assert "--short-edge 128" in str(caught.value.hint)
