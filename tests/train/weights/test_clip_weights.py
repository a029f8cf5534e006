"""CLIP weight files in every published form, made here from random weights."""

import warnings
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from physseg.train.errors import CheckpointError
from physseg.train.model.backbones.clip import Clip, ClipArchitecture
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.published import from_open_clip
from physseg.train.model.segmenter import NoInitialWeights
from physseg.train.weights import clip_weights
from physseg.train.weights.clip_weights import is_openai_form, load_clip_weights
from torch import Tensor, nn

SMALL = ClipArchitecture(
    embed_dim=8,
    image_px=32,
    patch_px=16,
    position_grid=2,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    text_width=8,
    text_layers=1,
    text_heads=2,
    guidance_blocks=(0, 1),
    quick_gelu=True,
    vocabulary_size=30,
    context_length=6,
)


def open_clip_model() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 6, "vocab_size": 30, "width": 8, "heads": 2, "layers": 1}
    return open_clip.CLIP(8, vision, text, quick_gelu=True)


class _Archive(nn.Module):
    """A TorchScript module whose state dict has the given names, as OpenAI's archives have."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]  # type: ignore[assignment]
            module.register_buffer(leaf, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def save(kind: str, state: dict[str, Tensor], folder: Path) -> Path:
    if kind == "openai.pt":  # TorchScript, float16, with three integers beside the weights
        state = {name: tensor.half() for name, tensor in state.items()}
        state |= {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(6),
            "vocab_size": torch.tensor(30),
        }
        path = folder / kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript itself: the format is what it is
            torch.jit.save(torch.jit.trace(_Archive(state), torch.zeros(1)), str(path))
        return path
    path = folder / kind
    if kind == "open_clip.safetensors":
        safetensors.torch.save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    elif kind == "training.pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    elif kind == "custom_text.bin":
        custom = open_clip.model.convert_to_custom_text_state_dict(state)
        torch.save(custom, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "kind", ["openai.pt", "plain.pt", "open_clip.bin", "open_clip.safetensors", "training.pt", "custom_text.bin"]
)
def test_every_published_form_loads(kind: str, tmp_path: Path) -> None:
    model = open_clip_model()
    path = save(kind, model.state_dict(), tmp_path)
    clip = Clip(SMALL)
    load_clip_weights(clip, path)
    expected = from_open_clip(model.state_dict())
    tolerance = 1e-3 if kind == "openai.pt" else 0.0
    for name, tensor in clip.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance)
    query = clip.visual.transformer.blocks()[1].attn.q_proj_weight
    torch.testing.assert_close(
        query.detach(), model.visual.transformer.resblocks[1].attn.in_proj_weight[:16].detach(), rtol=1e-3, atol=1e-3
    )


def test_another_architecture_names_file_expected_and_found(tmp_path: Path) -> None:
    path = save("plain.pt", open_clip_model().state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"plain\.pt: 14 missing names \(visual\.transformer\.resblocks\.2"):
        load_clip_weights(Clip(replace(SMALL, vision_layers=3)), path)
    with pytest.raises(CheckpointError, match=r"plain\.pt: .*: expected shape \(12, 8\), got \(6, 8\)"):
        load_clip_weights(Clip(replace(SMALL, context_length=12)), path)


@pytest.mark.parametrize(
    ("described", "fits"),
    [
        ("ViT-L-14", "'ViT-L-14' or 'ViT-L-14-280' or 'ViT-L-14-336'"),
        ("EVA02-B-16", "'EVA02-B-16'"),
        ("ViT-L-14-CLIPA", None),
    ],
)
def test_another_models_weights_say_what_they_fit(
    described: str, fits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of full sizes, on the meta device but for the positions, which are resized."""
    with NoInitialWeights():
        state = open_clip.create_model(described, pretrained=None, device="meta").state_dict()
    state |= {name: torch.zeros(tensor.shape) for name, tensor in state.items() if name.startswith("visual.pos")}
    monkeypatch.setattr(clip_weights, "_read", lambda _: state)
    hint = rf"\n  hint: the file is of another model; it fits clip = {fits}$" if fits else r"\n  hint: .*check the"
    with pytest.raises(CheckpointError, match=rf"^a\.bin: [^\n]*{hint}"):
        load_clip_weights(Clip(SMALL), "a.bin")


def test_missing_torn_and_foreign_files(tmp_path: Path) -> None:
    clip = Clip(SMALL)
    with pytest.raises(CheckpointError, match=r"absent\.pt: expected a file"):
        load_clip_weights(clip, tmp_path / "absent.pt")
    whole = save("plain.pt", open_clip_model().state_dict(), tmp_path).read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"torn\.pt: cannot be read as CLIP weights"):
        load_clip_weights(clip, tmp_path / "torn.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.safetensors: cannot be read"):
        load_clip_weights(clip, tmp_path / "text.safetensors")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"resnet\.pt: expected a CLIP ViT state dict"):
        load_clip_weights(clip, tmp_path / "resnet.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: expected a state dict"):
        load_clip_weights(clip, tmp_path / "list.pt")


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    state = open_clip_model().state_dict()
    state["visual.proj"] = torch.zeros(3, 3)
    path = save("plain.pt", state, tmp_path)
    clip = Clip(SMALL)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"visual\.proj"):
        load_clip_weights(clip, path)
    for name, tensor in clip.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"visual.conv1.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: cannot be read"):
        load_clip_weights(Clip(SMALL), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@torch.no_grad()
def test_full_size_vit_b_16(tmp_path: Path) -> None:
    """open_clip's own ViT-B-16 with random weights: loads from a file, and its text features are the same."""
    model = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    path = tmp_path / "full.safetensors"
    safetensors.torch.save_file({name: t.contiguous().clone() for name, t in model.state_dict().items()}, path)
    clip = Clip(clip_architecture("ViT-B-16")).eval()
    load_clip_weights(clip, path)
    tokens = torch.tensor([[49406, 320, 2368, 49407], [49406, 320, 1929, 49407]])
    expected = model.encode_text(torch.nn.functional.pad(tokens, (0, 73)))
    torch.testing.assert_close(clip.text(tokens), expected, rtol=1e-4, atol=1e-4)
    assert clip.visual(torch.randn(1, 3, 384, 384)).tokens.shape == (1, 577, 512)


# --- forms and resolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "openai"),
    [
        ("openai.pt", True),
        ("plain.pt", True),
        ("open_clip.bin", False),
        ("open_clip.safetensors", False),
        ("training.pt", False),
        ("custom_text.bin", False),
    ],
)
def test_openais_form_is_told_from_open_clips(kind: str, openai: bool, tmp_path: Path) -> None:
    """What decides the activation of a local file, unless the settings do."""
    assert is_openai_form(save(kind, open_clip_model().state_dict(), tmp_path)) is openai


def test_an_unreadable_file_has_no_form(tmp_path: Path) -> None:
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    assert not is_openai_form(tmp_path / "torn.pt")
    assert not is_openai_form(tmp_path / "none.pt")


def test_positions_of_another_resolution_are_resized(tmp_path: Path) -> None:
    state = open_clip_model().state_dict()
    path = save("plain.pt", state, tmp_path)
    clip = Clip(replace(SMALL, image_px=80, position_grid=5))
    load_clip_weights(clip, path)
    stored = state["visual.positional_embedding"]
    planes = stored[1:].T.reshape(1, 16, 2, 2)
    expected = torch.nn.functional.interpolate(planes, size=(5, 5), mode="bicubic", align_corners=False)
    found = clip.visual.positional_embedding.detach()
    torch.testing.assert_close(found[0], stored[0])
    torch.testing.assert_close(found[1:].T.reshape(1, 16, 5, 5), expected)


DEEP = replace(
    clip_architecture("ViT-B-16"), embed_dim=24, vision_width=96, vision_heads=12, text_width=64, text_heads=8
)
"""All names of ViT-B-16, its patches and positions, at an eighth of its width."""


@pytest.fixture(scope="module")
def deep() -> tuple[dict[str, Tensor], Clip]:
    """A state dict of published depth and resolution in open_clip's layout, and a model to load it into."""
    torch.manual_seed(0)
    vision = {"image_size": 224, "layers": 12, "width": 96, "head_width": 8, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 8, "layers": 12}
    shapes = open_clip.CLIP(24, vision, text).state_dict()
    return {name: torch.randn_like(tensor) * 0.02 for name, tensor in shapes.items()}, Clip(DEEP)


@pytest.mark.parametrize("kind", ["openai.pt", "plain.pt", "open_clip.bin", "training.pt", "custom_text.bin"])
def test_published_depth_in_every_form(kind: str, deep: tuple[dict[str, Tensor], Clip], tmp_path: Path) -> None:
    state, clip = deep
    for parameter in clip.parameters():
        parameter.data.zero_()
    load_clip_weights(clip, save(kind, state, tmp_path))
    tolerance = 1e-4 if kind == "openai.pt" else 0.0  # kept in float16
    fused = state["visual.transformer.resblocks.11.attn.in_proj_weight"]
    value = clip.visual.transformer.blocks()[11].attn.v_proj_weight.detach()
    torch.testing.assert_close(value, fused[2 * 96 :], rtol=1e-3, atol=tolerance)
    assert clip.text is not None
    words = clip.text.token_embedding.weight.detach()
    torch.testing.assert_close(words, state["token_embedding.weight"], rtol=1e-3, atol=tolerance)
    assert clip.visual.positional_embedding.shape == (577, 96)
    assert all(float(parameter.detach().abs().max()) > 0 for parameter in clip.parameters())
