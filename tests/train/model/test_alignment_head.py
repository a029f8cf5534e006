"""The patch alignment head: cosines by hand, a bounded temperature."""

import math

import pytest
import torch
from physseg.train.model.alignment_head import AlignmentHead


def head(*, normalize: bool = True) -> AlignmentHead:
    """Both projections the identity, temperature 1."""
    module = AlignmentHead(2, 2, normalize=normalize)
    with torch.no_grad():
        module.image_projection.weight.copy_(torch.eye(2))
        module.text_projection.weight.copy_(torch.eye(2))
        module.log_scale.zero_()
    return module


PATCHES = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
TEXTS = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


def test_cosines_by_hand() -> None:
    expected = torch.tensor([[[0.6, 0.8, -0.6], [0.0, 1.0, 0.0]]])
    torch.testing.assert_close(head()(PATCHES, TEXTS), expected)


def test_plain_products_when_not_normalised() -> None:
    expected = torch.tensor([[[15.0, 4.0, -3.0], [0.0, 2.0, 0.0]]])
    torch.testing.assert_close(head(normalize=False)(PATCHES, TEXTS), expected)


def test_starts_at_clips_temperature_and_learns_it() -> None:
    module = AlignmentHead(2, 4)
    assert module.scale().item() == pytest.approx(1 / 0.07)
    module(PATCHES, TEXTS).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_temperature_is_bounded_and_can_come_back() -> None:
    module = head()
    with torch.no_grad():
        module.log_scale.fill_(math.log(1e6))
    similarity = module(PATCHES, TEXTS)
    assert similarity.abs().max().item() == pytest.approx(100.0)
    similarity[0, 0, 0].backward()
    assert module.log_scale.grad is not None
    assert module.log_scale.grad.item() == pytest.approx(60.0)


def test_half_precision_of_the_network_does_not_reach_the_similarities() -> None:
    """Against float64, at the highest scale: in bfloat16 they would be 0.2 to 0.4 off, their loss's gradient 1 %."""
    generator = torch.Generator().manual_seed(0)
    module = AlignmentHead(64, 32)
    with torch.no_grad():
        module.log_scale.fill_(math.log(100.0))
    patches, texts = (torch.randn(*size, generator=generator).bfloat16() for size in ((2, 50, 64), (11, 64)))
    with torch.autocast("cpu", torch.bfloat16):
        got = module(patches, texts)
    got.logsumexp(-1).mean().backward()
    projections = module.image_projection.weight, module.text_projection.weight
    image, text = (weight.detach().double().requires_grad_() for weight in projections)
    x, t = (a / a.norm(dim=-1, keepdim=True) for a in (patches.double() @ image.T, texts.double() @ text.T))
    expected = 100.0 * torch.einsum("bnd,td->bnt", x, t)
    expected.logsumexp(-1).mean().backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
    for ours, theirs in zip(projections, (image, text), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() < 1e-5 * theirs.grad.norm()
