"""The cheap forms of the aggregator and the decoder against the published ones, written out here."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from physseg.train.model.config import SegmenterConfig
from physseg.train.model.cost_aggregator import (
    ABSENT_LOGIT,
    ClassAggregation,
    CostAggregator,
    GuidedProjection,
    SpatialBlock,
    attend_in_rectangles,
    cost_volume,
    preselect,
    window_sizes,
)
from physseg.train.model.decoder import UpBlock, interleave, interleave_slices
from torch import Tensor, nn

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # float64 throughout: only the order of sums differs


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter random, padding tokens and norms included: zeros and ones would hide mistakes."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def aggregator(*, prompts: int = 1, pad_len: int = 256) -> CostAggregator:
    torch.manual_seed(0)
    config = SegmenterConfig(
        clip="tiny",
        templates=tuple(f"{number} {{}}" for number in range(prompts)),
        hidden_dim=16,
        guidance_dim=8,
        num_layers=2,
        num_heads=4,
        window=4,
        pooling=2,
        pad_len=pad_len,
        decoder_dims=(16, 8),
        decoder_guidance_dims=(6, 4),
        decoder_guidance_proj_dims=(4, 2),
    )
    module = CostAggregator(12, config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def inputs(batch: int, classes: int, prompts: int = 1, side: int = 8) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    image = torch.randn(batch, 12, side, side, dtype=torch.double)
    text = torch.randn(classes, prompts, 12, dtype=torch.double)
    guidance = (
        torch.randn(batch, 6, 2 * side, 2 * side, dtype=torch.double),
        torch.randn(batch, 4, 4 * side, 4 * side, dtype=torch.double),
    )
    return image, text, guidance


def assert_same_gradients(ours: Tensor, theirs: Tensor, sources: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random functional with respect to everything."""
    torch.testing.assert_close(ours, theirs, **EXACT)
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, sources, weights), torch.autograd.grad(theirs, sources, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_guided_projection_is_that_of_the_concatenation() -> None:
    torch.manual_seed(0)
    module = randomise(GuidedProjection(6, 4))
    cost = torch.randn(2, 3, 5, 6, dtype=torch.double, requires_grad=True)
    guidance = torch.randn(2, 1, 5, 4, dtype=torch.double, requires_grad=True)
    both = torch.cat([cost, guidance.expand(2, 3, 5, 4)], dim=-1)
    expected = torch.cat([module.q(both), module.k(both), module.v(cost)], dim=-1)
    assert_same_gradients(module(cost, guidance), expected, [cost, guidance, *module.parameters()])


def swin_attention(projected: Tensor, window: int, shift: int) -> Tensor:
    """Liu et al. 2021, section 3.2: roll, cut into windows, mask what was not adjacent, attend, undo."""
    number, height, width, _, heads, dim = projected.shape
    region = torch.zeros(height, width)
    cuts = [slice(0, -window), slice(-window, -shift), slice(-shift, None)] if shift else [slice(None)]
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[rows, columns] = 3 * i + j

    def windows(x: Tensor) -> Tensor:
        x = x.view(x.shape[0], height // window, window, width // window, window, -1)
        return x.transpose(2, 3).reshape(x.shape[0], -1, window * window, x.shape[-1])

    rolled = projected.flatten(3).roll((-shift, -shift), dims=(1, 2))
    ids = windows(region[None, :, :, None])[0, :, :, 0]
    mask = torch.where(ids[:, :, None] == ids[:, None, :], 0.0, -torch.inf).double()
    query, key, value = windows(rolled).unflatten(-1, (3, heads, dim)).permute(3, 0, 1, 4, 2, 5)
    scores = query @ key.transpose(-1, -2) / dim**0.5 + mask[None, :, None]
    attended = (scores.softmax(dim=-1) @ value).transpose(2, 3).flatten(3)
    attended = attended.view(number, height // window, width // window, window, window, -1).transpose(2, 3)
    return attended.reshape(number, height, width, -1).roll((shift, shift), dims=(1, 2))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12)])
@pytest.mark.parametrize("shift", [0, 2])
def test_rectangles_are_shifted_windows_with_their_mask(height: int, width: int, shift: int) -> None:
    torch.manual_seed(0)
    projected = torch.randn(3, height, width, 3, 2, 5, dtype=torch.double, requires_grad=True)
    ours = attend_in_rectangles(projected, window_sizes(height, 4, shift), window_sizes(width, 4, shift))
    assert_same_gradients(ours, swin_attention(projected, 4, shift), [projected])


@given(st.integers(1, 60), st.integers(1, 15), st.booleans())
@settings(max_examples=60, deadline=None)
def test_window_sizes_cover_the_axis(size: int, window: int, shifted: bool) -> None:
    sizes = window_sizes(size, window, window // 2 if shifted else 0)
    assert sum(sizes) == size
    assert all(0 < piece <= window for piece in sizes)


def test_spatial_block_treats_classes_apart() -> None:
    torch.manual_seed(0)
    block = randomise(SpatialBlock(8, 6, heads=2, window=4, shift=2))
    x = torch.randn(2, 3, 8, 8, 8, dtype=torch.double)
    guidance = torch.randn(2, 1, 8, 8, 6, dtype=torch.double)
    together = block(x, guidance)
    for index in range(3):
        torch.testing.assert_close(block(x[:, index : index + 1], guidance), together[:, index : index + 1], **EXACT)


def padded_class_aggregation(module: ClassAggregation, x: Tensor, guidance: Tensor, pad_len: int) -> Tensor:
    """The published form: T padded to `pad_len` rows, concatenated guidance, linear attention position by position."""
    batch, classes, height, width, dim = x.shape
    pooling = module.pooling if module.training else 1
    pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), pooling)
    rows, columns = pooled.shape[2:]
    tokens = pooled.view(batch, classes, dim, rows, columns).permute(0, 3, 4, 1, 2).reshape(-1, classes, dim)
    guided = guidance.expand(batch, -1, -1).repeat_interleave(rows * columns, dim=0)
    extra = max(0, pad_len - classes)
    if extra:
        tokens = torch.cat([tokens, module.padding_token.expand(len(tokens), extra, -1)], dim=1)
        guided = torch.cat([guided, module.padding_guidance.expand(len(guided), extra, -1)], dim=1)
    both = torch.cat([module.norm1(tokens), guided], dim=-1)
    heads = (module.heads, dim // module.heads)
    query = F.elu(module.attn.q(both).unflatten(-1, heads)) + 1
    key = F.elu(module.attn.k(both).unflatten(-1, heads)) + 1
    value = module.attn.v(module.norm1(tokens)).unflatten(-1, heads)
    weights = torch.einsum("nlhd,nshd->nlsh", query, key)
    attended = torch.einsum("nlsh,nshv->nlhv", weights, value) / (weights.sum(dim=2)[..., None] + 1e-6)
    tokens = tokens + attended.flatten(2)
    tokens = (tokens + module.fc2(F.relu(module.fc1(module.norm2(tokens)))))[:, :classes]
    maps = tokens.view(batch, rows, columns, classes, dim).permute(0, 3, 4, 1, 2).flatten(0, 1)
    maps = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=True)
    return x + maps.permute(0, 2, 3, 1).view_as(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("classes", "pad_len"), [(3, 9), (3, 3), (5, 0), (1, 6)])
def test_padding_rows_as_a_multiple_of_one(classes: int, pad_len: int, training: bool) -> None:
    torch.manual_seed(0)
    module = randomise(ClassAggregation(8, 6, heads=2, pooling=2, pad_len=pad_len)).train(training)
    x = torch.randn(2, classes, 4, 4, 8, dtype=torch.double, requires_grad=True)
    guidance = torch.randn(1, classes, 6, dtype=torch.double, requires_grad=True)
    expected = padded_class_aggregation(module, x, guidance, pad_len)
    sources = [x, guidance, *(p for n, p in module.named_parameters() if classes < pad_len or "padding" not in n)]
    assert_same_gradients(module(x, guidance), expected, sources)
    module(x, guidance).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 1)])
def test_up_block_is_upsample_concatenate_convolve(height: int, width: int) -> None:
    torch.manual_seed(0)
    block = randomise(UpBlock(12, 16, 4))
    x = torch.randn(6, 12, height, width, dtype=torch.double, requires_grad=True)
    guidance = torch.randn(2, 4, 2 * height, 2 * width, dtype=torch.double, requires_grad=True)
    joined = torch.cat([block.up(x), guidance.repeat_interleave(3, dim=0)], dim=1)
    hidden = F.relu(block.norm1(block.conv1(joined)))
    expected = F.relu(block.norm2(block.conv2(hidden)))
    assert_same_gradients(block(x, guidance), expected, [x, guidance, *block.parameters()])


def test_cost_volume_by_hand() -> None:
    image = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # two positions: (3, 4) and (0, 2)
    text = torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])  # one class, two prompts
    cosines = cost_volume(image, text[None])
    assert cosines.shape == (1, 1, 2, 1, 2)
    torch.testing.assert_close(cosines[0, 0, :, 0], torch.tensor([[0.6, 0.0], [0.8, 1.0]]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("prompts", [1, 3])
@torch.no_grad()
def test_every_image_for_itself_and_classes_in_any_order(prompts: int, training: bool) -> None:
    module = aggregator(prompts=prompts).train(training)
    image, text, guidance = inputs(2, 5, prompts)
    logits = module(image, text, guidance)
    assert logits.shape == (2, 5, 32, 32)
    alone = module(image[1:], text, (guidance[0][1:], guidance[1][1:]))
    torch.testing.assert_close(alone, logits[1:], **EXACT)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module(image, text[order], guidance), logits[:, order], **EXACT)


@torch.no_grad()
def test_more_classes_than_the_padding_length() -> None:
    """Each image keeps the classes with the highest maximal cosine, as if only they had been asked for."""
    module = aggregator(pad_len=4).eval()
    image, text, guidance = inputs(2, 9)
    logits = module(image, text, guidance)
    cosines = cost_volume(image, text[None])[:, :, 0]
    for index in range(2):
        kept = cosines[index].flatten(1).max(dim=1).values.topk(4).indices.sort().values
        left_out = [label for label in range(9) if label not in kept.tolist()]
        assert (logits[index, left_out] == ABSENT_LOGIT).all()
        one = slice(index, index + 1)
        alone = module(image[one], text[kept], (guidance[0][one], guidance[1][one]))
        torch.testing.assert_close(logits[index, kept], alone[0], **EXACT)
    assert preselect(cost_volume(image, text[None]), 4).shape == (2, 4)


@torch.no_grad()
def test_kept_classes_are_those_of_the_highest_cosines() -> None:
    """Patches made of class texts, so that every class's highest cosine is known; the rest is filled with padding."""
    module = aggregator(pad_len=6).eval()
    image, _, guidance = inputs(2, 1)
    text = 3 * torch.eye(12, dtype=torch.double)[:, None]  # one class for each dimension
    image[:] = -1  # no class
    image[:, :, 3:6] = (text[8, 0] - 3**0.5 * text[4, 0])[
        None, :, None, None
    ]  # 0.5 for class 8 in 24 patches: most in sum
    image[0, :, 2, 3] = 7 * text[5, 0]  # cosine 1 with class 5
    image[0, :, 6, 1] = 3 * text[2, 0] + 4 * text[7, 0]  # 0.6 and 0.8
    image[0, :, 0, 0] = text[9, 0] + 4 * text[5, 0]  # 0.24 for class 9
    image[1, :, 6, 4] = 5 * text[0, 0] + 12 * text[11, 0]  # 0.38 and 0.92
    image[1, :, 7, 7] = text[1, 0] + text[3, 0]  # 0.71 twice
    logits = module(image, text, guidance, 3)
    assert logits.shape == (2, 12, 32, 32)
    for index, kept in enumerate(([2, 5, 7], [1, 3, 11])):
        left_out = [label for label in range(12) if label not in kept]
        assert (logits[index, left_out] == ABSENT_LOGIT).all()
        one = slice(index, index + 1)
        alone = module(image[one], text[kept], (guidance[0][one], guidance[1][one]))  # padded to six, too
        torch.testing.assert_close(logits[index, kept], alone[0], **EXACT)


@pytest.mark.parametrize("kept", [9, 10, 1000])
@torch.no_grad()
def test_as_many_kept_as_there_are_change_no_bit(kept: int) -> None:
    image, text, guidance = inputs(2, 9, prompts=3)
    everything = aggregator(prompts=3, pad_len=9).eval()(image, text, guidance)
    assert torch.equal(aggregator(prompts=3, pad_len=9).eval()(image, text, guidance, kept), everything)
    assert torch.equal(aggregator(prompts=3, pad_len=4).eval()(image, text, guidance, kept), everything)


@torch.no_grad()
def test_preselection_looks_at_every_prompt() -> None:
    cost = torch.zeros(1, 3, 2, 2, 2)
    cost[0, 2, 1, 1, 0] = 0.5
    cost[0, 0] = 0.1
    assert set(preselect(cost, 2)[0].tolist()) == {0, 2}


def test_interleaving_for_compilers_is_the_same() -> None:
    """Values and both gradients of the one-pass form and of slices and sums, in float64."""
    generator = torch.Generator().manual_seed(0)
    phases = torch.randn(6, 20, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    shared = torch.randn(2, 5, 6, 10, dtype=torch.float64, generator=generator, requires_grad=True)
    one_pass, slices = interleave(phases, shared), interleave_slices(phases, shared)
    assert torch.equal(one_pass, slices)
    upstream = torch.randn(one_pass.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(one_pass, (phases, shared), upstream),
        torch.autograd.grad(slices, (phases, shared), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
