"""CLIP's encoders against open_clip's own forward passes on the same random weights."""

from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.common.errors import ConfigError
from physseg.train.model.backbones.clip import Clip, ClipArchitecture
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.clip_text import shared_prefix
from physseg.train.model.backbones.interface import published_names
from physseg.train.model.backbones.published import fit_positions, from_open_clip, resize_positions
from physseg.train.model.segmenter import NoInitialWeights
from physseg.train.model.text import tokenize
from physseg.train.weights.clip_weights import load_state
from torch import Tensor

from .conftest import open_clip_model

SMALL = ClipArchitecture(
    embed_dim=24,
    image_px=32,
    patch_px=8,
    position_grid=4,
    vision_width=32,
    vision_layers=3,
    vision_heads=2,
    text_width=16,
    text_layers=3,
    text_heads=2,
    guidance_blocks=(0, 1),
    quick_gelu=True,
    vocabulary_size=49408,
)


def ours(model: torch.nn.Module, arch: ClipArchitecture) -> Clip:
    clip = Clip(arch)
    load_state(clip, from_open_clip(model.state_dict()), source="test")
    return clip.eval()


def open_clip_dense(visual: torch.nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Dense features (docs/method.md, Baseline) built from open_clip's own modules; also every block's output."""
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    outputs = []
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
        outputs.append(x)
    width = x.shape[-1]
    value = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)[..., 2 * width :]
    x = last.attn.out_proj(value) + x[:, :1]
    x = x + last.mlp(last.ln_2(x))
    return visual.ln_post(x) @ visual.proj, [*outputs, x]


@pytest.mark.parametrize("quick_gelu", [True, False])
@torch.no_grad()
def test_dense_image_features(quick_gelu: bool) -> None:
    torch.manual_seed(0)
    arch = replace(SMALL, quick_gelu=quick_gelu)
    model = open_clip_model(arch, arch.position_grid, std=0.2)
    images = torch.randn(2, 3, 32, 32)
    expected, blocks = open_clip_dense(model.visual, images)
    found = ours(model, arch).visual(images, keep_blocks={0, 2})
    torch.testing.assert_close(found.tokens, expected, rtol=1e-5, atol=1e-5)
    assert set(found.blocks) == {0, 2}
    for index, tokens in found.blocks.items():
        torch.testing.assert_close(tokens, blocks[index][:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("names", [["cat", "a very long name of something", "dog"], ["dog"], ["dog", "dog"]])
@torch.no_grad()
def test_text_features_equal_the_full_context(names: list[str], quick_gelu: bool) -> None:
    """Cut at the longest prompt, shared words computed once, one position in the last block: the numbers stay."""
    torch.manual_seed(1)
    arch = replace(SMALL, quick_gelu=quick_gelu)
    model = open_clip_model(arch, arch.position_grid, std=0.2)
    tokens = tokenize(names, ["a photo of a {} in the scene"])[:, 0]
    assert tokens.shape[1] < 20
    expected = model.encode_text(F.pad(tokens, (0, 77 - tokens.shape[1])))
    torch.testing.assert_close(ours(model, arch).text(tokens), expected, rtol=1e-5, atol=1e-5)


def test_text_gradients_equal_open_clip() -> None:
    torch.manual_seed(2)
    model = open_clip_model(SMALL, SMALL.position_grid, std=0.2)
    clip = ours(model, SMALL)
    tokens = tokenize(["cat", "sea lion", "dog"], ["a photo of a {} in the scene"])[:, 0]
    target = torch.randn(3, 24)
    (model.encode_text(F.pad(tokens, (0, 77 - tokens.shape[1]))) * target).sum().backward()
    (clip.text(tokens) * target).sum().backward()
    expected = from_open_clip(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        | {"visual.conv1.weight": model.visual.conv1.weight}
    )
    for name, parameter in clip.text.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[f"text.{name}"], rtol=1e-4, atol=1e-4, msg=name)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=4), st.booleans())
@torch.no_grad()
def test_any_tokens(rows: list[list[int]], common_start: bool) -> None:
    """Whatever rows share, also nothing or everything; 9 plays the end-of-text token."""
    torch.manual_seed(3)
    arch = replace(SMALL, vocabulary_size=10, context_length=8)
    model = open_clip_model(arch, arch.position_grid, std=0.2)
    rows = [[*([7] if common_start else []), *row, 9] for row in rows]
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    expected = model.encode_text(F.pad(tokens, (0, 8 - tokens.shape[1])))
    torch.testing.assert_close(ours(model, arch).text(tokens), expected, rtol=1e-5, atol=1e-5)


def test_tokens_are_open_clips() -> None:
    prompts = ["a photo of Chips-and-salsa's café", "traffic light", "  Door\u00a0& \u00bd wall "]
    expected = open_clip.tokenize(prompts)
    tokens = tokenize(prompts, ["{}"])[:, 0]
    assert torch.equal(F.pad(tokens, (0, 77 - tokens.shape[1])), expected)


def test_shared_prefix_by_hand() -> None:
    assert shared_prefix(torch.tensor([[5, 1, 2, 9], [5, 1, 3, 9]])) == 2
    assert shared_prefix(torch.tensor([[5, 1, 9, 0], [5, 1, 3, 9]])) == 2
    assert shared_prefix(torch.tensor([[5, 9, 0], [5, 9, 0]])) == 1  # the end-of-text token is each row's own
    assert shared_prefix(torch.tensor([[4, 9], [5, 9]])) == 0
    assert shared_prefix(torch.tensor([[5, 1, 2, 9]])) == 0


def test_convention_patch_order() -> None:
    """Patch tokens run row by row: token y * grid + x describes the patch at row y, column x."""
    torch.manual_seed(0)
    clip = Clip(replace(SMALL, vision_layers=1, guidance_blocks=(0, 0))).eval()
    image = torch.zeros(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 8:16, 24:32] = 1.0  # patch row 1, column 3; the only block is dense, so patches do not mix
    with torch.no_grad():
        changed = (clip.visual(image).tokens - clip.visual(other).tokens).abs().sum(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 + 1 * 4 + 3]


def test_positions_resize_keeps_the_class_row_and_is_bicubic() -> None:
    embedding = torch.randn(1 + 9, 4)
    assert resize_positions(embedding, (3, 3)) is embedding
    resized = resize_positions(embedding, (6, 5))
    assert resized.shape == (31, 4)
    torch.testing.assert_close(resized[0], embedding[0])
    plane = embedding[1:, 2].view(1, 1, 3, 3)
    expected = F.interpolate(plane, size=(6, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[1:, 2].view(6, 5), expected[0, 0])


@pytest.mark.parametrize("name", ["tiny", "ViT-B-16", "ViT-L-14-336", "ViT-H-14"])
def test_presets(name: str) -> None:
    arch = clip_architecture(name)
    assert arch.grid == 24
    assert len(set(arch.structure_blocks)) == 4
    assert arch.structure_blocks[-1] == arch.vision_layers - 1


def test_convention_levels() -> None:
    """Guidance blocks as published; structure levels at quarters of the depth."""
    assert clip_architecture("ViT-B-16").guidance_blocks == (3, 7)
    assert clip_architecture("ViT-L-14-336").guidance_blocks == (7, 15)
    assert clip_architecture("ViT-B-16").structure_blocks == (2, 5, 8, 11)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'ViT-B/16'[\s\S]*ViT-B-16"):
        clip_architecture("ViT-B/16")


@pytest.mark.parametrize(
    "change",
    [{"image_px": 30}, {"vision_heads": 3}, {"text_heads": 3}, {"guidance_blocks": (0, 3)}, {"guidance_blocks": (1,)}],
)
def test_contradicting_sizes(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="CLIP sizes"):
        replace(SMALL, **change)


def test_a_text_encoder_has_blocks() -> None:
    with pytest.raises(ConfigError, match=r"text_layers: expected a number in \[1, 1000\], got 0"):
        replace(SMALL, text_layers=0)


VITS = [name for name in published_names() if name.startswith("ViT-")]
PLAIN = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}


def test_every_vit_of_open_clips_is_offered_but_those_of_another_network() -> None:
    """Read from open_clip's own descriptions: whatever names no more than sizes and CLIP's tokenizer."""
    described = {name: open_clip.get_model_config(name) for name in open_clip.list_models() if "quickgelu" not in name}
    plain = {
        name
        for name, config in described.items()
        if not set(config["vision_cfg"]) - PLAIN
        and config["text_cfg"].get("vocab_size") == 49408
        and not {"hf_tokenizer_name", "pool_type"} & set(config["text_cfg"])
        and isinstance(config["vision_cfg"]["layers"], int)  # a list of ResNets
    }
    assert set(VITS) == plain
    assert len(VITS) >= 24
    for name in ("ViT-L-14-CLIPA", "ViT-M-16-alt", "coca_ViT-B-32", "ViT-B-16-SigLIP", "ViT-H-14-worldwide"):
        with pytest.raises(ConfigError, match=f"{name} is another network.*\n.*ViT-B-32, "):
            clip_architecture(name)


def test_offered_sizes_by_hand() -> None:
    """Of the largest: 24x24 patches, blocks at a third and two thirds, widths that are no multiples of four."""
    for name, image_px, heads, mlp, guidance in (
        ("ViT-g-14", 336, 16, 6144, (12, 26)),
        ("ViT-bigG-14", 336, 16, 8192, (15, 31)),
        ("ViT-B-32", 768, 12, 3072, (3, 7)),
        ("ViT-H-16", 384, 16, 5120, (10, 20)),
    ):
        arch = clip_architecture(name)
        found = (arch.image_px, arch.vision_heads, int(arch.vision_width * arch.mlp_ratio), arch.guidance_blocks)
        assert found == (image_px, heads, mlp, guidance), name
        assert arch.grid == arch.position_grid == 24
    # Its only weights were trained with it; of the others most were not, and a tag tells.
    assert [name for name in VITS if clip_architecture(name).quick_gelu] == ["ViT-B-16", "ViT-H-14-378", "ViT-L-14-336"]


@pytest.mark.parametrize(
    "preset", [name for name in VITS if not name.endswith(("-256", "-240", "-280", "-320", "-378"))]
)
def test_presets_have_open_clips_names_and_shapes(preset: str) -> None:
    """Every parameter of open_clip's model of that name has its place in ours; nothing is allocated."""
    arch = clip_architecture(preset)
    with torch.device("meta"), NoInitialWeights():
        model = open_clip.create_model(preset, pretrained=None, force_image_size=None, device="meta")
        clip = Clip(arch)
    renamed = from_open_clip(model.state_dict())
    name = "visual.positional_embedding"  # published for 224 px, stored for the size they are used at
    renamed = fit_positions(renamed | {name: torch.zeros(renamed[name].shape)}, arch.position_grid)
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in clip.state_dict().items()}
    config = open_clip.get_model_config(preset)
    assert arch.vision_heads == arch.vision_width // config["vision_cfg"].get("head_width", 64)
    assert arch.text_heads == config["text_cfg"]["heads"]


def test_a_vocabulary_without_clips_tokens_is_told() -> None:
    clip = Clip(replace(SMALL, vocabulary_size=300))
    with pytest.raises(ConfigError, match=r"vocabulary_size: expected more than the 49407 .*, got 300"):
        clip.tokenize(["cat"])
