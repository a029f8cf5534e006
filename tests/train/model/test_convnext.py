"""ConvNeXt-CLIP against open_clip's own models of the same random weights, in small sizes.

Names and shapes of the full sizes are checked on the meta device, where nothing is allocated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from physseg.common.errors import ConfigError
from physseg.testing import check_backbone
from physseg.train.errors import CheckpointError
from physseg.train.model import config as model_config
from physseg.train.model.backbones.convnext import ConvNextArchitecture, ConvNextClip
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter, blank_segmenter
from physseg.train.planning.meter import Meter
from physseg.train.weights.clip_weights import check_state, load_clip_weights
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

PROJECTIONS = ["linear", "mlp"]
PX = 96
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
FULL = ("convnext_base", "convnext_base_w", "convnext_base_w_320", "convnext_large_d", "convnext_large_d_320")


def small(projection: str, px: int = PX) -> ConvNextArchitecture:
    """timm's smallest ConvNeXt, with three patches a side."""
    sizes = {"text_width": 16, "text_layers": 2, "text_heads": 2, "image_px": px, "embed_dim": 20}
    return ConvNextArchitecture(trunk="test_convnext", channels=(24, 32, 48, 64), projection=projection, **sizes)


def open_clips(projection: str) -> open_clip.CLIP:
    """open_clip's model of the same sizes, with random weights."""
    vision = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": projection, "timm_drop_path": 0.1}
    torch.manual_seed(1)
    model = open_clip.CLIP(20, vision | {"image_size": PX}, TEXT)
    for parameter in model.parameters():  # biases, norms and scales too: zeros and ones would hide a mistake
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Segmenter]:
    """`segmenter(projection)`: a small segmenter on such a backbone."""

    def make(projection: str, px: int = PX, **settings: Any) -> Segmenter:
        monkeypatch.setattr(model_config, "find_architecture", lambda name: small(name, px))
        sizes = {"decoder_dims": (16, 8), "decoder_guidance_dims": (16, 8), "decoder_guidance_proj_dims": (8, 4)}
        sizes |= {"num_layers": 1, "hidden_dim": 16, "guidance_dim": 16, "structure_dim": 16, "pad_len": 8, "window": 4}
        torch.manual_seed(0)
        return Segmenter(SegmenterConfig(clip=projection, **sizes | settings))

    return make


def picture(px: int) -> Image.Image:
    """Smooth colours with noise, uint8."""
    x, y = np.mgrid[0:px, 0:px] / px
    smooth = np.stack([x, y, np.sin(5 * x * y) / 2 + 0.5], axis=-1) * 200
    return Image.fromarray((smooth + np.random.default_rng(0).integers(0, 50, (px, px, 3))).astype(np.uint8))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("px", [PX, 32])
@pytest.mark.parametrize("projection", PROJECTIONS)
@torch.no_grad()
def test_from_a_photograph_and_a_string_to_open_clips_numbers(
    projection: str, px: int, tmp_path: Path, segmenter: Callable[..., Segmenter]
) -> None:
    """Through open_clip's transform and tokenizer, and through a file; of a single patch, pooling is nothing."""
    theirs = open_clips(projection)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = segmenter(projection, px).train()  # drop path is off in training, too
    clip = model.clip
    load_clip_weights(clip, tmp_path / "open_clip_model.safetensors")
    given: list[Tensor] = []
    clip.visual.trunk.stem.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    pixels = torch.from_numpy(np.array(picture(px))).permute(2, 0, 1)[None].float()
    dense = model.encode_image(pixels, levels=True)

    images = open_clip.image_transform(px, is_train=False)(picture(px))[None]
    torch.testing.assert_close(given[0], images, rtol=1e-5, atol=1e-6)
    pooled = theirs.encode_image(images)
    close(clip.visual(images), pooled)
    close(clip.visual.head(clip.visual.trunk.head(dense.levels[0])), pooled)
    if px == 32:
        close(dense.patches[:, 0], pooled)
    trunk = theirs.visual.trunk
    last, stages = trunk.forward_intermediates(images)
    cells = last.unfold(2, 1, 1).unfold(3, 1, 1).permute(0, 2, 3, 1, 4, 5)[0].flatten(0, 1)  # each a map of its own
    close(dense.patches[0], theirs.visual.head(trunk.forward_head(cells)))
    for level, stage in zip((*dense.levels, *dense.guidance), (*reversed(stages), stages[2], stages[1]), strict=True):
        close(level, stage)

    prompts = ["a photo of a traffic light in the scene", "cat"]
    ids, ours = open_clip.get_tokenizer("convnext_base_w")(prompts), clip.tokenize(prompts)
    assert torch.equal(F.pad(ours, (0, ids.shape[1] - ours.shape[1])), ids)
    close(clip.encode_text(ours), theirs.encode_text(ids))


@torch.no_grad()
def test_convention_patch_order(segmenter: Callable[..., Segmenter]) -> None:
    """Token y * grid + x, and the cells of each map under it, change where the patch at row y, column x does."""
    model = segmenter("linear").eval()
    image = torch.full((1, 3, PX, PX), 100.0)
    other = image.clone()
    other[:, :, 32:64, 64:96] = 250.0
    one, two = (model.encode_image(each, levels=True) for each in (image, other))
    assert int((one.patches - two.patches).norm(dim=-1).argmax()) == 1 * 3 + 2
    for before, after in zip((*one.levels, *one.guidance), (*two.levels, *two.guidance), strict=True):
        changed, side = (before - after).norm(dim=1)[0] > 1e-3, before.shape[-1] // 3
        expected = torch.zeros_like(changed)
        expected[side : 2 * side, 2 * side :] = True
        assert torch.equal(changed, expected)


def test_gradients_reach_what_is_said_to_train(segmenter: Callable[..., Segmenter]) -> None:
    """By default the image encoder, all of it and nothing else, as in SED."""
    model = segmenter("mlp")
    assert model.config.finetune == "all"
    clip = model.clip
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.2)
    patches = clip.encode_image(torch.randn(2, 3, PX, PX)).patches
    texts = clip.encode_text(clip.tokenize(["a dog", "a cat on a mat"]))
    (patches * torch.randn_like(patches)).sum().backward()
    assert not texts.requires_grad
    learning = {name for name, each in clip.named_parameters() if each.grad is not None and each.grad.any()}
    assert learning == clip.trainable("all") == {f"visual.{name}" for name, _ in clip.visual.named_parameters()}
    assert clip.trainable("none") == frozenset()
    with pytest.raises(ConfigError, match="qv needs attention"):
        segmenter("mlp", finetune="qv")


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_the_contract_of_backbones_is_kept(projection: str) -> None:
    check_backbone(small(projection))


def test_another_models_weights_are_one_line(tmp_path: Path, segmenter: Callable[..., Segmenter]) -> None:
    clip, path = segmenter("linear").clip, tmp_path / "weights.safetensors"

    def refused(state: dict[str, Tensor]) -> str:
        save_file(state, path)
        with pytest.raises(CheckpointError) as error:
            load_clip_weights(clip, path)
        message, _, hint = str(error.value).partition("\n")
        assert str(path) in message and "\n" not in hint
        return message

    assert "ConvNeXt CLIP" in refused({"visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(1)})
    assert "stem.0.weight" in refused({"stem.0.weight": torch.zeros(1)})  # timm's file of the image encoder alone
    assert "visual.head.proj.weight" in refused(open_clips("mlp").state_dict())
    wider = open_clips("linear").state_dict()
    wider["visual.trunk.stem.0.weight"] = torch.zeros(96, 3, 4, 4)
    assert "(24, 3, 4, 4)" in refused(wider)


def test_a_step_trains_with_both_heads(segmenter: Callable[..., Segmenter]) -> None:
    """Whether or not activations are recomputed."""
    gradients = []
    for recompute in (False, True):
        model = segmenter("linear", structures=("canny",), alignment=True).train()
        model.clip.recompute = recompute
        text = model.encode_text(model.tokenize(["cat", "dog"]))
        torch.manual_seed(2)
        output = model(torch.rand(2, 3, 48, 48) * 255, text)
        assert output.logits.shape == (2, 2, 12, 12) and output.structure_logits.shape == (2, 1, 12, 12)
        assert output.similarity.shape == (2, 9, 2)
        (output.logits.square().mean() + output.structure_logits.square().mean() + output.similarity.mean()).backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.requires_grad})
    kept, recomputed = gradients
    for key, gradient in kept.items():
        assert gradient is not None, key
        torch.testing.assert_close(recomputed[key], gradient, msg=key)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "convnext_base_w_320" else pytest.mark.torture)
        for name in (*FULL, "convnext_xxlarge")
    ],
)
def test_full_sizes_have_open_clips_names_and_shapes(name: str) -> None:
    clip = blank_segmenter(SegmenterConfig(clip=name, structures=("canny",), alignment=True)).clip
    assert isinstance(clip, ConvNextClip)
    with torch.device("meta"):
        theirs = open_clip.CLIP(**open_clip.get_model_config(name))
    check_state(clip, clip.from_published(theirs.state_dict(), name), source=name)
    arch = find_architecture(name)
    found = [(info["num_chs"], info["reduction"]) for info in clip.visual.trunk.feature_info]
    assert [(level.channels, level.stride) for level in arch.levels] == found[::-1]
    assert arch.grid == 24


def test_describing_imports_neither_timm_nor_open_clip(heavy_imports_refused: None) -> None:
    for name in FULL:
        assert SegmenterConfig(clip=name).finetune == "all"


def test_a_crops_memory_is_what_evaluation_takes() -> None:
    """convnext_base at its own size, counted in fake tensors."""
    arch, meter = find_architecture("convnext_base"), Meter()
    with torch.device("meta"):
        clip = arch.build(text=False).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), meter, torch.no_grad():
        weights = {name: torch.empty(value.shape) for name, value in clip.state_dict().items()}
        clip.load_state_dict(weights, assign=True)
        images = torch.empty(2, 3, arch.image_px, arch.image_px)
        held = meter.held.total()
        meter.restart()
        clip.encode_image(images)
    assert meter.peak.total() - held == pytest.approx(2 * arch.crop_bytes, rel=0.05)
