"""Published CAT-Seg checkpoints as run folders: the reference's numbers, full sizes, and every way to be refused.

Checkpoints are made here, under the published names, from random numbers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from physseg.cli import app
from physseg.common.errors import ConfigError
from physseg.manifests.datasets.coco_stuff import coco_stuff_vocabulary
from physseg.train.errors import CheckpointError, RunFolderError
from physseg.train.model.backbones.clip import ClipArchitecture
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import blank_segmenter
from physseg.train.prediction.load_run import load_run
from physseg.train.runs.run_folder import RunFolder
from physseg.train.weights.catseg_import import import_catseg
from physseg.train.weights.catseg_names import fitted_state, from_catseg, sizes_from_catseg
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

State = dict[str, Tensor]
P = "sem_seg_head.predictor."
SMALL = ClipArchitecture(
    embed_dim=32,
    image_px=384,
    patch_px=16,
    position_grid=4,
    vision_width=64,
    vision_layers=12,
    vision_heads=1,
    text_width=64,
    text_layers=2,
    text_heads=1,
    guidance_blocks=(3, 7),
    quick_gelu=True,
    vocabulary_size=50,
)
SIZES = {"hidden": 32, "guidance": 32, "decoder": (32, 16), "levels": (32, 16), "projected": (16, 8)}
PUBLISHED = {"hidden": 128, "guidance": 128, "decoder": (64, 32), "levels": (256, 128), "projected": (32, 16)}


def published_shapes(arch: ClipArchitecture, sizes: dict[str, Any], *, prompts: int = 1, text: bool = True) -> Any:
    """Names and shapes of a checkpoint, written down from the published code's modules."""
    hidden, guidance = sizes["hidden"], sizes["guidance"]
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_dim: int, in_dim: int, *kernel: int) -> None:
        shapes[f"{name}.weight"] = (out_dim, in_dim, *kernel)
        shapes[f"{name}.bias"] = (out_dim,)

    def norm(name: str, dim: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (dim,)

    def encoder(prefix: str, width: int, layers: int) -> None:
        for index in range(layers):
            block = f"{prefix}transformer.resblocks.{index}."
            shapes.update({f"{block}attn.{letter}_proj_weight": (width, width) for letter in "qkv"})
            shapes[f"{block}attn.in_proj_bias"] = (3 * width,)
            linear(f"{block}attn.out_proj", width, width)
            linear(f"{block}mlp.c_fc", 4 * width, width)
            linear(f"{block}mlp.c_proj", width, 4 * width)
            norm(f"{block}ln_1", width)
            norm(f"{block}ln_2", width)

    clip, width = P + "clip_model.", arch.vision_width
    shapes[f"{clip}visual.class_embedding"] = (width,)
    shapes[f"{clip}visual.positional_embedding"] = ((24 if arch.patch_px == 14 else 14) ** 2 + 1, width)
    shapes[f"{clip}visual.proj"] = (width, arch.embed_dim)
    shapes[f"{clip}visual.conv1.weight"] = (width, 3, arch.patch_px, arch.patch_px)
    norm(f"{clip}visual.ln_pre", width)
    norm(f"{clip}visual.ln_post", width)
    encoder(f"{clip}visual.", width, arch.vision_layers)
    if text:
        shapes[f"{clip}logit_scale"] = ()
        shapes[f"{clip}positional_embedding"] = (77, arch.text_width)
        shapes[f"{clip}text_projection"] = (arch.text_width, arch.embed_dim)
        shapes[f"{clip}token_embedding.weight"] = (arch.vocabulary_size, arch.text_width)
        norm(f"{clip}ln_final", arch.text_width)
        encoder(clip, arch.text_width, arch.text_layers)
    head = P + "transformer."
    linear(f"{head}conv1", hidden, prompts, 7, 7)
    linear(f"{head}guidance_projection.0", guidance, arch.embed_dim, 3, 3)
    linear(f"{head}text_guidance_projection.0", guidance, arch.embed_dim)
    for index in range(2):
        layer = f"{head}layers.{index}."
        for number in (1, 2):
            block = f"{layer}swin_block.block_{number}."
            norm(f"{block}norm1", hidden)
            norm(f"{block}norm2", hidden)
            linear(f"{block}attn.q", hidden, hidden + guidance)
            linear(f"{block}attn.k", hidden, hidden + guidance)
            linear(f"{block}attn.v", hidden, hidden)
            linear(f"{block}attn.proj", hidden, hidden)
            linear(f"{block}mlp.fc1", 4 * hidden, hidden)
            linear(f"{block}mlp.fc2", hidden, 4 * hidden)
        shapes[f"{layer}swin_block.block_2.attn_mask"] = (4, 144, 144)
        norm(f"{layer}swin_block.guidance_norm", guidance)
        shapes[f"{layer}attention.padding_tokens"] = (1, 1, hidden)
        shapes[f"{layer}attention.padding_guidance"] = (1, 1, guidance)
        linear(f"{layer}attention.attention.q", hidden, hidden + guidance)
        linear(f"{layer}attention.attention.k", hidden, hidden + guidance)
        linear(f"{layer}attention.attention.v", hidden, hidden)
        linear(f"{layer}attention.MLP.0", 4 * hidden, hidden)
        linear(f"{layer}attention.MLP.2", hidden, 4 * hidden)
        norm(f"{layer}attention.norm1", hidden)
        norm(f"{layer}attention.norm2", hidden)
    in_dims = (hidden, sizes["decoder"][0])
    for number, (in_dim, out_dim) in enumerate(zip(in_dims, sizes["decoder"], strict=True), start=1):
        level, projected = sizes["levels"][number - 1], sizes["projected"][number - 1]
        linear(f"{head}decoder_guidance_projection.{number - 1}.0", projected, level, 3, 3)
        shapes[f"{head}decoder{number}.up.weight"] = (in_dim, in_dim - projected, 2, 2)
        shapes[f"{head}decoder{number}.up.bias"] = (in_dim - projected,)
        shapes[f"{head}decoder{number}.conv.double_conv.0.weight"] = (out_dim, in_dim, 3, 3)
        norm(f"{head}decoder{number}.conv.double_conv.1", out_dim)
        shapes[f"{head}decoder{number}.conv.double_conv.3.weight"] = (out_dim, out_dim, 3, 3)
        norm(f"{head}decoder{number}.conv.double_conv.4", out_dim)
        kernel = 2 * number
        shapes[f"upsample{number}.weight"] = (width, level, kernel, kernel)
        shapes[f"upsample{number}.bias"] = (level,)
    linear(f"{head}head", 1, sizes["decoder"][1], 3, 3)
    return shapes


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    """Cheap pseudo-random numbers of the size of weights."""
    torch.manual_seed(0)
    noise = torch.randn(1 << 20) * 0.02
    state = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        state[name] = noise.repeat(-(-count // len(noise)))[:count].reshape(shape).clone()
    return state


@pytest.fixture(scope="module")
def small() -> State:
    return random_state(published_shapes(SMALL, SIZES))


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    with np.load(Path(__file__).parents[2] / "data" / "catseg_b16_tiny.npz") as file:
        return dict(file)


def save(state: Any, path: Path, **beside: Any) -> Path:
    torch.save({"model": state, **beside}, path)
    return path


# --- numbers --------------------------------------------------------------------------------------------------------


def test_an_imported_run_computes_the_references_logits(reference: dict[str, Any], tmp_path: Path) -> None:
    state = {name[3:]: torch.from_numpy(array) for name, array in reference.items() if name.startswith("sd/")}
    imported = import_catseg(save(state, tmp_path / "tiny.pth"), tmp_path / "run")
    assert imported.ignored == ()
    run = load_run(tmp_path / "run")
    images = torch.from_numpy(reference["image_u8"]).float()
    with torch.no_grad():
        logits = run.model(images[:1], torch.from_numpy(reference["text_features"])).logits[..., ::2, ::2].numpy()
    expected = reference["logits_eval0_every2"]
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    with pytest.raises(ConfigError, match="no text encoder"):
        run.model.encode_text(run.model.tokenize(["cat"]))


def test_every_weight_arrives(small: State, tmp_path: Path) -> None:
    """No two published names share a place, and nothing is left at its initial value."""
    shapes = published_shapes(SMALL, SIZES)
    numbered = {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(shapes.items())}
    import_catseg(save(numbered, tmp_path / "a.pth"), tmp_path / "run")
    model = load_run(tmp_path / "run").model
    values = sorted(float(tensor.flatten()[0]) for tensor in model.state_dict().values())
    used = [name for name in shapes if not name.endswith(("attn_mask", "logit_scale"))]
    assert values == sorted(float(list(shapes).index(name)) for name in used)


def test_what_a_run_folder_says_of_it(small: State, tmp_path: Path) -> None:
    beside = {"iteration": 79_999, "optimizer": {"state": {}}, "__author__": "CAT-Seg"}
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "clip_pixel_std": torch.ones(3, 1, 1)}
    path = save(small | extra, tmp_path / "model_base.pth", **beside)
    imported = import_catseg(path, tmp_path / "run")
    assert set(imported.ignored) == {
        "pixel_mean",
        "clip_pixel_std",
        f"{P}clip_model.logit_scale",
        f"{P}transformer.layers.0.swin_block.block_2.attn_mask",
        f"{P}transformer.layers.1.swin_block.block_2.attn_mask",
    }
    loaded = load_run(tmp_path / "run")
    assert loaded.step == 80_000
    assert loaded.classes == coco_stuff_vocabulary().classes
    config = loaded.model.config
    assert (config.clip, config.hidden_dim, config.window, config.pad_len) == ("custom", 32, 12, 256)
    assert (config.decoder_dims, config.decoder_guidance_proj_dims, config.finetune) == ((32, 16), (16, 8), "qv")
    assert loaded.model.arch.guidance_blocks == (3, 7)
    document = RunFolder(tmp_path / "run").read()
    assert document["origin"]["imported"]["file"] == "model_base.pth"
    assert (document["training"], document["data"]) == (None, None)


def test_half_precision_is_widened(small: State, tmp_path: Path) -> None:
    halved = {name: tensor.half() for name, tensor in small.items()}
    import_catseg(save(halved, tmp_path / "half.pth"), tmp_path / "run")
    assert {tensor.dtype for tensor in load_run(tmp_path / "run").model.state_dict().values()} == {torch.float32}


def test_several_prompts_need_their_templates(tmp_path: Path) -> None:
    state = random_state(published_shapes(SMALL, SIZES, prompts=3))
    path = save(state, tmp_path / "three.pth")
    with pytest.raises(CheckpointError, match=r"three\.pth: trained with 3 prompts per class, which the file does not"):
        import_catseg(path, tmp_path / "run")
    (tmp_path / "two.txt").write_text("a {}\nthe {}\n")
    with pytest.raises(CheckpointError, match=r"trained with 3 prompts per class, but .*two\.txt' has 2"):
        import_catseg(path, tmp_path / "run", prompts=str(tmp_path / "two.txt"))
    (tmp_path / "three.txt").write_text("a {}\nthe {}\nmy {}\n")
    imported = import_catseg(path, tmp_path / "run", prompts=str(tmp_path / "three.txt"))
    assert imported.config.templates == ("a {}", "the {}", "my {}")
    eighty = random_state(published_shapes(SMALL, SIZES, prompts=80))
    imported = import_catseg(save(eighty, tmp_path / "eighty.pth"), tmp_path / "run80")
    assert imported.config.templates[0] == "a bad photo of a {}."
    assert len(imported.config.templates) == 80


# --- full sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_full_size_base(tmp_path: Path) -> None:
    """A file of model_base.pth's size: imported, loaded, asked; 600 MB, and as much again for the run."""
    state = random_state(published_shapes(clip_architecture("ViT-B-16"), PUBLISHED))
    path = save(state, tmp_path / "model.pth")
    imported = import_catseg(path, tmp_path / "run")
    path.unlink()
    assert imported.config == SegmenterConfig(clip="ViT-B-16")
    in_file = sum(tensor.numel() for name, tensor in state.items() if name not in imported.ignored)
    assert imported.num_parameters == in_file + (24**2 - 14**2) * 768
    model = load_run(tmp_path / "run").model
    theirs = state[f"{P}clip_model.transformer.resblocks.5.attn.v_proj_weight"]
    assert model.clip.text is not None
    torch.testing.assert_close(model.clip.text.transformer.blocks()[5].attn.v_proj_weight.detach(), theirs)
    assert model.clip.visual.positional_embedding.shape == (577, 768)  # 14 x 14 as published, brought to 24 x 24
    texts = model.encode_text(model.tokenize(["cat", "dog"]))
    assert model(torch.rand(1, 3, 384, 384) * 255, texts).logits.shape == (1, 2, 96, 96)


@pytest.mark.parametrize("preset", ["ViT-B-16", "ViT-L-14-336"])
def test_full_size_names_and_shapes(preset: str) -> None:
    """Published names and shapes fit a segmenter of the preset, none missing, none left over; nothing is allocated."""
    shapes = published_shapes(clip_architecture(preset), PUBLISHED)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    renamed = from_catseg(state)
    config = sizes_from_catseg(state, renamed)
    assert config == SegmenterConfig(clip=preset)
    fitted = fitted_state(config, renamed, source=preset)
    assert {name: t.shape for name, t in fitted.items()} == {
        name: t.shape for name, t in blank_segmenter(config).state_dict().items()
    }


# --- refusals -------------------------------------------------------------------------------------------------------


def without(state: State, end: str) -> State:
    (name,) = [name for name in state if name.endswith(end)]
    return {key: tensor for key, tensor in state.items() if key != name}


def replaced(state: State, end: str, tensor: Tensor) -> State:
    (name,) = [name for name in state if name.endswith(end)]
    return state | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: without(s, "decoder2.up.bias"),
            r"1 missing names \(sem_seg_head\.pred.*decoder2\.up\.bias\), 0 unkn",
        ),
        (lambda s: without(s, "model.visual.proj"), r"'sem_seg_head\.predictor\.clip_model\.visual\.proj' is missing"),
        (
            lambda s: without(s, "ln_final.bias"),
            r"1 missing.*ln_fin",
        ),
        (lambda s: s | {f"{P}transformer.extra.weight": torch.zeros(1)}, r"unknown name 'sem_seg.*extra\.weight'"),
        (
            lambda s: s | {f"{P}clip_model.visual.transformer.prompt_tokens": torch.zeros(1)},
            r"0 missing names \(none\), 1 unknown names \(sem_seg_head.*prompt_tokens\)",
        ),
        (
            lambda s: replaced(s, "transformer.head.weight", torch.zeros(1, 8, 3, 3)),
            r"transformer\.head\.weight: expected shape \(1, 16, 3, 3\), got \(1, 8, 3, 3\)",
        ),
        (lambda s: replaced(s, "visual.conv1.weight", torch.zeros(64)), "sizes that contradict each other"),
        (lambda s: replaced(s, "upsample1.weight", torch.zeros(64)), "sizes that contradict each other"),
        (lambda s: {"backbone.layers.0.weight": torch.zeros(1)} | s, r"got a model with an image backbone beside CLIP"),
        (lambda s: {"visual.conv1.weight": torch.zeros(1)}, r"got a CLIP\n.*clip_weights = "),
        (lambda s: {"clip.visual.conv1.weight": torch.zeros(1)}, "got a model of physseg's own"),
        (lambda s: {"conv.weight": torch.zeros(1)}, r"got names conv\.weight$"),
        (lambda s: {"conv.weight": 3}, r"expected a checkpoint of CAT-Seg .* got keys model$"),
    ],
)
def test_other_content_names_file_expected_and_found(
    small: State, change: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    path = save(change(small), tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        import_catseg(path, tmp_path / "run")
    assert str(caught.value).startswith(f"{path}: ")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["wrong.pth"]


def test_other_files_are_refused(small: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        import_catseg(tmp_path / "none.pth", tmp_path / "run")
    whole = save(small, tmp_path / "a.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("torn.pth", "cannot be read: torn or damaged\n"),
        ("text.pth", "cannot be read: not a torch file, or only the beginning of one\n"),
        ("list.pth", "got list"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
            import_catseg(tmp_path / name, tmp_path / "run")


def test_code_in_a_checkpoint_does_not_run(small: State, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "ran",))

    path = save(small, tmp_path / "evil.pth", scheduler=Evil())
    with pytest.raises(CheckpointError, match=r"evil\.pth: cannot be read: it holds a Python object \(\S+\)"):
        import_catseg(path, tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_a_folder_in_use_is_left_alone(small: State, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="run: exists already"):
        import_catseg(save(small, tmp_path / "a.pth"), tmp_path / "run")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    import_catseg(tmp_path / "a.pth", tmp_path / "empty")
    assert RunFolder(tmp_path / "empty").exists()


# --- from the command line ------------------------------------------------------------------------------------------


def test_import_then_predict_with_any_words(small: State, tmp_path: Path) -> None:
    words = {f"{P}clip_model.token_embedding.weight": torch.randn(49408, SMALL.text_width)}
    path = save(small | words, tmp_path / "model_base.pth")
    (tmp_path / "classes.txt").write_text("cat, kitten\ndog\n")
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "photo.png")

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    run = tmp_path / "run"
    shown = call("import-catseg", path, run, "--classes-file", tmp_path / "classes.txt")
    assert "custom" in shown
    assert "ignored: 3 names: " in shown
    assert "taken as published: 4 heads" in shown
    assert load_run(run).classes == ("cat, kitten", "dog")
    common = ["--classes", "cat, dog", "--device", "cpu", "--no-windows"]
    shown = call("predict", run, tmp_path / "photo.png", "--out", tmp_path / "out", *common)
    assert "photo_overlay.png: " in shown
    assert (tmp_path / "out/photo_labels.png").exists()
    assert json.loads((run / "config.json").read_text())["model"]["templates"] == ["A photo of a {} in the scene"]
