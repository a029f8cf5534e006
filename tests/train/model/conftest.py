"""open_clip's own models, which ours are held against."""

import builtins
from typing import Any

import open_clip
import pytest
from physseg.train.model.backbones.clip import ClipArchitecture
from torch import nn


def open_clip_model(arch: ClipArchitecture, grid: int, *, std: float) -> open_clip.CLIP:
    """open_clip's model of these sizes, for images of `grid` patches a side, with random weights."""
    vision = {
        "image_size": arch.patch_px * grid,
        "layers": arch.vision_layers,
        "width": arch.vision_width,
        "head_width": arch.vision_width // arch.vision_heads,
        "patch_size": arch.patch_px,
    }
    text = {
        "context_length": arch.context_length,
        "vocab_size": arch.vocabulary_size,
        "width": arch.text_width,
        "heads": arch.text_heads,
        "layers": arch.text_layers,
    }
    model = open_clip.CLIP(arch.embed_dim, vision, text, quick_gelu=arch.quick_gelu)
    for parameter in model.parameters():  # biases and norms too: zeros and ones would hide a mistake
        nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture
def heavy_imports_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever imports timm or open_clip, which take seconds, fails."""
    statement = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.split(".", maxsplit=1)[0] not in ("timm", "open_clip"), name
        return statement(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
