"""EVA02-CLIP and PE-Core against open_clip's own models of the same random weights, in small sizes.

Names and shapes of the full sizes are checked on the meta device, where nothing is allocated.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from physseg.common.errors import ConfigError
from physseg.train.errors import CheckpointError
from physseg.train.model import config as model_config
from physseg.train.model.backbones import eva, pe_core
from physseg.train.model.backbones.clip import Clip
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.conformance import check_backbone
from physseg.train.model.backbones.eva import EvaArchitecture, EvaClip, eva02_architecture
from physseg.train.model.backbones.interface import find_architecture
from physseg.train.model.backbones.pe_core import pe_core_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter, blank_segmenter
from physseg.train.weights.clip_weights import check_state, is_openai_form, load_clip_weights
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

NAMES = ["EVA02-B-16", "PE-Core-B-16"]
TAGS = {"EVA02-B-16": "merged2b_s8b_b131k", "PE-Core-B-16": "meta"}
HEADS = {"EVA02-B-16": 2, "PE-Core-B-16": 4}
PX = 64


def small(name: str) -> EvaArchitecture:
    """Eight patches a side, four blocks; everything else as the family has it."""
    arch = find_architecture(name)
    assert isinstance(arch, EvaArchitecture)
    vision = {"image_px": PX, "patch_px": 8, "vision_width": 32, "vision_layers": 4, "vision_heads": HEADS[name]}
    return replace(arch, embed_dim=24, text_width=16, text_layers=2, text_heads=2, **vision)


def open_clips(name: str, arch: EvaArchitecture, monkeypatch: pytest.MonkeyPatch, px: int) -> open_clip.CustomTextCLIP:
    """open_clip's model of that name in the sizes of `arch`, for images of `px` pixels a side."""
    described = open_clip.get_model_config(name)
    sizes = {"embed_dim": arch.vision_width, "depth": arch.vision_layers, "num_heads": arch.vision_heads}
    create = partial(timm.create_model, **sizes, img_size=px, patch_size=arch.patch_px)
    text = {"width": arch.text_width, "heads": arch.text_heads, "layers": arch.text_layers}
    with monkeypatch.context() as patched:
        patched.setattr(timm, "create_model", create)
        described |= {"embed_dim": arch.embed_dim, "text_cfg": described["text_cfg"] | text}
        described.pop("custom_text")
        model = open_clip.CustomTextCLIP(**described)
    torch.manual_seed(1)
    for parameter in model.parameters():  # biases and norms too: zeros and ones would hide a mistake
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Segmenter]:
    """`segmenter(name)`: the small backbone of that name in a small segmenter."""

    def make(name: str, **settings: object) -> Segmenter:
        monkeypatch.setattr(model_config, "find_architecture", small)
        sizes = {"decoder_dims": (16, 8), "decoder_guidance_dims": (16, 8), "decoder_guidance_proj_dims": (8, 4)}
        sizes |= {"num_layers": 1, "hidden_dim": 16, "guidance_dim": 16, "structure_dim": 16, "pad_len": 8, "window": 4}
        torch.manual_seed(0)
        return Segmenter(SegmenterConfig(clip=name, **sizes | settings))

    return make


def picture() -> Image.Image:
    """Smooth colours with noise, uint8."""
    x, y = np.mgrid[0:PX, 0:PX] / PX
    smooth = np.stack([x, y, np.sin(5 * x * y) / 2 + 0.5], axis=-1) * 200
    return Image.fromarray((smooth + np.random.default_rng(0).integers(0, 50, (PX, PX, 3))).astype(np.uint8))


def dense_by_timm(name: str, visual: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Dense tokens from timm's modules with nothing changed in them, and the patch tokens after each block.

    A token that may attend to itself alone says its own value; pooling one token alone gives its value, too.
    """
    trunk = copy.deepcopy(visual.trunk)
    x, rope = trunk._pos_embed(trunk.patch_embed(images))
    x, outputs = trunk.norm_pre(x), []
    alone = torch.eye(x.shape[1], dtype=torch.bool)
    for index, block in enumerate(trunk.blocks):
        last_of_eva = name == "EVA02-B-16" and index == len(trunk.blocks) - 1
        x = block(x, rope=rope, attn_mask=alone if last_of_eva else None)
        outputs.append(x[:, 1:])
    x = trunk.norm(x)[:, 1:]
    if name == "PE-Core-B-16":
        nn.init.zeros_(trunk.attn_pool.mlp.fc2.weight)
        nn.init.zeros_(trunk.attn_pool.mlp.fc2.bias)
        x = torch.stack([trunk.attn_pool(token) for token in x.split(1, dim=1)], dim=1)
    return trunk.head(x), outputs


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("published_px", [PX, 48], ids=["same-size", "other-size"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_from_a_photograph_and_a_string_to_open_clips_numbers(
    name: str,
    published_px: int,
    tmp_path: Path,
    segmenter: Callable[..., Segmenter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through open_clip's transform and tokenizer, and through a file, also of weights for another resolution."""
    arch = small(name)
    theirs = open_clips(name, arch, monkeypatch, published_px)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    if published_px != PX:
        theirs.visual.set_input_size(PX)  # positions resampled by timm itself
    model = segmenter(name).eval()
    load_clip_weights(model.clip, tmp_path / "open_clip_model.safetensors")
    given: list[Tensor] = []
    model.clip.visual.trunk.patch_embed.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None].float()
    dense = model.encode_image(pixels, levels=True)

    facts = open_clip.get_pretrained_cfg(name, TAGS[name])
    how = {key: facts[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    images = open_clip.image_transform(PX, is_train=False, **how)(picture())[None]
    torch.testing.assert_close(given[0], images, rtol=1e-5, atol=1e-6)
    close(model.clip.visual.trunk(given[0]), theirs.encode_image(images))
    tokens, blocks = dense_by_timm(name, theirs.visual, images)
    close(dense.patches, tokens)
    for levels, indices in ((dense.levels, (3, 2, 1, 0)), (dense.guidance, (0, 2))):
        for level, index in zip(levels, indices, strict=True):
            close(level, blocks[index].transpose(1, 2).unflatten(2, (8, 8)))

    prompts = ["a photo of a traffic light in the scene", "cat"]
    ids = open_clip.get_tokenizer(name)(prompts)
    ours = model.clip.tokenize(prompts)
    assert arch.context_length == ids.shape[1]
    assert torch.equal(F.pad(ours, (0, ids.shape[1] - ours.shape[1])), ids)
    close(model.clip.encode_text(ours), theirs.encode_text(ids))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_is_kept(name: str) -> None:
    check_backbone(small(name))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_convention_patch_order(name: str, segmenter: Callable[..., Segmenter]) -> None:
    """Token y * grid + x, and cell (y, x) of each map, change most where the patch at row y, column x does."""
    model = segmenter(name).eval()
    for parameter in model.clip.parameters():
        nn.init.normal_(parameter, std=0.1)
    image = torch.full((1, 3, PX, PX), 100.0)
    other = image.clone()
    other[:, :, 8 * 2 : 8 * 3, 8 * 5 : 8 * 6] = 250.0
    one, two = (model.encode_image(each, levels=True) for each in (image, other))
    assert int((one.patches - two.patches).norm(dim=-1).argmax()) == 2 * 8 + 5
    for before, after in zip((*one.levels, *one.guidance), (*two.levels, *two.guidance), strict=True):
        assert int((before - after).norm(dim=1).argmax()) == 2 * 8 + 5


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_what_is_said_to_train(name: str, segmenter: Callable[..., Segmenter]) -> None:
    clip = segmenter(name).clip
    for parameter in clip.parameters():
        nn.init.normal_(parameter.requires_grad_(True), std=0.2)
    patches = clip.encode_image(torch.randn(2, 3, PX, PX)).patches
    texts = clip.encode_text(clip.tokenize(["a dog", "a cat on a mat"]))
    ((patches * torch.randn_like(patches)).sum() + (texts * torch.randn_like(texts)).sum()).backward()
    learning = {name for name, each in clip.named_parameters() if each.grad is not None and each.grad.any()}
    assert learning == clip.trainable("all")
    assert clip.trainable("none") == frozenset()
    text = {f"text.transformer.resblocks.{block}.attn.{part}_proj_weight" for block in range(2) for part in "qv"}
    image = {f"visual.trunk.blocks.{block}.attn.{part}_proj.weight" for block in range(4) for part in "qv"}
    without = {"visual.trunk.blocks.3.attn.q_proj.weight"} if name == "EVA02-B-16" else set()
    assert clip.trainable("qv") == (text | image) - without


@pytest.mark.parametrize("name", NAMES)
def test_another_models_weights_are_one_line(
    name: str, tmp_path: Path, segmenter: Callable[..., Segmenter], monkeypatch: pytest.MonkeyPatch
) -> None:
    arch, clip = small(name), segmenter(name).clip
    theirs = open_clips(name, arch, monkeypatch, PX).state_dict()
    other = next(each for each in NAMES if each != name)
    path = tmp_path / "weights.safetensors"

    def refused(state: dict[str, Tensor]) -> str:
        save_file(state, path)
        with pytest.raises(CheckpointError) as error:
            load_clip_weights(clip, path)
        message, _, hint = str(error.value).partition("\n")
        assert str(path) in message and "\n" not in hint
        return message

    assert clip.visual.kind in refused(open_clips(other, small(other), monkeypatch, PX).state_dict())
    assert "visual.conv1.weight" in refused({"visual.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(1)})
    assert "transformers" in refused({"vision_model.embeddings.class_embedding": torch.zeros(1)})
    assert "missing" in refused({key: value for key, value in theirs.items() if ".blocks.3." not in key})
    wider = {key: torch.zeros(*value.shape, 2) if "pos_embed" in key else value for key, value in theirs.items()}
    assert "visual.trunk.pos_embed" in refused(wider)
    with pytest.raises(CheckpointError, match="CLIP ViT"):
        Clip(replace(clip_architecture("tiny"), vision_layers=2, guidance_blocks=(0, 1)), text=False).from_published(
            theirs, "weights"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_model_filled_from_a_file_is_the_same(name: str, segmenter: Callable[..., Segmenter]) -> None:
    """What no file holds, the rotary embeddings, is there."""
    model = segmenter(name).eval()
    blank = blank_segmenter(model.config).eval()
    blank.load_state_dict(model.state_dict(), assign=True)
    images = torch.rand(1, 3, PX, PX) * 255
    with torch.no_grad():
        assert torch.equal(blank.encode_image(images).patches, model.encode_image(images).patches)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_trains_with_both_heads(name: str, segmenter: Callable[..., Segmenter]) -> None:
    """Whether or not activations are recomputed."""
    gradients = []
    for recompute in (False, True):
        model = segmenter(name, structures=("canny",), alignment=True, finetune="all").train()
        model.clip.visual.recompute = recompute
        runs: list[int] = []
        model.clip.visual.trunk.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        text = model.encode_text(model.tokenize(["cat", "dog"]))
        torch.manual_seed(2)
        output = model(torch.rand(2, 3, 80, 80) * 255, text)
        assert output.logits.shape == (2, 2, 32, 32) and output.structure_logits.shape == (2, 1, 32, 32)
        assert output.similarity.shape == (2, 64, 2)
        (output.logits.square().mean() + output.structure_logits.square().mean() + output.similarity.mean()).backward()
        assert len(runs) == 1 + recompute
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.requires_grad})
    kept, recomputed = gradients
    for key, gradient in kept.items():
        assert gradient is not None, key
        torch.testing.assert_close(recomputed[key], gradient, msg=key)


FULL = {
    "EVA02-B-16": (384, 77, 512),
    "EVA02-L-14": (336, 77, 768),
    "EVA02-L-14-336": (336, 77, 768),
    "PE-Core-T-16-384": (384, 32, 512),
    "PE-Core-S-16-384": (384, 32, 512),
    "PE-Core-B-16": (384, 32, 1024),
    "PE-Core-L-14-336": (336, 32, 1024),
    "PE-Core-bigG-14-448": (336, 72, 1280),
}


IN_CI = ("EVA02-B-16", "EVA02-L-14-336", "PE-Core-B-16", "PE-Core-L-14-336")


@pytest.mark.parametrize(
    "name", [*IN_CI, *(pytest.param(name, marks=pytest.mark.torture) for name in FULL if name not in IN_CI)]
)
def test_full_sizes_have_open_clips_names_and_shapes(name: str) -> None:
    arch = find_architecture(name)
    assert (arch.image_px, arch.context_length, arch.embed_dim) == FULL[name]
    assert arch.grid == 24
    model = blank_segmenter(SegmenterConfig(clip=name, structures=("canny",), alignment=True))
    clip = model.clip
    assert isinstance(clip, EvaClip)
    assert [each.device.type for each in clip.buffers()] == ["cpu", "cpu"]
    described = open_clip.get_model_config(name)
    described.pop("custom_text")
    with torch.device("meta"):
        theirs = open_clip.CustomTextCLIP(**described)
    check_state(clip, clip.from_published(theirs.state_dict(), name), source=name)


def test_describing_imports_neither_timm_nor_open_clip(heavy_imports_refused: None) -> None:
    for module in (eva, pe_core):  # imported by now, so once more
        exec(inspect.getsource(module), {"__name__": module.__name__, "__package__": module.__package__})
    for name in FULL:
        assert SegmenterConfig(clip=name).finetune == "qv"


def test_normalisation_is_each_familys() -> None:
    assert (
        pe_core_architecture("PE-Core-B-16").image_mean == pe_core_architecture("PE-Core-B-16").image_std == (0.5,) * 3
    )
    for name in NAMES:
        facts, arch = open_clip.get_pretrained_cfg(name, TAGS[name]), find_architecture(name)
        assert (arch.image_mean, arch.image_std) == (tuple(facts["mean"]), tuple(facts["std"]))
    assert eva02_architecture("EVA02-L-14-336").adapted(image_px=448).grid == 32


def test_activation_is_gelu(tmp_path: Path) -> None:
    """Which tags say, and a bare state dict in a .pt file, as OpenAI's with QuickGELU are, does not deny."""
    assert SegmenterConfig(clip="EVA02-B-16", quick_gelu=False).arch == find_architecture("EVA02-B-16")
    with pytest.raises(ConfigError, match="quick_gelu"):
        SegmenterConfig(clip="PE-Core-B-16", quick_gelu=True)
    torch.save({"visual.trunk.pos_embed": torch.zeros(1)}, tmp_path / "weights.pt")
    assert not is_openai_form(tmp_path / "weights.pt")
