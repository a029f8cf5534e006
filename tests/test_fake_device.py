"""The fake device itself: it sees what a real one would refuse, and every way to wait for one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from .fake_device import fake_device

UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException)


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True).numpy(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1)[x.cpu() > 0],
        lambda x: x.__setitem__(x > 0, 2.0),
        lambda x: x.__setitem__((0, 0), torch.tensor(2.0)),
        lambda x: x[torch.tensor([0])],
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        torch.linalg.inv,
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(2).to(x.device),
    ],
)
@pytest.mark.parametrize("name", ["cuda", "lazy"])
def test_each_way_to_wait_is_seen(name: str, act: Callable[[Tensor], object]) -> None:
    with fake_device(name) as device:
        x = torch.ones(2, 2, device=name)
        assert device.waits == []
        try:
            act(x)
        except UNKNOWN:
            device.waits.append("unknown")
        assert device.waits and all(__file__ in each or each == "unknown" for each in device.waits)


@pytest.mark.parametrize("name", ["cuda", "lazy"])
def test_what_waits_for_nothing_is_not_counted(name: str) -> None:
    with fake_device(name) as device:
        x, on_host = torch.ones(2, 2, device=name), torch.tensor([1, 0])
        index = on_host[on_host > 0].to(name, non_blocking=True)
        x[index] = torch.where(x > 0, x, 0.0)[index] * torch.tensor(2.0)  # one number of the CPU may take part
        x.new_full((), 3), torch.rand(2, device=name), int(on_host.sum())
        assert device.waits == []


@pytest.mark.parametrize("name", ["cuda", "lazy"])
def test_mixed_devices_are_refused(name: str) -> None:
    with fake_device(name):
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.ones(2, device=name) + torch.ones(2)
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.cat([torch.ones(2), torch.ones(2, device=name)])
        with pytest.raises(RuntimeError, match="on the same device"):
            torch._foreach_lerp_([torch.ones(2, device=name), torch.ones(2)], [torch.ones(2, device=name)] * 2, 0.5)


def test_gradients_go_back_on_lazy_and_mixed_devices_are_refused_there_too() -> None:
    with fake_device("lazy"):
        x = torch.ones(2, device="lazy", requires_grad=True)
        (x * 2).sum().backward()
        assert x.grad is not None and x.grad.device == x.device
        x.register_hook(lambda grad: grad * torch.ones(2))
        with pytest.raises(RuntimeError, match="on the same device"):
            (x * 2).sum().backward()


def test_autocast_of_cuda_is_its_own() -> None:
    with fake_device("cuda"), torch.autocast("cuda", torch.bfloat16):
        x = torch.ones(2, 2, device="cuda")
        assert (x @ x).dtype == torch.bfloat16 and torch.softmax(x @ x, 0).dtype == torch.float32
