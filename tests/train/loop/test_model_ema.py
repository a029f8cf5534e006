"""The moving average of the weights: hand values, and a module that is as before after each look."""

import torch
from physseg.train.loop.model_ema import ModelEma
from torch import nn


def module_of(value: float) -> nn.Module:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.fill_(5.0)
    module.bias.requires_grad = False
    return module


def test_hand_values() -> None:
    """Weights 0 -> 1 -> 2 with decay 0.2: first min(0.2, 2/11) = 2/11, then min(0.2, 3/12) = 0.2."""
    module = module_of(0.0)
    averages = ModelEma(module, 0.2)
    for step in (1, 2):
        with torch.no_grad():
            module.weight.fill_(float(step))
        averages.update(step)
    expected = 0.2 * (1 - 2 / 11) + 0.8 * 2
    with averages.in_place():
        torch.testing.assert_close(module.weight, torch.full((1, 1), expected))
        torch.testing.assert_close(module.bias, torch.full((1,), 5.0))  # not trained: no average
    torch.testing.assert_close(module.weight, torch.full((1, 1), 2.0))


def test_restore_takes_the_averages_from_the_module() -> None:
    """As after loading a checkpoint, whose model file holds averages."""
    module = module_of(3.0)
    averages = ModelEma(module, 0.9)
    averages.restore({"weights": {"weight": torch.full((1, 1), 7.0)}})
    assert averages.state()["weights"]["weight"].item() == 7.0 == module.weight.item()
    with averages.in_place():
        assert module.weight.item() == 3.0


def test_an_optimizer_keeps_training_the_same_parameter() -> None:
    module = module_of(0.0)
    optimizer = torch.optim.SGD([module.weight], lr=1.0)
    averages = ModelEma(module, 0.5)
    with averages.in_place():
        pass
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert module.weight.item() == -1.0
