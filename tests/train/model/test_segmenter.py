"""The segmenter as the trainer sees it: settings, what trains, shapes, auxiliary heads."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.common.settings import build, to_dict
from physseg.train.errors import ShapeError
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.model.text import TEMPLATE, prompt_name, tokenize

CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.3231630)

NAMES = ["person, child", "sofa", "traffic light"]


def tiny(**settings: object) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(SegmenterConfig(clip="tiny", **settings))


@pytest.fixture(scope="module")
def full() -> Segmenter:
    return tiny(structures=("canny", "sift"), alignment=True)


def test_published_sizes_are_the_default() -> None:
    config = SegmenterConfig()
    assert (config.finetune, config.num_layers, config.num_heads, config.hidden_dim) == ("qv", 2, 4, 128)
    assert (config.decoder_dims, config.decoder_guidance_dims) == ((64, 32), (256, 128))
    assert (config.pad_len, config.pooling, config.window, config.templates) == (256, 2, 12, (TEMPLATE,))


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    config = SegmenterConfig(clip="tiny", hidden_dim=48, structures=("canny",))
    assert config.hidden_dim == 48
    assert config.decoder_dims == (16, 8)
    assert SegmenterConfig(**asdict(config)) == config
    assert replace(config, alignment=True).hidden_dim == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": "huge"}, "unknown backbone 'huge'"),
        ({"finetune": "q"}, "finetune: expected qv, all or none, got 'q'"),
        ({"hidden_dim": 30}, "hidden_dim 30 is not a multiple of num_heads 4"),
        ({"window": 0}, "window: expected a number in .*, got 0"),
        ({"pad_len": -1}, "pad_len"),
        ({"decoder_dims": (24, 16)}, "decoder_dims"),
        ({"decoder_dims": (16,)}, "decoder_dims: expected two"),
        ({"decoder_guidance_proj_dims": (128, 16)}, "decoder_guidance_proj_dims"),
        ({"templates": ("a photo",)}, "templates: each needs exactly one"),
        ({"templates": ("a {} and a {}",)}, "templates: each needs exactly one"),
        ({"structures": ("canny", "canny")}, "structures: every name once"),
        ({"structures": ("canny",), "structure_classes": (0, 3)}, "structure_classes: expected one for each"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmenterConfig(**settings)


def test_training_output(full: Segmenter) -> None:
    full.train()
    images = torch.rand(2, 3, 384, 384) * 255
    output = full(images, full.encode_text(full.tokenize(NAMES)))
    assert output.logits.shape == (2, 3, 96, 96)
    assert output.structure_logits is not None
    assert output.structure_logits.shape == (2, 2, 96, 96)
    assert output.similarity is not None
    assert output.similarity.shape == (2, 576, 3)
    (output.logits.mean() + output.structure_logits.mean() + output.similarity.mean()).backward()
    for name, parameter in full.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    full.zero_grad()


@torch.no_grad()
def test_auxiliary_heads_see_the_encoders_own_features() -> None:
    """The structure head gets the deepest level first; the alignment head the class texts averaged over prompts."""
    model = tiny(structures=("canny",), alignment=True, templates=("a {}", "the {}")).train()
    images = torch.rand(1, 3, 384, 384) * 255
    texts = model.encode_text(model.tokenize(NAMES))
    output = model(images, texts)
    assert model.structure_head is not None
    assert model.alignment_head is not None
    blocks = (5, 4, 2, 1)  # six blocks at quarters of the depth
    dense = model.clip.visual((images - model.clip_mean) / model.clip_std, keep_blocks=blocks)
    levels = [dense.blocks[block].transpose(1, 2).reshape(1, -1, 24, 24) for block in blocks]
    torch.testing.assert_close(output.structure_logits, model.structure_head(levels))
    torch.testing.assert_close(output.similarity, model.alignment_head(dense.tokens[:, 1:], texts.mean(dim=1)))


@torch.no_grad()
def test_auxiliary_heads_vanish_in_evaluation(full: Segmenter) -> None:
    """Same weights without heads: the same bits."""
    plain = tiny()
    plain.load_state_dict({name: t for name, t in full.state_dict().items() if "_head" not in name})
    images = torch.rand(1, 3, 384, 384) * 255
    texts = full.encode_text(full.tokenize(NAMES))
    output = full.eval()(images, texts)
    assert output.structure_logits is None
    assert output.similarity is None
    assert torch.equal(output.logits, plain.eval()(images, texts).logits)


def test_structures_for_analyses_are_those_of_training(full: Segmenter) -> None:
    images = torch.rand(1, 3, 384, 384) * 255
    with torch.no_grad():
        logits = full.train()(images, full.encode_text(full.tokenize(NAMES))).structure_logits
    found = full.eval().predict_structures(images)
    assert not found.requires_grad
    torch.testing.assert_close(found, logits.sigmoid(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="no structure head"):
        tiny().predict_structures(images)


@torch.no_grad()
def test_a_structure_of_classes_has_a_channel_for_each_and_one_map_for_analyses() -> None:
    model = tiny(structures=("canny", "semantic_edges"), structure_classes=(0, 3))
    images = torch.rand(1, 3, 384, 384) * 255
    logits = model.train()(images, model.encode_text(model.tokenize(NAMES))).structure_logits
    assert logits.shape == (1, 4, 96, 96)
    found = model.eval().predict_structures(images)
    expected = torch.stack([logits[:, 0], logits[:, 1:].amax(dim=1)], dim=1).sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    config = build(SegmenterConfig, json.loads(json.dumps(to_dict(model.config))), base=Path())  # as runs save it
    Segmenter(config).load_state_dict(model.state_dict())


@torch.no_grad()
def test_other_crop_sizes_are_resized(full: Segmenter) -> None:
    full.eval()
    texts = full.encode_text(full.tokenize(NAMES))
    images = torch.rand(1, 3, 200, 200) * 255
    resized = torch.nn.functional.interpolate(images, size=(384, 384), mode="bilinear", align_corners=False)
    torch.testing.assert_close(full(images, texts).logits, full(resized, texts).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_convention_rgb_range(full: Segmenter) -> None:
    """Images are RGB in 0..255; CLIP's mean colour becomes zero, and one deviation above it becomes one."""
    seen: list[torch.Tensor] = []
    hook = full.clip.visual.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1).expand(1, 3, 384, 384).clone()
    images[:, 0, :, 192:] += CLIP_STD[0]
    full.eval()(images, full.encode_text(full.tokenize(NAMES)))
    hook.remove()
    expected = torch.zeros(1, 3, 384, 384)
    expected[:, 0, :, 192:] = 1
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_convention_only_queries_and_values_train() -> None:
    model = tiny(finetune="qv")
    trains = {name for name, p in model.clip.named_parameters() if p.requires_grad}
    arch = clip_architecture("tiny")
    assert trains == {
        f"{tower}.transformer.resblocks.{block}.attn.{letter}_proj_weight"
        for tower, layers in (("visual", arch.vision_layers), ("text", arch.text_layers))
        for block in range(layers)
        for letter in "qv"
    }
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("clip."))


def test_finetune_all_and_none() -> None:
    everything = {name for name, p in tiny().clip.named_parameters() if not p.requires_grad}
    assert everything == {f"visual.transformer.resblocks.5.attn.{letter}_proj_weight" for letter in "qk"}
    assert not any(p.requires_grad for p in tiny(finetune="none").clip.parameters())


def test_clip_parameter_names(full: Segmenter) -> None:
    names = full.clip_parameter_names()
    assert names == {name for name, _ in full.named_parameters() if name.startswith("clip.")}


def test_shapes_are_checked(full: Segmenter) -> None:
    images, texts = torch.zeros(1, 3, 384, 384), torch.zeros(2, 1, 64)
    with pytest.raises(ShapeError, match=r"images: expected float \(B, 3, S, S\)"):
        full(images.byte(), texts)
    with pytest.raises(ShapeError, match=r"text_features: expected \(T, 1, 64\), got \(2, 64\)"):
        full(images, texts[:, 0])
    with pytest.raises(ShapeError, match="text_features"):
        full(images, texts[:0])


def test_same_seed_same_weights() -> None:
    for (name, a), b in zip(tiny().state_dict().items(), tiny().state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_prompts_use_the_first_synonym() -> None:
    assert prompt_name(" sofa , couch") == "sofa"
    tokens = tokenize(["sofa, couch"], [TEMPLATE])
    assert torch.equal(tokens, tokenize(["sofa"], [TEMPLATE]))


def test_tokens_are_cut_at_the_longest_prompt() -> None:
    tokens = tokenize(["cat", "traffic light"], ["a {}", "the {} there"])
    assert tokens.shape == (2, 2, 6)  # start, the, traffic, light, there, end
    assert tokens.dtype == torch.int64
    assert (tokens[:, :, 0] == 49406).all()
    assert ((tokens == 49407).sum(dim=-1) == 1).all()
    assert tokens[0, 0].tolist()[4:] == [0, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least one"), (["cat", " "], "number 1 is empty"), ([", couch"], "empty"), (["dog " * 90], "at most 77")],
)
def test_names_that_cannot_be_prompted(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenize(names, [TEMPLATE])


def test_convention_order_of_parameters() -> None:
    """Optimizer states of every version are saved by position: image encoder, text encoder, then what is added."""
    model = tiny(structures=("canny",), alignment=True)
    parts = [".".join(name.split(".")[: 2 if name.startswith("clip") else 1]) for name, _ in model.named_parameters()]
    upsampling = ["upsample1", "upsample2"]
    heads = ["aggregator", "structure_head", "alignment_head"]
    assert list(dict.fromkeys(parts)) == ["clip.visual", "clip.text", *upsampling, *heads]
