"""Each kind of CLIP ViT from a photograph and a string to open_clip's pooled embeddings, through a file of weights.

Small models: open_clip builds its own from its description of the kind, with fewer and narrower layers; the width of a
head, the ratio of the MLP, the patch, and the activation stay.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from physseg.train.model.backbones.clip_presets import clip_architecture
from physseg.train.model.backbones.transformer import ResidualBlock
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.segmenter import Segmenter
from physseg.train.weights.clip_weights import load_clip_weights
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose

PROMPTS = ["a photo of a traffic light in the scene", "Chips-and-salsa's café"]
GRID = 3


def photograph() -> Image.Image:
    """Wider than high: the transform resizes and crops."""
    y, x = np.mgrid[0:210, 0:330] / 100
    smooth = np.stack([np.sin(3 * x * y), np.cos(5 * x), np.sin(2 * y + x)], axis=-1) * 90 + 120
    return Image.fromarray((smooth + np.random.default_rng(0).integers(0, 40, smooth.shape)).astype(np.uint8))


def shrunk(kind: str, quick_gelu: bool) -> open_clip.CLIP:
    """open_clip's model of its description of a kind, three layers of two heads, for nine patches."""
    described = open_clip.get_model_config(kind)
    vision, text = described["vision_cfg"], described["text_cfg"]
    vision |= {"layers": 3, "width": 2 * vision.get("head_width", 64), "image_size": GRID * vision["patch_size"]}
    text |= {"layers": 2, "width": 2 * text["width"] // text["heads"], "heads": 2}
    torch.manual_seed(0)
    model = open_clip.CLIP(48, vision, text, quick_gelu=quick_gelu)
    for parameter in model.parameters():  # biases and norms too: zeros and ones would hide a mistake
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "quick_gelu", "mean", "std"),
    [
        ("ViT-B-32", True, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        ("ViT-B-16", False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        ("ViT-L-14", False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of laion2b_s32b_b82k
        ("ViT-H-14", True, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        ("ViT-g-14", False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
        ("ViT-bigG-14", False, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
    ],
)
@torch.no_grad()
def test_from_a_photograph_and_a_string_to_open_clips_embeddings(
    kind: str,
    quick_gelu: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, arch = shrunk(kind, quick_gelu), clip_architecture(kind)
    arch = replace(
        arch,
        embed_dim=48,
        image_px=GRID * arch.patch_px,
        position_grid=GRID,
        vision_width=2 * arch.vision_width // arch.vision_heads,
        vision_layers=3,
        vision_heads=2,
        text_width=2 * arch.text_width // arch.text_heads,
        text_layers=2,
        text_heads=2,
        guidance_blocks=(0, 1),
    )
    config = SegmenterConfig(clip=kind, architecture=arch, quick_gelu=quick_gelu, image_mean=mean, image_std=std)
    embeddings(theirs, Segmenter(config).eval(), tmp_path / "open_clip_pytorch_model.bin", kind, monkeypatch)


def embeddings(theirs: nn.Module, model: Segmenter, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, with weights from open_clip's file and attention in the last block as well, against open_clip's."""
    torch.save(theirs.state_dict(), file)
    load_clip_weights(model.clip, file)
    mean, std = model.config.image_mean, model.config.image_std
    transform = open_clip.image_transform(model.arch.image_px, is_train=False, mean=mean, std=std)
    seen: list[Tensor] = []
    model.clip.visual.register_forward_hook(lambda _, __, found: seen.append(found.tokens[:, 0]))
    # Pixels as they are before open_clip makes tensors of them and normalises.
    pixels = torch.from_numpy(np.array(Compose(transform.transforms[:-2])(photograph())))
    with monkeypatch.context() as patched:
        patched.setattr(ResidualBlock, "dense", ResidualBlock.forward)
        model.encode_image(pixels.permute(2, 0, 1)[None].float())
    close(seen[0], theirs.encode_image(transform(photograph())[None]))

    ids, ours = open_clip.get_tokenizer(kind)(PROMPTS), model.clip.tokenize(PROMPTS)
    assert torch.equal(F.pad(ours, (0, ids.shape[1] - ours.shape[1])), ids)
    close(model.clip.encode_text(ours), theirs.encode_text(ids))
