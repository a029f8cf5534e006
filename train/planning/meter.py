"""Memory and work of operations that are not carried out: PyTorch's fake tensors have shapes and storages, no values.

Every operation passes a TorchDispatchMode, the backward pass and recomputed parts included. A storage counts from the
operation that makes it until Python lets go of it, as an allocator would count it.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

BLOCK_BYTES = 512
"""What CUDA's caching allocator rounds up to."""
_aten = torch.ops.aten
# PyTorch's formulas know the attention kernels of GPUs; the CPU's take the same arguments in the same order.
_CPU_KERNELS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}


def _convolution_backward(*args: Any, out_val: Any) -> int:
    """PyTorch's formula, but for the weight's gradient: that takes all channels together, whatever the groups."""
    *before, groups, (image, weight, bias) = args
    formula = flop_registry[_aten.convolution_backward]
    of_weight = formula(*before, groups, [False, weight, bias], out_val=out_val) // groups
    return int(formula(*before, groups, [image, False, bias], out_val=out_val) + of_weight)


FLOP_FORMULAS = flop_registry | {cpu: flop_registry[gpu] for cpu, gpu in _CPU_KERNELS.items()}
FLOP_FORMULAS[_aten.convolution_backward] = _convolution_backward
"""FLOP of the operations that have any to speak of: matrix products, convolutions, attention."""


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts inside `with FakeTensorMode(allow_non_fake_inputs=True), meter:`.

    Operations on real tensors alone, such as tokens, which steer Python, are carried out and not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "weights"  # of storages made from now on
        self.held: Counter[str] = Counter()  # bytes by part
        self._live: dict[int, tuple[str, int, weakref.ref[torch.UntypedStorage]]] = {}
        self.restart()

    def restart(self) -> None:
        """Forget work and peak, not what is held."""
        self.peak = self.held.copy()  # bytes by part when most was held
        self.work: Counter[str] = Counter()  # see rehearsal.Reading

    def claim(self, tensor: Tensor, part: str) -> None:
        """Say that a tensor is of another part than the current one."""
        key = tensor.untyped_storage()._cdata
        before, size, reference = self._live[key]
        self._live[key] = part, size, reference
        self.held[before] -= size
        self.held[part] += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, tuple(kwargs.values()))))
        made_here = func is _aten.lift_fresh.default  # by torch.tensor, which ends in this
        if given and not made_here and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        made = list(tensors_in((out,)))
        if formula := FLOP_FORMULAS.get(func._overloadpacket):
            kind = "convolution" if "convolution" in func.name() else "product"
            self.work[kind] += formula(*args, **kwargs, out_val=out)
        elif func._schema.is_mutable or {x.untyped_storage()._cdata for x in made}.difference(self._live):
            self.work["bytes"] += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in (*given, *made))
        for tensor in made:
            self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self._live[key] = self.part, size, weakref.ref(storage, lambda _: self._let_go(key))
        self.held[self.part] += size
        if self.held.total() > self.peak.total():
            self.peak = self.held.copy()

    def _let_go(self, key: int) -> None:
        part, size, _ = self._live.pop(key)
        self.held[part] -= size


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors of an operation's arguments. torch.utils._pytree would do, but holds them in cycles until a gc."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
