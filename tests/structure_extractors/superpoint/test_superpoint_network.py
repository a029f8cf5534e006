"""The SuperPoint network against straightforward re-implementations, its pixel order and its padding."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from physseg.structure_extractors.errors import ExtractorError
from physseg.structure_extractors.superpoint.network import (
    Architecture,
    DetectorNetwork,
    fold_normalisation,
    grey_tensor,
    keypoint_probabilities,
    keypoint_probability,
)
from torch.nn import functional

WIDTHS = (4, 5, 6, 7, 8, 9, 10, 11)
HEAD = 12


def probability_maps(network: DetectorNetwork, grey: np.ndarray) -> np.ndarray:
    """Probabilities (B, H, W) of pictures (B, H, W) uint8."""
    return keypoint_probabilities(network, grey_tensor(grey, network.device)).numpy()


def random_network(seed: int = 0, **architecture: object) -> DetectorNetwork:
    """Random weights and running statistics, strong enough that the image and each normalisation show in the output."""
    torch.manual_seed(seed)
    network = DetectorNetwork(Architecture(widths=WIDTHS, head_width=HEAD, **architecture))
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
        elif name.endswith("running_var"):
            value.uniform_(0.2, 1.0)
        elif name.endswith(("running_mean", "norm.bias")):
            value.uniform_(-0.1, 0.1)
    logits = network.eval()(torch.rand(2, 1, 64, 64))
    assert logits.std(dim=(2, 3)).mean() > 0.2  # else the tests below would compare constants
    return network


def batch_norm(state: dict[str, torch.Tensor], unit: str, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """(x - mean) / sqrt(var + eps) * weight + bias, written out."""
    mean, var, weight, bias = (
        state[f"{unit}.norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return lambda x: (x - mean) / (var + eps).sqrt() * weight + bias


def reference_logits(state: dict[str, torch.Tensor], grey: torch.Tensor, order: str, eps: float) -> torch.Tensor:
    """The network as a recipe; logits are normalised wherever the rest is, as in both published variants with norms."""

    def step(x: torch.Tensor, unit: str, padding: int) -> torch.Tensor:
        x = functional.conv2d(x, state[f"{unit}.conv.weight"], state[f"{unit}.conv.bias"], padding=padding)
        last = unit == "logits"
        if order == "conv-relu":
            return x if last else x.clamp(min=0)
        norm = batch_norm(state, unit, eps)
        if last:
            return norm(x)
        return norm(x.clamp(min=0)) if order == "conv-relu-bn" else norm(x).clamp(min=0)

    x = grey
    for stage in range(4):
        x = step(step(x, f"blocks.{2 * stage}", 1), f"blocks.{2 * stage + 1}", 1)
        if stage < 3:
            x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax(dim=(3, 5))
    return step(step(x, "head", 1), "logits", 0)


@pytest.mark.parametrize(
    ("order", "eps"), [("conv-relu", 1e-5), ("conv-relu-bn", 1e-3), ("conv-bn-relu", 1e-5), ("conv-bn-relu", 1e-1)]
)
def test_every_variant_equals_its_recipe(order, eps):
    network = random_network(order=order, norm_eps=eps, norm_logits=order != "conv-relu").double()
    grey = torch.rand(2, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        got = network(grey)
    expected = reference_logits(network.state_dict(), grey, order, eps)
    assert got.shape == (2, 65, 4, 6)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_variants_differ_where_they_should():
    state = random_network(order="conv-relu-bn", norm_logits=True).state_dict()
    grey = torch.rand(1, 1, 16, 16)
    results = [
        reference_logits(state, grey, order, eps)
        for order, eps in [("conv-relu-bn", 1e-3), ("conv-relu-bn", 1e-5), ("conv-bn-relu", 1e-3)]
    ]
    assert min((results[0] - other).abs().max() for other in results[1:]) > 1e-3


def test_convention_channel_8dy_plus_dx_is_that_pixel_of_its_cell():
    height, width = 3, 2  # cells
    logits = torch.full((1, 65, height, width), -20.0)
    logits[:, 64] = 0.0
    for channel, cy, cx in [(0, 0, 0), (7, 0, 1), (8, 1, 0), (8 * 5 + 2, 2, 1)]:
        logits[0, channel, cy, cx] = 20.0
    probability = keypoint_probability(logits)[0]
    assert probability.shape == (24, 16)
    found = [tuple(point) for point in torch.nonzero(probability > 0.5).tolist()]
    assert found == [(0, 0), (0, 15), (9, 0), (21, 10)]  # (8 cy + dy, 8 cx + dx)


def test_a_cell_and_its_dustbin_sum_to_one():
    logits = torch.randn(2, 65, 3, 4, dtype=torch.bfloat16)
    probability = keypoint_probability(logits)
    assert probability.dtype == torch.float32
    dustbin = logits.float().softmax(dim=1)[:, 64]
    cells = probability.reshape(2, 3, 8, 4, 8).sum(dim=(2, 4))
    torch.testing.assert_close(cells + dustbin, torch.ones_like(cells))


@pytest.mark.parametrize("size", [(32, 48), (33, 48), (32, 41), (39, 47), (5, 3), (1, 1)])
def test_any_size_is_padded_by_repetition_and_nothing_is_lost(size):
    network = random_network(order="conv-bn-relu", norm_logits=True).double()
    grey = np.random.default_rng(0).integers(0, 256, (2, *size), np.uint8)
    padded = np.pad(grey, [(0, 0), (0, -size[0] % 8), (0, -size[1] % 8)], mode="edge")
    got = probability_maps(network, grey)
    with torch.no_grad():
        expected = keypoint_probability(network((torch.from_numpy(padded)[:, None] / 255).double()))
    assert got.shape == (2, *size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy()[:, : size[0], : size[1]], rtol=1e-5, atol=1e-8)


def test_the_published_size_has_its_parameters():
    network = DetectorNetwork(Architecture())
    # Eight encoder convolutions, then 128 -> 256 -> 65: 0.94 million, as published without the descriptor head.
    assert sum(parameter.numel() for parameter in network.parameters()) == 939_905


def test_an_impossible_architecture_is_an_error():
    with pytest.raises(ExtractorError, match="eight positive widths"):
        Architecture(widths=(64, 64, 128), head_width=256)


def test_folded_normalisation_gives_the_same_probabilities():
    network = random_network(order="conv-bn-relu", norm_logits=True)
    folded = fold_normalisation(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    grey = np.random.default_rng(0).integers(0, 256, (2, 45, 61), np.uint8)
    np.testing.assert_allclose(probability_maps(folded, grey), probability_maps(network, grey), rtol=1e-3, atol=1e-6)


def test_normalisation_behind_the_relu_stays():
    network = random_network(order="conv-relu-bn", norm_logits=True)
    assert fold_normalisation(network) is network
