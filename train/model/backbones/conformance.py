"""Whether a backbone keeps its contract: `physseg.testing.check_backbone`, for the tests of its package."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor

from ....common.errors import PhyssegError
from ....common.plugins import ConformanceError, require
from .clip_text import shared_prefix
from .interface import Architecture

PROMPTS: Final = ("a photo of a cat", "a photo of a traffic light in the rain", "a photo of a dog")
RULES: Final = ("none", "qv", "all")


def check_backbone(described: Architecture | Callable[[str], Architecture], name: str = "backbone") -> None:
    """Build a backbone with random weights and hold it against what it is described by.

        def test_mine():
            check_backbone(replace(my_backbone("mine"), layers=2))

    Args:
        described: The architecture, best in a small size, or the function of a name that the entry point is.
        name: The name that a function is given.

    Raises:
        ConformanceError: A rule is broken. The message says which, what was expected and what came. The rules are those
            of docs/backbones.md.
    """
    arch = described if isinstance(described, Architecture) else described(name)
    where = type(arch).__name__
    require(isinstance(arch, Architecture), where, "an Architecture", type(arch).__name__)
    _check_description(where, arch)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(16)
        model = cast(Any, arch.build()).eval()
        _check_weights(where, arch, model)
        _check_images(where, arch, model)
        _check_texts(where, arch, model)
        _check_training(where, arch, model)
        larger = arch.adapted(image_px=arch.image_px + arch.patch_px)
        again = cast(Any, larger.build()).eval()
        require([*again.state_dict()] == [*model.state_dict()], where, "the same names at any image_px", "others")
        _shapes(f"{where} at image_px {larger.image_px}", larger, again)


def _check_description(where: str, arch: Architecture) -> None:
    require(len(arch.levels) == 4, where, "four levels, the deepest first", len(arch.levels))
    for level, factor in zip(arch.guidance, (2, 4), strict=True):
        fits = level.stride * factor % arch.patch_px == 0
        require(fits, f"{where}.guidance", f"a stride that is a multiple of {arch.patch_px}/{factor} px", level.stride)
    for level in (*arch.levels, *arch.guidance):
        require(arch.image_px % level.stride == 0, f"{where}.levels", f"strides that divide {arch.image_px}", level)
    require(arch.adapted() == arch, where, "adapted() that changes nothing", arch.adapted())


def _check_weights(where: str, arch: Architecture, model: Any) -> None:
    """A file's weights are put into an empty network; a wrong file is told."""
    with torch.device("meta"):
        blank = cast(Any, arch.build())
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in blank.state_dict().items()}
    require(found == expected, f"{where} on the meta device", "the same names and shapes", "others")
    try:
        model.from_published({"foreign.weight": torch.zeros(1)}, "weights.bin")
    except PhyssegError:
        return
    raise ConformanceError.mismatch(f"{where}.from_published", "PhyssegError for a foreign state dict", "none")


def _check_images(where: str, arch: Architecture, model: Any) -> None:
    images, patches = _shapes(where, arch, model)
    for training in (True, False):
        found = model.train(training).encode_image(images).patches
        _near(f"{where}.encode_image, again, training {training}", patches, found)
    _near(f"{where}.encode_image, one crop by itself", patches[1:], model.encode_image(images[1:]).patches)
    row, column = arch.grid - 1, 0  # an order by columns would put it elsewhere
    changed = images.clone()
    changed[0, :, row * arch.patch_px :, : arch.patch_px] += 3.0
    moved = (model.encode_image(changed).patches - patches)[0].abs().sum(-1).argmax().item()
    require(moved == row * arch.grid + column, f"{where}.encode_image", "patches row by row", f"number {moved} moved")


def _shapes(where: str, arch: Architecture, model: Any) -> tuple[Tensor, Tensor]:
    """Two crops, and their patches; everything has the shape that was described."""
    images = torch.randn(2, 3, arch.image_px, arch.image_px)
    found = model.encode_image(images, levels=True)
    sizes = [(2, level.channels, *[arch.image_px // level.stride] * 2) for level in (*arch.guidance, *arch.levels)]
    got = [tuple(each.shape) for each in (found.patches, *found.guidance, *found.levels)]
    require(got == [(2, arch.grid**2, arch.embed_dim), *sizes], f"{where}: patches, guidance, levels", sizes, got)
    require(bool(found.patches.isfinite().all()), f"{where}.encode_image", "finite patches", "others")
    require(not model.encode_image(images).levels, f"{where}.encode_image", "levels only where asked for", "levels")
    return images, found.patches


def _check_texts(where: str, arch: Architecture, model: Any) -> None:
    tokens = model.tokenize(PROMPTS)
    fits = tokens.dtype == torch.int64 and tokens.ndim == 2 and tokens.shape[1] <= arch.context_length
    require(fits, f"{where}.tokenize", f"int64 (M, L <= {arch.context_length})", (tokens.dtype, tuple(tokens.shape)))
    require(bool((tokens[:, 0] != 0).all()), f"{where}.tokenize", "no prompt that begins with 0", tokens[:, 0].tolist())
    texts = model.encode_text(tokens)
    size = (len(PROMPTS), arch.embed_dim)
    require(tuple(texts.shape) == size, f"{where}.encode_text", size, tuple(texts.shape))
    _near(f"{where}.encode_text, one row by itself", texts[1:2], model.encode_text(tokens[1:2]))
    _near(f"{where}.encode_text, shared", texts, model.encode_text(tokens, shared_prefix(tokens)))
    _near(f"{where}.encode_text, shorter", texts[:1], model.encode_text(model.tokenize(PROMPTS[:1])))
    try:
        model.tokenize(["cat " * arch.context_length])
    except PhyssegError:
        return
    raise ConformanceError.mismatch(f"{where}.tokenize", "PhyssegError for a prompt longer than the context", "none")


def _check_training(where: str, arch: Architecture, model: Any) -> None:
    """Every parameter that trains is differentiated in every step: DistributedDataParallel waits for it."""
    names = {name for name, _ in model.named_parameters()}
    for rule in RULES:
        try:
            trains = model.trainable(rule)
        except PhyssegError:  # no sense here
            require(rule != arch.finetune, f"{where}.trainable", f"its default {rule!r}", "PhyssegError")
            continue
        require(trains <= names, f"{where}.trainable({rule!r})", "names of parameters", sorted(trains - names)[:3])
        require(rule != "none" or not trains, f"{where}.trainable('none')", "none", sorted(trains)[:3])
        each = copy.deepcopy(model).train()
        for name, parameter in each.named_parameters():
            parameter.requires_grad = name in trains
        found = each.encode_image(torch.randn(1, 3, arch.image_px, arch.image_px), levels=True)
        parts: Sequence[Tensor] = (found.patches, *found.guidance, each.encode_text(each.tokenize(PROMPTS)))
        if trains:
            torch.autograd.backward([part.float().square().sum() for part in parts if part.requires_grad])
        left = [name for name, parameter in each.named_parameters() if name in trains and parameter.grad is None]
        require(not left, f"{where}.trainable({rule!r})", "a gradient for each", f"none for {left[:3]}")


def _near(where: str, expected: Tensor, found: Tensor) -> None:
    apart = float(((expected - found).abs().max() / expected.abs().max()).detach())
    require(apart < 1e-3, where, "the same numbers", f"{apart:.1g} of the largest apart")
