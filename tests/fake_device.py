"""A device of PyTorch's fake tensors, on any machine: it refuses mixed devices, and knows what the host waits for.

Tensors on the device have shapes and no values; those of the CPU are real. An operation on both fails as it does on a
real device, by a RuntimeError. The device "cuda" takes CUDA's own paths, but autograd asks the driver
before it goes back. So backward passes run on "lazy", of which PyTorch knows nothing but that it is no CPU.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from physseg.train.planning.meter import tensors_in
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class FakeDevice(TorchDispatchMode):
    """What `fake_device` gives. Whatever the host reads of the device is 1."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.waits: list[str] = []
        """What made the host wait for the device, and where in our code: reads, and copies to it that block.

        An operation that cannot go on without values, such as `unique`, raises PyTorch's own error.
        """

    def put(self, module: nn.Module) -> None:
        """As `module.to(device)`, which PyTorch cannot do with fake tensors."""
        for each in module.modules():
            for kind in (each._parameters, each._buffers):
                for name, value in kind.items():
                    if value is not None:
                        moved = value.detach().to(self.name, non_blocking=True)
                        kind[name] = nn.Parameter(moved, value.requires_grad) if kind is each._parameters else moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(COMPOSITE):  # of inference tensors; autograd has taken others apart
            with self:
                return func.decompose(*args, **kwargs)
        given = list(tensors_in((args, tuple(kwargs.values()))))
        here = any(isinstance(each, FakeTensor) for each in given)
        to = kwargs.get("device") and torch.device(kwargs["device"]).type
        if not here and to != self.name:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        moves = func is aten._to_copy.default and to is not None and (to == self.name) != here
        if wait := _wait_of(func, args, kwargs, given, moves):
            frames = [each for each in traceback.extract_stack() if "/torch/" not in each.filename]
            place = next(each for each in reversed(frames) if each.filename != __file__)
            self.waits.append(f"{wait}, {place.filename}:{place.lineno}")
        if moves and here:
            with unset_fake_temporarily():
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if wait == "read":
            return None if func is aten._linalg_check_errors.default else 1.0 if args[0].is_floating_point() else 1
        if "_foreach_" in func.name():  # of which fake tensors look at the first
            for each in given:
                if each.ndim and not isinstance(each, FakeTensor):
                    raise FakeTensorDeviceMismatchError(func, torch.device(self.name), each.device)
        if func is aten.cudnn_grid_sampler.default:  # PyTorch has no fake of it
            func, args = aten.grid_sampler_2d.default, (*args, 0, 0, True)
        return func(*args, **kwargs)


def _wait_of(func: Any, args: Any, kwargs: Any, given: list[Tensor], moves: bool) -> str:
    """What the host waits for before an operation of the device can go on; empty if nothing."""
    if moves and isinstance(args[0], FakeTensor):
        return "read"
    if moves and not kwargs.get("non_blocking"):
        return "copy"
    if func in (aten._local_scalar_dense.default, aten._linalg_check_errors.default):
        return "read"
    if func is aten.copy_.default and not all(isinstance(each, FakeTensor) for each in given):
        return "copy"
    if func._overloadpacket in (aten.index, aten.index_put, aten.index_put_):
        indices = [each for each in args[1] if each is not None]
        if any(each.dtype == torch.bool or not isinstance(each, FakeTensor) for each in indices):
            return "index by a mask, or from the host"
    return ""


@contextmanager
def fake_device(name: str) -> Iterator[FakeDevice]:
    """Inside, tensors may be on the device `name`, "cuda" or "lazy". What was made inside must not be used after."""
    device, mode = FakeDevice(name), FakeTensorMode(allow_non_fake_inputs=True)
    autocast, generator = torch.autocast, torch.Generator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensor, "tolist", lambda tensor: tensor.cpu().tolist())  # theirs reads value by value
        patch.setattr(torch, "Generator", lambda device="cpu": generator())
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda: True)
        if name == "lazy":  # which has no autocast, and no module of its own, which checkpointing looks for
            patch.setattr(torch, "lazy", torch.cpu, raising=False)
            patch.setattr(torch, "autocast", lambda kind, *args, **kwargs: autocast("cpu", *args, **kwargs))
        with mode, device:
            yield device
