"""Parameter groups by detectron2's rule, the cosine, clipping, and stopping at a loss that is not a number."""

import doctest
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from physseg.common.errors import ConfigError
from physseg.train import optim
from physseg.train.errors import NonFiniteLossError
from physseg.train.optim import (
    OptimConfig,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    require_finite,
    set_learning_rate,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class LayerNormOfOurs(nn.LayerNorm):
    """CLIP implementations subclass LayerNorm; subclasses must count."""


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.ones(2, 2))
        self.token_embedding = nn.Embedding(3, 2)
        self.ln_post = LayerNormOfOurs(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


class Model(nn.Module):
    def __init__(self, clip: str = "ViT-B-16") -> None:
        super().__init__()
        self.config = SimpleNamespace(clip=clip)
        self.clip = Clip()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.GroupNorm(1, 2)
        self.classes = nn.Embedding(4, 2)
        self.padding = nn.Parameter(torch.zeros(2))
        self.tied = nn.Conv2d(2, 2, 1, bias=False)
        self.tied.weight = self.conv.weight

    def clip_parameter_names(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("clip.")}


def group_of(model: Model, optimizer: torch.optim.Optimizer, name: str) -> dict[str, Any]:
    parameter = model.get_parameter(name)
    (group,) = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
    return group


def test_docstring_example() -> None:
    assert doctest.testmod(optim).failed == 0


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("conv.weight", 2e-4, 1e-4),
        ("conv.bias", 2e-4, 1e-4),  # biases decay
        ("padding", 2e-4, 1e-4),  # so do bare parameters
        ("norm.weight", 2e-4, 0.0),
        ("norm.bias", 2e-4, 0.0),
        ("classes.weight", 2e-4, 0.0),
        ("clip.positional_embedding", 2e-6, 1e-4),  # not an nn.Embedding
        ("clip.token_embedding.weight", 2e-6, 0.0),
        ("clip.ln_post.weight", 2e-6, 0.0),
    ],
)
def test_convention_rate_and_decay_of_each_kind_of_parameter(name: str, rate: float, decay: float) -> None:
    model = Model()
    group = group_of(model, build_optimizer(model, OptimConfig()), name)
    assert group["lr"] == pytest.approx(rate) and group["weight_decay"] == decay


def test_without_pretraining_clip_learns_at_the_rate_of_the_heads() -> None:
    rates = {}
    for clip, scale in (("tiny", None), ("tiny", 0.01), ("ViT-H-14", None)):
        model = Model(clip)
        optimizer = build_optimizer(model, OptimConfig(learning_rate=2.0, clip_scale=scale))
        rates[clip, scale] = group_of(model, optimizer, "clip.ln_post.weight")["lr"]
    assert rates == {("tiny", None): 2.0, ("tiny", 0.01): 0.02, ("ViT-H-14", None): 0.02}


def test_every_trainable_parameter_is_in_one_group_once() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimConfig())
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = [group["name"] for group in optimizer.param_groups]
    assert names == ["head/plain", "head/norm", "head/embedding", "clip/plain", "clip/norm", "clip/embedding"]


def test_options_reach_the_optimizer() -> None:
    config = OptimConfig(learning_rate=1.0, clip_scale=0.5, weight_decay=0.1, weight_decay_norm=0.2, beta1=0.8)
    model = Model()
    optimizer = build_optimizer(model, config)
    assert group_of(model, optimizer, "clip.ln_post.weight")["lr"] == 0.5
    assert group_of(model, optimizer, "clip.ln_post.weight")["weight_decay"] == 0.2
    assert optimizer.defaults["betas"] == (0.8, 0.999)


def test_nothing_to_train_and_unknown_names_are_errors() -> None:
    model = Model()
    model.clip_parameter_names = lambda: {"clip.ghost"}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"no parameter named 'clip.ghost'\n  hint: build the optimiser before"):
        build_optimizer(model, OptimConfig())
    with pytest.raises(ConfigError, match="no parameter of the model is trainable"):
        build_optimizer(Model().requires_grad_(False), OptimConfig())


def test_factor_is_a_cosine_from_one_to_zero() -> None:
    for step in range(81):
        assert learning_rate_factor(step, 80) == pytest.approx(math.cos(math.pi * step / 160) ** 2)
    assert learning_rate_factor(0, 80_000) == 1 and learning_rate_factor(40_000, 80_000) == pytest.approx(0.5)
    assert learning_rate_factor(80, 80) == learning_rate_factor(100, 80) == 0


def test_factor_with_warm_up_rises_linearly_onto_the_cosine() -> None:
    for step in range(10):
        expected = (step + 1) / 10 * learning_rate_factor(step, 100)
        assert learning_rate_factor(step, 100, warmup=10) == pytest.approx(expected)
    assert learning_rate_factor(10, 100, warmup=10) == learning_rate_factor(10, 100)


def test_set_learning_rate_keeps_the_ratio_of_the_groups() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimConfig())
    for factor in (0.25, 0.5):  # not cumulative
        set_learning_rate(optimizer, factor)
        assert group_of(model, optimizer, "conv.weight")["lr"] == pytest.approx(factor * 2e-4)
        assert group_of(model, optimizer, "clip.ln_post.weight")["lr"] == pytest.approx(factor * 2e-6)


def test_gradients_are_clipped_together() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0) if parameter.requires_grad else None
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = 2.0 * math.sqrt(sum(p.numel() for p in trained))
    assert clip_gradients(optimizer, 0).item() == pytest.approx(norm)
    assert all(p.grad is not None and (p.grad == 2).all() for p in trained)
    assert clip_gradients(optimizer, 0.01).item() == pytest.approx(norm)
    left = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    assert left.norm().item() == pytest.approx(0.01, rel=1e-3) and left.unique().numel() == 1


@pytest.mark.parametrize("spoil", [lambda p: p * float("nan"), lambda p: p / 0])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(spoil: Callable[[Tensor], Tensor]) -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert model.padding.grad is not None
    model.padding.grad = spoil(model.padding.grad)
    with pytest.raises(NonFiniteLossError, match="gradient_norm"):
        require_finite({"gradient_norm": clip_gradients(optimizer, 0.01)}, step=3, sample_ids=["a"])


def test_finite_parts_come_back_as_floats() -> None:
    parts = {"loss": torch.tensor(1.5, requires_grad=True), "alignment": torch.tensor(0.25, dtype=torch.bfloat16)}
    assert require_finite(parts, step=0, sample_ids=[]) == {"loss": 1.5, "alignment": 0.25}


def test_a_loss_that_is_not_finite_names_step_parts_and_samples() -> None:
    parts = {"loss": torch.tensor(float("nan")), "segmentation": torch.tensor(0.5), "alignment": torch.tensor(math.inf)}
    with pytest.raises(NonFiniteLossError) as caught:
        require_finite(parts, step=17, sample_ids=["000000000139", "000000000285"])
    message = str(caught.value)
    assert "step 17: expected finite numbers, got loss = nan, alignment = inf" in message
    assert "000000000139, 000000000285" in message and "the weights are unchanged" in message
    assert caught.value.fields["step"] == 17 and caught.value.fields["parts"]["segmentation"] == 0.5
    assert caught.value.fields["sample_ids"] == ["000000000139", "000000000285"]
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate: expected a number in \(0, 1e18\], got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay: expected"),
        ({"max_gradient_norm": math.nan}, "max_gradient_norm: .* got nan"),
        ({"beta2": 1.0}, r"beta2: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_steps >= 1"):
        learning_rate_factor(0, 0)


def stepped(optimizer: torch.optim.Optimizer) -> list[str]:
    """The operators of a step, with a gradient of ones."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    with Recorder() as recorder:
        optimizer.step()
    return recorder.names


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_adamw_is_one_kernel_a_group_on_cuda_alone() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        names = stepped(optimizer := build_optimizer(Model(), OptimConfig()))
    assert names.count("aten::_fused_adamw_") == len(optimizer.param_groups) == 6
    assert "aten::sqrt" not in names and "aten::_local_scalar_dense" not in names  # nothing apart, nothing read
    assert "aten::_fused_adamw_" not in stepped(build_optimizer(Model(), OptimConfig()))


@pytest.mark.parametrize("began", [None, True], ids=["before or on a CPU", "on a GPU"])
@pytest.mark.parametrize("here", [None, True], ids=["cpu", "as on cuda"])
def test_a_checkpoint_of_either_kernel_resumes_with_its_own(
    began: bool | None, here: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(fused: list[bool | None]) -> Tensor:
        torch.manual_seed(0)
        model, state = Model(), None
        for each in fused:  # a step in each process; PyTorch has a fused kernel for CPUs as well
            monkeypatch.setattr(optim, "fused_on", lambda _, each=each: each)
            optimizer = build_optimizer(model, OptimConfig(learning_rate=0.1))
            if state is not None:
                optimizer.load_state_dict(state)
            assert ("aten::_fused_adamw_" in stepped(optimizer)) == bool(fused[0])
            state = optimizer.state_dict()
        return torch.cat([value.detach().flatten() for value in model.parameters()])

    assert torch.equal(weights([began, here]), weights([began, began]))
    torch.testing.assert_close(weights([began, here]), weights([None, None]), rtol=1e-6, atol=1e-6)
