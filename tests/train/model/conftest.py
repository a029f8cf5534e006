"""open_clip's own models, which ours are held against."""

import open_clip
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
