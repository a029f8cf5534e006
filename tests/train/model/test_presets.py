"""Every CLIP preset with published weights: dense features, levels, fine-tuning, weights of other resolutions.

Done on slim models: the preset's depth, patch, image size, kinds of heads and activation, at a fraction of its width.
Names and shapes of the full sizes are checked on the meta device, where nothing is allocated.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from physseg.train.model.backbones.clip import Clip, ClipArchitecture
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.published import fit_positions, from_open_clip, resize_positions
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter, blank_segmenter
from physseg.train.weights.clip_weights import load_state
from torch import Tensor, nn

from .conftest import open_clip_model

NAMES = ["person", "sofa", "traffic light"]
PRETRAINED = ("ViT-B-16", "ViT-L-14-336", "ViT-H-14")


def slim(preset: str) -> ClipArchitecture:
    """A quarter of the heads, 8 channels each."""
    arch = clip_architecture(preset)
    vision_heads, text_heads = arch.vision_heads // 4, arch.text_heads // 4
    return replace(
        arch,
        embed_dim=24,
        vision_heads=vision_heads,
        vision_width=8 * vision_heads,
        text_heads=text_heads,
        text_width=8 * text_heads,
        text_layers=3,
    )


def segmenter(preset: str, **settings: object) -> Segmenter:
    torch.manual_seed(0)
    config = SegmenterConfig(
        clip=preset,
        architecture=slim(preset),
        num_layers=1,
        hidden_dim=16,
        guidance_dim=16,
        decoder_dims=(16, 8),
        decoder_guidance_dims=(16, 8),
        decoder_guidance_proj_dims=(8, 4),
        structure_dim=16,
        pad_len=8,
        **settings,
    )
    return Segmenter(config)


def dense_by_open_clip(visual: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Dense features (value path in the last block) from open_clip's own modules, and every block's output."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    positions = resize_positions(visual.positional_embedding, (24, 24))
    x = visual.ln_pre(torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + positions)
    outputs = []
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
        outputs.append(x)
    width = x.shape[-1]
    value = F.linear(last.ln_1(x), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])
    x = last.attn.out_proj(value) + x[:, :1]
    x = x + last.mlp(last.ln_2(x))
    return visual.ln_post(x) @ visual.proj, [*outputs, x]


@pytest.mark.parametrize("preset", PRETRAINED)
@torch.no_grad()
def test_dense_features_and_levels_equal_open_clips(preset: str) -> None:
    """From weights published for another resolution (14 or 16 patches a side; L/14: 24) through every block."""
    arch = slim(preset)
    torch.manual_seed(1)
    grid = {"ViT-B-16": 14, "ViT-L-14-336": 24, "ViT-H-14": 16}[preset]
    theirs = open_clip_model(arch, grid, std=0.15)
    clip = Clip(arch).eval()
    load_state(clip, fit_positions(from_open_clip(theirs.state_dict()), arch.position_grid), source="test")
    images = torch.randn(1, 3, arch.image_px, arch.image_px)
    expected, blocks = dense_by_open_clip(theirs.visual, images)
    wanted = {*arch.guidance_blocks, *arch.structure_blocks}
    found = clip.visual(images, keep_blocks=wanted)
    assert found.tokens.shape == (1, 577, 24)
    torch.testing.assert_close(found.tokens, expected, rtol=1e-4, atol=1e-4)
    assert set(found.blocks) == wanted
    for index in wanted:
        scale = float(blocks[index].abs().max())
        torch.testing.assert_close(found.blocks[index], blocks[index][:, 1:], rtol=1e-4, atol=1e-5 * scale)
    assert clip.text is not None
    tokens = torch.tensor([[49406, 320, 2368, 49407, 0], [49406, 320, 1929, 2368, 49407]])
    texts = theirs.encode_text(F.pad(tokens, (0, 72)))
    torch.testing.assert_close(clip.text(tokens), texts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", PRETRAINED)
@torch.no_grad()
def test_positions_resized_on_loading_are_those_resized_on_the_way(preset: str) -> None:
    arch = replace(slim(preset), vision_layers=2, guidance_blocks=(0, 1))
    torch.manual_seed(2)
    stored = Clip(replace(arch, position_grid=16)).eval()
    loaded = Clip(arch).eval()
    load_state(loaded, fit_positions(stored.state_dict(), arch.position_grid), source="test")
    images = torch.randn(1, 3, arch.image_px, arch.image_px)
    assert torch.equal(loaded.visual(images).tokens, stored.visual(images).tokens)


@pytest.mark.parametrize("preset", PRETRAINED)
@torch.no_grad()
def test_guidance_and_structure_head_get_their_levels(preset: str) -> None:
    model = segmenter(preset, structures=("canny",)).train()
    arch = model.arch
    given: dict[str, list[Tensor]] = {}
    assert model.structure_head is not None
    for name, module in (("1", model.upsample1), ("2", model.upsample2), ("structure", model.structure_head)):
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: given.update({name: inputs[0] if name == "structure" else list(inputs)})
        )
    images = torch.rand(1, 3, 384, 384) * 255
    output = model(images, model.encode_text(model.tokenize(NAMES)))
    assert output.logits.shape == (1, 3, 96, 96)
    resized = F.interpolate(
        (images - model.clip_mean) / model.clip_std, size=(arch.image_px, arch.image_px), mode="bilinear"
    )
    blocks = model.clip.visual(resized, keep_blocks=range(arch.vision_layers)).blocks
    maps = {index: tokens.transpose(1, 2).unflatten(2, (24, 24)) for index, tokens in blocks.items()}
    for name, index in zip("12", arch.guidance_blocks, strict=True):
        torch.testing.assert_close(given[name][0], maps[index])
    deepest_first = tuple(reversed(arch.structure_blocks))
    assert deepest_first[0] == arch.vision_layers - 1
    for level, index in zip(given["structure"], deepest_first, strict=True):
        torch.testing.assert_close(level, maps[index])


@pytest.mark.parametrize("preset", PRETRAINED)
def test_only_queries_and_values_of_clip_change(preset: str) -> None:
    model = segmenter(preset, structures=("canny",), alignment=True).train()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    output = model(torch.rand(1, 3, 384, 384) * 255, model.encode_text(model.tokenize(NAMES)))
    assert output.structure_logits is not None
    assert output.similarity is not None
    (output.logits.square().mean() + output.structure_logits.mean() + output.similarity.square().mean()).backward()
    optimizer.step()
    changed = {name for name, p in model.clip.named_parameters() if not torch.equal(p, before[f"clip.{name}"])}
    assert changed == {
        f"{tower}.transformer.resblocks.{block}.attn.{letter}_proj_weight"
        for tower, layers in (("visual", model.arch.vision_layers), ("text", model.arch.text_layers))
        for block in range(layers)
        for letter in "qv"
    }


def test_convention_levels_of_every_preset() -> None:
    """Guidance at a third and two thirds of the depth (as published for B and L), structure levels at quarters."""
    levels = {
        name: (clip_architecture(name).guidance_blocks, clip_architecture(name).structure_blocks) for name in PRETRAINED
    }
    assert levels == {
        "ViT-B-16": ((3, 7), (2, 5, 8, 11)),
        "ViT-L-14-336": ((7, 15), (5, 11, 17, 23)),
        "ViT-H-14": ((10, 20), (7, 15, 23, 31)),
    }


def test_convention_full_sizes() -> None:
    """Parameters of both encoders as published: 149.6, 427.9 and 986.1 million, with the logit scale."""
    published = {"ViT-B-16": 149_620_737, "ViT-L-14-336": 427_944_193, "ViT-H-14": 986_109_441}
    for preset, count in published.items():
        arch = clip_architecture(preset)
        positions = (24**2 - {"ViT-B-16": 14, "ViT-L-14-336": 24, "ViT-H-14": 16}[preset] ** 2) * arch.vision_width
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in Clip(arch).parameters())
        assert found == count - 1 + positions, preset


@pytest.mark.parametrize("preset", PRETRAINED)
def test_full_size_shapes(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # does not know the meta device
    config = SegmenterConfig(clip=preset, structures=("canny", "sift"), alignment=True)
    model = blank_segmenter(config).to("meta").train()
    texts = model.encode_text(model.tokenize(NAMES))
    assert texts.shape == (3, 1, model.arch.embed_dim)
    output = model(torch.empty(2, 3, 384, 384, device="meta"), texts)
    assert output.logits.shape == (2, 3, 96, 96)
    assert output.structure_logits is not None
    assert output.structure_logits.shape == (2, 2, 96, 96)
    assert output.similarity is not None
    assert output.similarity.shape == (2, 576, 3)
